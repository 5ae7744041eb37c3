"""Linear pieces of a network along a line, counted: what Theorem 3.3 bounds.

Along x(t) = start + t (stop - start) every unit is a chain of line segments. The line is cut into cells, on
each of which all units of a layer are affine in t; an affine map keeps the cells, and an activation cuts each
where a unit crosses one of its kinks. Cells in which no output changes its slope are one piece.

In exact mode every number is an integer: the network is read as integers times powers of two, so that its
values are integers in units of such a power, and the powers are left out until the end. A breakpoint is one
quotient of two of these integers, and only its sign tests use it, so that fractions never nest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from isthmus import graph
from isthmus.arithmetic.exact import Dyadic, _product, dyadic
from isthmus.bounds.converse import pieces_by_layer, pieces_by_unit
from isthmus.errors import InputError, UnsupportedModel
from isthmus.graph import Clip, Dense, Flatten, Leaky, Skip, Smooth, Stage

EXACT_WORK: Final = 10_000_000  # multiplications of integers that are done without being asked to: seconds
TOLERANCE: Final = 1e-12  # in float64: of slopes, relative to an output's steepest, and of breakpoints


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
        """The outputs [*shape, K] at places t [*shape] of the line: fractions if exact, else floats."""
        t = np.asarray(t, dtype=object if self.exact else np.float64)
        if self.exact:
            t = _fractions(map(Fraction, t.reshape(-1).tolist()), t.shape)
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
        return f"Pieces({self.count}, {arithmetic}; by_unit={self.by_unit}, by_layer={self.by_layer})"

    def __str__(self) -> str:
        fewest, most = min(self.per_output), max(self.per_output)
        lines = [f"pieces         {self.count:,}, {'exactly' if self.exact else 'counted in float64'}"]
        if len(self.per_output) > 1:
            lines.append(f"per output     {fewest:,} to {most:,}")
        if self.by_unit is not None:
            lines.append(f"paper's bound  {self.by_unit:,} for one output (Theorem 3.3)")
        return "\n".join([*lines, f"sharper bound  {self.by_layer:,} for all outputs together"])


def linear_pieces(model: nn.Module, start: Any, stop: Any, *, exact: bool | None = None) -> Pieces:
    """Count the linear pieces of a network along the whole line through two points.

    Args:
        model: a network that `isthmus.graph` understands, of affine and piecewise-linear layers.
        start: an input ``[*shape]``, at t = 0. It is not rounded to the model's dtype.
        stop: another, at t = 1.
        exact: rational arithmetic, or float64, in which kinks nearer than `TOLERANCE` times the distance from
            start to stop are one, and slopes are equal up to `TOLERANCE` of the steepest. By default exact if
            the widths allow no more than `EXACT_WORK` multiplications.

    Raises:
        UnsupportedModel: the model has tanh, a sigmoid, or a module outside `isthmus.graph`.
        InputError: not a network, points that are the same, not finite or of a shape that the model does not
            take, weights that are not finite, or values beyond float64's range.

    Source: Theorem 3.3 of Yun, Sra, Jadbabaie 2019 and its proof.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"expected a torch.nn.Module, found {type(model).__name__}.")
    ends = _ends(start, stop)
    stages = graph.stages(model)
    shapes = list(_shapes(stages, ends.shape[1]))
    bent = [(width, len(_parts(stage).scales)) for stage, width in shapes if isinstance(stage, Clip | Leaky)]
    widths, p = zip(*bent, strict=True) if bent else ((), ())
    if exact is None:
        exact = _work(shapes) <= EXACT_WORK

    line, exponent = _numbers(ends, exact)
    network, exponent = _read(stages, exponent, exact)
    with np.errstate(all="ignore"):  # what overflows is refused below
        whole = np.stack([line[1] - line[0], line[0]])[None]
        cells = _walk(network, _Cells(whole[:0, 0, 0], whole))
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
    return Pieces(
        breakpoints=cells.breaks[changes],
        slopes=slopes,
        intercepts=intercepts,
        per_output=tuple((1 + bends.sum(0)).tolist()),
        by_unit=None if any(isinstance(stage, Skip) for stage in stages) else pieces_by_unit(widths, p),
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


# The network as the walk reads it --------------------------------------------------------------------------


def _shapes(stages: Iterable[Stage], width: int) -> Iterator[tuple[Stage, int]]:
    """Walk over all stages in order, those within a Skip too.

    Yields:
        A stage, and how many values it takes.

    Raises:
        UnsupportedModel: a stage is tanh or a sigmoid.
        InputError: an affine stage takes another number of values than it is given.
    """
    for stage in stages:
        match stage:
            case Skip(inner):
                yield from _shapes(inner, width)
                continue
            case Smooth():
                raise UnsupportedModel("tanh and sigmoid have no linear pieces to count.")
            case Dense(weight) if weight.shape[1] != width:
                raise InputError(f"the model takes {weight.shape[1]} values where it is given {width}.")
        yield stage, width
        if isinstance(stage, Dense):
            width = stage.weight.shape[0]


def _work(shapes: Sequence[tuple[Stage, int]]) -> int:
    """Multiplications, if every layer has all the cells that its widths allow."""
    cells, work = 1, 0
    for stage, width in shapes:
        if isinstance(stage, Dense):
            work += 2 * cells * stage.weight.numel()
        elif isinstance(stage, Clip | Leaky):
            cells *= pieces_by_layer([width], len(_parts(stage).scales))
            work += 2 * cells * width
    return work


class _Parts(NamedTuple):
    """A piecewise-linear activation: beyond i of the ascending kinks x -> scales[i] x + shifts[i]."""

    kinks: tuple[float, ...]
    scales: tuple[float, ...]
    shifts: tuple[float, ...]


def _parts(stage: Clip | Leaky) -> _Parts:
    match stage:
        case Leaky(1.0):
            return _Parts((), (1.0,), (0.0,))
        case Leaky(slope):
            return _Parts((0.0,), (slope, 1.0), (0.0, 0.0))
        case Clip(low, high) if low >= high:
            return _Parts((), (0.0,), (high,))
        case Clip(low, high):
            below, above = ((bound,) if math.isfinite(bound) else () for bound in (low, high))
            scales = (0.0,) * len(below) + (1.0,) + (0.0,) * len(above)
            return _Parts((*below, *above), scales, (*below, 0.0, *above))


@dataclass(frozen=True)
class _Affine:
    """x -> W x + b: weight [out, in], bias [out]."""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class _Bends:
    """`_Parts` of unit x: kinks [p - 1], scales and shifts [p]."""

    unit: int
    kinks: np.ndarray
    scales: np.ndarray
    shifts: np.ndarray


@dataclass(frozen=True)
class _Skip:
    """x -> unit x + f(x)."""

    unit: int
    stages: list[_Read]


_Read = _Affine | _Bends | _Skip


def _numbers(values: Tensor, exact: bool) -> tuple[np.ndarray, int]:
    """Values as integers times 2^exponent if exact, else as floats, with the exponent 0.

    Raises:
        InputError: one of them is not finite.
    """
    if not values.isfinite().all():
        raise InputError("the model has weights that are not finite.")
    if exact:
        found = dyadic(values)
        return found.integers, found.exponent
    return values.double().numpy(), 0


def _read(stages: Iterable[Stage], exponent: int, exact: bool) -> tuple[list[_Read], int]:
    """The network on inputs in units of 2^exponent, and the exponent of its outputs."""
    read: list[_Read] = []
    for stage in stages:
        match stage:
            case Dense(weight, bias):
                offset = torch.zeros_like(weight[:, 0]) if bias is None else bias
                affine, finer = _numbers(torch.column_stack([weight, offset]).detach().cpu(), exact)
                # The bias meets products, which are in units of both exponents.
                read.append(_Affine(affine[:, :-1], affine[:, -1] * (1 << -exponent)))
                exponent += finer
            case Clip() | Leaky():
                (kinks, kink), (scales, scale), (shifts, shift) = (
                    _numbers(torch.tensor(constants, dtype=torch.float64), exact)
                    for constants in _parts(stage)
                )
                finest = min(exponent, kink, shift)
                kinks, shifts = kinks * (1 << kink - finest), shifts * (1 << shift - finest - scale)
                read.append(_Bends(1 << exponent - finest, kinks, scales, shifts))
                exponent = finest + scale
            case Skip(inner):
                branch, finer = _read(inner, exponent, exact)
                read.append(_Skip(1 << exponent - finer, branch))
                exponent = finer
            case Flatten() | Smooth():  # the former changes no row, the latter was refused
                pass
    return read, exponent


# The walk: the same on arrays of integers and of floats ----------------------------------------------------


@dataclass(frozen=True)
class _Cells:
    """A layer's units along the line.

    Attributes:
        breaks: ends of the cells, ascending [C - 1]; the first and the last cell are rays.
        lines: slope and intercept of every unit [C, 2, m].
    """

    breaks: np.ndarray
    lines: np.ndarray


def _walk(network: Iterable[_Read], cells: _Cells) -> _Cells:
    for stage in network:
        match stage:
            case _Affine(weight, bias):
                product = _times(cells.lines.reshape(-1, cells.lines.shape[2]), weight.T)
                lines = product.reshape(-1, 2, len(weight))
                lines[:, 1] += bias
                cells = _Cells(cells.breaks, lines)
            case _Bends():
                cells = _bent(cells, stage)
            case _Skip(unit, branch):
                added = _walk(branch, cells)
                lines = cells.lines[_parents(cells.breaks, added.breaks)] * unit + added.lines
                cells = _Cells(added.breaks, lines)
    return cells


def _bent(cells: _Cells, bends: _Bends) -> _Cells:
    """The cells cut at every unit's kinks, and the activation's part that holds on each."""
    cells = _Cells(cells.breaks, cells.lines * bends.unit)
    crossings = [_crossings(cells, kink) for kink in bends.kinks]
    breaks = np.unique(np.concatenate([cells.breaks, *(places for *_, places in crossings)]))
    parents = _parents(cells.breaks, breaks)
    beyond = np.zeros((len(parents), cells.lines.shape[2]), dtype=np.int64)
    for left, right, places in crossings:
        crossed = left * right < 0
        # Cell i ends at break i, so those up to i lie to its left; where nothing is crossed, none do.
        last = np.full(left.shape, -1)
        last[crossed] = np.searchsorted(breaks, places)
        on_left = np.arange(len(parents))[:, None] <= last[parents]
        beyond += np.where(on_left, left[parents], np.where(right == 0, left, right)[parents]) > 0
    lines = cells.lines[parents] * bends.scales[beyond][:, None]
    lines[:, 1] += bends.shifts[beyond]
    return _without_slivers(_Cells(breaks, lines))


def _crossings(cells: _Cells, kink: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where units cross a kink within a cell.

    Returns:
        The signs of their distance from it at the cells' left and right ends [C, m], and in order the places
        where those with opposite signs cross.
    """
    slopes, above = cells.lines[:, 0], cells.lines[:, 1] - kink
    numerators, denominators = _ratios(cells.breaks)
    inner = slopes[:-1] * numerators + above[:-1] * denominators
    first = np.where(slopes[:1] == 0, above[:1], -slopes[:1])
    last = np.where(slopes[-1:] == 0, above[-1:], slopes[-1:])
    ends = np.concatenate([first, inner, last])
    signs = (ends > 0).astype(np.int8) - (ends < 0)
    left, right = signs[:-1], signs[1:]
    crossed = left * right < 0
    return left, right, _quotients(-above[crossed], slopes[crossed])


def _parents(coarse: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """The cell between coarse breaks in which each cell between finer ones lies."""
    return np.concatenate([[0], np.searchsorted(coarse, fine, side="right")])


def _without_slivers(cells: _Cells) -> _Cells:
    """In float64, without cells that rounding made: one breakpoint may have been computed as several."""
    if cells.lines.dtype == object or not len(cells.breaks):
        return cells
    near = np.diff(cells.breaks) <= TOLERANCE * np.maximum(1, np.abs(cells.breaks[1:]))
    kept = np.concatenate([[True], ~near, [True]])
    return _Cells(cells.breaks[kept[1:]], cells.lines[kept])


def _times(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return _product(left, right) if left.dtype == object else left @ right


def _quotients(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    if numerators.dtype != object:
        return numerators / denominators
    return _fractions(map(Fraction, numerators, denominators), numerators.shape)


def _ratios(breaks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numerators and denominators [C - 1, 1]; of floats, themselves and 1."""
    if breaks.dtype != object:
        return breaks[:, None], np.ones((len(breaks), 1))
    ratios = [place.as_integer_ratio() for place in breaks]
    numerators, denominators = np.array(ratios, dtype=object).reshape(-1, 2, 1).swapaxes(0, 1)
    return numerators, denominators


def _fractions(values: Iterable[Fraction], shape: tuple[int, ...]) -> np.ndarray:
    return np.fromiter(values, dtype=object).reshape(shape)
