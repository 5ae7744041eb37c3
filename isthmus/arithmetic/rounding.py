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
    Skip, x + f(x):   e <- s + u (|x + f| + 2 s),  s = e_x + e_f, or s where no evaluation rounds the sum

and a little more for underflow. While gamma <= 1, no partial sum is above 2 r: e is infinite where that
overflows. A Dense stage on exact inputs (e = 0) stays exact where the sums fit a dyadic grid (`grid`); a unit
with no weights but 0 is exact on any inputs. A Skip evaluates f(x) and then adds it to x, which is no term of
f's own sums. Nothing is rounded there where one of the two is exactly 0, or where both are exact and so is
their sum.
Excluded are Winograd and FFT convolution, TF32, and flush-to-zero. tanh and sigmoid are taken to be right to
`ULPS` units in the last place, or to the smallest normal number where that is more.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from isthmus.arithmetic.grid import value_grid
from isthmus.graph import Clip, Dense, Flatten, Leaky, Skip, Smooth, Stage

ULPS = 4  # stated error of tanh and sigmoid, in units in the last place
# Covers the rounding of the bound itself, computed in float64 from fewer than 2^30 terms.
INFLATION = 1 + 2.0**-20
ASSUMPTIONS = (
    "IEEE rounding to nearest in the model's dtype, every order of summation within a layer, fused or not; "
    f"not Winograd or FFT convolution, TF32 or flush-to-zero; tanh and sigmoid right to {ULPS} ulp, or to "
    "the smallest normal number where that is more"
)


class RunningBound:
    """The bound for one network, with what it needs to know of the weights.

    Args:
        stages: the network; its Dense weights share the dtype of the inputs.
    """

    @torch.no_grad()
    def __init__(self, stages: list[Stage]) -> None:
        self._network = _Chain(stages)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the network and bound the rounding error of every evaluation of it.

        Args:
            x: inputs [N, *shape], float64 or float32, taken as exact.

        Returns:
            The outputs [N, K] in the dtype of ``x``, and the bound e [N, K] in float64; +inf where an
            evaluation may overflow.
        """
        return self._network(x, torch.zeros(x.shape, dtype=torch.float64, device=x.device))


def running_bound(stages: list[Stage], x: Tensor) -> tuple[Tensor, Tensor]:
    """`RunningBound` of a network on some inputs."""
    return RunningBound(stages)(x)


class _Chain:
    """Stages one after another."""

    def __init__(self, stages: Iterable[Stage]) -> None:
        self._stages = [_prepared(stage) for stage in stages]

    def __call__(self, value: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """The last stage's result and its bound, from the first one's value and bound."""
        for stage in self._stages:
            if isinstance(stage, _Affine | _Beside):
                value, error = stage(value, error)
            else:
                value, error = _step(stage, value, error)
            error.nan_to_num_(nan=torch.inf, posinf=torch.inf)
        return value, error


def _prepared(stage: Stage) -> Clip | Leaky | Smooth | Flatten | _Affine | _Beside:
    match stage:
        case Dense():
            return _Affine(stage)
        case Skip():
            return _Beside(stage)
        case _:
            return stage


class _Beside:
    """A Skip stage: the identity and, beside it, a chain."""

    def __init__(self, stage: Skip) -> None:
        self._inner = _Chain(stage.stages)

    def __call__(self, value: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """The stage's result and its bound [N, *shape], from a value and its bound [N, *shape]."""
        added, inner = self._inner(value, error)
        result, passed = value + added, error + inner
        info = torch.finfo(value.dtype)
        # Of a rounded sum, one of these differences is exact and so is not the other summand (Dekker).
        fits = (result - value == added) & (result - added == value)
        nothing = ((value == 0) & (error == 0)) | ((added == 0) & (inner == 0))
        reach = ((value.double() + added.double()).abs() + 2 * passed) * INFLATION
        bound = (passed + info.eps / 2 * reach) * INFLATION
        bound = bound.masked_fill(~(reach <= info.max), torch.inf)
        return result, passed.where(nothing | (fits & (passed == 0)), bound)


def _step(stage: Clip | Leaky | Smooth | Flatten, value: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    info = torch.finfo(value.dtype)
    unit = info.eps / 2
    match stage:
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


class _Affine:
    """A Dense stage, and of its weights what does not depend on the inputs."""

    def __init__(self, stage: Dense) -> None:
        self._stage = stage
        self._weight = stage.weight.double().abs()
        self._bias = torch.zeros_like(self._weight[:, 0]) if stage.bias is None else stage.bias.double().abs()
        self._largest = self._weight.amax(1)
        self._grid = value_grid(stage.weight, dim=1)
        self._bias_grid = value_grid(self._bias[:, None], dim=1)

    def __call__(self, value: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """The stage's result and its bound [N, out], from a value and its bound [N, in]."""
        result = functional.linear(value, self._stage.weight, self._stage.bias)
        info = torch.finfo(value.dtype)
        exact = self._exact(value, error, info)
        if exact.all():
            return result, torch.zeros_like(result, dtype=torch.float64)
        terms = self._weight.shape[1] + 1
        roundoff = terms * info.eps / 2
        gamma = roundoff / (1 - roundoff) if roundoff < 0.5 else torch.inf
        # At least r, and gamma times it is the whole bound: one product of matrices gives both.
        magnitude = value.double().abs().add_(error, alpha=2 + 1 / gamma)
        reach = torch.addmm(self._bias, magnitude, self._weight.T).mul_(INFLATION)
        overflows = ~(reach <= info.max / 2)
        # Products that underflow lose up to half the smallest subnormal number each; adding a normal is fast.
        underflow = max(terms * info.smallest_normal * info.eps, torch.finfo(torch.float64).smallest_normal)
        bound = reach.mul_(gamma).add_(underflow).masked_fill_(self._largest == 0, 0.0)
        return result, bound.masked_fill_(overflows, torch.inf).masked_fill_(exact, 0.0)

    def _exact(self, value: Tensor, error: Tensor, info: torch.finfo) -> Tensor:
        """Where the inputs are exact and so is the result [N, out].

        That is where products and partial sums are multiples of a power of two that fit the significand.
        """
        exact = torch.zeros(len(value), len(self._weight), dtype=torch.bool, device=value.device)
        rows = torch.nonzero((error == 0).all(1)).squeeze(1)
        grid, total = value_grid(value[rows], dim=1), value[rows].double().abs().sum(1) * INFLATION
        # The output that asks least of them rules most rows out.
        hopeful = total * self._largest.amin() * info.eps < torch.exp2(grid + self._grid.amax() + 1)
        rows, grid, total = rows[hopeful], grid[hopeful, None], total[hopeful, None]
        if len(rows):
            grid = torch.minimum(grid + self._grid, self._bias_grid)
            largest = total * self._largest + self._bias
            # eps is 2^(1 - p), so this says largest < 2^(grid + p).
            fits = (largest * info.eps < torch.exp2(grid + 1)) & (largest <= info.max)
            exact[rows] = fits & (torch.exp2(grid) >= info.smallest_normal)
        return exact
