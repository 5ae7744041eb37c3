"""A PyTorch model as a list of stages: the one list of what isthmus understands, and why the rest is refused.

A stage is what the mathematics sees: an affine map, a paired one, a clip, a leaky slope, a smooth monotone
function, gates, or a sum of branches that have stages of their own.
Saving, certifying and exact evaluation all start from here, so a layer added to `LAYERS` is known to all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import astuple, dataclass
from itertools import chain
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from isthmus._types import DtypeName
from isthmus.errors import UnsupportedModel
from isthmus.nets.mirrored import MIRRORED
from isthmus.nets.paired import PairedHead
from isthmus.nets.patched import Gates, Patched
from isthmus.nets.residual import Residual

DTYPES: Final = {name: getattr(torch, name) for name in get_args(DtypeName)}


@dataclass(frozen=True)
class Dense:
    """x -> W x + b: weight [out, in], bias [out] or None."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Paired:
    """[x1, x2] -> V (x1 - x2) + b: V weight [out, in / 2], bias [out] or None; the difference comes first."""

    weight: Tensor
    bias: Tensor | None

    @property
    def inputs(self) -> int:
        """How many values it takes."""
        return 2 * self.weight.shape[1]

    def folded(self) -> Dense:
        """The same map with weight [V, -V]; rounding differs."""
        return Dense(torch.cat([self.weight, -self.weight], 1), self.bias)


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
class Gated:
    """What `Gates` adds, computed in float64.

    W frame [r, d] or None, u normal [G, d], b center [G], k curvature [G], a plateau [G], s slope [G], c
    shift [G, K] and V tilt [G, K, d] or None, all in float64.
    """

    frame: Tensor | None
    normal: Tensor
    center: Tensor
    curvature: Tensor
    plateau: Tensor
    slope: Tensor
    shift: Tensor
    tilt: Tensor | None


@dataclass(frozen=True)
class Sum:
    """x -> the branches' results, added from left to right; an empty branch is the identity.

    With gates among them, they are added in float64, and the sum is rounded to the dtype of x.
    """

    branches: tuple[tuple[Stage, ...], ...]


Stage = Dense | Paired | Clip | Leaky | Smooth | Flatten | Gated | Sum


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


def _residual(module: Residual) -> Stage:
    inner = list(inner_layers(module))
    if not inner:
        raise UnsupportedModel(
            "a Residual without layers is not understood; it would add its input to itself."
        )
    found = tuple(stage for _, _, stage in inner if stage is not None)
    if _flattens(found):
        raise UnsupportedModel("Flatten is not understood inside a Residual; put it before.")
    if (first := _in_place(inner)) is not None:
        raise UnsupportedModel(
            f"the {type(first).__name__} that a Residual begins with is not understood: it works in "
            "place, and so changes what the Residual adds."
        )
    if sizes := _sizes(found):
        taken, given = sizes[0][0], sizes[-1][1]
        if taken != given:
            raise UnsupportedModel(
                f"a Residual is understood if it keeps the shape, but this makes {given} values of {taken}."
            )
    return Sum(((), found))


def _patched(module: Patched) -> Stage:
    if module.shares:
        raise UnsupportedModel(
            "a Patched with shares is not understood: it gives a quotient, for which no rounding bound is "
            "implemented."
        )
    base = tuple(stage for _, _, stage in inner_layers(module) if stage is not None)
    patches = tuple(gated(patch) for patch in module.patches)
    sizes = _sizes(base)
    for patch in patches:
        inputs = (patch.normal if patch.frame is None else patch.frame).shape[1]
        outputs = patch.shift.shape[1]
        taken, given = (sizes[0][0], sizes[-1][1]) if sizes else (inputs, inputs)
        if (inputs, outputs) != (taken, given):
            raise UnsupportedModel(
                f"a Patched is understood if its Gates fit its base, but here they make {outputs} values of "
                f"{inputs}, and the base {given} of {taken}."
            )
    return Sum((base, *((patch,) for patch in patches)))


