"""The output weights B = {v : v_j >= ζ and v_j <= κ v_k for all j, k} (Zhang et al. 2021, problem (10)).

A point is in B if there is an s >= ζ with s <= v_j <= κ s for all j, so P(v) = clip(v, s, κ s), where s
minimizes

    φ(s) = ½ Σ_j (s - v_j)₊² + ½ Σ_j (v_j - κ s)₊²    over s >= ζ,

the squared distance from v to the box [s, κ s]^m, which is convex in s. φ' is piecewise linear with kinks at
v_j and v_j / κ: sort them, find the piece where φ' changes its sign, solve one linear equation. O(m log m).

The tangent cone is a set of the same kind. Let L be where v_j is smallest and U where it is largest, if the
ratio of the two is κ (else there is no such limit); then T(v) = {d : there is a t with d_j >= t on L and d_j
<= κ t on U, and t >= 0 if the smallest is ζ}. The normal cone is its polar: P_N(g) = g - P_T(g) (Moreau).

A weight's sign is of no account: swapping the halves of a pair turns it. So with one output B is asked of s_j
v_j, with s_j the sign at the center. With several outputs, V [K, h], it is asked of the norms of V's columns,
a column keeping its direction; a column that is 0 takes that of the center.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from isthmus.constraints.constraint import Constraint, Tensors, exact_dtype, number, tolerance
from isthmus.errors import InputError, PrecisionError
from isthmus.sharded import local, placed, whole

FAN = 64  # of the search: how many points are looked at in one round


@dataclass(frozen=True, eq=False)
class FloorAndRatio(Constraint):
    """Output weights at least `floor` in size, and within a `ratio` of one another; each tensor on its own.

    Tensors are [m] or [1, m], whose entries keep the signs of the center, or [K, m], whose columns' norms
    count.

    Attributes:
        floor: ζ > 0.
        ratio: κ >= 1; infinity sets no limit.

    Raises:
        InputError: floor or ratio is out of its range.
    """

    floor: float = 1e-3
    ratio: float = 1e3
    _limited: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("floor", "ratio"):
            object.__setattr__(self, name, number(getattr(self, name), f"the {name} of output weights"))
        if not 0 < self.floor < math.inf:
            raise InputError(f"the floor of output weights is above 0 and finite, not {self.floor}.")
        if not self.ratio >= 1:
            raise InputError(f"the ratio of output weights is 1 or more, not {self.ratio}.")
        # Compiled code knows a bool, but not whether a float is infinite.
        object.__setattr__(self, "_limited", math.isfinite(self.ratio))

    def to_dict(self) -> dict[str, Any]:
        """What the set is, as plain data."""
        return {"set": "FloorAndRatio", "floor": self.floor, "ratio": self.ratio}

    def _at(self, center: dict[str, Tensor]) -> Self:
        for name, tensor in center.items():
            info = torch.finfo(tensor.dtype)
            if not info.smallest_normal <= self.floor <= info.max:
                raise PrecisionError(f"a floor of {self.floor:g} is no number of {tensor.dtype}.")
            if tensor.ndim not in {1, 2} or not tensor.numel():
                raise InputError(
                    f"floor and ratio are for output weights [m] or [outputs, m], but {name or 'this'} is "
                    f"{list(tensor.shape)}."
                )
        return super()._at(center)

    @torch.no_grad()
    def project_(self, point: Tensors) -> None:
        """Move the tensors of a point into the set, in place."""
        for name, tensor in point.items():
            value = whole(tensor.detach())
            size, unit = _polar(value, whole(self.center[name]))
            # The norms of columns are rounded, and again when they are computed.
            slack = 0.0 if _signed(value) else (len(value) + 4) * torch.finfo(value.dtype).eps
            low, high = size.amin(), size.amax()
            feasible = (low >= self.floor * (1 - slack)) & (high <= self.ratio * low * (1 + slack))
            if value.device.type == "cpu" and not torch.compiler.is_compiling() and bool(feasible):
                continue
            exact = size.to(exact_dtype(size))
            level = _level(exact, exact, self.floor, self.ratio, self._limited).to(size.dtype)
            nearest = size.clamp(level, self.ratio * level)
            moved = torch.where(feasible | (nearest == size), value, (unit * nearest).to(value.dtype))
            local(tensor.detach()).copy_(local(placed(moved, tensor)))

    def _normal(self, point: Tensors, direction: Tensors) -> dict[str, Tensor]:
        normal = {}
        for name, tensor in point.items():
            size, unit = _polar(tensor, self.center[name])
            outwards = unit * direction[name]
            outwards = outwards.flatten() if _signed(tensor) else outwards.sum(0)
            normal[name] = (unit * self._normal_to(size, outwards, tolerance(tensor))).to(tensor.dtype)
        return normal

    def _normal_to(self, size: Tensor, outwards: Tensor, near: float) -> Tensor:
        """The element of N(sizes) nearest to a direction [m]: what is left of it beyond T(sizes)."""
        low, high = size.amin(), size.amax()
        floored = bool(low <= self.floor * (1 + near))
        limited = bool(high >= self.ratio * low * (1 - near))
        if not (floored or limited):
            return torch.zeros_like(outwards)
        lowest = size <= low * (1 + near)
        highest = (size >= high * (1 - near)) & limited
        exact = outwards.to(exact_dtype(outwards))
        floor = 0.0 if floored else -math.inf
        level = _level(exact[lowest], exact[highest], floor, self.ratio, self._limited)
        tangent = exact.clone()
        tangent[lowest] = tangent[lowest].clamp(min=level)
        tangent[highest] = tangent[highest].clamp(max=self.ratio * level)
        return (exact - tangent).to(outwards.dtype)


def _level(lower: Tensor, upper: Tensor, floor: float, ratio: float, limited: bool) -> Tensor:
    """The s >= floor that minimizes φ(s) = ½ Σ (s - lower)₊² + ½ Σ (upper - ratio s)₊².

    Args:
        lower: values [n], n >= 1.
        upper: values [m]. Of several such s, a large one is returned.
        floor: of s; may be minus infinity.
        ratio: κ >= 1.
        limited: False if the ratio is infinite, and upper without influence.
    """
    if not (limited and len(upper)):
        return lower.amin().clamp(min=floor)
    ordered = lower.sort().values
    lower, upper = ordered, ordered if upper is lower else upper.sort().values
    kinks = upper / ratio
    below = torch.cat([lower.new_zeros(1), lower.cumsum(0)])
    above = torch.cat([upper.new_zeros(1), upper.cumsum(0)])

    def slope(s: Tensor) -> Tensor:
        low, high = torch.searchsorted(lower, s), torch.searchsorted(kinks, s, right=True)
        pull = (len(kinks) - high) * (ratio * s) - (above[-1] - above.take(high))
        return low * s - below.take(low) + ratio * pull

    # φ'(s) < 0 up to the left end of a piece, and not from its right end on.
    left, right = torch.full_like(lower[:1], floor), torch.full_like(lower[:1], math.inf)
    for points in (lower, kinks):
        first, last = _first_not_negative(slope, points), len(points) - 1
        before, after = points.take((first - 1).clamp(min=0)), points.take(first.clamp(max=last))
        left = torch.where(first > 0, torch.maximum(left, before), left)
        right = torch.where(first <= last, torch.minimum(right, after), right)
    low, high = torch.searchsorted(lower, right), torch.searchsorted(kinks, right)
    total = below.take(low) + ratio * (above[-1] - above.take(high))
    weight = low + ratio * ratio * (len(kinks) - high).to(total.dtype)
    flat = torch.where(weight > 0, total / weight, right)  # nothing pulls within the piece: it is flat
    return torch.maximum(torch.minimum(flat, right), left).squeeze(0)


def _first_not_negative(function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """The index [1] of the first of sorted points at which a function that never falls is not negative.

    It looks at `FAN` points a round, so that few, and as many on every accelerator, are looked at in all.
    """
    first = torch.zeros(1, dtype=torch.long, device=points.device)
    stride = 1
    while stride * FAN < len(points):
        stride *= FAN
    while stride:
        index = first + stride * torch.arange(1, FAN + 1, device=points.device) - 1
        inside = index < len(points)
        negative = function(points.take(index.clamp(max=len(points) - 1))) < 0
        first = first + stride * (inside & negative).sum()
        stride //= FAN
    return first


def _signed(value: Tensor) -> bool:
    """Whether output weights are of one output, so that entries have signs and not columns norms."""
    return value.ndim == 1 or len(value) == 1


def _polar(value: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """Output weights as sizes [m] and units of their own shape: value = unit * size."""
    if _signed(value):
        unit = torch.where(center < 0, -1.0, 1.0).to(value.dtype)
        return (unit * value).flatten(), unit
    size = torch.linalg.vector_norm(value, dim=0, dtype=exact_dtype(value))
    given = torch.linalg.vector_norm(center, dim=0, dtype=exact_dtype(value))
    first = torch.zeros_like(value, dtype=size.dtype)
    first[0] = 1.0
    fallback = torch.where(given > 0, center / given, first)
    return size, torch.where(size > 0, value / size, fallback)
