"""Re-spacing: lines along which a group's rows are equally spaced, and all other rows stay off.

A group of n rows in d > n dimensions can be moved along its line at will: the least change of direction that
moves the group's own rows to equally spaced places, and those beside it not at all, solves a small system.
Rows from farther away that it would move onto the ramp are then held back as well.

Along such lines beta is alike in all groups, so the walks of a chain are periodic (`steering`), and the
weights of a minimal network, one chain of G groups with G n = N, are of the order of n to 100 n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.data.dataset import Dataset
from isthmus.memorize.lines import Line, column_scale

FREEDOM = 1.5  # inputs per row of a group, from which on groups can be re-spaced
SPENT = 0.9  # of the inputs, at most, go into a group's own rows and those held back
BESIDE = 30  # rows held back on either side from the start, at most
ROUNDS = 6  # of holding back rows that came too near
WIDEST = 10  # usual spacings of a group, to which a wide gap may stretch it
CLEARANCE = 0.3  # of a spacing, that held rows keep from the ramp
JITTER = 1e-13  # of the Gram matrix's mean diagonal; rows need not be spaced exactly
WORKSPACE = 1 << 26  # moves of rows held at a time


@dataclass(frozen=True)
class Respaced:
    """A change of direction for every group.

    Attributes:
        delta: by how much the direction changes [G, d].
        shift: x delta of a row that does not move [G].
        farthest: the largest move of any row [G].
    """

    delta: Tensor
    shift: Tensor
    farthest: Tensor


def respace(data: Dataset, line: Line, bounds: Tensor) -> Respaced:
    """The least changes of direction that space every group's rows equally; O(N d G + G d n^2).

    Args:
        data: distinct rows.
        line: the same rows, sorted.
        bounds: the first row of every group, and the end of the last [G + 1].
    """
    scale, groups = column_scale(data), bounds.unfold(0, 2, 1).tolist()
    delta = torch.zeros(len(groups), data.inputs, dtype=torch.float64)
    shift, farthest = torch.zeros(2, len(groups), dtype=torch.float64)
    places = [_places(line.position, *group) for group in groups]
    held = [_beside(data, *group) for group in groups]
    crowded = torch.arange(len(groups))
    for _ in range(ROUNDS):
        for k in crowded.tolist():
            delta[k], shift[k] = _least_change(data, line, scale, places[k], held[k], groups[k][0])
        still = []
        for part in crowded.split(max(1, WORKSPACE // data.rows)):
            moves = torch.empty(data.rows, len(part), dtype=torch.float64)
            for rows, x in data.chunks():
                torch.matmul(x, delta[part].T, out=moves[rows])
            moves = moves.index_select(0, line.order).sub_(shift[part])
            farthest[part] = torch.linalg.vector_norm(moves, math.inf, dim=0)
            moves += line.position[:, None]
            for k, moved in zip(part.tolist(), moves.T, strict=True):
                near = _on_ramp(moved, places[k], *groups[k])
                held[k] = torch.cat([held[k], near]).unique()
                if len(near) and len(held[k]) + len(places[k]) <= SPENT * data.inputs:
                    still.append(k)
        crowded = torch.tensor(still, dtype=torch.int64)
    return Respaced(delta, shift, farthest)


def _beside(data: Dataset, first: int, last: int) -> Tensor:
    """The places of some rows on either side of a group."""
    count = max(1, min(BESIDE, int(SPENT * data.inputs - (last - first)) // 4))
    return torch.cat([
        torch.arange(max(0, first - count), first),
        torch.arange(last, min(data.rows, last + count)),
    ])


def _places(position: Tensor, first: int, last: int) -> Tensor:
    """Equally spaced positions for a group, in the middle between its neighbors where it has two [n]."""
    own, size = position[first:last], last - first
    index = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    usual = float(index @ own / index.square().sum()) if size > 1 else 1.0
    low = float(position[first - 1]) if first else -math.inf
    high = float(position[last]) if last < len(position) else math.inf
    between = math.isfinite(low) and math.isfinite(high)
    center = (low + high) / 2 if between else float(own.mean())
    room = 2 * min(center - low, high - center) / (size + 1)
    return center + index * min(room, WIDEST * usual if between else usual)


def _ramp(places: Tensor) -> tuple[float, float, float]:
    """The ends of a ramp for equally spaced rows, and their spacing."""
    spacing = float(places[1] - places[0]) if len(places) > 1 else 0.0
    return float(places[0]) - spacing / 2, float(places[-1]) + spacing / 2, spacing


def _least_change(
    data: Dataset, line: Line, scale: Tensor, places: Tensor, held: Tensor, first: int
) -> tuple[Tensor, Tensor]:
    """The least change of direction that moves a group to its places and holds some rows back.

    Args:
        data: distinct rows.
        line: the same rows, sorted.
        scale: in which a change of the direction is measured [d].
        places: where the group's rows should lie [n].
        held: the places of rows that should stay off the ramp, in the order of the line [m].
        first: the group's first place.

    Returns:
        The change [d], and x delta at the rows that do not move.
    """
    low, high, spacing = _ramp(places)
    there = line.position[held]
    off = torch.where(
        held < first, there.clamp_max(low - CLEARANCE * spacing), there.clamp_min(high + CLEARANCE * spacing)
    )
    own = torch.arange(first, first + len(places))
    wanted = torch.cat([places, off]) - line.position[torch.cat([own, held])]
    origin = data.flat[line.order[first]].double()
    rows = (data.flat[line.order[torch.cat([own, held])]].double() - origin) * scale
    gram = rows @ rows.T + 1  # the 1 is for a shift of all rows, which changes nothing
    gram.diagonal().add_(JITTER * float(gram.diagonal().mean()))
    dual = torch.cholesky_solve(wanted[:, None], torch.linalg.cholesky(gram)).squeeze(1)
    delta = scale * (dual @ rows)
    return delta, origin @ delta - dual.sum()


def _on_ramp(moved: Tensor, places: Tensor, first: int, last: int) -> Tensor:
    """The places of the rows outside a group that lie on its ramp, given the rows' new positions [N]."""
    low, high, _ = _ramp(places)
    below, above = torch.nonzero(moved[:first] > low), torch.nonzero(moved[last:] < high)
    return torch.cat([below.squeeze(1), above.squeeze(1) + last])