def gated(module: nn.Module) -> Gated:
    """A patch as a stage.

    Raises:
        UnsupportedModel: it is no `Gates`, or not in float64.
    """
    if type(module) is not Gates:
        raise UnsupportedModel(f"the patch {type(module).__name__} is not understood: a patch is a Gates.")
    if any(tensor.dtype != torch.float64 for tensor in module.buffers()):
        raise UnsupportedModel("Gates are understood in float64 only.")
    return Gated(
        module.frame,
        module.normal,
        module.center,
        module.curvature,
        module.plateau,
        module.slope,
        module.shift,
        module.tilt,
    )


def _in_place(inner: Iterable[Leaf]) -> nn.Module | None:
    """The layer that changes the input of what holds these, if one does."""
    for _, layer, stage in inner:
        if isinstance(layer, Patched):
            return _in_place(inner_layers(layer))
        if stage is not None:
            return layer if getattr(layer, "inplace", False) else None
    return None


LAYERS: Final = {
    layer.module.__name__: layer
    for layer in (
        Layer(
            nn.Linear,
            {"in_features": int, "out_features": int, "bias": lambda bias: bias is not None},
            lambda m: Dense(m.weight, m.bias),
        ),
        Layer(
            PairedHead,
            {"in_features": int, "out_features": int, "bias": lambda bias: bias is not None},
            lambda m: Paired(m.weight, m.bias),
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
        Layer(Residual, {}, _residual),
        Layer(Patched, {}, _patched),
    )
}

_UNFOLDED: Final = "it computes differences of halves; make a plain network of the model, isthmus.fold(model)"

REFUSED: Final = {
    **dict.fromkeys((mirrored.__name__ for mirrored in MIRRORED.values()), _UNFOLDED),
    "BatchNorm1d": "fold it into the Linear layer before it",
    "LayerNorm": "it divides by a standard deviation, for which no rounding bound is implemented",
    "GELU": "its library functions come without a stated error",
    "Softmax": "leave it out: it does not change which class is largest",
    "LogSoftmax": "leave it out: it does not change which class is largest",
}


Leaf = tuple[str, nn.Module, Stage | None]


def layers(model: nn.Module) -> Iterator[Leaf]:
    """Walk over the leaves of nested `Sequential` modules in order. A Residual is one leaf, as is a Patched.

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


def inner_layers(model: Residual | Patched) -> Iterator[Leaf]:
    """What a Residual holds, or a Patched's base, as `layers` yields it, with names from the model on."""
    if isinstance(model, Patched):
        return _leaves(model.base.named_modules(prefix="base", remove_duplicate=False))
    modules = model.named_modules(remove_duplicate=False)
    next(modules)  # the Residual itself
    return _leaves(modules)


def _leaves(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[Leaf]:
    seen: str | None = None  # what the names begin with inside the last leaf that holds layers
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
        if isinstance(module, Residual | Patched):
            seen = f"{name}." if name else ""


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype as NumPy and the command line call it."""
    return str(dtype).removeprefix("torch.")


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype that a model takes and gives: its first parameter's; float64 if it has none."""
    return next((parameter.dtype for parameter in model.parameters()), torch.float64)


def device_of(model: nn.Module) -> torch.device:
    """The device that a model computes on: its first tensor's; the processor if it has none."""
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def stages(model: nn.Module) -> list[Stage]:
    """The model as a list of stages, in evaluation order, with constants as its dtype holds them.

    Raises:
        UnsupportedModel: a module outside the list, or a dtype that is; the message names it and the reason.
    """
    dtype = dtype_of(model)
    if dtype not in DTYPES.values():
        raise UnsupportedModel(f"understood are {', '.join(DTYPES)}, not {dtype}; convert the model first.")
    return [_held(stage, dtype) for _, _, stage in layers(model) if stage is not None]


def folded(found: Iterable[Stage]) -> list[Stage]:
    """The stages with every paired one as one Dense stage, the same in exact arithmetic."""
    unpaired: list[Stage] = []
    for stage in found:
        match stage:
            case Paired():
                unpaired.append(stage.folded())
            case Sum(branches):
                unpaired.append(Sum(tuple(tuple(folded(branch)) for branch in branches)))
            case _:
                unpaired.append(stage)
    return unpaired


def _held(stage: Stage, dtype: torch.dtype) -> Stage:
    if isinstance(stage, Sum):
        return Sum(tuple(tuple(_held(inner, dtype) for inner in branch) for branch in stage.branches))
    if not isinstance(stage, Clip | Leaky):
        return stage
    # PyTorch rounds an activation's constants to the dtype of its input: 0.1 differs between the two.
    return type(stage)(*torch.tensor(astuple(stage), dtype=dtype).tolist())


def cast(model: nn.Sequential, dtype: torch.dtype) -> nn.Sequential:
    """A copy of the model with parameters of this dtype."""
    return deepcopy(model).to(dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold a model in evaluation mode; afterwards every module is in its own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def describe(model: nn.Module) -> list[dict[str, Any]]:
    """The architecture as plain data: for every leaf its name, type and constructor arguments.

    A Residual has ``layers``, the same of what it holds; a Patched has ``base``, likewise, and ``patches``.

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
        below = f"{prefix}{name}." if name else prefix
        if isinstance(module, Residual):
            options["layers"] = _described(inner_layers(module), below)
        elif isinstance(module, Patched):
            options["base"] = _described(inner_layers(module), below)
            options["patches"] = [
                {
                    "name": f"{below}patches.{index}",
                    "type": "Gates",
                    "inputs": patch.inputs,
                    "gates": patch.gates,
                    "outputs": patch.outputs,
                    "tilted": patch.tilted,
                    "directions": patch.directions,
                }
                for index, patch in enumerate(module.patches)
            ]
        description.append({"name": prefix + name, "type": layer.module.__name__, **options})
    return description


def foreign(model: nn.Module) -> list[dict[str, Any]]:
    """The architecture of a model that is not understood: what is known of it is its class."""
    return [{"name": "model", "type": "Foreign", "module": _class_name(model)}]


def _class_name(model: nn.Module) -> str:
    own = type(model).__qualname__
    if not isinstance(model, Patched):
        return own
    return f"{own}({_class_name(model.base)}{', shares' * model.shares})"


def architecture(model: nn.Module) -> list[dict[str, Any]]:
    """`describe` of a model that is understood, `foreign` of any other."""
    try:
        stages(model)
        return describe(model)
    except UnsupportedModel:
        return foreign(model)


def widths(found: Sequence[Stage]) -> tuple[int, ...]:
    """The hidden widths: outputs of every affine stage but the last, here and in every branch.

    Gates are two layers: the two ReLUs that are |q| beyond a gate's plateau, and its roof.
    """
    hidden: list[int] = []
    affine = [index for index, stage in enumerate(found) if isinstance(stage, Dense | Paired)]
    for index, stage in enumerate(found):
        match stage:
            case Sum(branches):
                hidden += [width for branch in branches for width in widths(branch)]
            case Gated():
                hidden += [2 * len(stage.normal), len(stage.normal)]
            case Dense() | Paired() if index != affine[-1]:
                hidden.append(stage.weight.shape[0])
    return tuple(hidden)


def widest(found: Sequence[Stage]) -> int:
    """The most values that a stage holds for a row; 0 if none is affine."""
    most = 0
    for stage in found:
        match stage:
            case Sum(branches):
                most = max([most, *map(widest, branches)])
            case Gated():
                each = 2 if stage.tilt is None else stage.shift.shape[1]
                most = max(most, each * len(stage.normal))
            case Dense() | Paired():
                most = max(most, stage.weight.shape[0])
    return most


def _flattens(found: Iterable[Stage]) -> bool:
    """Whether a stage is a Flatten, here or in a branch."""
    return any(
        isinstance(stage, Flatten) or (isinstance(stage, Sum) and any(map(_flattens, stage.branches)))
        for stage in found
    )


def _sizes(found: Iterable[Stage]) -> list[tuple[int, int]]:
    """How many values every affine stage takes and gives, and so do gates, in order and in every branch."""
    sizes: list[tuple[int, int]] = []
    for stage in found:
        match stage:
            case Sum(branches):
                sizes += [size for branch in branches for size in _sizes(branch)]
            case Dense(weight):
                sizes.append((weight.shape[1], weight.shape[0]))
            case Paired(weight):
                sizes.append((stage.inputs, weight.shape[0]))
            case Gated():
                sizes.append((stage.normal.shape[1], stage.shift.shape[1]))
    return sizes
