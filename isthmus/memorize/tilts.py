"""Tilts: the lines that a group may take, where its rows lie on them, and whether all others keep off.

A group's line may be tilted towards the directions of the pencil (`lines`), by a part of the gaps beside the
group, so that its rows move among each other and hardly any other row comes near; or towards a direction of
its own, along which they are equally spaced (`respacing`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.data.dataset import Dataset
from isthmus.memorize.lines import Line, ascending
from isthmus.memorize.respacing import Respaced

NEIGHBORS = 60  # rows on either side that are kept off a ramp while it is drawn
TILTS = (0.08, 0.25, 0.5)  # how far a tilt moves a typical row, as a part of the gap beside the group
BLENDS = (1.0, 0.5, 0.25, 0.1)  # how far towards equal spacing


@dataclass(frozen=True)
class Along:
    """Where B groups and their neighbors lie along T lines each.

    Attributes:
        own: the rows' positions, in the order of the untilted line, +inf where one is missing [B, T, n].
        under: the nearest neighbor below, -inf if there is none [B, T].
        over: the nearest neighbor above, +inf if there is none [B, T].
    """

    own: Tensor
    under: Tensor
    over: Tensor

    def ends(self, lowest: Tensor, highest: Tensor, reach: Tensor) -> Tensor:
        """The ends of ramps that reach into the gaps beside the groups [B, T, P, 2].

        Args:
            lowest: the groups' first positions [B, T].
            highest: their last [B, T].
            reach: parts of the gaps below and above [P, 2].
        """
        # Outside the data there is room for as much as the group itself takes.
        margin = (highest - lowest).where(highest > lowest, 1.0)
        below = (lowest - self.under).where(torch.isfinite(self.under), margin)
        above = (self.over - highest).where(torch.isfinite(self.over), margin)
        left = lowest[..., None] - reach[:, 0] * below[..., None]
        right = highest[..., None] + reach[:, 1] * above[..., None]
        return torch.stack([left, right], -1)

    def clear(self, lowest: Tensor, highest: Tensor) -> Tensor:
        """Whether the neighbors stay outside the group [B, T]."""
        return (self.under < lowest) & (self.over > highest)


@dataclass(frozen=True)
class Tilts:
    """T lines for each of G groups of at most n rows.

    Attributes:
        data: distinct rows.
        line: the same rows along the untilted line, with its pencil.
        bounds: the first row of every group, and the end of the last [G + 1].
        size: n.
        shift: how far every line is tilted; the first not at all [G, T].
        direction: towards which of the pencil, or R for the group's own [T].
        farthest: the largest offset along every direction [G, R] or [G, R + 1].
        respaced: the groups' own directions, if they have any.
    """

    data: Dataset
    line: Line
    bounds: Tensor
    size: int
    shift: Tensor
    direction: Tensor
    farthest: Tensor
    respaced: Respaced | None

    def along(self, k: Tensor) -> Along:
        """Where the groups k [B] and their neighbors lie along all their lines."""
        rows = len(self.line.position)
        first, last = self.bounds[k, None], self.bounds[k + 1, None]
        before, after = first + torch.arange(-NEIGHBORS, 0), last + torch.arange(NEIGHBORS)
        inside = first + torch.arange(self.size)
        place = torch.cat([before, after, inside], 1)
        at = place.clamp(0, rows - 1)
        position = self.line.position[at].masked_fill(place < 0, -math.inf)
        position.masked_fill_(torch.cat([before >= rows, after >= rows, inside >= last], 1), math.inf)
        moved = position.new_empty(len(k), len(self.direction), position.shape[1])
        moved[:, 0] = position
        shared = 1 + 2 * len(TILTS) * self.line.pencil.shape[1]
        if shared > 1:
            offsets = self.line.offsets.index_select(0, at.flatten()).unflatten(0, at.shape)
            towards = offsets.transpose(1, 2).contiguous()[:, None]  # [B, 1, R, L]
            tilted = moved[:, 1:shared].unflatten(1, (-1, towards.shape[2]))
            shift = self.shift[k, 1:shared].unflatten(1, tilted.shape[1:3])[..., None]
            torch.addcmul(position[:, None, None], shift, towards, out=tilted)
        if self.respaced is not None:
            moves = torch.stack([self._own_offset(int(group), row) for group, row in zip(k, at, strict=True)])
            moved[:, shared:] = position[:, None] + self.shift[k, shared:, None] * moves[:, None]
        under, over, own = moved.split([NEIGHBORS, NEIGHBORS, self.size], 2)
        return Along(own, under.amax(-1), over.amin(-1))

    def offset(self, k: Tensor, direction: Tensor, at: Tensor) -> Tensor:
        """How far the rows at some places [B, L] move when the groups k [B] are tilted by 1 [B, L].

        Args:
            k: the groups [B].
            direction: towards which of the pencil, or the group's own [B].
            at: places along the line [B, L].
        """
        moves = torch.empty(at.shape, dtype=torch.float64)
        own = direction == self.line.pencil.shape[1]
        moves[~own] = self.line.offsets[at[~own], direction[~own, None]]
        for index in torch.nonzero(own).squeeze(1).tolist():
            moves[index] = self._own_offset(int(k[index]), at[index])
        return moves

    def _own_offset(self, k: int, at: Tensor) -> Tensor:
        assert self.respaced is not None
        rows = self.data.flat[self.line.order[at]].double()
        return rows @ self.respaced.delta[k] - self.respaced.shift[k]

    def towards(self, k: Tensor, tilt: Tensor) -> Tensor:
        """By how much the chosen lines of the groups k differ from the untilted one [B, d]."""
        direction, shift = self.direction[tilt], self.shift[k, tilt, None]
        own = direction == self.line.pencil.shape[1]
        change = torch.zeros(len(k), len(self.line.direction), dtype=torch.float64)
        if self.line.pencil.shape[1]:
            change[~own] = shift[~own] * self.line.pencil[:, direction[~own]].T
        if self.respaced is not None:
            change[own] = shift[own] * self.respaced.delta[k[own]]
        return change

    def extent(self, k: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """The first and last position of the groups k, from all of them ascending [B, T, n]: [B, T] both."""
        last = (self.bounds[k + 1] - self.bounds[k] - 1)[:, None, None].expand(*own.shape[:2], 1)
        return own[..., 0], own.gather(-1, last).squeeze(-1)

    def lay(self, k: Tensor, tilt: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of the groups k [B], each on the ramp with these ends [B, 2] along one of its lines [B].

        Returns:
            The ramp's values and the rows' places along the line, see `on_ramp` [B, n].
        """
        place = self.bounds[k, None] + torch.arange(self.size)
        at = place.clamp_max(len(self.line.position) - 1)
        position = self.line.position[at]
        if len(self.direction) > 1:
            position = position.addcmul(self.shift[k, tilt, None], self.offset(k, self.direction[tilt], at))
        position, index = ascending(position.masked_fill(place >= self.bounds[k + 1, None], math.inf))
        return on_ramp(position, place.gather(1, index), ends, k % 2 == 1)

    def off_ramp(self, k: Tensor, ends: Tensor, choice: Tensor) -> Tensor:
        """Whether the rows beyond a group's neighbors, too, stay off the chosen ramp [B].

        Args:
            k: the groups [B].
            ends: of the ramps to choose from, as many for every line [B, T, P, 2].
            choice: one of the T P ramps of every group [B].
        """
        line, everyone = self.line, torch.arange(len(k))
        sound = torch.ones(len(k), dtype=torch.bool)
        if len(self.direction) == 1:
            return sound
        tilt = choice // ends.shape[2]
        along, shift = self.direction[tilt], self.shift[k, tilt]
        left, right = ends.flatten(1, 2)[everyone, choice].unbind(1)
        reach = shift.abs() * self.farthest[k, along]
        start = torch.searchsorted(line.position, left - reach)
        stop = torch.searchsorted(line.position, right + reach)
        first, last = self.bounds[k], self.bounds[k + 1]
        far = torch.nonzero((start < first - NEIGHBORS) | (stop > last + NEIGHBORS)).squeeze(1)
        for index in far.tolist():
            before = torch.arange(int(torch.minimum(start, first)[index]), int(first[index]))
            after = torch.arange(int(last[index]), int(torch.maximum(stop, last)[index]))
            one = slice(index, index + 1)
            moved = [
                line.position[rows] + shift[one] * self.offset(k[one], along[one], rows[None]).squeeze(0)
                for rows in (before, after)
            ]
            sound[index] = bool((moved[0] < left[index]).all() and (moved[1] > right[index]).all())
        return sound


