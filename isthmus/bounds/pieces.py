"""Linear pieces of a network along a line, counted: what Theorem 3.3 bounds.

`isthmus.bounds.cells` cuts the line where any unit bends; neighbors on which no output changes its slope are
one piece.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from isthmus import graph
from isthmus.arithmetic.exact import Dyadic
from isthmus.bounds.cells import TOLERANCE, TooMuchWork, cells_along, fractions, parts
from isthmus.bounds.converse import pieces_by_layer, pieces_by_unit
from isthmus.errors import InputError, UnsupportedModel
from isthmus.graph import Clip, Dense, Gated, Leaky, Smooth, Stage, Sum

EXACT_WORK: Final = 10_000_000  # multiplications of integers per layer that are done unasked: seconds


@dataclass(frozen=True, eq=False, repr=False)
class Pieces:
    """A network's outputs along a line, piece by piece.

    Attributes:
        breakpoints: where a slope changes, ascending [P - 1]: fractions if exact, else floats.
        slopes, intercepts: of every piece and output [P, K], likewise.
        per_output: how many pieces every output has by itself.
        by_unit: at most so many of one output, as Theorem 3.3 counts; None for residual networks, which it
            does not treat.
        by_layer: at most so many of all outputs together, for residual networks too: the sharper count.
        exact: nothing was rounded.
    """

    breakpoints: np.ndarray
    slopes: np.ndarray
    intercepts: np.ndarray
    per_output: tuple[int, ...]
    by_unit: int | None
    by_layer: int
    exact: bool

    @property
    def count(self) -> int:
        """How many pieces all outputs together have, P."""
        return len(self.slopes)

    def at(self, t: Any) -> np.ndarray:
        """The outputs ``[*shape, K]`` at places t ``[*shape]`` of the line: fractions if exact."""
        t = np.asarray(t, dtype=object if self.exact else np.float64)
        if self.exact:
            t = fractions(map(Fraction, t.reshape(-1).tolist()), t.shape)
        piece = np.searchsorted(self.breakpoints, t)
        return self.slopes[piece] * t[..., None] + self.intercepts[piece]

    def to_dict(self) -> dict[str, Any]:
        """The result, ready for JSON, with every number as a float.

        Raises:
            InputError: one of them is beyond float64's range.
        """
        try:
            lines = {
                name: getattr(self, name).astype(np.float64).tolist()
                for name in ("breakpoints", "slopes", "intercepts")
            }
        except OverflowError:
            raise InputError("along this line are slopes or values beyond float64's range.") from None
        return {
            "count": self.count,
            "per_output": list(self.per_output),
            "by_unit": self.by_unit,
            "by_layer": self.by_layer,
            "exact": self.exact,
            **lines,
        }

    def __repr__(self) -> str:
        arithmetic = "exact" if self.exact else "float64"
        return f"Pieces({self.count}, {arithmetic}; at most {in_few_digits(self.by_layer)})"

    def __str__(self) -> str:
        fewest, most = min(self.per_output), max(self.per_output)
        each = f"{fewest:,} to {most:,}" if fewest < most else f"{most:,} each"
        arithmetic = "exactly" if self.exact else "as far as float64 tells them apart"
        lines = [f"pieces         {self.count:,}, {arithmetic}"]
        if len(self.per_output) > 1:
            lines.append(f"per output     {each}")
        if self.by_unit is not None:
            lines.append(f"paper's bound  {in_few_digits(self.by_unit)} for one output (Theorem 3.3)")
        return "\n".join([*lines, f"sharper bound  {in_few_digits(self.by_layer)} for all outputs together"])


def in_few_digits(bound: int) -> str:
    """An upper bound, rounded up to a power of ten where it is long: it may have hundreds of digits."""
    return f"{bound:,}" if bound < 10**12 else f"10^{len(str(bound))}"


def linear_pieces(model: nn.Module, start: Any, stop: Any, *, exact: bool | None = None) -> Pieces:
    """Count the linear pieces of a network along the whole line through two points.

    Args:
        model: a network that `isthmus.graph` understands, of affine and piecewise-linear layers.
        start: an input ``[*shape]``, at t = 0. It is not rounded to the model's dtype.
        stop: another, at t = 1.
        exact: rational arithmetic, or float64, in which kinks nearer than `TOLERANCE` times the distance from
            start to stop are one, and slopes are equal up to `TOLERANCE` of the steepest, so that steep
            networks seem to have fewer pieces. By default exact, unless a layer needs more than `EXACT_WORK`
            multiplications.

    Raises:
        UnsupportedModel: the model has tanh, a sigmoid, gates, or a module outside `isthmus.graph`.
        InputError: not a network, points that are the same, not finite or of a shape that the model does not
            take, weights that are not finite, values beyond float64's range, or too many pieces for memory.

    Source: Theorem 3.3 of Yun, Sra, Jadbabaie 2019 and its proof.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"expected a torch.nn.Module, found {type(model).__name__}.")
    ends = _ends(start, stop)
    stages = graph.folded(graph.stages(model))
    shapes = list(_shapes(stages, ends.shape[1]))
    try:
        most = EXACT_WORK if exact is None else math.inf
        cells, exponent = cells_along(stages, ends, exact=exact is not False, most=most)
    except TooMuchWork:
        cells, exponent = cells_along(stages, ends, exact=False)
    exact = cells.exact
    slopes, intercepts = cells.lines[:, 0], cells.lines[:, 1]
    if not exact and not (np.isfinite(cells.lines).all() and np.isfinite(cells.breaks).all()):
        raise InputError("values along this line overflow float64; count with exact=True.")

    same = (0 if exact else TOLERANCE) * np.abs(slopes).max(0)
    bends = np.abs(slopes[1:] - slopes[:-1]) > same
    changes = bends.any(1)
    first = np.concatenate([[True], changes])
    slopes, intercepts = slopes[first], intercepts[first]
    if exact:
        slopes, intercepts = (Dyadic(numbers, exponent).fractions() for numbers in (slopes, intercepts))
    bent = [(width, len(parts(stage).scales)) for stage, width in shapes if isinstance(stage, Clip | Leaky)]
    widths, p = zip(*bent, strict=True) if bent else ((), ())
    return Pieces(
        breakpoints=cells.breaks[changes],
        slopes=slopes,
        intercepts=intercepts,
        per_output=tuple((1 + bends.sum(0)).tolist()),
        by_unit=None if any(isinstance(stage, Sum) for stage in stages) else pieces_by_unit(widths, p),
        by_layer=pieces_by_layer(widths, p),
        exact=exact,
    )


