"""A saved model without PyTorch: the schema of ``model.json`` and the reader of a model directory.

A model directory holds ``model.safetensors`` (the tensors), ``model.json`` (how to put them together and what
goes in and comes out), ``certificate.json``, and ``model.onnx`` when asked for. Everything is checked on
reading, so what is returned fits together; nothing in it is ever executed or unpickled. Of a foreign model
the description gives no more than the class; its tensors are what the file holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load_file

from isthmus._types import DtypeName, PathLike, Task
from isthmus.certificate import Certificate, model_digest
from isthmus.errors import ModelFileError
from isthmus.files import recover

MODEL, DESCRIPTION, CERTIFICATE, ONNX = "model.safetensors", "model.json", "certificate.json", "model.onnx"
REGIME = "regime.safetensors"  # the constraint that the weights were found under, if there was one

LARGEST_JSON = 1 << 26  # bytes; a description holds names, not numbers
LARGEST_HEADER = 100_000_000  # bytes, as safetensors itself has it
LARGEST_FOREIGN = 1 << 34  # bytes of a foreign model's tensors
DEEPEST = 16  # Residuals within one another, and Patched likewise
FOREIGN_DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")

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


class PairedHead(_Layer):
    """[x1, x2] -> V (x1 - x2) + b, with the tensors ``name.weight`` [out, in / 2] and ``name.bias`` [out]."""

    type: Literal["PairedHead"]
    in_features: Annotated[Size, Field(multiple_of=2)]
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


class Gates(_Layer):
    """What `isthmus.nets.patched.Gates` adds; all tensors are float64.

    They are, if there are directions, ``name.frame`` [r, d], ``.normal`` [G, d] or [G, r], ``.center``,
    ``.curvature``, ``.plateau`` and ``.slope`` [G], ``.shift`` [G, K] and, if tilted, ``.tilt`` [G, K, d].
    """

    type: Literal["Gates"]
    inputs: Size
    gates: Size
    outputs: Size
    tilted: bool
    directions: Annotated[int, Field(ge=0, lt=1 << 40)]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors by name."""
        each = dict.fromkeys(("center", "curvature", "plateau", "slope"), (self.gates,))
        shapes: dict[str, tuple[int, ...]] = {"normal": (self.gates, self.directions or self.inputs), **each}
        if self.directions:
            shapes["frame"] = (self.directions, self.inputs)
        shapes["shift"] = (self.gates, self.outputs)
        if self.tilted:
            shapes["tilt"] = (self.gates, self.outputs, self.inputs)
        return {f"{self.name}.{tensor}": shape for tensor, shape in shapes.items()}


