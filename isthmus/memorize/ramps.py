"""Ramps: the first layer of Theorem 3.1, one hard-tanh unit per group of consecutive rows.

A group's ramp stays inside (-1, 1) on its own rows and is clipped on all others. Groups are traversed in
"snake" order, forwards and backwards in turn, so that alpha, the ramp's value, ascends along the traversal
and unit j of the second layer owns the j-th row of every group (Yun, Sra and Jadbabaie 2019, Lemma B.1).

In a *chain* of groups each unit's value at the end of one group is its value at the start of the next.
The unit's weight then follows eta, a product of (1 - beta) / (1 + beta) over the groups so far: a random
walk in the logarithm, which spoils long chains. So the ramps of a chain are drawn one after the other,
out of many tilts of the line and ends in the gaps beside the group, to steer all walks back to zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from isthmus._types import Progress
from isthmus.arithmetic.grid import round_to_grid
from isthmus.data.dataset import Dataset
from isthmus.errors import PrecisionError
from isthmus.memorize.lines import Line, cut_groups

SAFETY = 1.2  # S: slopes exceed what clipping the neighboring rows needs by this factor
NEIGHBORS = 60  # rows on either side that are kept off a ramp while it is drawn
TILTS = (0.08, 0.25, 0.5)  # how far a tilt moves a typical row, as a part of the gap beside the group
REACH = 1 / 3  # how far a ramp reaches into the gaps beside its group
CHAIN_REACHES = (0.1, 0.5, 0.9)  # how far it may, in a chain, where that is one more way to steer
STEERING = 0.5  # what the walks' mean square counts against the largest weight
WORKSPACE = 1 << 21  # numbers held at a time


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


def alternating_signs(count: int) -> Tensor:
    """+1, -1, +1, ...: s_k, the direction in which group k is traversed, and v_j, unit j's output weight."""
    return 1.0 - 2.0 * (torch.arange(count, dtype=torch.float64) % 2)


def slope_requirement(alpha: Tensor, highest: Tensor, lowest: Tensor) -> Tensor:
    """The weight that unit j needs on a group's ramp to be clipped at all rows but its own.

    S max((1 + v y) / (gap before the own row), (1 - v y) / (gap after it)), over all outputs.

    Args:
        alpha: ramp values in traversal order [..., n].
        highest: the row's largest target [..., n].
        lowest: the row's smallest target [..., n].
    """
    rising = alternating_signs(alpha.shape[-1]) > 0
    above = torch.where(rising, highest, -lowest)
    below = torch.where(rising, lowest, -highest)
    end = torch.ones_like(alpha[..., :1])
    gaps = torch.cat([-end, alpha, end], -1).diff(dim=-1)
    return SAFETY * torch.maximum((1 + above) / gaps[..., :-1], (1 - below) / gaps[..., 1:])


