"""Running rounding bound: how far any floating-point evaluation of a network can be from the exact one.

For every unit a value h as computed here and a bound e such that |h' - h*| <= e for the exact value h* of
the unit on the given input, and for the value h' that *any* evaluation computes: any order of summation,
fused or not, each operation rounded to nearest with unit roundoff u. By induction over the stages, with
gamma_k = k u / (1 - k u) (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1) and
|h'| <= |h| + 2 e:

    Dense, n inputs:  e <- |W| e + gamma r,  r = |W| (|h| + 2 e) + |b|,  gamma = gamma_(n + 1)
    Paired:           e <- s + u (|h1 - h2| + 2 s),  s = e_1 + e_2, for the difference, and then as Dense
    Clip:             e <- 0 where [h - 2 e, h + 2 e] lies in the clipped part, else e
    Leaky:            e <- e where [h - 2 e, h + 2 e] is not negative, else e + u (|result| + 2 slope e)
    tanh, sigmoid:    e <- e + 2 ULPS u (|result| + 2 e)
    Sum, f(x) + g(x): e <- s + u (|f + g| + 2 s),  s = e_f + e_g, or s where no evaluation rounds the sum

and a little more for underflow. While gamma <= 1, no partial sum is above 2 r: e is infinite where that
overflows. A Dense stage on exact inputs (e = 0) stays exact where the sums fit a dyadic grid (`grid`); a unit
with no weights but 0 is exact on any inputs. A Sum evaluates its branches and then adds them from left to
right; none is a term of another's sums. Nothing is rounded there where one of the two is exactly 0, or where
both are exact and so is their sum.

Gates compute in float64, to which inputs are widened exactly, so u = 2^-53 here. With z = |x| + 2 e, d inputs
and m gates that are not exactly 0,

    q = k |x|^2 + u x - b:  e_q <- |u| e + |k| sum e (2 |x| + 3 e) + gamma_(d + 3) (|u| z + |k| sum z^2 + |b|)
    t = r(|q| - a):         e_t <- 0, and t = 0, where |q| + 2 e_q < a, else e_q + u (||q| - a| + 2 e_q)
    o = r(1 - s t):         e_o <- 0 where t is exactly 0, and o = 1, or where s (t - 2 e_t) > 1, and o = 0;
                            else |s| e_t + gamma_2 (1 + |s| (t + 2 e_t))
    p = c + V x:            e_p <- |V| e + gamma_(d + 1) (|V| z + |c|), or 0 without V
    sum over o p:           e <- sum w e_p + sum e_o v + gamma_m sum w v,  w = o + 2 e_o, v = |p| + 2 e_p

and the last is e_p alone where one gate is exactly 1 and all others are exactly 0. Both sums in q may be
taken in any order, and so may its three terms: no term goes through more than d + 3 roundings. e is infinite
where anything may overflow, |x|^2 included: 0 times that is no number. With a frame W, q is of W x, which is
a Dense stage. A Sum with gates is added in float64, and then rounded to the dtype of x where a gate adds
anything. Excluded are Winograd and FFT convolution, TF32, and flush-to-zero. tanh and sigmoid are taken to be
right to `ULPS` units in the last place, or to the smallest normal number where that is more.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from isthmus.arithmetic.grid import value_grid
from isthmus.graph import Clip, Dense, Flatten, Gated, Leaky, Paired, Smooth, Stage, Sum

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
            if isinstance(stage, _Affine | _PairedAffine | _Gates | _Branches):
                value, error = stage(value, error)
            else:
                value, error = _step(stage, value, error)
            error.nan_to_num_(nan=torch.inf, posinf=torch.inf)
        return value, error


def _prepared(
    stage: Stage,
) -> Clip | Leaky | Smooth | Flatten | _Affine | _PairedAffine | _Gates | _Branches:
    match stage:
        case Paired():
            return _PairedAffine(stage)
        case Dense():
            return _Affine(stage)
        case Gated():
            return _Gates(stage)
        case Sum():
            return _Branches(stage)
        case _:
            return stage


class _Branches:
    """A Sum stage: chains side by side."""

    def __init__(self, stage: Sum) -> None:
        self._branches = [_Chain(branch) for branch in stage.branches]

    def __call__(self, value: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """The stage's result and its bound [N, *shape], from a value and its bound."""
        (result, own), *others = [branch(value, error) for branch in self._branches]
        bound, same = own, torch.ones_like(own, dtype=torch.bool)
        for added, inner in others:
            same = same & (added == 0) & (inner == 0)
            result, bound = _added(result.to(added.dtype), bound, added, inner)
        if result.dtype == value.dtype:
            return result, bound
        # Gates are in float64; what they add nothing to is not rounded.
        result, bound = _narrowed(result, bound, value.dtype)
        return result, own.where(same, bound)


