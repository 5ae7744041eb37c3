"""Theorem 3.3: a network with too few linear pieces along a line cannot fit every data set of N rows.

The data set that it cannot fit is the zigzag x_i = i u, y_i = (-1)^i, which needs N - 1 linear pieces. Letter
p: the linear pieces of the activation, 2 for ReLU and 3 for hard-tanh, either of all layers or one of each.
`isthmus.bounds.pieces` counts what a given network has.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

PieceCount = Callable[[Sequence[int], int | Sequence[int]], int]


def pieces_by_unit(widths: Sequence[int], p: int | Sequence[int]) -> int:
    """At most so many pieces, as Theorem 3.3 counts: every unit brings all earlier breakpoints of its own."""
    pieces = 1
    for width, parts in zip(widths, _of_each(widths, p), strict=True):
        pieces = width * (parts * pieces - 1) + 1
    return pieces


def pieces_by_layer(widths: Sequence[int], p: int | Sequence[int]) -> int:
    """A sharper count, new here: units of a layer share the earlier breakpoints and add p-1 to each piece."""
    pieces = 1
    for width, parts in zip(widths, _of_each(widths, p), strict=True):
        pieces *= (parts - 1) * width + 1
    return pieces


def _of_each(widths: Sequence[int], p: int | Sequence[int]) -> Sequence[int]:
    return (p,) * len(widths) if isinstance(p, int) else p


def fails(pieces: int, rows: int) -> bool:
    """Whether so few pieces cannot fit the zigzag of ``rows`` points."""
    return pieces < rows - 1


def largest_failing(rows: int, hidden_layers: int, p: int, count: PieceCount) -> tuple[int, ...] | None:
    """The largest equal widths that fail by a count of pieces; None if width 1 may do."""
    enough = bisect_left(
        range(rows + 1), True, key=lambda width: not fails(count((width,) * hidden_layers, p), rows)
    )
    return (enough - 1,) * hidden_layers if enough > 1 else None
