"""What a saved model says about rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from isthmus._types import PathLike
from isthmus.data import load_inputs
from isthmus.export import instantiate
from isthmus.model_file import ModelFile, read_model
from isthmus.onnx_file import open_onnx

CHUNK_VALUES = 1 << 22  # activations held at a time


def predict(directory: PathLike, inputs: Any) -> list[str | int] | list[list[float]]:
    """Evaluate a saved model; a foreign one by its ONNX file.

    Args:
        directory: a model directory.
        inputs: rows with or without targets: a path, a name, a frame, an array ``[N, *shape]``, a `Dataset`.

    Returns:
        The name of the class with the largest output, or the values, for every row.

    Raises:
        ModelFileError: the model is missing or damaged, or foreign and without an ONNX file.
        MissingExtra: the model is foreign, and ONNX Runtime is not installed.
        DataError: the inputs cannot be read, or are not what the model takes.
    """
    saved = read_model(directory)
    described = saved.description
    model = instantiate(saved) if described.foreign is None else _by_onnx(saved)
    x = load_inputs(inputs, described.columns, described.inputs)
    dtype = getattr(torch, described.dtype)
    with torch.no_grad():
        outputs = torch.cat([
            model(part.to(dtype).reshape(-1, *described.input_shape))
            for part in x.split(max(1, CHUNK_VALUES // described.widest))
        ])
    if described.task == "regression":
        return outputs.tolist()
    return [described.classes[index] for index in outputs.argmax(1).tolist()]


def _by_onnx(saved: ModelFile) -> Callable[[Tensor], Tensor]:
    run = open_onnx(saved, f"evaluating a {saved.description.foreign}")
    return lambda x: torch.from_numpy(run(x.numpy()))
