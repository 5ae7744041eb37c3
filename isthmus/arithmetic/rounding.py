"""Running rounding bound: how far any floating-point evaluation of a network can be from the exact one.

For every unit a value h as computed here and a bound e such that |h' - h*| <= e for the exact value h* of
the unit on the given input, and for the value h' that *any* evaluation computes: any order of summation,
fused or not, each operation rounded to nearest with unit roundoff u. By induction over the stages, with
gamma_k = k u / (1 - k u) (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1) and
|h'| <= |h| + 2 e:

    Dense, n inputs:  e <- |W| e + gamma r,  r = |W| (|h| + 2 e) + |b|,  gamma = gamma_(n + 1)
    Clip:             e <- 0 where [h - 2 e, h + 2 e] lies in the clipped part, else e
    Leaky:            e <- e where [h - 2 e, h + 2 e] is not negative, else e + u (|result| + 2 slope e)
    tanh, sigmoid:    e <- e + 2 ULPS u (|result| + 2 e)

and a little more for underflow. While gamma <= 1, no partial sum is above 2 r: e is infinite where that
overflows. A Dense stage on exact inputs (e = 0) stays exact where the sums fit a dyadic grid (`grid`).
Excluded are Winograd and FFT convolution, TF32, and flush-to-zero. tanh and sigmoid are taken to be right to
`ULPS` units in the last place, or to the smallest normal number where that is more.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from isthmus.arithmetic.grid import value_grid
from isthmus.graph import Clip, Dense, Flatten, Leaky, Smooth, Stage

ULPS = 4  # stated error of tanh and sigmoid, in units in the last place
# Covers the rounding of the bound itself, computed in float64 from fewer than 2^30 terms.
INFLATION = 1 + 2.0**-20
ASSUMPTIONS = (
    "IEEE rounding to nearest in the model's dtype, every order of summation, fused or not; not Winograd or "
    f"FFT convolution, TF32 or flush-to-zero; tanh and sigmoid right to {ULPS} ulp, or to the smallest "
    "normal number where that is more"
)


@torch.no_grad()
def running_bound(stages: list[Stage], x: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate a network and bound the rounding error of every evaluation of it.

    Args:
        stages: the network; its Dense weights share the dtype of ``x``.
        x: inputs [N, *shape], float64 or float32, taken as exact.

    Returns:
        The outputs [N, K] in the dtype of ``x``, and the bound e [N, K] in float64; +inf where an evaluation
        may overflow.
    """
    value = x
    error = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for stage in stages:
        value, error = _step(stage, value, error)
        error = error.nan_to_num(nan=torch.inf, posinf=torch.inf)
    return value, error


def _step(stage: Stage, value: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    info = torch.finfo(value.dtype)
    unit = info.eps / 2
    match stage:
        case Dense():
            return _dense(stage, value, error)
        case Clip(low, high):
            settled = (value - 2 * error >= high) | (value + 2 * error <= low)
            return value.clamp(low, high), error.masked_fill(settled, 0.0)
        case Leaky(slope):
            result = functional.leaky_relu(value, slope)
            rounding = unit * (result.abs() + 2 * slope * error) + info.smallest_normal * info.eps
            return result, error.where(value - 2 * error >= 0, (error + rounding) * INFLATION)
        case Smooth(function):
            result = torch.tanh(value) if function == "tanh" else torch.sigmoid(value)
            rounding = 2 * ULPS * unit * (result.abs() + 2 * error)
            # exp overflows, and the sigmoid is 0, a little before its value is subnormal.
            return result, (error + rounding) * INFLATION + info.smallest_normal
        case Flatten():
            return value.flatten(1), error.flatten(1)


def _dense(stage: Dense, value: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    result = functional.linear(value, stage.weight, stage.bias)
    info = torch.finfo(value.dtype)
    exact = (error == 0).all(1, keepdim=True) & _sums_exactly(stage, value, info)
    if exact.all():
        return result, torch.zeros_like(result, dtype=torch.float64)
    weight = stage.weight.double().abs()
    bias = torch.zeros_like(weight[:, 0]) if stage.bias is None else stage.bias.double().abs()
    terms = weight.shape[1] + 1
    roundoff = terms * info.eps / 2
    gamma = roundoff / (1 - roundoff) if roundoff < 0.5 else torch.inf
    # At least r, and gamma times it is the whole bound: one product of matrices gives both.
    reach = ((value.double().abs() + (2 + 1 / gamma) * error) @ weight.T + bias) * INFLATION
    # Products that underflow lose up to half the smallest subnormal number each.
    bound = gamma * reach + terms * info.smallest_normal * info.eps
    overflows = ~(2 * reach <= info.max)
    return result, bound.masked_fill(overflows, torch.inf).masked_fill(exact, 0.0)


def _sums_exactly(stage: Dense, value: Tensor, info: torch.finfo) -> Tensor:
    """Where products and partial sums are multiples of a power of two that fit the significand [N, out]."""
    grid = value_grid(value, dim=1)[:, None] + value_grid(stage.weight, dim=1)
    largest = value.double().abs().sum(1)[:, None] * stage.weight.double().abs().amax(1) * INFLATION
    if stage.bias is not None:
        grid = torch.minimum(grid, value_grid(stage.bias[:, None], dim=1))
        largest = largest + stage.bias.double().abs()
    # eps is 2^(1 - p), so this says largest < 2^(grid + p).
    fits = (largest * info.eps < torch.exp2(grid + 1)) & (largest <= info.max)
    return fits & (torch.exp2(grid) >= info.smallest_normal)