def _ends(start: Any, stop: Any) -> Tensor:
    """Both points as rows [2, d].

    Raises:
        InputError: they are no numbers, not finite, the same, or of different lengths.
    """
    try:
        rows = [torch.as_tensor(row).detach().cpu().reshape(-1) for row in (start, stop)]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"start and stop should be arrays of numbers ({error}).") from None
    if len(rows[0]) != len(rows[1]):
        raise InputError(f"start has {len(rows[0])} values, but stop has {len(rows[1])}.")
    if any(row.is_complex() or not row.isfinite().all() for row in rows):
        raise InputError("start and stop should hold finite real numbers only.")
    if rows[0].dtype != rows[1].dtype:
        rows = [row.double() for row in rows]
    if torch.equal(*rows):
        raise InputError("start and stop are the same point, so there is no line through them.")
    return torch.stack(rows)


def _shapes(stages: Iterable[Stage], width: int) -> Iterator[tuple[Stage, int]]:
    """Walk over all stages in order, those within a Sum too.

    Yields:
        A stage, and how many values it takes.

    Raises:
        UnsupportedModel: a stage is tanh, a sigmoid or made of gates.
        InputError: an affine stage takes another number of values than it is given.
    """
    for stage in stages:
        match stage:
            case Sum(branches):
                for branch in branches:
                    yield from _shapes(branch, width)
                continue
            case Gated():
                raise UnsupportedModel(
                    "gates beside a model have no linear pieces to count: they may be curved."
                )
            case Smooth():
                raise UnsupportedModel("tanh and sigmoid have no linear pieces to count.")
            case Dense(weight) if weight.shape[1] != width:
                raise InputError(f"the model takes {weight.shape[1]} values where it is given {width}.")
        yield stage, width
        if isinstance(stage, Dense):
            width = stage.weight.shape[0]
