"""What every set of weights can do.

A point is one tensor, or several by name. Sets that have a center, as a ball does, are first put `at` it:

    ball = isthmus.Ball(0.5).at(weight)
    ball.project(other)

With C the set, P its projection and N(x) its normal cone at x, a point x is stationary for a loss with
gradient g if -g lies in N(x). For convex C that is to say x = P(x - g).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from isthmus.errors import InputError
from isthmus.sharded import is_sharded, whole

Tensors = Mapping[str, Tensor]
Point = TypeVar("Point", Tensor, Tensors)

ONE = ""  # the name of a tensor that comes alone
PIECE = 1 << 16  # entries


@dataclass(frozen=True, eq=False)
class Constraint(ABC):
    """A closed set of tensors."""

    _center: Tensors | None = field(default=None, init=False, repr=False)

    def at(self, center: Tensor | Tensors) -> Self:
        """The same set with its center here.

        Args:
            center: a tensor, or several by name; copied. Points have the same names and shapes.

        Raises:
            InputError: a tensor is not of floating point or not finite, or the set cannot be held in its
                dtype.
        """
        named = _named(center)
        for name, tensor in named.items():
            if not tensor.is_floating_point():
                raise InputError(
                    f"the center{_of(name)} is {tensor.dtype}, but weights are of floating point."
                )
            if not bool(whole(torch.isfinite(tensor).all())):
                raise InputError(f"the center{_of(name)} has entries that are not finite.")
        return self._at({name: tensor.detach().clone() for name, tensor in named.items()})

    def project(self, point: Point) -> Point:
        """The nearest point of the set, in the point's dtype; a point of the set comes back bit for bit.

        Args:
            point: a tensor, or several by name.

        Raises:
            InputError: names, shapes or dtypes differ from the center's, or there is none.
        """
        named = {name: tensor.detach().clone() for name, tensor in self._checked(point).items()}
        self.project_(named)
        return _like(point, named)

    @torch.no_grad()
    def distance(self, point: Tensor | Tensors) -> float:
        """How far a point is from the set, in the norm of all its entries.

        Args:
            point: a tensor, or several by name.

        Raises:
            InputError: as for `project`.
        """
        named = self._checked(point)
        return norm_of_difference(named, self.project(named)).item()

    @torch.no_grad()
    def normal(self, point: Point, direction: Point) -> Point:
        """The element of the normal cone at a point that is nearest to a direction.

        Args:
            point: of the set, or a rounding away from it; what is within sqrt(eps) of an edge counts as on
                it.
            direction: likewise; minus the gradient, if one asks for a multiplier.

        Returns:
            Zero inside the set.

        Raises:
            InputError: as for `project`.
        """
        return _like(point, self._normal(self._checked(point), self._checked(direction)))

    @abstractmethod
    def project_(self, point: Tensors) -> None:
        """Move the tensors of a point to the nearest point of the set, in place.

        It never waits for an accelerator, and is the same on all parts of tensors that are sharded.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """What the set is, as plain data: its kind and its numbers, without the center."""

    @abstractmethod
    def _normal(self, point: Tensors, direction: Tensors) -> dict[str, Tensor]:
        """`normal` on tensors by name."""

    def _at(self, center: dict[str, Tensor]) -> Self:
        """The set with this center, which is its own.

        Raises:
            InputError: the center has no tensor.
        """
        if not center:
            raise InputError(
                f"a {type(self).__name__} is to be around one tensor or more, but there is none."
            )
        copied = copy(self)
        object.__setattr__(copied, "_center", center)
        return copied

    @property
    def center(self) -> Tensors:
        """The center by name.

        Raises:
            InputError: the set has none yet.
        """
        if self._center is None:
            raise InputError(f"this {type(self).__name__} has no center yet; put it .at(weights).")
        return self._center

    def _checked(self, point: Tensor | Tensors) -> Tensors:
        named, center = _named(point), self.center
        if named.keys() != center.keys():
            raise InputError(
                f"the point has tensors named {sorted(named)}, but the constraint's center {sorted(center)}."
            )
        for name, tensor in named.items():
            if tensor.shape != center[name].shape or tensor.dtype != center[name].dtype:
                raise InputError(
                    f"the point{_of(name)} is {tensor.dtype} {list(tensor.shape)}, but the constraint's "
                    f"center {center[name].dtype} {list(center[name].shape)}."
                )
        return named


def norm(point: Tensors) -> Tensor:
    """The norm of all entries, in float64, over the parts of sharded tensors too."""
    return _joined([torch.linalg.vector_norm(tensor, dtype=exact_dtype(tensor)) for tensor in point.values()])


def norm_of_difference(point: Tensors, other: Tensors) -> Tensor:
    """The norm of the difference of two points, which is taken in float64, too."""
    return _joined([
        torch.linalg.vector_norm(ours.to(exact_dtype(ours)) - theirs.to(exact_dtype(theirs)))
        for name, tensor in point.items()
        for ours, theirs in zip(_pieces(tensor), _pieces(other[name]), strict=True)
    ])


def _joined(norms: Sequence[Tensor]) -> Tensor:
    first = whole(norms[0])
    return torch.linalg.vector_norm(torch.stack([whole(each).to(first.device) for each in norms]))


def _pieces(tensor: Tensor) -> Sequence[Tensor]:
    """A tensor in pieces that fit a processor's cache, where float64 copies of all of it would be slow."""
    if tensor.device.type != "cpu" or is_sharded(tensor) or torch.compiler.is_compiling() or not tensor.ndim:
        return (tensor,)
    return tensor.split(max(1, PIECE * len(tensor) // max(1, tensor.numel())))


def number(value: Any, what: str) -> float:
    """A number of any make as Python's own, which state dicts hold.

    Raises:
        InputError: it is none.
    """
    try:
        found = None if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        found = None
    if found is None:
        raise InputError(f"{what} is a number, not {value!r}.")
    return found


def tolerance(tensor: Tensor) -> float:
    """What is so near to an edge, relative to its size, counts as on it: sqrt(eps)."""
    return math.sqrt(torch.finfo(tensor.dtype).eps)


def wide(tensor: Tensor) -> Tensor:
    """The tensor in its own dtype, but not in fewer bits than float32 has."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def exact_dtype(tensor: Tensor) -> torch.dtype:
    """What sums are taken in: float64, where the device has it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _named(point: Tensor | Tensors) -> dict[str, Tensor]:
    if isinstance(point, Tensor):
        return {ONE: point}
    if not isinstance(point, Mapping):
        raise InputError(f"expected a tensor, or tensors by name, found {type(point).__name__}.")
    return dict(point)


def _like(point: Any, named: dict[str, Tensor]) -> Any:
    return named[ONE] if isinstance(point, Tensor) else named


def _of(name: str) -> str:
    return f" of {name}" if name else ""
