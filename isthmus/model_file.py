"""A saved model without PyTorch: the schema of ``model.json`` and the reader of a model directory.

A model directory holds ``model.safetensors`` (the tensors), ``model.json`` (how to put them together and what
goes in and comes out), ``certificate.json``, and ``model.onnx`` when asked for. Everything is checked on
reading, so what is returned fits together; nothing in it is ever executed or unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load_file

from isthmus._types import DtypeName, PathLike, Task
from isthmus.certificate import Certificate, model_digest
from isthmus.errors import ModelFileError
from isthmus.files import recover

MODEL, DESCRIPTION, CERTIFICATE, ONNX = "model.safetensors", "model.json", "certificate.json", "model.onnx"

LARGEST_JSON = 1 << 26  # bytes; a description holds names, not numbers
LARGEST_HEADER = 100_000_000  # bytes, as safetensors itself has it
DEEPEST = 16  # Residuals within one another

Schema = TypeVar("Schema", bound=BaseModel)
Size = Annotated[int, Field(ge=1, lt=1 << 40)]


class _Layer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: Annotated[str, Field(min_length=1, max_length=200)]


class Linear(_Layer):
    """x -> W x + b, with the tensors ``name.weight`` [out, in] and ``name.bias`` [out]."""

    type: Literal["Linear"]
    in_features: Size
    out_features: Size
    bias: bool


class Hardtanh(_Layer):
    """x -> min(max(x, min_val), max_val)."""

    type: Literal["Hardtanh"]
    min_val: float
    max_val: float

    @model_validator(mode="after")
    def _has_room(self) -> Hardtanh:
        if not self.min_val < self.max_val:
            raise ValueError(f"min_val {self.min_val} is not below max_val {self.max_val}")
        return self


class LeakyReLU(_Layer):
    """x -> x where x >= 0, negative_slope x elsewhere."""

    type: Literal["LeakyReLU"]
    negative_slope: Annotated[float, Field(ge=0, le=1)]


class Dropout(_Layer):
    """Nothing, in evaluation mode."""

    type: Literal["Dropout"]
    p: Annotated[float, Field(ge=0, le=1)]


class Plain(_Layer):
    """A layer without options."""

    type: Literal["Flatten", "ReLU", "ReLU6", "Tanh", "Sigmoid", "Identity"]


class Residual(_Layer):
    """x -> x + f(x), where f is the layers one after another, named from ``name.`` on."""

    type: Literal["Residual"]
    layers: Annotated[tuple[Layer, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _keeps_the_shape(self) -> Residual:
        if any(layer.type == "Flatten" for layer in self.layers):
            raise ValueError("a Residual holds no Flatten")
        return self


Layer = Annotated[Linear | Hardtanh | LeakyReLU | Dropout | Plain | Residual, Field(discriminator="type")]
Residual.model_rebuild()


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
    architecture: tuple[Layer, ...]
    dtype: DtypeName
    input_shape: Annotated[tuple[Size, ...], Field(min_length=1, max_length=64)]
    outputs: Size
    columns: tuple[str, ...]
    classes: tuple[str | int, ...]
    scaling: Literal["in the network"] = "in the network"
    recipe: dict[str, Any]

    @model_validator(mode="after")
    def _is_shallow(self) -> Description:
        within = [layer for layer in self.architecture if isinstance(layer, Residual)]
        for _ in range(DEEPEST):
            within = [inner for layer in within for inner in layer.layers if isinstance(inner, Residual)]
        if within:
            raise ValueError(f"the architecture has more than {DEEPEST} Residuals within one another")
        return self

    @property
    def inputs(self) -> int:
        """How many numbers a row has, d."""
        return math.prod(self.input_shape)

    @property
    def widest(self) -> int:
        """The largest number of values that a layer takes or gives for a row."""
        return max([self.inputs, *(layer.out_features for layer in _linear(self.architecture))])

    def layers(self) -> list[dict[str, Any]]:
        """The architecture as plain data, as the model's digest covers it."""
        return [layer.model_dump() for layer in self.architecture]


