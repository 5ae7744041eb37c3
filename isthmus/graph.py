"""A PyTorch model as a list of stages: the one list of what isthmus understands, and why the rest is refused.

A stage is what the mathematics sees: an affine map, a clip, a leaky slope, a smooth monotone function, or the
identity plus stages of its own.
Saving, certifying and exact evaluation all start from here, so a layer added to `LAYERS` is known to all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import astuple, dataclass
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from isthmus._types import DtypeName
from isthmus.errors import UnsupportedModel
from isthmus.nets.residual import Residual

DTYPES: Final = {name: getattr(torch, name) for name in get_args(DtypeName)}


@dataclass(frozen=True)
class Dense:
    """x -> W x + b: weight [out, in], bias [out] or None."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Clip:
    """x -> min(max(x, low), high): ReLU and hard-tanh alike."""

    low: float
    high: float


@dataclass(frozen=True)
class Leaky:
    """x -> x where x >= 0, slope x elsewhere; 0 <= slope <= 1."""

    slope: float


@dataclass(frozen=True)
class Smooth:
    """x -> tanh(x) or 1 / (1 + exp(-x))."""

    function: Literal["tanh", "sigmoid"]


@dataclass(frozen=True)
class Flatten:
    """[N, *shape] -> [N, d]."""


@dataclass(frozen=True)
class Skip:
    """x -> x + f(x), where f is the stages one after another."""

    stages: tuple[Stage, ...]


Stage = Dense | Clip | Leaky | Smooth | Flatten | Skip


@dataclass(frozen=True)
class Layer:
    """How one module class is described, rebuilt and understood.

    Attributes:
        module: the class.
        options: the constructor arguments that a description holds, each an attribute of the same name, and
            what makes plain data of it.
        stage: the module as a stage; None if it changes nothing in evaluation mode.
    """

    module: type[nn.Module]
    options: dict[str, Callable[[Any], int | float | bool]]
    stage: Callable[[Any], Stage | None]


def _flatten(module: nn.Flatten) -> Stage:
    if (module.start_dim, module.end_dim) != (1, -1):
        raise UnsupportedModel("Flatten is understood from dimension 1 to the last only.")
    return Flatten()


def _hardtanh(module: nn.Hardtanh) -> Stage:
    if math.isinf(module.min_val) or math.isinf(module.max_val):
        raise UnsupportedModel("Hardtanh is understood between finite bounds only; ReLU has no upper one.")
    return Clip(module.min_val, module.max_val)


def _leaky(module: nn.LeakyReLU) -> Stage:
    if not 0 <= module.negative_slope <= 1:
        raise UnsupportedModel(
            f"LeakyReLU is understood with a slope from 0 to 1 only, not {module.negative_slope}."
        )
    return Leaky(module.negative_slope)


def _skip(module: Residual) -> Stage:
    inner = list(inner_layers(module))
    if not inner:
        raise UnsupportedModel(
            "a Residual without layers is not understood; it would add its input to itself."
        )
    found = [(layer, stage) for _, layer, stage in inner if stage is not None]
    if any(isinstance(stage, Flatten) for _, stage in found):
        raise UnsupportedModel("Flatten is not understood inside a Residual; put it before.")
    if found and getattr(found[0][0], "inplace", False):
        raise UnsupportedModel(
            f"the {type(found[0][0]).__name__} that a Residual begins with is not understood: it works in "
            "place, and so changes what the Residual adds."
        )
    skip = Skip(tuple(stage for _, stage in found))
    if affine := _affine(skip.stages):
        taken, given = affine[0].weight.shape[1], affine[-1].weight.shape[0]
        if taken != given:
            raise UnsupportedModel(
                f"a Residual is understood if it keeps the shape, but this makes {given} values of {taken}."
            )
    return skip


LAYERS: Final = {
    layer.module.__name__: layer
    for layer in (
        Layer(
            nn.Linear,
            {"in_features": int, "out_features": int, "bias": lambda bias: bias is not None},
            lambda m: Dense(m.weight, m.bias),
        ),
        Layer(nn.Flatten, {}, _flatten),
        Layer(nn.Hardtanh, {"min_val": float, "max_val": float}, _hardtanh),
        Layer(nn.ReLU, {}, lambda m: Clip(0.0, math.inf)),
        Layer(nn.ReLU6, {}, lambda m: Clip(0.0, 6.0)),
        Layer(nn.LeakyReLU, {"negative_slope": float}, _leaky),
        Layer(nn.Tanh, {}, lambda m: Smooth("tanh")),
        Layer(nn.Sigmoid, {}, lambda m: Smooth("sigmoid")),
        Layer(nn.Identity, {}, lambda m: None),
        Layer(nn.Dropout, {"p": float}, lambda m: None),
        Layer(Residual, {}, _skip),
    )
}

