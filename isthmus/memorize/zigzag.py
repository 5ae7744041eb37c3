"""Zigzag: a ReLU network without twins, with two hidden layers, that memorizes N = d1 d2 real targets.

As in Theorem 3.1 the sorted rows are cut into G groups of n, which are traversed forwards and backwards in
turn. The first layer has one kink per cut, so every second-layer pre-activation g_j is a broken line with its
knots in the cuts. Then

    f = sum_j v_j relu(g_j) - 3,   v_j = +1, -1, +1, ...

is built along the traversal: g_j is 0 between rows j - 1 and j of every group and rises from there, so that f
turns and meets row j. The slope before was steep enough for f to have passed the target there, so that takes
some g_j = r_j > 0: one value in every group, which is what a broken line can have, and one number -M at the
first knot is left to make it steep.

With leaky ReLUs one more unit per output, g_0 = Q - s- sum_j v_j g_j > 0, takes the leaks out again.

The construction is an addition to Yun, Sra and Jadbabaie 2019 (arXiv 1810.07770). With Theorem 3.3 it makes
the capacity of two hidden ReLU layers d1 d2 up to lower order terms. In floating point it is fragile: slopes
grow from unit to unit, so of many lines the one with the least slopes is taken.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from isthmus._types import Progress
from isthmus.data.dataset import Dataset
from isthmus.errors import PrecisionError
from isthmus.memorize.baselines import broken_line
from isthmus.memorize.lines import ascending, column_scale, cut_groups, project
from isthmus.memorize.slopes import alternating_signs
from isthmus.memorize.tilts import fill
from isthmus.nets.sequential import Affine

START = -3.0  # f before the first row of a group
SAFETY = 1.05  # slopes exceed what is needed by this factor
LINES = 32  # to choose from
GROWTH = 1.01  # of the scale M, at least, while a slope is too small


def memorize_values_on_zigzag(
    data: Dataset,
    targets: Tensor,
    groups: int,
    size: int,
    leak: float,
    generator: torch.Generator,
    on_progress: Progress | None = None,
) -> list[Affine]:
    """The network with ReLU-like units in both hidden layers that takes the given values on all rows.

    Args:
        data: distinct rows.
        targets: y in [-1, 1] [N, K].
        groups: G.
        size: n, with G n >= N.
        leak: slope of the activation below 0; 0 for ReLU.
        generator: source of the lines.
        on_progress: told what is done and which part of it.

    Returns:
        Three affine maps, of widths d -> G -> n K, or (n + 1) K with a leak -> K.

    Raises:
        PrecisionError: two rows lie together along every line, or slopes grow beyond float64.
    """
    scale = column_scale(data)
    lines = LINES if int((scale > 0).sum()) > 1 else 1
    directions = torch.randn(data.inputs, lines, generator=generator, dtype=torch.float64) * scale[:, None]
    positions = project(data, directions)
    least, best = math.inf, None
    for index in range(lines):
        position, order = ascending(positions[:, index])
        knots, own, row = _lay(position, groups, size)
        y = targets[order[row.clamp_min(0)]].masked_fill((row < 0)[..., None], 0.0)
        values = _values_at_knots(own, y.permute(2, 0, 1))
        steepest = float((values.diff(dim=-1) / knots.diff()).abs().amax() * (knots[-1] - knots[0]))
        if steepest < least:  # no number is no less
            least, best = steepest, (directions[:, index], knots, values)
        if on_progress is not None:
            on_progress("trying lines", (index + 1) / lines)
    if best is None:
        raise PrecisionError(
            f"{data.source}: the slopes of a zigzag through {groups} groups of {size} rows grow beyond "
            f"float64 along every line; choose the method 'three-layer'."
        )
    return _network(*best, leak)


def _lay(position: Tensor, groups: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut sorted positions [N] into groups between knots.

    Returns:
        The knots [G + 1]; where the rows lie between theirs, in traversal order, from 0 to 1, and their
        places along the line, -1 for virtual rows [G, n].
    """
    bounds = cut_groups(position, groups, size)
    usual = (position[-1] - position[0]) / max(1, len(position) - 1)
    outside = usual if usual > 0 else torch.ones_like(usual)
    padded = torch.cat([position[:1] - outside, position, position[-1:] + outside])
    knots = padded[bounds] + (padded[bounds + 1] - padded[bounds]) / 2
    knots[0], knots[-1] = padded[0], padded[-1]
    place = bounds[:-1, None] + torch.arange(size)
    missing = place >= bounds[1:, None]
    own = position[place.clamp_max(len(position) - 1)].masked_fill(missing, math.inf)
    own, place = fill(own, place, knots[:-1, None], knots[1:, None])
    own = (own - knots[:-1, None]) / knots.diff()[:, None]
    backwards = (alternating_signs(groups) < 0)[:, None]
    return knots, torch.where(backwards, 1 - own.flip(1), own), torch.where(backwards, place.flip(1), place)


