"""Ramps: the first layer of Theorem 3.1, one hard-tanh unit per group of consecutive rows.

A group's ramp stays inside (-1, 1) on its own rows and is clipped on all others. It runs along one of many
lines near the common one (`tilts`): for a group on its own the line that spaces its rows best (`spacing`), in
a chain of groups the one that keeps the second layer's weights small (`steering`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from isthmus._types import Progress
from isthmus.arithmetic.grid import round_to_grid
from isthmus.data.dataset import Dataset
from isthmus.errors import PrecisionError
from isthmus.memorize.lines import Line, ascending, cut_groups
from isthmus.memorize.respacing import respace
from isthmus.memorize.slopes import alternating_signs
from isthmus.memorize.spacing import choose_spaced
from isthmus.memorize.steering import REACHES, Walks
from isthmus.memorize.tilts import NEIGHBORS, Tilts, draw_tilts

WORKSPACE = 1 << 19  # numbers held at a time: what a core has at hand


@dataclass(frozen=True)
class Ramps:
    """One ramp per group, and where the group's rows lie on it.

    Attributes:
        weight: the ramps as rows of a layer [G, d].
        bias: [G].
        row: the data row that unit j owns in group k, or -1 for a virtual row [G, n].
        alpha: that row's ramp value, ascending in (-1, 1) [G, n].
        ends: the positions along its own tilted line where every ramp is clipped, ascending [G, 2].
        gap: the positions on either side of every cut between groups, along the untilted line [G - 1, 2].
    """

    weight: Tensor
    bias: Tensor
    row: Tensor
    alpha: Tensor
    ends: Tensor
    gap: Tensor


def draw_ramps(
    data: Dataset,
    line: Line,
    targets: Tensor,
    groups: int,
    size: int,
    chain: int,
    on_progress: Progress | None = None,
    part: slice = slice(None),
    *,
    respacing: bool = False,
) -> Ramps:
    """Choose one ramp per group so that the second layer's weights stay small; O(C N log n) for C candidates.

    Args:
        data: distinct rows.
        line: the same rows, sorted.
        targets: in [-1, 1] [N, K].
        groups: G.
        size: n, units per output, with G n >= N.
        chain: groups in a chain: 1 for independent groups, G to couple all.
        on_progress: told what is done and which part of it.
        part: the sorted rows that are cut into groups; the ramps are clipped on all others. All by default.
        respacing: let groups take lines of their own along which their rows are equally spaced.

    Raises:
        PrecisionError: two rows, or two groups, lie together along every direction tried.
    """
    bounds = cut_groups(line.position[part], groups, size) + (part.start or 0)
    cuts = bounds[1:-1]
    gap = torch.stack([line.position[cuts - 1], line.position[cuts]], -1)
    tilts = draw_tilts(data, line, bounds, size, respace(data, line, bounds) if respacing else None)
    candidates = len(tilts.direction)
    if chain == 1:
        choose = partial(choose_spaced, tilts)
    else:
        highest, lowest = targets.amax(1)[line.order], targets.amin(1)[line.order]
        choose = Walks(tilts, highest, lowest, chain).choose
        candidates *= len(REACHES) ** 2

    tilt = torch.empty(groups, dtype=torch.int64)
    ends = torch.empty(groups, 2, dtype=torch.float64)
    batch = max(1, WORKSPACE // (candidates * (size + 2 * NEIGHBORS)))
    done = 0
    for step in range(chain):
        for k in torch.arange(step, groups, chain).split(batch):
            tilt[k], ends[k] = choose(k)
            if (tilt[k] < 0).any():
                raise PrecisionError(_collision(data, line, bounds, int(k[tilt[k] < 0][0])))
            done += len(k)
            if on_progress is not None:
                on_progress("drawing ramps", done / groups)
    return _assemble(tilts, tilt, ends, gap)


def _assemble(tilts: Tilts, tilt: Tensor, ends: Tensor, gap: Tensor) -> Ramps:
    """The chosen ramps as a layer, with every alpha as that layer computes it.

    Args:
        tilts: the lines of all groups.
        tilt: the chosen one of every group [G].
        ends: of its ramp [G, 2].
        gap: the positions on either side of every cut between groups [G - 1, 2].
    """
    data, line, groups = tilts.data, tilts.line, len(tilt)
    weight = line.direction + tilts.towards(torch.arange(groups), tilt)
    weight = weight * (2 * alternating_signs(groups)[:, None] / ends.diff(dim=-1))
    if line.bits:
        weight = round_to_grid(weight, line.bits, dim=-1)
    weight = weight.to(line.dtype).double()
    bias = torch.empty(groups, dtype=torch.float64)
    alpha = torch.empty(groups, tilts.size, dtype=torch.float64)
    row = torch.empty(groups, tilts.size, dtype=torch.int64)
    flat = data.flat
    for k in torch.arange(groups).split(max(1, WORKSPACE // (tilts.size * data.inputs))):
        wanted, place = tilts.lay(k, tilt[k], ends[k])
        real = place >= 0
        own = line.order[place.clamp_min(0)]
        x = flat.index_select(0, own.flatten()).double().unflatten(0, own.shape)
        inner = torch.bmm(x, weight[k, :, None]).squeeze(-1)
        # Rounding the weights moved the rows, and all of them almost alike: the bias takes that back.
        bias[k] = ((wanted - inner) * real).sum(1) / real.sum(1)
        if line.bits:
            # Not the grid of these weights, which a lone 1.0 would make far too coarse for a bias.
            step = torch.exp2(torch.frexp(weight[k].abs().amax(-1)).exponent.double() - line.bits)
            bias[k] = (bias[k] / step).round() * step
        bias[k] = bias[k].to(line.dtype).double()
        alpha[k], order = ascending(torch.where(real, inner + bias[k, None], wanted))
        row[k] = own.masked_fill(~real, -1).gather(1, order)
    return Ramps(weight, bias, row, alpha, ends, gap)


def _collision(data: Dataset, line: Line, bounds: Tensor, group: int) -> str:
    """The sentence about the two closest rows in and beside a group that no tilt could tell apart."""
    first, last = max(0, int(bounds[group]) - 1), min(len(line.order), int(bounds[group + 1]) + 1)
    closest = first + int(line.position[first:last].diff().argmin())
    one, other = sorted(int(row) + 1 for row in line.order[closest : closest + 2])
    apart = float((data.flat[one - 1].double() - data.flat[other - 1].double()).abs().max())
    return (
        f"{data.source}: float64 cannot tell rows {one} and {other} (of the distinct ones) apart along a "
        f"line: no input differs by more than {apart:.1e} between them. Remove one, or rescale the columns "
        f"in which they differ."
    )
