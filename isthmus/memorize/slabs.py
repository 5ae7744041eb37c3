"""Slabs: hyperplanes through as many rows of one class as leave all other rows at a distance.

Through any d rows in general position there is a hyperplane that meets no other. Real data is not in general
position: pixels that are dark in all of some rows leave no hyperplane through d of them but those on which
every row lies that is dark there, too. So the rows of a class are dealt out to as few slabs as d allows;
those whose margin rounding could take return their rows, which are dealt out anew, to one slab more.

Source: after Yun, Sra and Jadbabaie 2019 (arXiv 1810.07770), Theorem 4.1; the search is an addition.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from isthmus._types import Progress
from isthmus.bounds.assumptions import RANK_TOLERANCE
from isthmus.data.dataset import Dataset
from isthmus.errors import PrecisionError
from isthmus.graph import dtype_name
from isthmus.memorize.lines import column_reach

ROUNDING = 6  # margins exceed the rounding bound of u x - b by this factor
ADDED = 8  # and by this for every gate, where the errors of all add up
RESIDUAL = 2.2  # times what its own rows miss a hyperplane by is taken off its margin
DRAWS = (4, 64)  # fewest and most directions to choose from for every slab
WORK = 1 << 32  # products that all draws of a slab may take
LUCK = 0.8  # of the slabs may fail for their rows to be dealt out to equally many again
GROWTH = 1.04  # of their number, otherwise
WORKSPACE = 1 << 21  # numbers held at a time


@dataclass(frozen=True)
class Slabs:
    """Hyperplanes through rows of one class each, and how far all other rows keep off.

    Attributes:
        normal: u, with entries that the network's dtype holds [G, d].
        center: b [G].
        margin: mu, the least distance |u x - b| of a row outside [G].
        label: whose rows lie on it [G].
    """

    normal: Tensor
    center: Tensor
    margin: Tensor
    label: Tensor

    def where(self, chosen: Tensor) -> Slabs:
        """Those slabs that are chosen [G]."""
        return Slabs(*(part[chosen] for part in _tensors(self)))


def _tensors(slabs: Slabs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return slabs.normal, slabs.center, slabs.margin, slabs.label


def find_slabs(
    data: Dataset,
    most: int,
    adding: bool,
    dtype: torch.dtype,
    generator: torch.Generator,
    on_progress: Progress | None = None,
) -> Slabs:
    """Cover the rows of every class with as few hyperplanes as keep their margins.

    O(N d^2) for the hyperplanes and O(N d T) per gate for their margins, with T draws to choose from.

    Args:
        data: distinct rows with class labels.
        most: m, the most rows per gate.
        adding: whether the rounding errors of all gates add up in the outputs.
        dtype: in whose rounding the margins must hold.
        generator: source of the directions.
        on_progress: told what is done and which part of it.

    Raises:
        PrecisionError: no hyperplane through a single row keeps off the others.
    """
    basis, deviation = _hull(data)
    most = min(most, len(deviation))
    gates = sum(ceil(rows / most) for rows in torch.bincount(data.y).tolist())
    clearance = ROUNDING * (ADDED * gates if adding else 1)
    found: list[Slabs] = []
    for label in range(data.outputs):
        pool = torch.nonzero(data.y == label).squeeze(1)
        count = ceil(len(pool) / most)
        while len(pool):
            dealt = _deal(pool, count, generator)
            slabs, holds = _draw(data, dealt, label, basis, deviation, clearance, dtype, generator)
            found.append(slabs)
            pool, failed = dealt[~holds].unique(), int((~holds).sum())
            if failed == len(pool) == count:
                raise PrecisionError(_too_close(data, int(pool[0]), dtype))
            # Where many held, another deal is another chance; else the rows need more gates.
            grown = failed if failed <= LUCK * count else max(failed + 1, int(GROWTH * failed))
            count = min(grown, len(pool))
            if on_progress is not None:
                on_progress("drawing gates", (label + 1 - len(pool) / data.rows) / data.outputs)
    return Slabs(*(torch.cat(parts) for parts in zip(*map(_tensors, found), strict=True)))


def _hull(data: Dataset) -> tuple[Tensor, Tensor]:
    """The affine hull of the rows: its directions [d, p] and the rows' deviation along them [p].

    Columns are scaled by their range first, and directions orthonormal in that scale; without the scaling
    again they are what a row is multiplied with.
    """
    reach = column_reach(data)
    scale = torch.where(reach > 0, 1 / reach.where(reach > 0, 1.0), 0.0)
    origin = data.flat[0].double()
    total = torch.zeros_like(origin)
    gram = torch.zeros(data.inputs, data.inputs, dtype=torch.float64)
    for _, x in data.chunks():
        scaled = (x - origin) * scale
        total += scaled.sum(0)
        gram.addmm_(scaled.T, scaled)
    mean = total / data.rows
    variance, directions = torch.linalg.eigh(gram / data.rows - torch.outer(mean, mean))
    kept = variance > RANK_TOLERANCE * variance[-1]
    return scale[:, None] * directions[:, kept], variance[kept].sqrt()


def _deal(pool: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Deal rows out at random to ``count`` gates [count, size]; a short gate repeats its first row."""
    size = ceil(len(pool) / count)
    shuffled = pool[torch.randperm(len(pool), generator=generator)]
    padded = torch.cat([shuffled, shuffled[: count * size - len(pool)]])
    dealt = padded.view(size, count).T.contiguous()
    short = count * size - len(pool)
    if short:
        dealt[count - short :, -1] = dealt[count - short :, 0]
    return dealt


