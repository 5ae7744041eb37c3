"""A PyTorch model as a list of stages: the one list of what isthmus understands, and why the rest is refused.

A stage is what the mathematics sees: an affine map, a clip, a leaky slope or a smooth monotone function.
Saving, certifying and exact evaluation all start from here, so a layer added to `LAYERS` is known to all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from torch import Tensor, nn

from isthmus.errors import UnsupportedModel


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
    """x -> x where x >= 0, slope x elsewhere; 0 <= slope."""

    slope: float


@dataclass(frozen=True)
class Smooth:
    """x -> tanh(x) or 1 / (1 + exp(-x))."""

    function: Literal["tanh", "sigmoid"]


@dataclass(frozen=True)
class Flatten:
    """[N, *shape] -> [N, d]."""


Stage = Dense | Clip | Leaky | Smooth | Flatten


@dataclass(frozen=True)
class Layer:
    """How one module class is described, rebuilt and understood.

    Attributes:
        module: the class.
        options: the constructor arguments that a description holds, each an attribute of the same name.
        stage: the module as a stage; None if it changes nothing in evaluation mode.
    """

    module: type[nn.Module]
    options: tuple[str, ...]
    stage: Callable[[Any], Stage | None]


def _flatten(module: nn.Flatten) -> Stage:
    if (module.start_dim, module.end_dim) != (1, -1):
        raise UnsupportedModel("Flatten is understood from dimension 1 to the last only.")
    return Flatten()


LAYERS: Final = {
    layer.module.__name__: layer
    for layer in (
        Layer(nn.Linear, ("in_features", "out_features", "bias"), lambda m: Dense(m.weight, m.bias)),
        Layer(nn.Flatten, (), _flatten),
        Layer(nn.Hardtanh, ("min_val", "max_val"), lambda m: Clip(m.min_val, m.max_val)),
        Layer(nn.ReLU, (), lambda m: Clip(0.0, math.inf)),
        Layer(nn.ReLU6, (), lambda m: Clip(0.0, 6.0)),
        Layer(nn.LeakyReLU, ("negative_slope",), lambda m: Leaky(m.negative_slope)),
        Layer(nn.Tanh, (), lambda m: Smooth("tanh")),
        Layer(nn.Sigmoid, (), lambda m: Smooth("sigmoid")),
        Layer(nn.Identity, (), lambda m: None),
        Layer(nn.Dropout, ("p",), lambda m: None),
    )
}

REFUSED: Final = {
    "BatchNorm1d": "fold it into the Linear layer before it",
    "LayerNorm": "it divides by a standard deviation, for which no rounding bound is implemented",
    "GELU": "its library functions come without a stated error",
    "Softmax": "leave it out: it does not change which class is largest",
    "LogSoftmax": "leave it out: it does not change which class is largest",
}


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, Layer]]:
    """Walk over the leaves of nested `Sequential` modules in order.

    Args:
        model: a Sequential, or one layer of the list.

    Yields:
        The leaf's name in the state dict, the leaf, and its entry in the list.

    Raises:
        UnsupportedModel: a leaf that is not in the list, or is in training mode and random there.
    """
    if type(model) is nn.Sequential:
        for name, child in model.named_children():
            for inner, module, layer in layers(child):
                yield f"{name}.{inner}".rstrip("."), module, layer
        return
    kind = type(model).__name__
    layer = LAYERS.get(kind)
    if layer is None or type(model) is not layer.module:
        reason = REFUSED.get(kind, f"understood are Sequential and {', '.join(LAYERS)}")
        raise UnsupportedModel(f"the module {kind} is not understood: {reason}.")
    if isinstance(model, nn.Dropout) and model.training:
        raise UnsupportedModel("Dropout is random in training mode; call model.eval() first.")
    yield "", model, layer


def stages(model: nn.Module) -> list[Stage]:
    """The model as a list of stages, in evaluation order.

    Raises:
        UnsupportedModel: a module outside the list; the message names it and the reason.
    """
    found = (layer.stage(module) for _, module, layer in layers(model))
    return [stage for stage in found if stage is not None]


def describe(model: nn.Module) -> list[dict[str, Any]]:
    """The architecture as plain data: for every leaf its name, type and constructor arguments.

    Raises:
        UnsupportedModel: a module outside the list.
    """
    description = []
    for name, module, layer in layers(model):
        options = {option: getattr(module, option) for option in layer.options}
        if "bias" in options:
            options["bias"] = options["bias"] is not None
        description.append({"name": name, "type": layer.module.__name__, **options})
    return description


def widths(found: list[Stage]) -> tuple[int, ...]:
    """The hidden widths: outputs of every affine stage but the last."""
    return tuple(stage.weight.shape[0] for stage in found if isinstance(stage, Dense))[:-1]
