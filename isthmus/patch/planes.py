"""Hyperplanes through as many cases of one kind as leave all other rows at a distance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from isthmus._types import Progress
from isthmus.data.dataset import Dataset
from isthmus.errors import PrecisionError
from isthmus.memorize.slabs import Slabs, TooClose, find_slabs
from isthmus.nets.patched import Gates
from isthmus.patch.cases import Cases
from isthmus.patch.regions import Regions, least_distance

COLUMNS = 1024  # inputs that a plane reads at most, drawn at random
DRAWS = 3  # of them


def draw_planes(
    cases: Cases,
    pools: Sequence[Tensor],
    others: Tensor,
    apart: Tensor | None,
    reach_others: bool,
    most: int | None,
    generator: torch.Generator,
    on_progress: Progress | None = None,
) -> Regions:
    """Cover the cases of every pool with as few hyperplanes as keep off all other rows.

    Args:
        cases: what is repaired, and which of it is right already.
        pools: cases that may share a plane, by index.
        others: rows to keep off [M, *shape].
        apart: a number per case [P]; where gates may reach the other rows they still keep off cases of other
            numbers, by default of other planes.
        reach_others: whether gates may reach the other rows.
        most: how many cases a plane may hold; as many as possible by default.
        generator: source of the directions.
        on_progress: told what is done and which part of it.

    Raises:
        PrecisionError: a case that no plane sets apart.
    """
    flat = torch.cat([cases.data.flat, others.to(cases.data.x.dtype).flatten(1)])
    inputs = flat.shape[1]
    draws = DRAWS if inputs > COLUMNS else 1
    while True:
        columns = torch.arange(inputs)
        if inputs > COLUMNS:
            columns = torch.randperm(inputs, generator=generator)[:COLUMNS].sort().values
        rows = Dataset(flat[:, columns], torch.zeros(len(flat)), cases.data.task)
        draws -= 1
        try:
            regions = _regions(cases, rows, _slabs(rows, pools, most, generator, on_progress), columns)
        except TooClose as error:
            if not draws:
                raise PrecisionError(_too_close(error, cases)) from None
        else:
            return _apart(regions, cases, apart) if reach_others else regions


def _slabs(
    rows: Dataset,
    pools: Sequence[Tensor],
    most: int | None,
    generator: torch.Generator,
    on_progress: Progress | None,
) -> Slabs:
    if rows.rows == 1:  # any direction will do
        normal = torch.randn(1, rows.inputs, generator=generator, dtype=torch.float64)
        none = torch.full((1,), torch.inf, dtype=torch.float64)
        return Slabs(normal, normal @ rows.flat[0].double(), none, torch.tensor([0]), torch.tensor([[0]]))
    return find_slabs(rows, pools, most or rows.inputs, False, torch.float64, generator, on_progress)


def _regions(cases: Cases, rows: Dataset, slabs: Slabs, columns: Tensor) -> Regions:
    """Slabs as gates: distances are Euclidean, and a case's own are as near 0 as they can be."""
    length = torch.linalg.vector_norm(slabs.normal, dim=1)
    normal = slabs.normal / length[:, None]
    own = rows.flat[slabs.rows].double()  # [G, m, d]
    along = torch.einsum("gmd,gd->gm", own, normal)
    low, high = along.amin(1), along.amax(1)
    center = (low + high) / 2
    terms = torch.einsum("gmd,gd->gm", own.abs(), normal.abs()).amax(1) + center.abs()
    rounding = (high - low) / 2 + (cases.data.inputs + 3) * torch.finfo(torch.float64).eps * terms
    rounding.clamp_min_(least_distance(rows.flat))
    owner = torch.full((cases.data.rows,), -1)
    owner[slabs.rows] = torch.arange(len(length))[:, None].expand_as(slabs.rows)

    gates = Gates(cases.data.inputs, len(length), cases.before.shape[1])
    gates.normal[:, columns] = normal
    gates.center = center
    return Regions(gates, slabs.margin / length, rounding, owner)


def _apart(regions: Regions, cases: Cases, apart: Tensor | None) -> Regions:
    """The same planes, which keep off nothing but cases of other numbers."""
    number = regions.owner if apart is None else apart
    own = torch.stack([number[members[0]] for members in regions.members()])
    distance = regions.gates.distance(cases.data.flat)
    return replace(regions, limit=distance.masked_fill(number[:, None] == own, torch.inf).amin(0))


def _too_close(error: TooClose, cases: Cases) -> str:
    def name(row: int) -> str:
        known = row < cases.data.rows
        return f"case {int(cases.number[row])}" if known else f"reference row {row - cases.data.rows + 1}"

    return (
        f"no gate repairs {name(error.row)} and leaves all other rows alone, for float64 hardly tells it "
        f"apart from {name(error.nearest)}; leave out one of the two."
    )