def _draw(
    data: Dataset,
    dealt: Tensor,
    label: int,
    basis: Tensor,
    deviation: Tensor,
    clearance: float,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> tuple[Slabs, Tensor]:
    """A hyperplane through the rows of every gate: the slabs that hold, and which of the gates they are [G].

    Args:
        data: distinct rows.
        dealt: the rows of every gate [G, m].
        label: their class.
        basis: of the rows' affine hull [d, p].
        deviation: of the rows along it [p].
        clearance: how many times its rounding bound a margin must be.
        dtype: in whose rounding.
        generator: source of the directions.
    """
    gates = len(dealt)
    draws = min(max(DRAWS[0], WORK // (data.rows * data.inputs)), DRAWS[1])
    batch = max(1, min(WORKSPACE * 8 // (len(deviation) ** 2 + data.inputs * draws), 512 // draws))
    slabs = Slabs(
        torch.empty(gates, data.inputs, dtype=torch.float64),
        torch.empty(gates, dtype=torch.float64),
        torch.empty(gates, dtype=torch.float64),
        torch.full((gates,), label),
    )
    holds = torch.empty(gates, dtype=torch.bool)
    roundoff = (data.inputs + 1) * torch.finfo(dtype).eps / 2
    for start in range(0, gates, batch):
        here = slice(start, min(start + batch, gates))
        own = data.flat[dealt[here]].double()  # [B, m, d]
        seeds = deviation[:, None] * torch.randn(
            len(own), len(deviation), draws, generator=generator, dtype=torch.float64
        )
        normal = basis @ _orthogonal((own[:, 1:] - own[:, :1]) @ basis, seeds)
        normal = normal / normal.abs().amax(1, keepdim=True)
        normal = normal.to(dtype).double()
        along = own @ normal  # [B, m, T]
        low, high = along.amin(1), along.amax(1)
        center, residual = (low + high) / 2, (high - low) / 2
        margin = _margins(data, dealt[here], normal, center) - RESIDUAL * residual
        # By the margin in units of a typical row's terms; the exact bound then for the best draw alone.
        best = (margin / (normal.abs().sum(1) + center.abs())).argmax(1)
        one = torch.arange(len(own))
        slabs.normal[here], slabs.center[here] = normal[one, :, best], center[one, best]
        slabs.margin[here] = margin[one, best]
        terms = _largest_terms(data, slabs.normal[here]) + slabs.center[here].abs()
        holds[here] = slabs.margin[here] > clearance * roundoff * terms
    return slabs.where(holds), holds


def _orthogonal(rows: Tensor, seeds: Tensor) -> Tensor:
    """Project seeds [B, p, T] on the directions orthogonal to given rows [B, m, p]."""
    if not rows.shape[1]:
        return seeds
    reflectors, scales = torch.geqrf(rows.mT.contiguous())
    turned = torch.ormqr(reflectors, scales, seeds, transpose=True)
    turned[:, : rows.shape[1]] = 0.0
    return torch.ormqr(reflectors, scales, turned)


def _margins(data: Dataset, dealt: Tensor, normal: Tensor, center: Tensor) -> Tensor:
    """The least |u x - b| over all rows but the gate's own [B, T].

    Args:
        data: distinct rows.
        dealt: the gates' own rows [B, m].
        normal: u [B, d, T].
        center: b [B, T].
    """
    gates, _, draws = normal.shape
    gate = torch.full((data.rows,), -1)
    gate[dealt] = torch.arange(gates)[:, None].expand_as(dealt)
    weight = normal.transpose(0, 1).reshape(data.inputs, -1)
    least = torch.full((gates * draws,), torch.inf, dtype=torch.float64)
    for rows, x in data.chunks(max(1, WORKSPACE // (gates * draws + data.inputs))):
        distance = (x @ weight).sub_(center.flatten()).abs_()
        own = torch.nonzero(gate[rows] >= 0).squeeze(1)
        distance.view(len(x), gates, draws)[own, gate[rows][own]] = torch.inf
        least = torch.minimum(least, distance.amin(0))
    return least.view(gates, draws)


def _largest_terms(data: Dataset, normal: Tensor) -> Tensor:
    """The largest sum |u| |x| over all rows, for every normal [G]."""
    weight = normal.abs().T
    largest = torch.zeros(len(normal), dtype=torch.float64)
    for _, x in data.chunks(max(1, WORKSPACE // (len(normal) + data.inputs))):
        largest = torch.maximum(largest, (x.abs() @ weight).amax(0))
    return largest


def _too_close(data: Dataset, row: int, dtype: torch.dtype) -> str:
    """The sentence about a row that no hyperplane through it alone could set apart."""
    distance = torch.full((), torch.inf, dtype=torch.float64)
    nearest = row
    for rows, x in data.chunks():
        apart = (x - data.flat[row].double()).abs().amax(1)
        if rows.start <= row < rows.stop:
            apart[row - rows.start] = torch.inf
        if apart.min() < distance:
            distance, nearest = apart.min(), rows.start + int(apart.argmin())
    return (
        f"{data.source}: no hyperplane through row {row + 1} (of the distinct ones) keeps off all others "
        f"in {dtype_name(dtype)}; nearest to it is row {nearest + 1}, at most {distance:.1e} away in any "
        f"column. Choose a wider dtype, or another method."
    )
