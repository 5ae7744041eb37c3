"""A saved model without PyTorch: the schema of ``model.json`` and the reader of a model directory.

A model directory holds ``model.safetensors`` (the tensors), ``model.json`` (how to put them together and what
goes in and comes out), ``certificate.json``, and ``model.onnx`` when asked for. Everything is checked on
reading, so what is returned fits together; nothing in it is ever executed or unpickled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from isthmus._types import PathLike, Task
from isthmus.certificate import Certificate, model_digest
from isthmus.errors import ModelFileError
from isthmus.files import recover

MODEL, DESCRIPTION, CERTIFICATE, ONNX = "model.safetensors", "model.json", "certificate.json", "model.onnx"

Schema = TypeVar("Schema", bound=BaseModel)


class _Layer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str


class Linear(_Layer):
    """x -> W x + b, with the tensors ``name.weight`` [out, in] and ``name.bias`` [out]."""

    type: Literal["Linear"]
    in_features: PositiveInt
    out_features: PositiveInt
    bias: bool


class Hardtanh(_Layer):
    """x -> min(max(x, min_val), max_val)."""

    type: Literal["Hardtanh"]
    min_val: float
    max_val: float


class LeakyReLU(_Layer):
    """x -> x where x >= 0, negative_slope x elsewhere."""

    type: Literal["LeakyReLU"]
    negative_slope: float


class Dropout(_Layer):
    """Nothing, in evaluation mode."""

    type: Literal["Dropout"]
    p: float


class Plain(_Layer):
    """A layer without options."""

    type: Literal["Flatten", "ReLU", "ReLU6", "Tanh", "Sigmoid", "Identity"]


class Description(BaseModel):
    """What ``model.json`` says.

    Attributes:
        kind: the construction, for people.
        architecture: the layers in order, with PyTorch's names and arguments.
        dtype: of the tensors and of the inputs.
        input_shape: of one row.
        columns: names of the input columns in order, if the data had any.
        classes: names of the outputs; empty for regression.
        scaling: where values are scaled: always inside the network.
        recipe: what rebuilds the tensors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["isthmus-model"] = "isthmus-model"
    schema_version: Literal[1] = 1
    kind: str
    task: Task
    architecture: tuple[Linear | Hardtanh | LeakyReLU | Dropout | Plain, ...]
    dtype: Literal["float64", "float32"]
    input_shape: tuple[NonNegativeInt, ...]
    outputs: PositiveInt
    columns: tuple[str, ...]
    classes: tuple[str | int, ...]
    scaling: Literal["in the network"] = "in the network"
    recipe: dict[str, Any]

    def layers(self) -> list[dict[str, Any]]:
        """The architecture as plain data, as the model's digest covers it."""
        return [layer.model_dump() for layer in self.architecture]


@dataclass(frozen=True)
class ModelFile:
    """A model directory, read and checked: description, tensors by name, certificate."""

    path: Path
    description: Description
    tensors: dict[str, np.ndarray]
    certificate: Certificate


def read_model(directory: PathLike) -> ModelFile:
    """Read a model directory and check that its parts belong together.

    Raises:
        ModelFileError: not a model directory, or a part is missing, damaged or changed since it was certified.
    """
    path = Path(directory)
    recover(path)
    if not path.is_dir():
        raise ModelFileError(f"{path}: there is no such model directory; isthmus memorize DATA --out DIR makes one.")
    description = _read_json(path / DESCRIPTION, Description)
    certificate = _read_json(path / CERTIFICATE, Certificate)
    tensors = _read_tensors(path / MODEL)
    _require_fit(path, description, tensors)
    if model_digest(description.layers(), tensors) != certificate.model_digest:
        raise ModelFileError(
            f"{path}: {MODEL} and {DESCRIPTION} are not what {CERTIFICATE} was issued for (their digest differs); "
            f"one of the three was changed. Build the model again."
        )
    return ModelFile(path, description, tensors, certificate)


def _read_json(path: Path, schema: type[Schema]) -> Schema:
    try:
        return schema.model_validate_json(path.read_bytes(), strict=False)
    except FileNotFoundError:
        raise ModelFileError(f"{path}: the file is missing, so this is no complete model directory.") from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ModelFileError(f"{path}: damaged or not written by isthmus: {place}: {first['msg']}.") from None


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ModelFileError(f"{path}: the file is missing, so this is no complete model directory.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path}: damaged or not a safetensors file: {error}.") from None


def _require_fit(path: Path, description: Description, tensors: dict[str, np.ndarray]) -> None:
    """Check names, shapes, dtypes and values of all tensors, and the sizes of inputs and outputs."""
    expected: dict[str, tuple[int, ...]] = {}
    size = math.prod(description.input_shape)
    for layer in description.architecture:
        if isinstance(layer, Linear):
            expected[f"{layer.name}.weight"] = (layer.out_features, layer.in_features)
            if layer.bias:
                expected[f"{layer.name}.bias"] = (layer.out_features,)
            if layer.in_features != size:
                raise ModelFileError(f"{path}: layer {layer.name} takes {layer.in_features} inputs, but gets {size}.")
            size = layer.out_features
    if size != description.outputs or (description.classes and len(description.classes) != size):
        raise ModelFileError(f"{path}: the last layer has {size} outputs, not {description.outputs}.")
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != expected:
        raise ModelFileError(f"{path}: {MODEL} holds {found}, but {DESCRIPTION} describes {expected}.")
    for name, tensor in tensors.items():
        if tensor.dtype.name != description.dtype or not np.isfinite(tensor).all():
            raise ModelFileError(f"{path}: the tensor {name} is not made of finite {description.dtype} numbers.")
