"""A saved model in NumPy: its forward pass, and a bound on the rounding of any other.

It is written from the mathematics and shares no code with `isthmus.arithmetic.rounding`. Let e bound how far
a unit's value can lie from the exact one, whatever evaluates it in the model's dtype, and h be the value
computed here. With unit roundoff u and n inputs,

    affine:       e' = sum |w| e + g (sum |w| (|h| + 2 e) + |b|) + underflow,  g = (n + 1) u / (1 - (n + 1) u)
    clipped:      e' = 0 where h is beyond the clip by 2 e or more, else e
    f(x) + g(x):  e' = e_f + e_g + u (|f + g| + 2 (e_f + e_g)), each evaluated first and added as a whole

where g covers the n + 1 roundings that a term goes through. A sum has no error where its terms have none, are
whole multiples of one power of two, and are short enough; of two terms it has the other's where one is 0.

Gates are evaluated in float64. The distance q = k |x|^2 + u x - b from a gate's center moves with x' by no
more than |u| e + |k| sum e (|x'| + |x*|), and a term of it goes through n + 3 roundings at most. Where it is
within the plateau for all q in the interval, the gate is exactly 1; where s (|q| - a) is above 1 for all, it
is exactly 0; between them the error of q grows by s. Of products of openings and what is given, each factor's
error counts with the largest value of the other, and one rounding for each gate that may be open. Where a
single one is, and is exactly 1, nothing is rounded but the result, to the dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from isthmus.errors import ModelFileError
from isthmus.model_file import (
    Dropout,
    Gates,
    Hardtanh,
    LeakyReLU,
    Linear,
    ModelFile,
    PairedHead,
    Patched,
    Plain,
    Residual,
)

Evaluate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # [n, *shape] -> outputs, errors [n, K]

CLIPS = {"ReLU": (0.0, np.inf), "ReLU6": (0.0, 6.0)}
INFLATION = 1 + 2.0**-20  # covers the rounding of a bound itself, computed in float64
SMOOTH_ULPS = 4  # to which tanh and the sigmoid are trusted
WIDE = np.finfo(np.float64)
DOUBLE = float(WIDE.eps) / 2  # unit roundoff of gates
GATE_TENSORS = ("normal", "center", "curvature", "plateau", "slope")


def evaluate_numpy(saved: ModelFile) -> Evaluate:
    """The forward pass of a described model in its dtype, with the bound of every output."""

    def evaluate(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _chain(saved, saved.description.architecture, x, np.zeros(x.shape))

    return evaluate


def folded(saved: ModelFile) -> ModelFile:
    """The model with every paired head as one Linear layer of weight [V, -V], as ``model.onnx`` has it."""
    tensors = dict(saved.tensors)

    def plain(layer: Any) -> Any:
        match layer:
            case PairedHead():
                name = f"{layer.name}.weight"
                tensors[name] = np.hstack([tensors[name], -tensors[name]])
                return Linear.model_validate({**layer.model_dump(), "type": "Linear"})
            case Residual():
                return layer.model_copy(update={"layers": tuple(map(plain, layer.layers))})
            case Patched():
                return layer.model_copy(update={"base": tuple(map(plain, layer.base))})
        return layer

    architecture = tuple(map(plain, saved.description.architecture))
    description = saved.description.model_copy(update={"architecture": architecture})
    return replace(saved, description=description, tensors=tensors)


def _chain(
    saved: ModelFile, layers: Sequence[Any], value: np.ndarray, error: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    for layer in layers:
        value, error = _step(saved, layer, value, error)
    return value, error


def _step(
    saved: ModelFile, layer: Any, value: np.ndarray, error: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    info = np.finfo(value.dtype)
    unit = float(info.eps) / 2
    match layer:
        case Linear():
            weight = saved.tensors[f"{layer.name}.weight"]
            bias = saved.tensors[f"{layer.name}.bias"] if layer.bias else np.zeros_like(weight[:, 0])
            return _affine(weight, bias, value, error)
        case PairedHead():
            half = layer.in_features // 2
            weight = saved.tensors[f"{layer.name}.weight"]
            bias = saved.tensors[f"{layer.name}.bias"] if layer.bias else np.zeros_like(weight[:, 0])
            difference = _sum(value[:, :half], error[:, :half], -value[:, half:], error[:, half:])
            return _affine(weight, bias, *difference)
        case Hardtanh():
            return _clip(value, error, layer.min_val, layer.max_val)
        case Plain(type="ReLU" | "ReLU6" as kind):
            return _clip(value, error, *CLIPS[kind])
        case LeakyReLU():
            slope = value.dtype.type(layer.negative_slope)
            result = np.where(value >= 0, value, slope * value)
            rounding = unit * (np.abs(result) + 2 * float(slope) * error) + float(info.smallest_subnormal)
            return result, np.where(value - 2 * error >= 0, error, (error + rounding) * INFLATION)
        case Plain(type="Tanh" | "Sigmoid" as kind):
            result = np.tanh(value) if kind == "Tanh" else 1 / (1 + np.exp(-value))
            rounding = 2 * SMOOTH_ULPS * unit * (np.abs(result) + 2 * error)
            return result, (error + rounding) * INFLATION + float(info.tiny)
        case Plain(type="Flatten"):
            return value.reshape(len(value), -1), error.reshape(len(error), -1)
        case Plain(type="Identity") | Dropout():
            return value, error
        case Residual():
            return _sum(value, error, *_chain(saved, layer.layers, value, error))
        case Patched():
            total = _chain(saved, layer.base, value, error)
            return _patched(saved, layer.patches, value, error, *total)
    raise ModelFileError(f"{saved.path}: the layer {layer.name} is not known.")


def _clip(value: np.ndarray, error: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    low, high = (float(value.dtype.type(limit)) for limit in (low, high))
    clipped = (value - 2 * error >= high) | (value + 2 * error <= low)
    return np.clip(value, value.dtype.type(low), value.dtype.type(high)), np.where(clipped, 0.0, error)


def _sum(
    left: np.ndarray, left_error: np.ndarray, right: np.ndarray, right_error: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    info = np.finfo(left.dtype)
    result, passed = left + right, left_error + right_error
    left, right = left.astype(np.float64), right.astype(np.float64)
    step = _lowest_bit(np.stack([left, right], -1))
    size = (np.abs(left) + np.abs(right)) * INFLATION
    unrounded = (passed == 0) & (size < np.exp2(step + info.nmant + 1)) & (size < float(info.max))
    unrounded |= ((left == 0) & (left_error == 0)) | ((right == 0) & (right_error == 0))
    reach = (np.abs(left + right) + 2 * passed) * INFLATION
    bound = (passed + float(info.eps) / 2 * reach) * INFLATION
    return result, np.where(unrounded, passed, np.where(reach < float(info.max), bound, np.inf))


def _affine(
    weight: np.ndarray, bias: np.ndarray, value: np.ndarray, error: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    info = np.finfo(value.dtype)
    result = value @ weight.T + bias
    value, weight, bias = (np.abs(array.astype(np.float64)) for array in (value, weight, bias))
    exact = (error == 0).all(1, keepdims=True) & _sums_exactly(weight, bias, value, info)
    if exact.all():
        return result, np.zeros(result.shape)
    terms = weight.shape[1] + 1
    roundoff = terms * float(info.eps) / 2
    if roundoff > 0.5:
        return result, np.full(result.shape, np.inf)
    reach = ((value + 2 * error) @ weight.T + bias) * INFLATION
    bound = error @ weight.T + roundoff / (1 - roundoff) * reach
    bound = bound * INFLATION + terms * float(info.smallest_subnormal)
    bound = np.where(weight.any(1), bound, 0.0)  # without weights there is no sum
    return result, np.where(exact, 0.0, np.where(2 * reach < float(info.max), bound, np.inf))


def _sums_exactly(weight: np.ndarray, bias: np.ndarray, value: np.ndarray, info: np.finfo) -> np.ndarray:
    """Where the terms are multiples of one power of two, and too few bits long for rounding [n, out]."""
    step = np.minimum(_lowest_bit(value)[:, None] + _lowest_bit(weight), _lowest_bit(bias[:, None]))
    largest = (value.sum(1)[:, None] * weight.max(1) + bias) * INFLATION
    # Nor is a sum subnormal, or too large.
    return (step >= info.minexp) & (largest < np.exp2(step + info.nmant + 1)) & (largest < float(info.max))


def _lowest_bit(values: np.ndarray) -> np.ndarray:
    """For every row the largest g for which its values [..., m] are multiples of 2^g; +inf if all are 0."""
    fraction, exponent = np.frexp(values)
    whole = np.ldexp(fraction, 53).astype(np.int64)
    return np.where(whole != 0, np.frexp(whole & -whole)[1] + exponent - 54.0, np.inf).min(-1)


# Gates ------------------------------------------------------------------------------------------------------


def _patched(
    saved: ModelFile,
    patches: Sequence[Gates],
    value: np.ndarray,
    error: np.ndarray,
    base: np.ndarray,
    off: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and their errors with what gates add at points: summed in float64, rounded once."""
    total, same = (base.astype(np.float64), off), np.ones(base.shape, dtype=bool)
    for gates in patches:
        given = _gated(saved, gates, value, error)
        same &= (given[0] == 0) & (given[1] == 0)
        total = _sum(*total, *given)
    result, blur = _as(value.dtype, *total)
    return result, np.where(same, off, blur)