def _linear(layers: Sequence[Layer]) -> Iterator[Linear]:
    for layer in layers:
        if isinstance(layer, Linear):
            yield layer
        elif isinstance(layer, Residual):
            yield from _linear(layer.layers)


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
        ModelFileError: not a model directory, or a part is missing, damaged or changed since it was
            certified.
    """
    path = Path(directory)
    try:
        recover(path)
        found = path.is_dir()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be opened: {error.strerror}.") from None
    if not found:
        raise ModelFileError(
            f"{path}: there is no such model directory; isthmus memorize DATA --out DIR makes one."
        )
    description = _read_json(path / DESCRIPTION, Description)
    certificate = _read_json(path / CERTIFICATE, Certificate)
    shapes = _shapes(path, description)
    if certificate.task != description.task:
        raise ModelFileError(
            f"{path}: {CERTIFICATE} is for {certificate.task}, {DESCRIPTION} for {description.task}."
        )
    tensors = _read_tensors(path / MODEL, description, shapes)
    if model_digest(description.layers(), tensors) != certificate.model_digest:
        raise ModelFileError(
            f"{path}: {MODEL} and {DESCRIPTION} are not what {CERTIFICATE} was issued for (their digest "
            f"differs); one of the three was changed. Build the model again."
        )
    return ModelFile(path, description, tensors, certificate)


def _read_json(path: Path, schema: type[Schema]) -> Schema:
    _require_file(path, LARGEST_JSON)
    try:
        return schema.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ModelFileError(f"{path}: damaged or not written by isthmus: {place}: {first['msg']}.") from None


def _read_tensors(
    path: Path, description: Description, shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    values = sum(math.prod(shape) for shape in shapes.values())
    _require_file(path, values * np.dtype(description.dtype).itemsize + LARGEST_HEADER)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path}: damaged or not a safetensors file: {error}.") from None
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != shapes:
        raise ModelFileError(f"{path}: the tensors are {found}, but {DESCRIPTION} describes {shapes}.")
    for name, tensor in tensors.items():
        if tensor.dtype.name != description.dtype or not np.isfinite(tensor).all():
            raise ModelFileError(f"{path}: {name} is not made of finite {description.dtype} numbers.")
    return tensors


def _require_file(path: Path, largest: int) -> None:
    if not path.is_file():
        raise ModelFileError(f"{path}: the file is missing, so this is no complete model directory.")
    if path.stat().st_size > largest:
        raise ModelFileError(f"{path}: the file is larger than any that belongs here ({largest} bytes).")


def _shapes(path: Path, description: Description) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors by name.

    Raises:
        ModelFileError: the layers do not fit together, or not the inputs, outputs and their names.
    """
    if not _named(description.architecture, ""):
        raise ModelFileError(f"{path}: the names of the layers in {DESCRIPTION} repeat or are out of order.")
    shapes: dict[str, tuple[int, ...]] = {}
    last = _through(path, description.architecture, description.input_shape, shapes)
    size = description.outputs
    if last != (size,):
        raise ModelFileError(f"{path}: the last layer does not give {size} outputs.")
    classes = {str(name) for name in description.classes}
    if len(description.classes) != len(classes) or len(classes) != (
        size if description.task == "classification" else 0
    ):
        raise ModelFileError(f"{path}: {len(classes)} class names for {size} outputs ({description.task}).")
    if len(description.columns) not in {0, description.inputs}:
        raise ModelFileError(
            f"{path}: {len(description.columns)} column names for {description.inputs} inputs."
        )
    return shapes


def _through(
    path: Path, layers: Sequence[Layer], shape: tuple[int, ...], shapes: dict[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """The shape of a row after the layers; what their tensors must be goes into ``shapes``.

    Raises:
        ModelFileError: a layer does not take what it gets, or a Residual changes its shape.
    """
    for layer in layers:
        given = " x ".join(map(str, shape))
        match layer:
            case Linear():
                if shape != (layer.in_features,):
                    raise ModelFileError(
                        f"{path}: layer {layer.name} takes {layer.in_features} inputs, but gets {given}."
                    )
                shape = (layer.out_features,)
                shapes[f"{layer.name}.weight"] = (layer.out_features, layer.in_features)
                if layer.bias:
                    shapes[f"{layer.name}.bias"] = shape
            case Residual():
                added = _through(path, layer.layers, shape, shapes)
                if added != shape:
                    raise ModelFileError(
                        f"{path}: layer {layer.name} adds {' x '.join(map(str, added))} values to {given}."
                    )
            case Plain(type="Flatten"):
                shape = (math.prod(shape),)
    return shape


def _named(layers: Sequence[Layer], prefix: str) -> bool:
    """Whether all names begin with the prefix and go on as in a tree that is walked in this order."""
    if not all(layer.name.startswith(prefix) for layer in layers):
        return False
    return _ordered([layer.name.removeprefix(prefix).split(".") for layer in layers]) and all(
        _named(layer.layers, f"{layer.name}.") for layer in layers if isinstance(layer, Residual)
    )


def _ordered(paths: Sequence[Sequence[str]]) -> bool:
    """Whether paths are the leaves of a tree, each once, in the order in which the tree is walked."""
    branches = [(head, [path[1:] for path in group]) for head, group in groupby(paths, lambda path: path[0])]
    heads = {head for head, _ in branches}
    return len(heads) == len(branches) and all(
        head and (rest == [[]] or (all(rest) and _ordered(rest))) for head, rest in branches
    )
