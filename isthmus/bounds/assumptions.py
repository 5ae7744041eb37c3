"""What the theorems assume about the rows, checked on the rows at hand.

A check answers True (holds), False (fails; the reason says where) or None (not known: no data, or only
necessary conditions could be tested). Equal rows are merged before anything geometric is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from isthmus.data.dataset import Dataset, Shape

RANK_TOLERANCE = (
    1e-11  # a direction counts if its variance exceeds this part of the largest, columns scaled alike
)
UNIT_TOLERANCE = 1e-6  # how far a float32 row of unit norm may be from 1
BLOCK_VALUES = 1 << 24  # numbers of a block of columns: 128 MiB as float64
EXACT_PLANE_ROWS = (
    300  # up to so many points of the plane, collinear triples are sought exactly (half a second)
)


@dataclass(frozen=True)
class Assumption:
    """One assumption of a theorem and whether this data set meets it; None is not known."""

    name: str
    met: bool | None
    reason: str


def without_rows(shape: Shape) -> tuple[Assumption, ...]:
    """Every assumption for a data set of which only the size is known."""
    names = ("distinct rows", "general position", "unit norm", "separated rows")
    unchecked = (Assumption(name, None, "no data") for name in names)
    return (*unchecked, two_classes(shape), inputs_cover_classes(shape))


def checked(data: Dataset, merged: Dataset, rank: int) -> tuple[Assumption, ...]:
    """Every assumption, checked.

    Args:
        data: the rows as they came.
        merged: its distinct rows.
        rank: their `affine_rank`.
    """
    return (
        distinct_rows(data),
        general_position(merged, rank),
        unit_norm(merged),
        Assumption("separated rows", None, "the theorem's constants are not known"),
        two_classes(data.shape),
        inputs_cover_classes(data.shape),
    )


def distinct_rows(data: Dataset) -> Assumption:
    """Equal inputs have equal targets, so that merging them leaves distinct rows."""
    conflicts = data.conflicts()
    if len(conflicts) > 0:
        reason = (
            f"{len(conflicts)} rows repeat an input with another target, first row {int(conflicts[0]) + 1}"
        )
        return Assumption("distinct rows", False, reason)
    repeated = data.rows - len(data.first_rows)
    return Assumption(
        "distinct rows", True, f"{repeated} repeated rows merged" if repeated else "no row repeats"
    )


def general_position(data: Dataset, rank: int) -> Assumption:
    """No d+1 rows lie on one affine hyperplane (Yun et al., Assumption 4.1).

    For N <= d that says nothing, and Corollary 4.2 then fails on collinear rows with alternating classes.
    What its proof uses is that the rows are affinely independent: asked here for N <= d, implied for every
    d+1 rows otherwise. Exact for N <= d+1, d = 1 and few points of the plane; else only necessary conditions
    are tested: full affine rank, and no value that more than d rows share in a column.

    Args:
        data: distinct rows.
        rank: their `affine_rank`.
    """

    def answer(met: bool | None, reason: str) -> Assumption:
        return Assumption("general position", met, reason)

    rows, inputs, flat = data.rows, data.inputs, data.flat
    if rows <= inputs + 1:
        return answer(rank == rows - 1, f"{rows} rows span {rank} dimensions")
    if inputs == 1:
        return answer(True, "distinct numbers")
    if constant := int((flat.amin(dim=0) == flat.amax(dim=0)).sum()):
        return answer(False, f"{constant} of {inputs} columns are constant")
    if rank < inputs:
        return answer(False, f"the rows span only {rank} of {inputs} dimensions")
    if (column := _crowded_column(flat)) is not None:
        return answer(False, f"more than {inputs} rows share a value in column {column + 1}")
    if inputs == 2 and rows <= EXACT_PLANE_ROWS:
        collinear = _has_collinear_triple(flat)
        return answer(not collinear, f"{'some' if collinear else 'no'} three rows lie on a line")
    return answer(None, "passes the necessary tests")


def unit_norm(data: Dataset) -> Assumption:
    """Every row has Euclidean norm 1 (Hardt and Ma 2017)."""
    norms = torch.cat([torch.linalg.vector_norm(x, dim=1) for _, x in data.chunks()])
    low, high = float(norms.min()), float(norms.max())
    met = max(abs(low - 1), abs(high - 1)) <= UNIT_TOLERANCE
    return Assumption("unit norm", met, f"norms from {low:.6g} to {high:.6g}")


def two_classes(shape: Shape) -> Assumption:
    """The targets are two classes (Baum 1988)."""
    return Assumption("two classes", shape.outputs <= 2, f"{shape.outputs} classes")


def inputs_cover_classes(shape: Shape) -> Assumption:
    """There are at least as many inputs as classes: d >= K (Theorem 4.1)."""
    reason = f"{shape.inputs} inputs, {shape.outputs} classes"
    return Assumption("inputs >= classes", shape.inputs >= shape.outputs, reason)


def affine_rank(data: Dataset) -> int:
    """The dimension of the affine hull of the rows, numerically: see RANK_TOLERANCE.

    Works on the smaller of the Gram matrices [d, d] and [N, N], a chunk of rows or columns at a time.
    """
    gram = _column_gram(data) if data.inputs < data.rows else _row_gram(data.flat)
    variances = torch.linalg.eigvalsh(gram)
    return int((variances > RANK_TOLERANCE * variances[-1]).sum())


def _column_gram(data: Dataset) -> Tensor:
    # Measured from the first row a constant column is exactly zero; minus its rounded mean it might not be.
    origin = data.flat[0].double()
    mean, spread = torch.zeros_like(origin), torch.zeros_like(origin)
    for _, x in data.chunks():
        mean += (x - origin).sum(dim=0) / data.rows
        spread = torch.maximum(spread, (x - origin).abs().amax(dim=0))
    spread[spread == 0] = 1.0
    gram = torch.zeros(data.inputs, data.inputs, dtype=torch.float64)
    for _, x in data.chunks():
        scaled = (x - origin - mean) / spread
        gram.addmm_(scaled.T, scaled)
    return gram


def _row_gram(flat: Tensor) -> Tensor:
    gram = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for block in _column_blocks(flat):
        shifted = block.double() - block[0].double()
        spread = shifted.abs().amax(dim=0)
        spread[spread == 0] = 1.0
        scaled = (shifted - shifted.mean(dim=0)) / spread
        gram.addmm_(scaled, scaled.T)
    return gram


def _column_blocks(flat: Tensor) -> tuple[Tensor, ...]:
    return flat.split(max(1, BLOCK_VALUES // len(flat)), dim=1)


def _crowded_column(flat: Tensor) -> int | None:
    """The first column in which more than d rows share a value."""
    rows, inputs = flat.shape
    before = 0
    for block in _column_blocks(flat):
        ascending = block.T.contiguous().sort(dim=1).values
        crowded = (ascending[:, inputs:] == ascending[:, : rows - inputs]).any(dim=1)
        if crowded.any():
            return before + int(crowded.nonzero()[0])
        before += block.shape[1]
    return None


def _has_collinear_triple(flat: Tensor) -> bool:
    points = [(Fraction(x), Fraction(y)) for x, y in flat.tolist()]
    for i, (x, y) in enumerate(points):
        slopes = [(v - y) / (u - x) if u != x else None for u, v in points[i + 1 :]]
        if len(set(slopes)) < len(slopes):
            return True
    return False