def _gated(
    saved: ModelFile, gates: Gates, value: np.ndarray, error: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What gates give [n, K], in float64, and its error."""
    held = {name: saved.tensors[f"{gates.name}.{name}"] for name in GATE_TENSORS}
    shift = saved.tensors[f"{gates.name}.shift"]
    x, error = value.reshape(len(value), -1).astype(np.float64), error.reshape(len(value), -1)
    place = x, error
    if gates.directions:
        frame = saved.tensors[f"{gates.name}.frame"]
        place = _affine(frame, np.zeros(len(frame)), x, error)
    opening, blur = _openings(*place, **held)
    given, off = shift, np.zeros(shift.shape)
    if gates.tilted:
        tilt = saved.tensors[f"{gates.name}.tilt"]
        given, off = _affine(tilt.reshape(-1, gates.inputs), shift.reshape(-1), x, error)
        given, off = given.reshape(-1, *shift.shape), off.reshape(-1, *shift.shape)

    most, largest = opening + 2 * blur, np.abs(given) + 2 * off
    taking_part = np.count_nonzero(most, axis=1)[:, None]
    as_it_is = (taking_part <= 1) & ((most == 0) | ((opening == 1) & (blur == 0))).all(1, keepdims=True)
    reach = _over_gates(most, largest) * INFLATION
    rounding = taking_part * (DOUBLE * INFLATION) * reach + float(WIDE.tiny)
    total = _over_gates(opening, given)
    bound = _over_gates(most, off) + np.where(as_it_is, 0.0, _over_gates(blur, largest) + rounding)
    return total, np.where(2 * reach < float(WIDE.max), bound * INFLATION, np.inf)


def _openings(
    x: np.ndarray,
    error: np.ndarray,
    normal: np.ndarray,
    center: np.ndarray,
    curvature: np.ndarray,
    plateau: np.ndarray,
    slope: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """How far gates are open, and how wrong that may be [n, G], at points and their errors [n, d]."""
    far = np.abs(x) + 2 * error  # no evaluation has a larger |x|
    squares = np.square(far).sum(1)[:, None] * INFLATION
    level = np.square(x).sum(1)[:, None] * curvature + x @ normal.T - center

    terms = x.shape[1] + 3
    size = (far @ np.abs(normal).T + squares * np.abs(curvature) + np.abs(center)) * INFLATION
    moved = error @ np.abs(normal).T
    moved += np.abs(curvature) * (error * (far + np.abs(x) + error)).sum(1)[:, None]
    lost = terms * float(WIDE.smallest_subnormal) * (1 + np.abs(curvature)) + float(WIDE.tiny)
    off = (moved + terms * DOUBLE / (1 - terms * DOUBLE) * size) * INFLATION + lost
    off = np.where(2 * np.maximum(size, squares) < float(WIDE.max), off, np.inf)

    past = np.abs(level) - plateau
    wide_open = -past > 2 * off  # a difference that is rounded lies on the same side of every float
    off = (off + DOUBLE * (np.abs(past) + 2 * off)) * INFLATION
    past = np.maximum(past, 0.0)
    shut = slope * np.maximum(past - 2 * off, 0.0) > 1 + 8 * float(WIDE.eps)
    blur = np.abs(slope) * off + 2 * DOUBLE * (1 + np.abs(slope) * (past + 2 * off))
    blur = np.where(wide_open | shut, 0.0, blur * INFLATION + float(WIDE.tiny))
    return np.maximum(1 - slope * past, 0.0), np.nan_to_num(blur, nan=np.inf, posinf=np.inf)


def _over_gates(weight: np.ndarray, given: np.ndarray) -> np.ndarray:
    """The sum over gates of weights [n, G] times what is given [G, K] or [n, G, K]."""
    return weight @ given if given.ndim == 2 else np.einsum("ng,ngk->nk", weight, given)


def _as(dtype: np.dtype, value: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A float64 value in another dtype, and its error."""
    info, result = np.finfo(dtype), value.astype(dtype)
    if dtype == np.float64:
        return result, error
    size = np.abs(value) + 2 * error
    rounding = float(info.eps) / 2 * size + float(info.smallest_subnormal)
    bound = np.where(error == 0, np.abs(result.astype(np.float64) - value), (error + rounding) * INFLATION)
    return result, np.where(size < float(info.max), bound, np.inf)
