"""What a saved model says about rows."""

from __future__ import annotations

from typing import Any

import torch

from isthmus._types import PathLike
from isthmus.data import load_inputs
from isthmus.export import instantiate
from isthmus.model_file import read_model

CHUNK_VALUES = 1 << 22  # activations held at a time


def predict(directory: PathLike, inputs: Any) -> list[str | int] | list[list[float]]:
    """Evaluate a saved model.

    Args:
        directory: a model directory.
        inputs: rows with or without targets: a path, a name, a frame, an array ``[N, *shape]``, a `Dataset`.

    Returns:
        The name of the class with the largest output, or the values, for every row.

    Raises:
        ModelFileError: the model is missing or damaged.
        DataError: the inputs cannot be read, or are not what the model takes.
    """
    saved = read_model(directory)
    described, model = saved.description, instantiate(saved)
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
