"""Rational forward pass: what a network's outputs are, without any rounding.

Every float is a dyadic rational, an integer times a power of two, and so is everything that a network of
affine maps and pieces of lines makes of floats. Here a layer's values are integers with one exponent for all
of them, so that an affine map is one product of integer matrices. FLINT multiplies these some hundred times
faster than Python; it is used where installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isthmus.errors import InputError, UnsupportedModel
from isthmus.graph import Clip, Dense, Flatten, Gated, Leaky, Paired, Smooth, Stage, Sum

try:
    from flint import fmpz_mat
except ImportError:
    fmpz_mat = None


@dataclass(frozen=True, eq=False)
class Dyadic:
    """The numbers integers * 2^exponent.

    Attributes:
        integers: Python's integers, of any size [N, *shape].
        exponent: of them all; never positive.
    """

    integers: np.ndarray
    exponent: int

    def at(self, exponent: int) -> Dyadic:
        """The same numbers with an exponent that is no larger."""
        return Dyadic(self.integers << (self.exponent - exponent), exponent)

    def fractions(self) -> np.ndarray:
        """The numbers as fractions [same shape]. Subtract no floats from them: that rounds."""
        denominator = 1 << -self.exponent
        return _objects([Fraction(n, denominator) for n in self.integers.flat], self.integers.shape)

    def winners(self) -> np.ndarray:
        """The class with the strictly largest of the outputs [N, K], for every row [N]; -1 where none is."""
        best = self.integers.argmax(1)
        tops = (self.integers == self.integers.max(1, keepdims=True)).sum(1)
        return np.where(tops == 1, best, -1)


def dyadic(values: Tensor | np.ndarray) -> Dyadic:
    """Numbers of any floating or integer type as they are.

    Raises:
        InputError: one of them is not finite.
    """
    try:
        ratios = [value.as_integer_ratio() for value in values.reshape(-1).tolist()]
    except (OverflowError, ValueError):
        raise InputError("infinities and NaN have no exact value.") from None
    common = max((denominator for _, denominator in ratios), default=1)
    integers = [numerator * (common // denominator) for numerator, denominator in ratios]
    return Dyadic(_objects(integers, values.shape), 1 - common.bit_length())


def integer_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The product of integer matrices [N, m] and [m, n], of Python's integers, by FLINT where installed."""
    if fmpz_mat is None:
        return left @ right
    product = fmpz_mat(left.tolist()) * fmpz_mat(right.tolist())
    return _objects([int(entry) for entry in product.entries()], (len(left), right.shape[1]))


def exact_forward(stages: list[Stage], x: Tensor | np.ndarray) -> Dyadic:
    """Evaluate a piecewise-linear network without rounding.

    Args:
        stages: the network, from `isthmus.graph.stages`.
        x: inputs [N, *shape], taken as exact. Every value becomes a Python object: give large data in parts.

    Returns:
        The outputs [N, K].

    Raises:
        UnsupportedModel: a stage is tanh or sigmoid.
        InputError: an input or a weight is not finite.
    """
    return _chain(stages, dyadic(x))


def _chain(stages: Iterable[Stage], value: Dyadic) -> Dyadic:
    for stage in stages:
        value = _step(stage, value)
    return value


def _step(stage: Stage, value: Dyadic) -> Dyadic:
    match stage:
        case Dense():
            return _dense(stage, value)
        case Paired():
            return _dense(stage.folded(), value)
        case Clip(low, high):
            return _limited(_limited(value, low, np.maximum), high, np.minimum)
        case Leaky(slope):
            factor = dyadic(np.array(slope))
            steep = value.integers << -factor.exponent
            shallow = value.integers * factor.integers.item()
            return Dyadic(np.where(value.integers < 0, shallow, steep), value.exponent + factor.exponent)
        case Smooth():
            raise UnsupportedModel("tanh and sigmoid have no exact value; only rounding can be bounded.")
        case Flatten():
            return Dyadic(value.integers.reshape(len(value.integers), -1), value.exponent)
        case Gated():
            return _gates(stage, Dyadic(value.integers.reshape(len(value.integers), -1), value.exponent))
        case Sum(branches):
            return reduce(_plus, (_chain(branch, value) for branch in branches))


def _dense(stage: Dense, value: Dyadic) -> Dyadic:
    bias = torch.zeros_like(stage.weight[:, 0]) if stage.bias is None else stage.bias
    affine = dyadic(torch.column_stack([stage.weight, bias]))
    weight, offset = affine.integers[:, :-1], affine.integers[:, -1]
    product = integer_product(value.integers, weight.T)
    # The bias meets products, which are in units of both exponents.
    return Dyadic(product + (offset << -value.exponent), value.exponent + affine.exponent)


def _gates(stage: Gated, x: Dyadic) -> Dyadic:
    """Gates on inputs [N, d]; as they stand, they are not rounded to the dtype of these."""
    one = dyadic(np.ones(1))
    place = x if stage.frame is None else _through(x, dyadic(stage.frame))
    square = Dyadic((place.integers**2).sum(1)[:, None], 2 * place.exponent)
    level = _plus(_through(place, dyadic(stage.normal)), _times(square, dyadic(stage.curvature)))
    level = _plus(level, dyadic(-stage.center))
    beyond = _plus(Dyadic(abs(level.integers), level.exponent), dyadic(-stage.plateau))
    closing = _times(_limited(beyond, 0.0, np.maximum), dyadic(-stage.slope))
    opening = _limited(_plus(one, closing), 0.0, np.maximum)
    shift = dyadic(stage.shift)
    if stage.tilt is None:
        return _through(opening, Dyadic(shift.integers.T, shift.exponent))
    tilted = _through(x, dyadic(stage.tilt.flatten(0, 1)))
    tilted = Dyadic(tilted.integers.reshape(-1, *stage.shift.shape), tilted.exponent)
    added = _times(Dyadic(opening.integers[:, :, None], opening.exponent), _plus(tilted, shift))
    return Dyadic(added.integers.sum(1), added.exponent)


def _through(value: Dyadic, weight: Dyadic) -> Dyadic:
    """W x of every row [N, out], from rows [N, m] and W [out, m]."""
    product = integer_product(value.integers, weight.integers.T)
    return Dyadic(product, value.exponent + weight.exponent)


def _plus(left: Dyadic, right: Dyadic) -> Dyadic:
    exponent = min(left.exponent, right.exponent)
    return Dyadic(left.at(exponent).integers + right.at(exponent).integers, exponent)


def _times(left: Dyadic, right: Dyadic) -> Dyadic:
    return Dyadic(left.integers * right.integers, left.exponent + right.exponent)


def _limited(value: Dyadic, bound: float, choose: Callable[..., Any]) -> Dyadic:
    if math.isinf(bound):
        return value
    limit = dyadic(np.array(bound))
    exponent = min(value.exponent, limit.exponent)
    return Dyadic(choose(value.at(exponent).integers, limit.at(exponent).integers), exponent)


def _objects(values: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(shape)
