"""Rows and targets as a network of some dtype holds them, or why it cannot."""

from __future__ import annotations

from dataclasses import replace

import torch

from isthmus import graph
from isthmus.data.dataset import Dataset
from isthmus.errors import PrecisionError


def rows_as_held(data: Dataset, dtype: torch.dtype) -> Dataset:
    """The distinct rows among the inputs as a network of this dtype sees them.

    Args:
        data: rows without conflicts.
        dtype: of the network.

    Raises:
        PrecisionError: an input overflows, or two rows with different targets become equal.
    """
    if not all(torch.equal(x.to(dtype).double(), x) for _, x in data.chunks()):
        name, held = graph.dtype_name(dtype), data.x.to(dtype)
        infinite = torch.nonzero(torch.isinf(held.reshape(data.rows, -1)))
        if len(infinite):
            row, column = (int(place) + 1 for place in infinite[0])
            raise PrecisionError(
                f"{data.source}: row {row}, input column {column} is more than {name} holds "
                f"({torch.finfo(dtype).max:g}); rescale the column."
            )
        data = replace(data, x=held)
        merged = data.conflicts()
        if len(merged):
            row = int(merged[0])
            twin = int(merged[(data.groups[merged] == data.groups[row]) & (merged != row)][0])
            raise PrecisionError(
                f"{data.source}: rows {row + 1} and {twin + 1} have different targets, but become equal in "
                f"{name}."
            )
    return data.take(data.first_rows)


def require_targets_held(data: Dataset, dtype: torch.dtype, tolerance: float) -> None:
    """Refuse a dtype in which no output can come near enough to the targets.

    Args:
        data: rows with values as targets.
        dtype: of the network.
        tolerance: largest error allowed.

    Raises:
        PrecisionError: the nearest number of this dtype is farther from a target than the tolerance.
    """
    nearest = float((data.y - data.y.to(dtype).double()).abs().max())
    if nearest > tolerance:
        raise PrecisionError(
            f"{data.source}: {graph.dtype_name(dtype)} rounds the targets by up to {nearest:.1e}, more than "
            f"the tolerance {tolerance:.1e}."
        )
