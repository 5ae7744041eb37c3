"""The cells of a network along a line: on each, all units of a layer are affine in t.

Along x(t) = start + t (stop - start) every unit is a chain of line segments. An affine map keeps the cells,
and an activation cuts each where a unit crosses one of its kinks.

In exact mode every number is an integer: the network is read as integers times powers of two, so that its
values are integers in units of such a power, and the powers are left out until the end. A breakpoint is one
quotient of two of these integers, and only its sign tests use it, so that fractions never nest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from isthmus.arithmetic.exact import dyadic, integer_product
from isthmus.errors import InputError, UnsupportedModel
from isthmus.graph import Clip, Dense, Flatten, Gated, Leaky, Smooth, Stage, Sum

TOLERANCE: Final = 1e-12  # in float64, of breakpoints: nearer ones are one
MOST_NUMBERS: Final = 1 << 27  # of a layer, in all its cells: a gigabyte in float64, several times


class TooMuchWork(Exception):
    """A layer needs more multiplications, in the cells that it has, than are allowed."""


@dataclass(frozen=True)
class Cells:
    """A layer's units along the line.

    Attributes:
        breaks: ends of the cells, ascending [C - 1]; the first and the last cell are rays.
        lines: slope and intercept of every unit [C, 2, m].
    """

    breaks: np.ndarray
    lines: np.ndarray

    @property
    def exact(self) -> bool:
        """They are integers, and the breaks fractions."""
        return self.lines.dtype == object


def cells_along(
    stages: Iterable[Stage], ends: Tensor, *, exact: bool, most: float = math.inf
) -> tuple[Cells, int]:
    """Cut a line where any unit of a network bends.

    Args:
        stages: affine and piecewise-linear ones, which take and return vectors of fitting lengths.
        ends: the points at t = 0 and t = 1 [2, d].
        exact: count in integers, or in float64.
        most: multiplications that one layer may need.

    Returns:
        The cells of the outputs, and the exponent of 2 in whose power their lines are counted; the breaks are
        fractions if exact. In float64 the exponent is 0, and what overflows is infinite or NaN.

    Raises:
        TooMuchWork: a layer needs more multiplications than that.
        UnsupportedModel: a stage is made of gates, or a sum of other branches than the identity and one more.
        InputError: a weight is not finite, or a layer has more than `MOST_NUMBERS` numbers in its cells.
    """
    line, exponent = _numbers(ends, exact)
    network, exponent = _read(stages, exponent, exact)
    whole = np.stack([line[1] - line[0], line[0]])[None]
    with np.errstate(all="ignore"):
        return _walk(network, Cells(whole[:0, 0, 0], whole), most), exponent


def fractions(values: Iterable[Fraction], shape: tuple[int, ...]) -> np.ndarray:
    """An array of fractions."""
    return np.fromiter(values, dtype=object).reshape(shape)


# The network as the walk reads it --------------------------------------------------------------------------


class Parts(NamedTuple):
    """A piecewise-linear activation: beyond i of the ascending kinks x -> scales[i] x + shifts[i]."""

    kinks: tuple[float, ...]
    scales: tuple[float, ...]
    shifts: tuple[float, ...]


def parts(stage: Clip | Leaky) -> Parts:
    """The linear parts of an activation, of which neighbors differ."""
    match stage:
        case Leaky(1.0):
            return Parts((), (1.0,), (0.0,))
        case Leaky(slope):
            return Parts((0.0,), (slope, 1.0), (0.0, 0.0))
        case Clip(low, high) if low >= high:
            return Parts((), (0.0,), (high,))
        case Clip(low, high):
            below, above = ((bound,) if math.isfinite(bound) else () for bound in (low, high))
            scales = (0.0,) * len(below) + (1.0,) + (0.0,) * len(above)
            return Parts((*below, *above), scales, (*below, 0.0, *above))


@dataclass(frozen=True)
class _Affine:
    """x -> W x + b: weight [out, in], bias [out]."""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class _Bends:
    """`Parts` of unit x: kinks [p - 1], scales and shifts [p]."""

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
    """The network on inputs in units of 2^exponent, and the exponent of its outputs.

    Raises:
        UnsupportedModel: gates stand beside a part of it.
        InputError: a weight is not finite.
    """
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
                    for constants in parts(stage)
                )
                finest = min(exponent, kink, shift)
                kinks, shifts = kinks * (1 << kink - finest), shifts * (1 << shift - finest - scale)
                read.append(_Bends(1 << exponent - finest, kinks, scales, shifts))
                exponent = finest + scale
            case Sum(((), inner)):
                branch, finer = _read(inner, exponent, exact)
                read.append(_Skip(1 << exponent - finer, branch))
                exponent = finer
            case Sum() | Gated():
                raise UnsupportedModel("gates beside a model are not counted: they may be curved.")
            case Flatten() | Smooth():  # the former changes no row, the latter has no cells
                pass
    return read, exponent


# The walk: the same on arrays of integers and of floats ----------------------------------------------------


def _walk(network: Iterable[_Read], cells: Cells, most: float) -> Cells:
    for stage in network:
        match stage:
            case _Affine(weight, bias):
                _require_few(len(cells.lines), len(weight), 2 * len(cells.lines) * weight.size, most)
                product = _times(cells.lines.reshape(-1, cells.lines.shape[2]), weight.T)
                lines = product.reshape(-1, 2, len(weight))
                lines[:, 1] += bias
                cells = Cells(cells.breaks, lines)
            case _Bends():
                cells = _bent(cells, stage, most)
            case _Skip(unit, branch):
                added = _walk(branch, cells, most)
                lines = cells.lines[_parents(cells.breaks, added.breaks)] * unit + added.lines
                cells = Cells(added.breaks, lines)
    return cells


def _require_few(cells: int, units: int, multiplications: int, most: float) -> None:
    if multiplications > most:
        raise TooMuchWork
    if 2 * cells * units > MOST_NUMBERS:
        raise InputError(
            f"along this line are up to {cells:,} pieces of {units:,} units at once: too many for memory."
        )


def _bent(cells: Cells, bends: _Bends, most: float) -> Cells:
    """The cells cut at every unit's kinks, and the activation's part that holds on each."""
    cells = Cells(cells.breaks, cells.lines * bends.unit)
    sides = [_sides(cells, kink) for kink in bends.kinks]
    crossings = [left * right < 0 for left, right in sides]
    units, count = cells.lines.shape[2], len(cells.lines) + sum(int(crossed.sum()) for crossed in crossings)
    _require_few(count, units, 2 * count * units, most)

    places = [
        _quotients(kink - cells.lines[:, 1][crossed], cells.lines[:, 0][crossed])
        for kink, crossed in zip(bends.kinks, crossings, strict=True)
    ]
    breaks = np.unique(np.concatenate([cells.breaks, *places]))
    parents = _parents(cells.breaks, breaks)
    beyond = np.zeros((len(parents), units), dtype=np.int64)
    for (left, right), crossed, found in zip(sides, crossings, places, strict=True):
        # Cell i ends at break i, so those up to i lie to its left; where nothing is crossed, none do.
        last = np.full(crossed.shape, -1)
        last[crossed] = np.searchsorted(breaks, found)
        on_left = np.arange(len(parents))[:, None] <= last[parents]
        beyond += np.where(on_left, left[parents], np.where(right == 0, left, right)[parents]) > 0
    lines = cells.lines[parents] * bends.scales[beyond][:, None]
    lines[:, 1] += bends.shifts[beyond]
    return _without_slivers(Cells(breaks, lines))


def _sides(cells: Cells, kink: Any) -> tuple[np.ndarray, np.ndarray]:
    """On which side of a kink the units are at the cells' left and right ends: -1, 0 or 1 [C, m]."""
    slopes, above = cells.lines[:, 0], cells.lines[:, 1] - kink
    numerators, denominators = _ratios(cells.breaks)
    inner = slopes[:-1] * numerators + above[:-1] * denominators
    first = np.where(slopes[:1] == 0, above[:1], -slopes[:1])
    last = np.where(slopes[-1:] == 0, above[-1:], slopes[-1:])
    ends = np.concatenate([first, inner, last])
    signs = (ends > 0).astype(np.int8) - (ends < 0)
    return signs[:-1], signs[1:]


def _parents(coarse: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """The cell between coarse breaks in which each cell between finer ones lies."""
    return np.concatenate([[0], np.searchsorted(coarse, fine, side="right")])


def _without_slivers(cells: Cells) -> Cells:
    """In float64, without cells that rounding made: one breakpoint may have been computed as several."""
    if cells.exact or not len(cells.breaks):
        return cells
    near = np.diff(cells.breaks) <= TOLERANCE * np.maximum(1, np.abs(cells.breaks[1:]))
    kept = np.concatenate([[True], ~near, [True]])
    return Cells(cells.breaks[kept[1:]], cells.lines[kept])


def _times(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return integer_product(left, right) if left.dtype == object else left @ right


def _quotients(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    if numerators.dtype != object:
        return numerators / denominators
    return fractions(map(Fraction, numerators, denominators), numerators.shape)


def _ratios(breaks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numerators and denominators [C - 1, 1]; of floats, themselves and 1."""
    if breaks.dtype != object:
        return breaks[:, None], np.ones((len(breaks), 1))
    ratios = [place.as_integer_ratio() for place in breaks]
    numerators, denominators = np.array(ratios, dtype=object).reshape(-1, 2, 1).swapaxes(0, 1)
    return numerators, denominators
