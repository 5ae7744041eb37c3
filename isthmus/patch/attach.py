"""What can be repaired, opened as a PyTorch module, and the same with gates beside it."""

from __future__ import annotations

import math
import os
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from isthmus._extras import require
from isthmus.data import load_inputs
from isthmus.data.dataset import Dataset
from isthmus.errors import DataError, InputError
from isthmus.export import instantiate
from isthmus.graph import device_of
from isthmus.model_file import read_model
from isthmus.nets.onnx_model import OnnxModel, open_onnx
from isthmus.nets.patched import Gates, Patched
from isthmus.patch.graft import graft, patches, ungraft


@dataclass(frozen=True)
class Opened:
    """A model that can be repaired.

    Attributes:
        module: what runs.
        classes: names of its outputs; empty if they are not known.
        columns: names of its inputs; empty if they are not known.
        shape: of one row; None where it is not known.
        issued_for: the digest of the cases that it was saved with, if it says so.
    """

    module: nn.Module
    classes: tuple[str | int, ...] = ()
    columns: tuple[str, ...] = ()
    shape: tuple[int | None, ...] = (None,)
    issued_for: str | None = None

    @property
    def names(self) -> tuple[str | int, ...]:
        """Of the outputs: those of an ONNX graph may be known only when it has run."""
        if isinstance(self.module, OnnxModel) and not self.classes:
            return self.module.classes
        return self.classes

    def taken(self, data: Dataset) -> Dataset:
        """Rows as the model takes them: columns in its order, found by name, in the shape that it knows.

        Raises:
            DataError: a column that is not there, or rows of another size.
        """
        if self.columns and data.columns:
            x = load_inputs(data, self.columns, len(self.columns))
            data = replace(data, x=x, columns=self.columns)
        if self.size is None or tuple(data.x.shape[1:]) == self.shape:
            return data
        if self.size != data.inputs:
            raise DataError(f"{data.source}: {data.inputs} inputs in a row, but the model takes {self.size}.")
        return replace(data, x=self.shaped(data.x))

    @property
    def size(self) -> int | None:
        """How many numbers a row has, if that is known."""
        known = [size for size in self.shape if size is not None]
        return math.prod(known) if len(known) == len(self.shape) else None

    def shaped(self, x: Tensor) -> Tensor:
        """Rows [N, d] in the shape that the model takes, if that is known."""
        return x if self.size is None else x.reshape(len(x), *(size or 1 for size in self.shape))


def open_model(model: Any) -> Opened:
    """A module, an ONNX graph or a path, ready to run.

    Raises:
        InputError: none of these, or a file that cannot be used.
        ModelFileError: a directory that is no sound model directory.
        MissingExtra: the extra ``onnx`` is not installed.
    """
    if isinstance(model, Opened):
        return model
    if type(model).__name__ == "ModelProto":
        require("onnx", "an ONNX model")
        model = OnnxModel(model)
    elif isinstance(model, str | os.PathLike):
        path = Path(model)
        if path.suffix.lower() != ".onnx":
            saved = read_model(path)
            told = saved.description
            digest = saved.certificate.data_digest
            return Opened(instantiate(saved), told.classes, told.columns, told.input_shape, digest)
        model = open_onnx(path)
    if isinstance(model, OnnxModel):
        known = {entry.key: entry.value for entry in model.proto.metadata_props}
        return Opened(model, shape=model.shape, issued_for=known.get("data_digest"))
    if isinstance(model, nn.Module):
        return Opened(model)
    raise InputError(
        f"expected a torch.nn.Module, an ONNX model, or the path of one, found {type(model).__name__}."
    )


def attach(base: nn.Module, gates: Gates, shares: bool) -> nn.Module:
    """A model with a copy of gates beside it, in evaluation mode; earlier patches stay as they are.

    Raises:
        InputError: the model is on a device without float64.
    """
    if isinstance(base, OnnxModel):
        return OnnxModel(graft(base, gates, shares), base.name)
    device = device_of(base)
    try:
        gates = deepcopy(gates).to(device)
    except TypeError:
        raise InputError(f"gates compute in float64, which {device} has not; move the model first.") from None
    if isinstance(base, Patched) and base.shares == shares:
        return Patched(base.base, [*base.gates(), gates], shares).eval()
    return Patched(base, [gates], shares).eval()


def detach(model: nn.Module) -> nn.Module | None:
    """A model without its last patch; None if it has none."""
    if isinstance(model, OnnxModel):
        return OnnxModel(ungraft(model.proto), model.name) if patches(model.proto) else None
    if isinstance(model, Patched):
        kept = model.gates()[:-1]
        return Patched(model.base, kept, model.shares).eval() if kept else model.base
    return None