def _added(value: Tensor, error: Tensor, added: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of two values of one dtype [N, *shape], and its bound, from their bounds."""
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


class _PairedAffine:
    """A Paired stage: the halves' difference, and then an affine map."""

    def __init__(self, stage: Paired) -> None:
        self._affine = _Affine(Dense(stage.weight, stage.bias))

    def __call__(self, value: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """The stage's result and its bound [N, out], from a value and its bound [N, in]."""
        (first, second), (own, other) = value.chunk(2, 1), error.chunk(2, 1)
        return self._affine(*_added(first, own, -second, other))


WIDE = torch.finfo(torch.float64)
SMALLEST = WIDE.smallest_normal * WIDE.eps


def _gamma(roundings: int) -> float:
    """What a term of a float64 sum may lose in so many roundings, as a part of it."""
    return roundings * WIDE.eps / 2 / (1 - roundings * WIDE.eps / 2)


class _Gates:
    """A Gated stage, and of its tensors what does not depend on the inputs."""

    def __init__(self, stage: Gated) -> None:
        self._stage = stage
        self._frame = None if stage.frame is None else _Affine(Dense(stage.frame, None))
        self._normal, self._center = stage.normal.abs(), stage.center.abs()
        self._curvature, self._slope = stage.curvature.abs(), stage.slope.abs()
        affine = None if stage.tilt is None else Dense(stage.tilt.flatten(0, 1), stage.shift.flatten())
        self._tilted = None if affine is None else _Affine(affine)

    def __call__(self, value: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """The stage's result and its bound [N, K], from a value and its bound [N, *shape]."""
        x, error = value.flatten(1).double(), error.flatten(1)
        opening, unsure = self._opening(*((x, error) if self._frame is None else self._frame(x, error)))
        given, passed = self._given(x, error)
        result = _weighted(opening, given)
        grown, most = opening + 2 * unsure, given.abs() + 2 * passed
        reach = _weighted(grown, most) * INFLATION
        terms = (grown > 0).sum(1, keepdim=True)
        single = (terms <= 1) & ((grown == 0) | ((opening == 1) & (unsure == 0))).all(1, keepdim=True)
        gamma = terms * (WIDE.eps / 2 * INFLATION)
        rounded = (_weighted(unsure, most) + gamma * reach + WIDE.smallest_normal).masked_fill(single, 0.0)
        bound = (_weighted(grown, passed) + rounded) * INFLATION
        return result, bound.masked_fill(~(reach <= WIDE.max / 2), torch.inf)

    def _opening(self, x: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """How far every gate is open, and the bound of that [N, G], from inputs and their bounds [N, d]."""
        stage, terms = self._stage, x.shape[1] + 3
        gamma = _gamma(terms)
        level = x @ stage.normal.T - stage.center + x.square().sum(1, keepdim=True) * stage.curvature
        # At least what any order sums up, and gamma times it is the whole bound.
        squares = (x.abs() + 2 * error).square().sum(1, keepdim=True) * INFLATION
        moved = (error * (2 * x.abs() + 3 * error)).sum(1, keepdim=True)
        reach = torch.addmm(self._center, x.abs() + (2 + 1 / gamma) * error, self._normal.T)
        reach = (reach + self._curvature * (squares + moved / gamma)) * INFLATION
        # Where |x|^2 overflows, 0 times that is no number, here as in any evaluation.
        overflows = ~(reach <= WIDE.max / 2)
        # Squares that underflow lose half the smallest subnormal number each, and that is multiplied by k.
        underflow = terms * SMALLEST * self._curvature + WIDE.smallest_normal
        unsure = (gamma * reach + underflow).masked_fill(overflows, torch.inf)

        beyond = level.abs() - stage.plateau
        # Differences are rounded monotonically: what lies strictly between, does so without rounding.
        within = 2 * unsure < -beyond
        unsure = (unsure + WIDE.eps / 2 * (beyond.abs() + 2 * unsure)) * INFLATION
        beyond = torch.relu(beyond)
        # A few roundings below this is still 1.
        closed = stage.slope * torch.relu(beyond - 2 * unsure) >= 1 + 8 * WIDE.eps
        product = self._slope * (beyond + 2 * unsure)
        unsure = (self._slope * unsure + WIDE.eps * (1 + product)) * INFLATION + WIDE.smallest_normal
        opening = torch.relu(1 - stage.slope * beyond)
        return opening, unsure.nan_to_num(torch.inf, torch.inf).masked_fill(within | closed, 0.0)

    def _given(self, x: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """What a gate adds when it is open, and the bound of that: [G, K], with a tilt [N, G, K]."""
        shift = self._stage.shift
        if self._tilted is None:
            return shift, torch.zeros_like(shift)
        given, bound = self._tilted(x, error)
        return given.unflatten(1, shift.shape), bound.unflatten(1, shift.shape)


def _weighted(opening: Tensor, given: Tensor) -> Tensor:
    """The sum over gates of opening [N, G] times what is given [G, K] or [N, G, K]."""
    return (opening[:, None] @ given).squeeze(1)


def _narrowed(value: Tensor, error: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A float64 value rounded to the dtype, and its bound."""
    if dtype == torch.float64:
        return value, error
    info = torch.finfo(dtype)
    result = value.to(dtype)
    reach = value.abs() + 2 * error
    bound = (error + info.eps / 2 * reach + info.smallest_normal * info.eps) * INFLATION
    bound = bound.where(error != 0, (result.double() - value).abs())
    return result, bound.masked_fill(~(reach <= info.max), torch.inf)