def draw_tilts(
    data: Dataset, line: Line, bounds: Tensor, size: int, respaced: Respaced | None = None
) -> Tilts:
    """The lines of all groups: untilted, by `TILTS` either way along all of the pencil, or re-spaced.

    Args:
        data: distinct rows.
        line: the same rows, sorted.
        bounds: the first row of every group, and the end of the last [G + 1].
        size: n, the most rows of a group.
        respaced: the groups' own directions, if they have any.
    """
    beyond = torch.full((1,), math.inf, dtype=torch.float64)
    position = torch.cat([-beyond, line.position, beyond])
    gap = position[bounds + 1] - position[bounds]  # at both ends of every group [G + 1]
    usual = (line.position[-1] - line.position[0]) / max(1, len(line.position) - 1)
    # Not less than the usual gap: towards some directions a close neighbor moves away.
    smaller = torch.minimum(gap[:-1], gap[1:]).clamp_min(usual)
    extent = line.position[bounds[1:] - 1] - line.position[bounds[:-1]]
    # A group of close rows beside a wide gap needs no more than a few of its own spacings.
    spacing = (extent / (bounds.diff() - 1).clamp_min(1)).clamp_min(usual)
    reach = torch.minimum(smaller, 4 * spacing)
    pencil = line.pencil.shape[1]
    part = torch.tensor([sign * part for part in TILTS for sign in (1, -1)], dtype=torch.float64)
    steps = torch.cat([torch.zeros(1, dtype=torch.float64), part.repeat_interleave(pencil)])
    direction = torch.cat([torch.zeros(1, dtype=torch.int64), torch.arange(pencil).repeat(len(part))])
    shift = reach[:, None] * steps
    farthest = torch.linalg.vector_norm(line.offsets, math.inf, dim=0).expand(len(reach), -1)
    if respaced is not None:
        blends = torch.tensor(BLENDS, dtype=torch.float64)
        shift = torch.cat([shift, blends.expand(len(reach), -1)], 1)
        direction = torch.cat([direction, torch.full_like(blends, pencil, dtype=torch.int64)])
        farthest = torch.cat([farthest, respaced.farthest[:, None]], 1)
    return Tilts(data, line, bounds, size, shift, direction, farthest, respaced)