REFUSED: Final = {
    "BatchNorm1d": "fold it into the Linear layer before it",
    "LayerNorm": "it divides by a standard deviation, for which no rounding bound is implemented",
    "GELU": "its library functions come without a stated error",
    "Softmax": "leave it out: it does not change which class is largest",
    "LogSoftmax": "leave it out: it does not change which class is largest",
}


Leaf = tuple[str, nn.Module, Stage | None]


def layers(model: nn.Module) -> Iterator[Leaf]:
    """Walk over the leaves of nested `Sequential` modules in order. A Residual is one leaf.

    Args:
        model: a Sequential, or one layer of the list.

    Yields:
        The leaf's name in the state dict, the leaf, and its stage, or None if it changes nothing.

    Raises:
        UnsupportedModel: a leaf that is not in the list, has options that are not understood, or is in
            training mode and random there.
    """
    # One module may stand in several places, an activation most often; each place is a leaf.
    yield from _leaves(model.named_modules(remove_duplicate=False))


def inner_layers(model: Residual) -> Iterator[Leaf]:
    """What a Residual holds, as `layers` yields it, with names from the Residual on."""
    modules = model.named_modules(remove_duplicate=False)
    next(modules)  # the Residual itself
    return _leaves(modules)


def _leaves(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[Leaf]:
    seen: str | None = None  # what the names begin with inside the last Residual
    for name, module in modules:
        if type(module) is nn.Sequential or (seen is not None and name.startswith(seen)):
            continue
        kind = type(module).__name__
        layer = LAYERS.get(kind)
        if layer is None or type(module) is not layer.module:
            reason = REFUSED.get(kind, f"understood are Sequential and {', '.join(LAYERS)}")
            raise UnsupportedModel(f"the module {kind} is not understood: {reason}.")
        if isinstance(module, nn.Dropout) and module.training:
            raise UnsupportedModel("Dropout is random in training mode; call model.eval() first.")
        yield name, module, layer.stage(module)
        if isinstance(module, Residual):
            seen = f"{name}." if name else ""


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype as NumPy and the command line call it."""
    return str(dtype).removeprefix("torch.")


def stages(model: nn.Module) -> list[Stage]:
    """The model as a list of stages, in evaluation order, with constants as its dtype holds them.

    Raises:
        UnsupportedModel: a module outside the list, or a dtype that is; the message names it and the reason.
    """
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float64)
    if dtype not in DTYPES.values():
        raise UnsupportedModel(f"understood are {', '.join(DTYPES)}, not {dtype}; convert the model first.")
    return [_held(stage, dtype) for _, _, stage in layers(model) if stage is not None]


def _held(stage: Stage, dtype: torch.dtype) -> Stage:
    if isinstance(stage, Skip):
        return Skip(tuple(_held(inner, dtype) for inner in stage.stages))
    if not isinstance(stage, Clip | Leaky):
        return stage
    # PyTorch rounds an activation's constants to the dtype of its input: 0.1 differs between the two.
    return type(stage)(*torch.tensor(astuple(stage), dtype=dtype).tolist())


def cast(model: nn.Sequential, dtype: torch.dtype) -> nn.Sequential:
    """A copy of the model with parameters of this dtype."""
    return deepcopy(model).to(dtype)


def describe(model: nn.Module) -> list[dict[str, Any]]:
    """The architecture as plain data: for every leaf its name, type and constructor arguments.

    A Residual has ``layers``, the same of what it holds.

    Raises:
        UnsupportedModel: a module outside the list.
    """
    return _described(layers(model), "")


def _described(leaves: Iterable[Leaf], prefix: str) -> list[dict[str, Any]]:
    description = []
    for name, module, _ in leaves:
        layer = LAYERS[type(module).__name__]
        options: dict[str, Any] = {
            option: plain(getattr(module, option)) for option, plain in layer.options.items()
        }
        if isinstance(module, Residual):
            below = f"{prefix}{name}." if name else prefix
            options["layers"] = _described(inner_layers(module), below)
        description.append({"name": prefix + name, "type": layer.module.__name__, **options})
    return description


def widths(found: Sequence[Stage]) -> tuple[int, ...]:
    """The hidden widths: outputs of every affine stage but the last, here and in each Skip."""
    hidden: list[int] = []
    last = max((index for index, stage in enumerate(found) if isinstance(stage, Dense)), default=None)
    for index, stage in enumerate(found):
        if isinstance(stage, Skip):
            hidden += widths(stage.stages)
        elif isinstance(stage, Dense) and index != last:
            hidden.append(stage.weight.shape[0])
    return tuple(hidden)


def _affine(found: Sequence[Stage]) -> list[Dense]:
    """The affine stages in order, those within a Skip too."""
    affine: list[Dense] = []
    for stage in found:
        affine += _affine(stage.stages) if isinstance(stage, Skip) else []
        affine += [stage] if isinstance(stage, Dense) else []
    return affine