def fill(position: Tensor, place: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Fill short groups up with virtual rows at the midpoints of their widest gaps.

    Args:
        position: ascending, +inf where a row is missing [..., n].
        place: numbers that travel with the positions [..., n].
        left: the ramp's lower end [..., 1].
        right: the ramp's upper end [..., 1].

    Returns:
        Finite positions, and places with -1 for virtual rows.
    """
    size = position.shape[-1]
    while True:
        missing = torch.isinf(position).sum(-1, keepdim=True)
        if not missing.any():
            return position, place
        edges = torch.cat([left, torch.minimum(position, right), right], -1)
        gaps = edges.diff(dim=-1)
        rank = gaps.argsort(-1, descending=True).argsort(-1)
        split = (rank < missing) & (gaps > 0)
        if not split.any():  # no room at all: the candidate is not sound
            return torch.minimum(position, right), place.masked_fill(torch.isinf(position), -1)
        middle = torch.where(split, edges[..., :-1] + gaps / 2, math.inf)
        position, index = torch.cat([position, middle], -1).sort(-1)
        place = torch.cat([place, torch.full_like(middle, -1, dtype=place.dtype)], -1).gather(-1, index)
        position, place = position[..., :size], place[..., :size]


@dataclass
class _Walks:
    """Where every unit of every chain stands [chains, n].

    Attributes:
        eta: log |eta|.
        peak: the largest log of the weight's slope in M so far.
        need: the least log M that meets the requirement so far.
    """

    eta: Tensor
    peak: Tensor
    need: Tensor


@dataclass(frozen=True)
class _Candidates:
    """Ramps to choose from, C for each of B groups.

    Attributes:
        alpha: rows' values in traversal order [B, C, n].
        place: rows' places along the line, -1 if virtual [B, C, n].
        ends: where the ramp is -1 and 1 along the tilted line, in the line's direction [B, C, 2].
        tilt: which tilt a candidate belongs to [C].
        sound: rows apart, and neighbors off the ramp [B, C].
    """

    alpha: Tensor
    place: Tensor
    ends: Tensor
    tilt: Tensor
    sound: Tensor


def draw_ramps(
    data: Dataset,
    line: Line,
    targets: Tensor,
    groups: int,
    size: int,
    chain: int,
    on_progress: Progress | None = None,
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

    Raises:
        PrecisionError: two rows, or two groups, lie together along every direction tried.
    """
    bounds = cut_groups(line.position, groups, size)
    cuts = bounds[1:-1]
    gap = torch.stack([line.position[cuts - 1], line.position[cuts]], -1)
    tilts, directions = _tilts(line, bounds, gap)
    highest, lowest = targets.amax(1)[line.order], targets.amin(1)[line.order]
    farthest = line.offsets.abs().amax(0)

    walks = _Walks(*torch.full((3, -(-groups // chain), size), -math.inf, dtype=torch.float64))
    walks.eta.zero_()
    place = torch.empty(groups, size, dtype=torch.int64)
    alpha = torch.empty(groups, size, dtype=torch.float64)
    ends = torch.empty(groups, 2, dtype=torch.float64)
    tilt = torch.empty(groups, dtype=torch.int64)
    candidates = tilts.shape[1] * (len(CHAIN_REACHES) ** 2 if chain > 1 else 1)
    batch = max(1, WORKSPACE // (candidates * (size + 2 * NEIGHBORS)))
    for step in range(chain):
        active = torch.arange(step, groups, chain)
        for start in range(0, len(active), batch):
            k = active[start : start + batch]
            drawn = _candidates(line, bounds, gap, k, size, tilts, directions, chain > 1)
            off_ramp = partial(_off_ramp, line, bounds, k, drawn, tilts, directions, farthest)
            sign = alternating_signs(2)[k % 2, None, None]
            best = _choose(walks, slice(start, start + len(k)), drawn, sign, highest, lowest, off_ramp)
            if (best < 0).any():
                raise PrecisionError(_collision(data, line, bounds, int(k[best < 0][0])))
            choice = torch.arange(len(k)), best
            place[k], alpha[k], ends[k] = drawn.place[choice], drawn.alpha[choice], drawn.ends[choice]
            tilt[k] = drawn.tilt[best]
            if on_progress is not None:
                on_progress("drawing ramps", (step * groups / chain + start + len(k)) / groups)
    return _assemble(data, line, place, alpha, ends, tilts.gather(1, tilt[:, None]), directions[tilt], gap)


def _tilts(line: Line, bounds: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
    """How far to tilt every group's line [G, T] and towards which of the pencil [T]; first, not at all."""
    beside = torch.cat([gap.diff(dim=-1).squeeze(-1), torch.full((1,), math.inf)]).double()
    usual = (line.position[-1] - line.position[0]) / max(1, len(line.position) - 1)
    # Not less than the usual gap: towards some directions a close neighbor moves away.
    smaller = torch.minimum(beside, beside.roll(1)).clamp_min(usual)
    extent = line.position[bounds[1:] - 1] - line.position[bounds[:-1]]
    # A group of close rows beside a wide gap needs no more than a few of its own spacings.
    spacing = (extent / (bounds.diff() - 1).clamp_min(1)).clamp_min(usual)
    reach = torch.minimum(smaller, 4 * spacing)
    pencil = line.pencil.shape[1]
    part = torch.tensor([sign * part for part in TILTS for sign in (1, -1)], dtype=torch.float64)
    steps = torch.cat([torch.zeros(1, dtype=torch.float64), part.repeat_interleave(pencil)])
    directions = torch.cat([torch.zeros(1, dtype=torch.int64), torch.arange(pencil).repeat(len(part))])
    return reach[:, None] * steps, directions


def _candidates(
    line: Line,
    bounds: Tensor,
    gap: Tensor,
    k: Tensor,
    size: int,
    tilts: Tensor,
    directions: Tensor,
    reaching: bool,
) -> _Candidates:
    rows = len(line.position)
    first, last = bounds[k, None], bounds[k + 1, None]
    place = first + torch.arange(-NEIGHBORS, size + NEIGHBORS)
    inside = place.clamp(0, rows - 1)
    position = line.position[inside][:, None]
    if line.pencil.shape[1]:
        position = position + tilts[k][..., None] * line.offsets[inside][..., directions].transpose(1, 2)
    before = (place < first)[:, None] & (place >= 0)[:, None]
    after = (place >= last)[:, None] & (place < rows)[:, None]
    own = ((place >= first) & (place < last))[:, None]
    lowest = position.where(own, math.inf).amin(-1)
    highest = position.where(own, -math.inf).amax(-1)
    under = position.where(before, -math.inf).amax(-1)
    over = position.where(after, math.inf).amin(-1)
    # Outside the data there is room for as much as the group itself takes.
    margin = (highest - lowest).where(highest > lowest, 1.0)
    under = under.where(torch.isfinite(under), lowest - margin)
    over = over.where(torch.isfinite(over), highest + margin)

    parts = torch.tensor(CHAIN_REACHES if reaching else (REACH,), dtype=torch.float64)
    reach = torch.cartesian_prod(parts, parts)
    left = lowest[..., None] - reach[:, 0] * (lowest - under)[..., None]
    right = highest[..., None] + reach[:, 1] * (over - highest)[..., None]
    members, index = position.where(own, math.inf)[..., NEIGHBORS : NEIGHBORS + size].sort(-1)
    shape = (*left.shape, size)
    members, index = fill(
        members[:, :, None].expand(shape),
        (first[..., None] + index)[:, :, None].expand(shape),
        left[..., None],
        right[..., None],
    )
    half = (right - left)[..., None] / 2
    beta = ((members - left[..., None]) - half) / half
    apart = (beta.diff(dim=-1) > 0).all(-1) & (beta[..., 0] > -1) & (beta[..., -1] < 1)
    clear = (under < lowest) & (over > highest)
    backwards = (k % 2 == 1)[:, None, None, None]
    return _Candidates(
        torch.where(backwards, -beta.flip(-1), beta).flatten(1, 2),
        torch.where(backwards, index.flip(-1), index).flatten(1, 2),
        torch.stack([left, right], -1).flatten(1, 2),
        torch.arange(len(directions)).repeat_interleave(len(reach)),
        (clear[..., None] & apart).flatten(1, 2),
    )


def _choose(
    walks: _Walks,
    chains: slice,
    drawn: _Candidates,
    sign: Tensor,
    highest: Tensor,
    lowest: Tensor,
    off_ramp: Callable[[Tensor], Tensor],
) -> Tensor:
    """Pick the sound candidate that leaves the smallest weights, or -1, for every group [B]; step ``walks``.

    Args:
        walks: of all chains.
        chains: those that the candidates continue.
        drawn: C candidates for each of B groups.
        sign: s_k [B, 1, 1].
        highest: the largest target of the sorted rows [N].
        lowest: the smallest target of the sorted rows [N].
        off_ramp: whether all other rows are off the ramps of the candidates with these numbers [B].
    """
    virtual = drawn.place < 0
    at = drawn.place.clamp_min(0)
    requirement = slope_requirement(
        drawn.alpha, highest[at].masked_fill(virtual, 0.0), lowest[at].masked_fill(virtual, 0.0)
    )
    beta = drawn.alpha * sign
    eta = walks.eta[chains, None] + torch.log1p(-beta) - torch.log1p(beta)
    omega = torch.logaddexp(walks.eta[chains, None].expand_as(eta), eta) - math.log(2)
    peak = torch.maximum(walks.peak[chains, None], omega)
    need = torch.maximum(walks.need[chains, None], requirement.log() - omega)
    cost = (peak + need).logsumexp(-1) + STEERING * eta.square().mean(-1)
    cost = cost.where(drawn.sound & torch.isfinite(cost), math.inf)
    everyone = torch.arange(len(cost))
    while True:
        best = cost.argmin(1)
        hopeless = torch.isinf(cost[everyone, best])
        wrong = ~off_ramp(best) & ~hopeless
        if not wrong.any():
            break
        cost[everyone[wrong], best[wrong]] = math.inf
    choice = everyone, best
    walks.eta[chains], walks.peak[chains], walks.need[chains] = eta[choice], peak[choice], need[choice]
    return best.masked_fill(hopeless, -1)


def _off_ramp(
    line: Line,
    bounds: Tensor,
    k: Tensor,
    drawn: _Candidates,
    tilts: Tensor,
    directions: Tensor,
    farthest: Tensor,
    choice: Tensor,
) -> Tensor:
    """Whether the rows beyond a group's neighbors, too, stay off the chosen ramp when they are tilted [B].

    Args:
        line: the rows sorted.
        bounds: the first row of every group.
        k: the groups [B].
        drawn: their candidates.
        tilts: of all groups.
        directions: of the pencil, for every tilt.
        farthest: the largest offset along every direction of the pencil [R].
        choice: a candidate for every group [B].
    """
    sound = torch.ones(len(k), dtype=torch.bool)
    if not line.pencil.shape[1]:
        return sound
    tilt = drawn.tilt[choice]
    along = directions[tilt]
    shift = tilts[k, tilt]
    reach = shift.abs() * farthest[along]
    left, right = drawn.ends[torch.arange(len(k)), choice].unbind(1)
    start = torch.searchsorted(line.position, left - reach)
    stop = torch.searchsorted(line.position, right + reach)
    far = torch.nonzero((start < bounds[k] - NEIGHBORS) | (stop > bounds[k + 1] + NEIGHBORS)).squeeze(1)
    for index in far.tolist():
        before = slice(int(start[index]), int(bounds[k[index]]))
        after = slice(int(bounds[k[index] + 1]), int(stop[index]))
        moved = [
            line.position[rows] + shift[index] * line.offsets[rows, along[index]] for rows in (before, after)
        ]
        sound[index] = bool((moved[0] < left[index]).all() and (moved[1] > right[index]).all())
    return sound


def _assemble(
    data: Dataset,
    line: Line,
    place: Tensor,
    alpha: Tensor,
    ends: Tensor,
    shift: Tensor,
    direction: Tensor,
    gap: Tensor,
) -> Ramps:
    """The chosen ramps as a layer, with every alpha as that layer computes it."""
    groups, size = alpha.shape
    weight = line.direction.expand(groups, -1)
    if line.pencil.shape[1]:
        weight = weight + shift * line.pencil[:, direction].T
    weight = weight * (2 * alternating_signs(groups)[:, None] / ends.diff(dim=-1))
    if line.bits:
        weight = round_to_grid(weight, line.bits, dim=-1)
    row = torch.where(place >= 0, line.order[place.clamp_min(0)], -1)
    bias = torch.empty(groups, dtype=torch.float64)
    alpha = alpha.clone()
    flat = data.flat
    batch = max(1, WORKSPACE // (size * data.inputs))
    for start in range(0, groups, batch):
        k = slice(start, start + batch)
        real = row[k] >= 0
        inner = torch.bmm(flat[row[k].clamp_min(0)].double(), weight[k, :, None]).squeeze(-1)
        # Rounding the weights moved the rows, and all of them almost alike: the bias takes that back.
        bias[k] = ((alpha[k] - inner) * real).sum(1) / real.sum(1)
        if line.bits:
            # Not the grid of these weights, which a lone 1.0 would make far too coarse for a bias.
            step = torch.exp2(torch.frexp(weight[k].abs().amax(-1)).exponent.double() - line.bits)
            bias[k] = (bias[k] / step).round() * step
        alpha[k], order = torch.where(real, inner + bias[k, None], alpha[k]).sort(-1)
        row[k] = row[k].gather(1, order)
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