class Residual(_Layer):
    """x -> x + f(x), where f is the layers one after another, named from ``name.`` on."""

    type: Literal["Residual"]
    layers: Annotated[tuple[Layer, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _keeps_the_shape(self) -> Residual:
        if any(layer.type == "Flatten" for layer in _every(self.layers)):
            raise ValueError("a Residual holds no Flatten")
        return self


class Patched(_Layer):
    """x -> f(x) + what the gates give, in order.

    f is the one layer ``name.base``, or those named from ``name.base.`` on; the gates are ``name.patches.0``
    and so on. A model that is a Patched as a whole has no name.
    """

    type: Literal["Patched"]
    name: Annotated[str, Field(max_length=200)]
    base: tuple[Layer, ...]
    patches: tuple[Gates, ...]


class Foreign(_Layer):
    """A whole model of a class that isthmus does not describe."""

    type: Literal["Foreign"]
    name: Literal["model"]
    module: Annotated[str, Field(min_length=1, max_length=1000)]


Layer = Annotated[
    Linear | PairedHead | Hardtanh | LeakyReLU | Dropout | Plain | Residual | Patched,
    Field(discriminator="type"),
]
TopLayer = Annotated[
    Linear | PairedHead | Hardtanh | LeakyReLU | Dropout | Plain | Residual | Patched | Foreign,
    Field(discriminator="type"),
]
Residual.model_rebuild()
Patched.model_rebuild()


def _inside(layer: TopLayer) -> tuple[Layer, ...]:
    return layer.layers if isinstance(layer, Residual) else layer.base if isinstance(layer, Patched) else ()


def _every(layers: Sequence[TopLayer]) -> Iterator[TopLayer]:
    """Walk over all layers in order.

    Yields:
        A layer, and then those inside it.
    """
    for layer in layers:
        yield layer
        yield from _every(_inside(layer))


class Description(BaseModel):
    """What ``model.json`` says.

    Attributes:
        kind: the construction, for people.
        architecture: the layers in order, with PyTorch's names and arguments, or one `Foreign`.
        dtype: of the inputs, and of the tensors but those of `Gates` and of foreign models.
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
    architecture: tuple[TopLayer, ...]
    dtype: DtypeName
    input_shape: Annotated[tuple[Size, ...], Field(min_length=1, max_length=64)]
    outputs: Size
    columns: tuple[str, ...]
    classes: tuple[str | int, ...]
    scaling: Literal["in the network"] = "in the network"
    recipe: dict[str, Any]

    @model_validator(mode="after")
    def _is_shallow(self) -> Description:
        within: list[TopLayer] = [*self.architecture]
        for _ in range(DEEPEST):
            within = [inner for layer in within for inner in _inside(layer)]
        if any(isinstance(layer, Residual | Patched) for layer in within):
            raise ValueError(
                f"the architecture has more than {DEEPEST} Residuals within one another, or Patched"
            )
        return self

    @model_validator(mode="after")
    def _is_foreign_or_described(self) -> Description:
        if len(self.architecture) > 1 and any(isinstance(layer, Foreign) for layer in self.architecture):
            raise ValueError("a Foreign is a whole model, but other layers stand beside it")
        return self

    @property
    def foreign(self) -> str | None:
        """The class of a model whose layers are not described; None for all others."""
        first = self.architecture[0] if self.architecture else None
        return first.module if isinstance(first, Foreign) else None

    @property
    def inputs(self) -> int:
        """How many numbers a row has, d."""
        return math.prod(self.input_shape)

    @property
    def widest(self) -> int:
        """The largest number of values that a layer takes or gives for a row."""
        most = [self.inputs, self.outputs]
        for layer in _every(self.architecture):
            if isinstance(layer, Linear | PairedHead):
                most.append(layer.out_features)
            elif isinstance(layer, Patched):
                most += [gates.gates * (gates.outputs if gates.tilted else 2) for gates in layer.patches]
        return max(most)

    def layers(self) -> list[dict[str, Any]]:
        """The architecture as plain data, as the model's digest covers it."""
        return [layer.model_dump() for layer in self.architecture]


class _Held(NamedTuple):
    """What a tensor is to be."""

    dtype: str
    shape: tuple[int, ...]


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
    if path.is_file():
        raise ModelFileError(f"{path}: this is a file, but a model directory is wanted.")
    if not found:
        raise ModelFileError(
            f"{path}: there is no such model directory; isthmus memorize DATA --out DIR makes one."
        )
    description = _read_json(path / DESCRIPTION, Description)
    certificate = _read_json(path / CERTIFICATE, Certificate)
    wanted = _wanted(path, description)
    if certificate.task != description.task:
        raise ModelFileError(
            f"{path}: {CERTIFICATE} is for {certificate.task}, {DESCRIPTION} for {description.task}."
        )
    tensors = _read_tensors(path / MODEL, wanted)
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


def _read_tensors(path: Path, wanted: dict[str, _Held] | None) -> dict[str, np.ndarray]:
    """The tensors by name; any are good if it is not known which are wanted.

    Raises:
        ModelFileError: the file is missing, damaged, too large, or holds other tensors.
    """
    if wanted is None:
        largest = LARGEST_FOREIGN
    else:
        largest = sum(math.prod(held.shape) * np.dtype(held.dtype).itemsize for held in wanted.values())
    _require_file(path, largest + LARGEST_HEADER)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path}: damaged or not a safetensors file: {error}.") from None
    if wanted is None:
        for name, tensor in tensors.items():
            if tensor.dtype.name not in FOREIGN_DTYPES or not np.isfinite(tensor).all():
                raise ModelFileError(
                    f"{path}: {name} is not made of finite numbers of a dtype that is saved."
                )
        return tensors
    found = {name: tensor.shape for name, tensor in tensors.items()}
    shapes = {name: held.shape for name, held in wanted.items()}
    if found != shapes:
        raise ModelFileError(f"{path}: the tensors are {found}, but {DESCRIPTION} describes {shapes}.")
    for name, tensor in tensors.items():
        if tensor.dtype.name != wanted[name].dtype or not np.isfinite(tensor).all():
            raise ModelFileError(f"{path}: {name} is not made of finite {wanted[name].dtype} numbers.")
    return tensors


def _require_file(path: Path, largest: int) -> None:
    if not path.is_file():
        raise ModelFileError(f"{path}: the file is missing, so this is no complete model directory.")
    if path.stat().st_size > largest:
        raise ModelFileError(f"{path}: the file is larger than any that belongs here ({largest} bytes).")


def _wanted(path: Path, description: Description) -> dict[str, _Held] | None:
    """What all tensors are to be, by name; None for a foreign model, of which nothing is known.

    Raises:
        ModelFileError: the layers do not fit together, or not the inputs, outputs and their names.
    """
    size = description.outputs
    wanted: dict[str, _Held] | None = None
    if description.foreign is None:
        if not _named(description.architecture, ""):
            raise ModelFileError(
                f"{path}: the names of the layers in {DESCRIPTION} repeat or are out of order."
            )
        wanted = {}
        if _through(path, description.architecture, description, description.input_shape, wanted) != (size,):
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
    return wanted


def _through(
    path: Path,
    layers: Sequence[TopLayer],
    description: Description,
    shape: tuple[int, ...],
    wanted: dict[str, _Held],
) -> tuple[int, ...]:
    """The shape of a row after the layers; what their tensors must be goes into ``wanted``.

    Raises:
        ModelFileError: a layer does not take what it gets, a Residual changes its shape, or gates give other
            outputs than what they stand beside.
    """
    dtype = description.dtype
    for layer in layers:
        given = " x ".join(map(str, shape))
        match layer:
            case Linear() | PairedHead():
                if shape != (layer.in_features,):
                    raise ModelFileError(
                        f"{path}: layer {layer.name} takes {layer.in_features} inputs, but gets {given}."
                    )
                shape = (layer.out_features,)
                inputs = layer.in_features // (2 if isinstance(layer, PairedHead) else 1)
                wanted[f"{layer.name}.weight"] = _Held(dtype, (layer.out_features, inputs))
                if layer.bias:
                    wanted[f"{layer.name}.bias"] = _Held(dtype, shape)
            case Residual():
                added = _through(path, layer.layers, description, shape, wanted)
                if added != shape:
                    raise ModelFileError(
                        f"{path}: layer {layer.name} adds {' x '.join(map(str, added))} values to {given}."
                    )
            case Patched():
                taken, shape = math.prod(shape), _through(path, layer.base, description, shape, wanted)
                for gates in layer.patches:
                    if (gates.inputs, (gates.outputs,)) != (taken, shape):
                        raise ModelFileError(
                            f"{path}: {gates.name} gives {gates.outputs} values of {gates.inputs}, but the "
                            f"layers beside it {' x '.join(map(str, shape))} of {taken}."
                        )
                    wanted |= {name: _Held("float64", held) for name, held in gates.shapes().items()}
            case Plain(type="Flatten"):
                shape = (math.prod(shape),)
    return shape


def _named(layers: Sequence[TopLayer], prefix: str) -> bool:
    """Whether all names begin with the prefix and go on as in a tree that is walked in this order."""
    if not all(layer.name.startswith(prefix) for layer in layers):
        return False
    whole = [layer.name for layer in layers] == [""]  # the model is one Patched
    return (whole or _ordered([layer.name.removeprefix(prefix).split(".") for layer in layers])) and all(
        _named_within(layer) for layer in layers if isinstance(layer, Residual | Patched)
    )


def _named_within(layer: Residual | Patched) -> bool:
    prefix = f"{layer.name}." if layer.name else ""
    if isinstance(layer, Residual):
        return _named(layer.layers, prefix)
    heads = {inner.name.removeprefix(prefix).split(".")[0] for inner in layer.base}
    numbered = [f"{prefix}patches.{index}" for index in range(len(layer.patches))]
    return (
        heads <= {"base"}
        and _named(layer.base, prefix)
        and [gates.name for gates in layer.patches] == numbered
    )


def _ordered(paths: Sequence[Sequence[str]]) -> bool:
    """Whether paths are the leaves of a tree, each once, in the order in which the tree is walked."""
    branches = [(head, [path[1:] for path in group]) for head, group in groupby(paths, lambda path: path[0])]
    heads = {head for head, _ in branches}
    return len(heads) == len(branches) and all(
        head and (rest == [[]] or (all(rest) and _ordered(rest))) for head, rest in branches
    )
