"""Slabs: hyperplanes through as many rows of one pool, a class say, as leave all other rows at a distance.

Through any d rows in general position there is a hyperplane that meets no other. Real data is not in general
position: pixels that are dark in all of some rows leave no hyperplane through d of them but those on which
every row lies that is dark there, too. So the rows of a pool are dealt out to as few slabs as d allows;
those whose margin rounding could take return their rows, which are dealt out anew, to one slab more.

Source: after Yun, Sra and Jadbabaie 2019 (arXiv 1810.07770), Theorem 4.1; the search is an addition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil

import torch
from torch import Tensor

from isthmus._types import Progress
from isthmus.bounds.assumptions import RANK_TOLERANCE
from isthmus.data.dataset import Dataset
from isthmus.errors import PrecisionError
from isthmus.graph import dtype_name
from isthmus.memorize.lines import column_scale

ROUNDING = 6  # margins exceed the rounding bound of u x - b by this factor
ADDED = 8  # and by this for every gate, where the errors of all add up
RESIDUAL = 2.2  # times what its own rows miss a hyperplane by is taken off its margin
CENTERED = 8  # times that, a margin must be at least
DRAWS = (4, 64)  # fewest and most directions to choose from for every slab
WORK = 1 << 29  # products that all draws of a slab may take
PROBES = 8  # slabs tried to see how many rows one can hold
LUCK = 0.8  # of the slabs may fail for their rows to be dealt out to equally many again
GROWTH = 1.04  # of their number, otherwise
SAMPLE = 1000  # rows that tell most slabs without a margin
WORKSPACE = 1 << 21  # distances held at a time
FACTORS = 1 << 24  # numbers that the factors of slabs drawn together may take
COLUMNS = 512  # directions along which margins are measured together


class TooClose(PrecisionError):
    """A row that no hyperplane through it alone sets apart, and the row nearest to it, by index."""

    def __init__(self, message: str, row: int, nearest: int) -> None:
        super().__init__(message)
        self.row, self.nearest = row, nearest


@dataclass(frozen=True)
class Slabs:
    """Hyperplanes through rows of one pool each, and how far all other rows keep off.

    Attributes:
        normal: u, with entries that the network's dtype holds [G, d].
        center: b [G].
        margin: mu, the least distance |u x - b| of a row outside [G].
        pool: whose rows lie on it, by number [G].
        rows: these rows, the first of them repeated where there are fewer than m [G, m].
    """

    normal: Tensor
    center: Tensor
    margin: Tensor
    pool: Tensor
    rows: Tensor

    def where(self, chosen: Tensor) -> Slabs:
        """Those slabs that are chosen [G]."""
        return Slabs(*(part[chosen] for part in _tensors(self)))


def _tensors(slabs: Slabs) -> tuple[Tensor, ...]:
    return slabs.normal, slabs.center, slabs.margin, slabs.pool, slabs.rows


def all_rows(data: Dataset, pool: int) -> Slabs:
    """The slab of a pool of all rows: there is none to keep off, and 0 x = 0 holds them all."""
    none = torch.zeros(1, data.inputs, dtype=torch.float64)
    return Slabs(
        none, none[:, 0], torch.ones_like(none[:, 0]), torch.tensor([pool]), torch.arange(data.rows)[None]
    )


def find_slabs(
    data: Dataset,
    pools: Sequence[Tensor],
    most: int,
    adding: bool,
    dtype: torch.dtype,
    generator: torch.Generator,
    on_progress: Progress | None = None,
) -> Slabs:
    """Cover the rows of every pool with as few hyperplanes as keep their margins.

    O(N d^2) for the hyperplanes and O(N d T) per gate for their margins, with T draws to choose from.

    Args:
        data: distinct rows.
        pools: rows that may share a hyperplane, by index; rows in none are only kept off.
        most: m, the most rows per gate; no more than the dimension of the rows' affine hull are used.
        adding: whether the rounding errors of all gates add up in the outputs.
        dtype: in whose rounding the margins must hold.
        generator: source of the directions.
        on_progress: told what is done and which part of it.

    Raises:
        TooClose: no hyperplane through a single row keeps off the others.
    """
    basis, deviation = affine_hull(data)
    if not len(deviation):
        raise TooClose(*_too_close(data, 0, dtype))
    most = min(most, len(deviation))
    gates = sum(ceil(len(pool) / most) for pool in pools)
    clearance = ROUNDING * (ADDED * gates if adding else 1)
    found: list[Slabs] = []
    for number, pool in enumerate(pools):
        draw = partial(
            _draw,
            data,
            number=number,
            most=most,
            basis=basis,
            deviation=deviation,
            clearance=clearance,
            dtype=dtype,
            generator=generator,
        )
        count = _fewest(pool, ceil(len(pool) / most), draw, generator)
        while len(pool):
            dealt = _deal(pool, count, generator)
            slabs, holds = draw(dealt)
            found.append(slabs)
            pool, failed = dealt[~holds].unique(), int((~holds).sum())
            if failed == len(pool) == count:
                raise TooClose(*_too_close(data, int(pool[0]), dtype))
            # Where many held, another deal is another chance; else the rows need more gates.
            grown = failed if failed <= LUCK * count else max(failed + 1, int(GROWTH * failed))
            count = min(grown, len(pool))
            if on_progress is not None:
                on_progress("drawing gates", (number + 1 - len(pool) / data.rows) / len(pools))
    return Slabs(*(torch.cat(parts) for parts in zip(*map(_tensors, found), strict=True)))


def affine_hull(data: Dataset) -> tuple[Tensor, Tensor]:
    """The affine hull of the rows: its directions [d, p] and the rows' deviation along them [p].

    Columns are scaled by their range first, and directions orthonormal in that scale; without the scaling
    again they are what a row is multiplied with.
    """
    scale = column_scale(data)
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


def _fewest(
    pool: Tensor,
    count: int,
    draw: Callable[[Tensor], tuple[Slabs, Tensor]],
    generator: torch.Generator,
) -> int:
    """The least number of slabs, from ``count`` on, of which some at least are likely to hold all rows."""

    def likely(slabs: int) -> bool:
        return bool(draw(_deal(pool, slabs, generator)[:PROBES])[1].any())

    short, enough = count - 1, count
    while enough < len(pool) and not likely(enough):
        short, enough = enough, min(2 * enough, len(pool))
    while enough > max(short + 1, int(GROWTH * short)):
        middle = (short + enough) // 2
        short, enough = (short, middle) if likely(middle) else (middle, enough)
    return enough


def _deal(pool: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Deal rows out at random to ``count`` gates [count, size]; a short gate repeats its first row."""
    size = ceil(len(pool) / count)
    shuffled = pool[torch.randperm(len(pool), generator=generator)]
    short = count * size - len(pool)
    return torch.cat([shuffled, shuffled[count - short : count]]).view(size, count).T.contiguous()


