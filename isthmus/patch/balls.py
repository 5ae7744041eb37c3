"""Balls around single cases, which take in what is similar to them, too.

A plane passes by similar inputs: of its many cases each has another reason to lie on it. A ball holds all
that is near one case; nearness is measured along the directions in which inputs differ most, where noise
counts for little and a class for much. Balls that touch no reference row touch few other inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isthmus.bounds.assumptions import RANK_TOLERANCE
from isthmus.nets.patched import Gates
from isthmus.patch.cases import Cases
from isthmus.patch.regions import WORKSPACE, Regions, least_distance

DIRECTIONS = 16  # in which a ball is round
SAMPLE = 2000  # rows that show them


def draw_balls(
    cases: Cases, others: Tensor, apart: Tensor | None, reach_others: bool, generator: torch.Generator
) -> Regions:
    """A ball around every wrong case.

    Args:
        cases: what is repaired, and which of it is right already.
        others: rows to keep off, unless they may be reached [M, *shape].
        apart: a number per case [P]: a ball keeps off cases of other numbers; off all by default.
        reach_others: whether balls may reach the other rows.
        generator: source of the sample.
    """
    rows, wrong = cases.data.flat, cases.wrong
    frame = _frame(torch.cat([rows, others.flatten(1)]), generator)
    directions = 0 if frame is None else DIRECTIONS
    gates = Gates(cases.data.inputs, len(wrong), cases.before.shape[1], directions=directions)
    gates.frame = frame
    place = gates.framed(rows[wrong])
    gates.normal, gates.center = -2 * place, -place.square().sum(1)
    gates.curvature = torch.ones_like(gates.center)
    owner = torch.full((cases.data.rows,), -1)
    owner[wrong] = torch.arange(len(wrong))

    apart = torch.arange(len(rows)) if apart is None else apart
    limit = torch.full_like(gates.center, torch.inf)
    step = max(1, WORKSPACE // (len(wrong) + cases.data.inputs))
    for part, number in zip(rows.split(step), apart.split(step), strict=True):
        distance = gates.distance(part).masked_fill_(number[:, None] == apart[wrong], torch.inf)
        limit = torch.minimum(limit, distance.amin(0))
    for part in others.split(step) if len(others) and not reach_others else ():
        limit = torch.minimum(limit, gates.distance(part).amin(0))
    terms = place.square().sum(1)
    # A distance is the root of a difference of squares.
    rounding = (torch.finfo(torch.float64).eps * 8 * (place.shape[1] + cases.data.inputs) * terms).sqrt()
    rounding.clamp_min_(least_distance(rows))
    return Regions(gates, limit, rounding, owner)


def _frame(rows: Tensor, generator: torch.Generator) -> Tensor | None:
    """The principal directions of rows [N, d], orthonormal [r, d]; None if there are too few rows to tell."""
    if min(rows.shape) <= DIRECTIONS:
        return None
    sample = rows[torch.randperm(len(rows), generator=generator)[:SAMPLE]].double()
    sample -= sample.mean(0)
    variance, weight = torch.linalg.eigh(sample @ sample.T)
    variance, weight = variance[-DIRECTIONS:], weight[:, -DIRECTIONS:]
    if not variance[0] > RANK_TOLERANCE * variance[-1]:
        return None
    return (weight.T @ sample) / variance[:, None].sqrt()
