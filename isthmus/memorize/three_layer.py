"""Theorem 3.1: two hidden layers of hard-tanh units memorize N real targets if d1 d2 is about N.

Group the sorted rows into G groups of n. The first layer has a ramp per group (`ramps`); unit j of the second
layer owns the j-th row of every group: its pre-activation g_j equals v_j y there, is at most -1 on the rows
of the group before it, and at least 1 on those after. Then

    f(x) = sum_j v_j H(g_j(x)) + c,   v_j = +1, -1, +1, ...,   c = -1 if n is even, else 0,

equals y on every row: among the clipped units all but at most one cancel in pairs.

g_j is affine on a group, so with entry and exit values e_k, x_k on the ends of its ramp
(1 - alpha) / 2 e_k + (1 + alpha) / 2 x_k = v_j y fixes one by the other, and the ramp's weight is
(x_k - e_k) / 2. A chain of groups hands the value on; between chains a *separator*, one more ramp in the
gap, sets it afresh. The paper's networks are one chain.

Source: Yun, Sra and Jadbabaie 2019 (arXiv 1810.07770), Theorem 3.1 and Appendix B; odd sizes, separators and
tilted lines are additions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from isthmus._types import Progress
from isthmus.data.dataset import Dataset
from isthmus.memorize.lines import Line
from isthmus.memorize.ramps import WORKSPACE, Ramps, draw_ramps
from isthmus.memorize.slopes import alternating_signs, slope_requirement
from isthmus.nets.sequential import Affine

GROWTH = 1.3  # of the scale M of units whose slopes are still too small


def first_layer_width(groups: int, chain: int) -> int:
    """d1: a ramp per group and a separator between chains."""
    return groups + -(-groups // chain) - 1


def memorize_values(
    data: Dataset,
    line: Line,
    targets: Tensor,
    groups: int,
    size: int,
    chain: int,
    on_progress: Progress | None = None,
    *,
    respacing: bool = False,
) -> list[Affine]:
    """The hard-tanh network of Theorem 3.1 that takes the given values on all rows.

    Args:
        data: distinct rows.
        line: the same rows, sorted.
        targets: y in [-1, 1] [N, K].
        groups: G.
        size: n, second-layer units per output; G n >= N.
        chain: groups between separators; ``groups`` for none, as in the paper.
        on_progress: told what is done and which part of it.
        respacing: let groups take lines of their own along which their rows are equally spaced.

    Returns:
        Three affine maps, of widths d -> G + separators -> n K -> K.

    Raises:
        PrecisionError: two rows lie together along every direction tried.
    """
    ramps = draw_ramps(data, line, targets, groups, size, chain, on_progress, respacing=respacing)
    left, right = solve_chains(ramps, targets, chain)
    return [
        first_layer(line, ramps, chain),
        second_layer(left, right, chain),
        output_layer(size, targets.shape[1]),
    ]


def solve_chains(ramps: Ramps, targets: Tensor, chain: int) -> tuple[Tensor, Tensor]:
    """The values of all second-layer units at the left and right ends of every ramp [G, K n], outputs major.

    Args:
        ramps: G groups of n rows.
        targets: y in [-1, 1] [N, K].
        chain: groups per chain.
    """
    groups, size = ramps.row.shape
    units = size * targets.shape[1]
    sign = alternating_signs(groups)[:, None]
    left, right = torch.empty(2, groups, units, dtype=torch.float64)
    batch = chain * max(1, WORKSPACE // (chain * units))
    for k in (slice(start, start + batch) for start in range(0, groups, batch)):
        row, alpha = ramps.row[k], ramps.alpha[k]
        own = targets.index_select(0, row.clamp_min(0).flatten()).unflatten(0, row.shape)
        own.masked_fill_((row < 0)[..., None], 0.0)  # [G, n, K]
        requirement = slope_requirement(alpha, own.amax(-1), own.amin(-1)).repeat(1, targets.shape[1])
        values = (own * alternating_signs(size)[:, None]).transpose(1, 2).flatten(1)  # v_j y
        beta = (alpha * sign[k]).repeat(1, targets.shape[1])
        left[k], right[k] = _solve(values, beta, requirement, sign[k], chain)
    return left, right


def _solve(
    values: Tensor, beta: Tensor, requirement: Tensor, sign: Tensor, chain: int
) -> tuple[Tensor, Tensor]:
    """The recursion of whole chains: the units' values at the left and right ends of every ramp [G, U].

    The one free number of a chain, its first value -M, is the smallest that makes all slopes meet the
    requirement: a slope grows with M at the rate omega = (|eta_(k-1)| + |eta_k|) / 2, where eta solves the
    homogeneous recursion.

    Args:
        values: v_j y of the rows that the units own [G, U].
        beta: where these lie on the ramps, along the line [G, U].
        requirement: the least slopes [G, U].
        sign: s_k [G, 1].
        chain: groups per chain.
    """
    groups, units = beta.shape
    steps = [slice(step, groups, chain) for step in range(min(chain, groups))]
    eta = torch.zeros(-(-groups // chain), units, dtype=torch.float64)
    scale = torch.full_like(eta, -math.inf)
    for k in steps:
        here = slice(0, len(beta[k]))
        ahead = eta[here] + torch.log1p(-beta[k]) - torch.log1p(beta[k])
        omega = torch.logaddexp(eta[here], ahead) - math.log(2)
        scale[here] = torch.maximum(scale[here], requirement[k].log() - omega)
        eta[here] = ahead
    scale = scale.exp()
    if chain == 1:
        scale += 1  # the one slope is omega (M + s_k v_j y)

    left, right = torch.empty(2, groups, units, dtype=torch.float64)
    while True:
        value = -sign[steps[0]] * scale
        short = torch.zeros_like(scale, dtype=torch.bool)
        for k in steps:
            here = slice(0, len(beta[k]))
            left[k] = value[here]
            right[k] = (2 * values[k] - (1 - beta[k]) * left[k]) / (1 + beta[k])
            short[here] |= sign[k] * (right[k] - left[k]) / 2 < requirement[k]
            value[here] = right[k]
        if not (short & torch.isfinite(scale)).any():
            return left, right
        scale = torch.where(short, GROWTH * scale, scale)


def first_layer(line: Line, ramps: Ramps, chain: int) -> Affine:
    """Ramps with separators between chains, in the order of the line: W [d1, d], b [d1]."""
    groups = len(ramps.alpha)
    starts = torch.arange(chain, groups, chain)  # first groups of all chains but the first
    gap = ramps.gap[starts - 1]
    steepness = 4 / gap.diff(dim=-1)  # flat on the outer quarters of the gap
    rising = alternating_signs(groups)
    weight = torch.cat([rising[:, None] * ramps.weight, steepness * line.direction])
    bias = torch.cat([rising * ramps.bias, -steepness.squeeze(-1) * gap.mean(-1)])
    place = _along_line(groups, starts)
    away = _away_from_middle(len(place))
    return Affine(away[:, None] * weight[place], away * bias[place])


def second_layer(left: Tensor, right: Tensor, chain: int) -> Affine:
    """What every ramp and separator adds to the units as the line passes it: W [units, d1], b [units]."""
    starts = torch.arange(chain, len(left), chain)
    rise = torch.cat([right - left, left[starts] - right[starts - 1]])[_along_line(len(left), starts)] / 2
    bias = left[0] + rise.sum(0)
    return Affine(rise.mul_(_away_from_middle(len(rise))[:, None]).T, bias)


def _along_line(groups: int, starts: Tensor) -> Tensor:
    """The order of ramps 0..G-1 and then separators, each before the chain it starts, along the line."""
    return torch.cat([torch.arange(groups).double(), starts - 0.5]).argsort()


def _away_from_middle(width: int) -> Tensor:
    """Signs that let every ramp rise away from the middle row [width].

    H is odd, so a ramp may run either way. Like this it is -1 on most rows, where its ReLU twins are off.
    """
    return torch.where(torch.arange(width) < width // 2, -1.0, 1.0).double()


def output_layer(size: int, outputs: int) -> Affine:
    """The sum f = sum_j v_j H(g_j) + c for every output: W [K, n K], b [K]."""
    weight = torch.block_diag(*[alternating_signs(size)[None]] * outputs)
    return Affine(weight, torch.full((outputs,), 0.0 if size % 2 else -1.0, dtype=torch.float64))