def least(cost: Tensor, holds: Callable[[Tensor], Tensor]) -> Tensor:
    """The cheapest candidate that holds, or -1, for every group [B].

    Args:
        cost: of C candidates, +inf for those that are none [B, C]; changed in place.
        holds: whether the candidates with these numbers [B] hold [B]; asked for the cheapest only.
    """
    everyone = torch.arange(len(cost))
    while True:
        best = cost.argmin(1)
        hopeless = torch.isinf(cost[everyone, best])
        wrong = ~holds(best) & ~hopeless
        if not wrong.any():
            return best.masked_fill(hopeless, -1)
        cost[everyone[wrong], best[wrong]] = math.inf


def on_ramp(position: Tensor, place: Tensor, ends: Tensor, backwards: Tensor) -> tuple[Tensor, Tensor]:
    """Rows on a ramp, in traversal order, with virtual rows where there are fewer than n.

    Args:
        position: ascending, +inf where a row is missing [..., n].
        place: the rows' places along the untilted line [..., n].
        ends: where the ramp is clipped [..., 2].
        backwards: whether the group is traversed that way [...].

    Returns:
        The ramp's values, ascending, and the places, -1 for virtual rows [..., n].
    """
    left, right = ends.split(1, -1)
    position, place = fill(position, place, left, right)
    half = (right - left) / 2
    beta = ((position - left) - half) / half
    backwards = backwards[..., None]
    return torch.where(backwards, -beta.flip(-1), beta), torch.where(backwards, place.flip(-1), place)


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
        most = int(missing.max())
        if most == 0:
            return position, place
        edges = torch.cat([left, torch.minimum(position, right), right], -1)
        width, before = edges.diff(dim=-1).topk(most, dim=-1)
        split = (torch.arange(most) < missing) & (width > 0)
        if not split.any():  # no room at all: the candidate is not sound
            return torch.minimum(position, right), place.masked_fill(torch.isinf(position), -1)
        middle = torch.where(split, edges.gather(-1, before) + width / 2, math.inf)
        position, index = ascending(torch.cat([position, middle], -1))
        place = torch.cat([place, torch.full_like(before, -1)], -1).gather(-1, index)
        position, place = position[..., :size], place[..., :size]