def _draw(
    data: Dataset,
    dealt: Tensor,
    number: int,
    most: int,
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
        number: of their pool.
        most: m, the most rows of any gate.
        basis: of the rows' affine hull [d, p].
        deviation: of the rows along it [p].
        clearance: how many times its rounding bound a margin must be.
        dtype: in whose rounding.
        generator: source of the directions.
    """
    gates = len(dealt)
    draws = min(max(DRAWS[0], WORK // (data.rows * data.inputs)), DRAWS[1])
    batch = max(1, min(FACTORS // (len(deviation) ** 2 + data.inputs * draws), COLUMNS // draws))
    slabs = Slabs(
        torch.empty(gates, data.inputs, dtype=torch.float64),
        torch.empty(gates, dtype=torch.float64),
        torch.empty(gates, dtype=torch.float64),
        torch.full((gates,), number),
        torch.cat([dealt, dealt[:, :1].expand(-1, most - dealt.shape[1])], 1),
    )
    holds = torch.zeros(gates, dtype=torch.bool)
    needed = clearance * (data.inputs + 1) * torch.finfo(dtype).eps / 2
    index = torch.arange(0, data.rows, max(1, data.rows // SAMPLE))
    sample = data.take(index)
    owner = torch.full((data.rows,), -1)
    owner[dealt] = torch.arange(gates)[:, None].expand_as(dealt)
    for start in range(0, gates, batch):
        k = torch.arange(start, min(start + batch, gates))
        normal, center, residual = _planes(data, dealt[k], basis, deviation, draws, dtype, generator)
        # A margin that is lost among some rows is lost among all.
        terms = _largest_terms(sample, normal) + center.abs()
        margin = _margins(sample, owner[index], k, normal, center) - RESIDUAL * residual
        hopeful = (margin > needed * terms).any(1)
        k, normal, center = k[hopeful], normal[hopeful], center[hopeful]
        if not len(k):
            continue
        margin = _margins(data, owner, k, normal, center) - RESIDUAL * residual[hopeful]
        one, best = torch.arange(len(k)), (margin / terms[hopeful]).argmax(1)
        slabs.normal[k], slabs.center[k] = normal[one, :, best], center[one, best]
        slabs.margin[k] = margin[one, best]
        terms = _largest_terms(data, slabs.normal[k, :, None]).squeeze(1) + slabs.center[k].abs()
        # A normal that underflows in a narrow dtype misses its own rows.
        on_plane = CENTERED * residual[hopeful][one, best]
        holds[k] = slabs.margin[k] > torch.maximum(needed * terms, on_plane)
    return slabs.where(holds), holds


def _planes(
    data: Dataset,
    dealt: Tensor,
    basis: Tensor,
    deviation: Tensor,
    draws: int,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Planes through the rows of every gate: u [B, d, T], b [B, T], and what rows miss them by [B, T]."""
    own = data.flat[dealt].double()  # [B, m, d]
    seeds = torch.randn(len(own), len(deviation), draws, generator=generator, dtype=torch.float64)
    normal = basis @ _orthogonal((own[:, 1:] - own[:, :1]) @ basis, deviation[:, None] * seeds)
    normal = (normal / normal.abs().amax(1, keepdim=True)).to(dtype).double()
    along = own @ normal
    low, high = along.amin(1), along.amax(1)
    return normal, (low + high) / 2, (high - low) / 2


def _orthogonal(rows: Tensor, seeds: Tensor) -> Tensor:
    """Project seeds [B, p, T] on the directions orthogonal to given rows [B, m, p]."""
    if not rows.shape[1]:
        return seeds
    reflectors, scales = torch.geqrf(rows.mT.contiguous())
    turned = torch.ormqr(reflectors, scales, seeds, transpose=True)
    turned[:, : rows.shape[1]] = 0.0
    return torch.ormqr(reflectors, scales, turned)


def _margins(data: Dataset, owner: Tensor, gates: Tensor, normal: Tensor, center: Tensor) -> Tensor:
    """The least |u x - b| over all rows but a gate's own [B, T].

    Args:
        data: rows.
        owner: the gate that every row belongs to, or -1 [N].
        gates: their ascending numbers [B].
        normal: u [B, d, T].
        center: b [B, T].
    """
    weight = _side_by_side(normal)
    least = torch.full(center.shape, torch.inf, dtype=torch.float64)
    for rows, x in data.chunks(_chunk(weight)):
        distance = (x @ weight).sub_(center.flatten()).abs_().view(len(x), *center.shape)
        place = torch.searchsorted(gates, owner[rows]).clamp_max(len(gates) - 1)
        own = torch.nonzero(gates[place] == owner[rows]).squeeze(1)
        distance[own, place[own]] = torch.inf
        least = torch.minimum(least, distance.amin(0))
    return least


def _largest_terms(data: Dataset, normal: Tensor) -> Tensor:
    """The largest sum |u| |x| over all rows [B, T], for u [B, d, T]."""
    weight = _side_by_side(normal.abs())
    largest = torch.zeros(weight.shape[1], dtype=torch.float64)
    for _, x in data.chunks(_chunk(weight)):
        largest = torch.maximum(largest, (x.abs() @ weight).amax(0))
    return largest.view(len(normal), -1)


def _side_by_side(normal: Tensor) -> Tensor:
    return normal.transpose(0, 1).flatten(1)  # [d, B T]


def _chunk(weight: Tensor) -> int:
    return max(1, WORKSPACE // sum(weight.shape))


def _too_close(data: Dataset, row: int, dtype: torch.dtype) -> tuple[str, int, int]:
    """The sentence about a row that no hyperplane through it alone sets apart, this row, and the nearest."""
    distance = torch.full((), torch.inf, dtype=torch.float64)
    nearest = row
    for rows, x in data.chunks():
        apart = (x - data.flat[row].double()).abs().amax(1)
        if rows.start <= row < rows.stop:
            apart[row - rows.start] = torch.inf
        if apart.min() < distance:
            distance, nearest = apart.min(), rows.start + int(apart.argmin())
    said = (
        f"{data.source}: no hyperplane through row {row + 1} (of the distinct ones) keeps off all others "
        f"in {dtype_name(dtype)}; nearest to it is row {nearest + 1}, at most {distance:.1e} away in any "
        f"column."
    )
    return said, row, nearest