def _values_at_knots(own: Tensor, targets: Tensor) -> Tensor:
    """The pre-activations g_j at all knots [K, n, G + 1].

    Args:
        own: where the rows lie between their knots, in traversal order [G, n].
        targets: y of these rows [K, G, n].
    """
    groups, size = own.shape
    sign, v = alternating_signs(groups), alternating_signs(size)
    edges = torch.cat([torch.zeros(groups, 1), own, torch.ones(groups, 1)], 1).double()
    gaps = edges.diff(dim=1)
    values = torch.empty(len(targets), size, groups + 1, dtype=torch.float64)
    slope = torch.zeros(len(targets), groups, dtype=torch.float64)  # of f along the traversal
    start = torch.full_like(slope, START)  # f is start + slope s on every group, as far as it is built
    for j in range(size):
        rise = v[j] * (targets[:, :, j] - start - slope * own[:, j])
        need = SAFETY * torch.maximum(rise / gaps[:, j], slope.abs() + 2 / gaps[:, j + 1])
        along = torch.where(sign > 0, own[:, j], 1 - own[:, j])  # from the left knot
        values[:, j] = _broken_line_through(rise, along, need, sign)
        slope = slope + v[j] * sign * values[:, j].diff(dim=-1)
        start = targets[:, :, j] - slope * own[:, j]
    return values


def _broken_line_through(rise: Tensor, along: Tensor, need: Tensor, sign: Tensor) -> Tensor:
    """A broken line with one given value between any two knots, and slopes as steep as needed [K, G + 1].

    Its value -M at the first knot makes the slope of a group grow at the rate omega, from the homogeneous
    solution eta.

    Args:
        rise: the values [K, G].
        along: where, from 0 at the left knot to 1 at the right one [G].
        need: the least slopes in the direction of the traversal [K, G].
        sign: that direction [G].
    """
    eta = torch.cat([torch.zeros(1, dtype=torch.float64), (torch.log1p(-along) - along.log()).cumsum(0)])
    omega = torch.logaddexp(eta[:-1], eta[1:])
    scale = (need.log() - omega).amax(-1).exp()
    while True:
        value = [-scale]
        for r, part in zip(rise.T, along, strict=True):
            value.append((r - (1 - part) * value[-1]) / part)
        values = torch.stack(value, -1)
        short = ((need - sign * values.diff(dim=-1)) / omega.exp()).amax(-1)
        if not (short > 0).any():
            return values
        scale = torch.where(short > 0, torch.maximum(scale + short, GROWTH * scale), scale)


def _network(direction: Tensor, knots: Tensor, values: Tensor, leak: float) -> list[Affine]:
    """The three affine maps, from the second layer's values at the knots [K, n, G + 1]."""
    outputs, size, _ = values.shape
    v = alternating_signs(size)
    weight, bias = v, START
    columns = values
    if leak:
        leaked = leak * torch.einsum("j,kjg->kg", v, values)
        above = leaked.amax(1) + 1  # Q
        columns = torch.cat([values, (above[:, None] - leaked)[:, None]], 1)
        weight, bias = torch.cat([v, v.new_ones(1)]) / (1 - leak), START - above / (1 - leak)
    first, second = broken_line(direction, knots, columns.flatten(0, 1).T, leak)
    read = torch.block_diag(*[weight[None]] * outputs)
    return [first, second, Affine(read, torch.zeros(outputs, dtype=torch.float64) + bias)]
