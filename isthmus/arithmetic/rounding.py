"""Running rounding bound: how far any floating-point evaluation of a network can be from the exact one.

For every unit a value h as computed here and a bound e such that |h' - h*| <= e for the exact value h* of
the unit on the given input, and for the value h' that *any* evaluation computes: any order of summation,
fused or not, each operation rounded to nearest with unit roundoff u. By induction over the stages, with
gamma_k = k u / (1 - k u) (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1) and
|h'| <= |h| + 2 e:

    Dense, n inputs:  e <- |W| ((1 + 2 gamma) e + gamma |h|) + gamma |b|,  gamma = gamma_(n + 1)
    Clip:             e <- 0 where [h - 2 e, h + 2 e] lies in the clipped part, else e
    Leaky, tanh, ...: e <- L e + u |result|, L the Lipschitz constant

A Dense stage on exact inputs (e = 0) stays exact where the sums fit a dyadic grid (`grid`). Excluded are
Winograd and FFT convolution, TF32, and flush-to-zero. tanh and sigmoid are taken to be right to `ULPS`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from isthmus.arithmetic.grid import value_grid
from isthmus.graph import Clip, Dense, Flatten, Leaky, Smooth, Stage

ULPS = 4  # stated error of tanh and sigmoid, in units in the last place
INFLATION = (
    1 + 2.0**-20
)  # covers the rounding of the bound itself, computed in float64 from fewer than 2^30 terms
ASSUMPTIONS = (
    "IEEE rounding to nearest in the model's dtype, every order of summation, fused or not; not Winograd or FFT "
    f"convolution, TF32 or flush-to-zero; tanh and sigmoid right to {ULPS} ulp"
)


def running_bound(stages: list[Stage], x: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate a network and bound the rounding error of every evaluation of it.

    Args:
        stages: the network; its Dense weights share the dtype of ``x``.
        x: inputs [N, *shape], taken as exact.

    Returns:
        The outputs [N, K] in the dtype of ``x``, and the bound e [N, K] in float64; +inf where it overflows.
    """
    value = x
    error = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for stage in stages:
        value, error = _step(stage, value, error)
    return value, error


def _step(stage: Stage, value: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    unit = torch.finfo(value.dtype).eps / 2
    match stage:
        case Dense():
            return _dense(stage, value, error)
        case Clip(low, high):
            settled = (value - 2 * error >= high) | (value + 2 * error <= low)
            return value.clamp(low, high), error.masked_fill(settled, 0.0)
        case Leaky(slope):
            result = functional.leaky_relu(value, slope)
            rounding = unit * (result.abs().double() + slope * 2 * error) + torch.finfo(value.dtype).tiny
            exact = value - 2 * error >= 0
            return result, torch.where(exact, error, (max(1.0, slope) * error + rounding) * INFLATION)
        case Smooth(function):
            result = torch.tanh(value) if function == "tanh" else torch.sigmoid(value)
            return result, (error + 2 * ULPS * unit * result.abs().double()) * INFLATION + unit**2
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
    gamma = terms * info.eps / (2 - terms * info.eps)
    bound = (gamma * value.double().abs() + (1 + 2 * gamma) * error) @ weight.T + gamma * bias
    # Products that underflow lose up to half the smallest subnormal number each.
    bound = bound * INFLATION + terms * info.smallest_normal * info.eps
    return result, bound.masked_fill(exact, 0.0).nan_to_num(nan=torch.inf, posinf=torch.inf)


def _sums_exactly(stage: Dense, value: Tensor, info: torch.finfo) -> Tensor:
    """Where all products and partial sums are multiples of one power of two and fit the significand [N, out]."""
    grid = value_grid(value, dim=1)[:, None] + value_grid(stage.weight, dim=1)
    largest = value.double().abs().sum(1)[:, None] * stage.weight.double().abs().amax(1) * INFLATION
    if stage.bias is not None:
        grid = torch.minimum(grid, value_grid(stage.bias[:, None], dim=1))
        largest = largest + stage.bias.double().abs()
    # eps is 2^(1 - p), so this says largest < 2^(grid + p).
    return (largest * info.eps < torch.exp2(grid + 1)) & (torch.exp2(grid) >= info.smallest_normal)
