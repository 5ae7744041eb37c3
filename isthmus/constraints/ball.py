"""The ball ‖W - W0‖_F <= ε around the initial weights (Zhang et al. 2021, problem (10)).

    P(W) = W0 + min(1, ε / ‖W - W0‖) (W - W0)
    N(W) = {μ (W - W0) : μ >= 0} on the sphere, {0} inside

In floating point the result is never outside: rounding W moves it by at most u ‖W‖, with unit roundoff u, and
half a subnormal number for each of n entries. So the ball that is aimed at is smaller by
u (‖W0‖ + 4 ε + √n λ), λ being the smallest normal number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from isthmus.constraints.constraint import (
    Constraint,
    Tensors,
    exact_dtype,
    norm,
    norm_of_difference,
    number,
    tolerance,
    wide,
)
from isthmus.errors import InputError, PrecisionError
from isthmus.sharded import local


@dataclass(frozen=True, eq=False)
class Ball(Constraint):
    """A Frobenius ball around a center.

    Attributes:
        radius: ε >= 0; infinity sets no limit, and 0 pins the weights to the center.
        joint: one ball for all tensors together, as in the paper; else each has one of its own, of the same
            radius.

    Raises:
        InputError: the radius is negative or no number.
    """

    radius: float
    joint: bool = True
    # By name, the radius less what rounding may add to it; None if there is no limit.
    _limits: Tensors | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", number(self.radius, "a ball's radius"))
        if not self.radius >= 0:
            raise InputError(f"a ball's radius is 0 or more, not {self.radius}.")

    def to_dict(self) -> dict[str, Any]:
        """What the set is, as plain data."""
        return {"set": "Ball", "radius": self.radius, "joint": self.joint}

    @torch.no_grad()
    def _at(self, center: dict[str, Tensor]) -> Self:
        ball, limits = super()._at(center), {}
        for part in self._parts(center):
            size = norm(part)
            dtype = max((tensor.dtype for tensor in part.values()), key=lambda each: torch.finfo(each).eps)
            unit = torch.finfo(dtype).eps / 2
            entries = sum(tensor.numel() for tensor in part.values())
            rounding = unit * (size + entries**0.5 * torch.finfo(dtype).smallest_normal)
            margin = rounding + 4 * unit * self.radius
            if 0 < self.radius < math.inf and self.radius < 4 * margin:
                raise PrecisionError(
                    f"a ball of radius {self.radius:g} around weights of norm {size:.3g} is not held in "
                    f"{dtype}, which rounds them by up to {rounding:.1g}; take a radius of "
                    f"{8 * rounding:.1g} or more, or more bits."
                )
            limits |= dict.fromkeys(part, (self.radius - margin).clamp(min=0))
        object.__setattr__(ball, "_limits", limits if math.isfinite(self.radius) else None)
        return ball

    @torch.no_grad()
    def project_(self, point: Tensors) -> None:
        """Move the tensors of a point into the ball, in place."""
        center, limits = self.center, self._limits
        if limits is None:
            return
        for part in self._parts(point):
            distance = norm_of_difference(part, center)
            limit = limits[next(iter(part))].to(distance.device)
            # Where a weight is no number, there is no distance, and nothing that is near.
            scale = torch.where(distance > self.radius, limit / distance, 1.0)
            for name, tensor in part.items():
                own, middle = local(tensor.detach()), local(center[name])
                start, end = wide(middle), wide(own)
                weight = scale.to(device=own.device, dtype=end.dtype)
                # With weight 1, lerp returns its second argument bit for bit.
                torch.lerp(start, end, weight, out=end)
                if end is not own:
                    own.copy_(end)

    def _normal(self, point: Tensors, direction: Tensors) -> dict[str, Tensor]:
        normal = {}
        for part in self._parts(point):
            length = norm_of_difference(part, self.center)
            edge = self.radius * (1 - max(map(tolerance, part.values())))
            exact = exact_dtype(length)
            offset = {name: tensor.to(exact) - self.center[name].to(exact) for name, tensor in part.items()}
            outwards = torch.stack([(offset[name] * direction[name].to(exact)).sum() for name in part]).sum()
            for name in part:
                if self.radius == 0:
                    normal[name] = direction[name].clone()
                elif length < edge or math.isinf(self.radius):
                    normal[name] = torch.zeros_like(direction[name])
                else:
                    multiplier = outwards.clamp(min=0) / length.square()
                    normal[name] = (offset[name] * multiplier).to(direction[name].dtype)
        return normal

    def _parts(self, point: Tensors) -> Iterable[Tensors]:
        """What shares a ball."""
        return [point] if self.joint else [{name: tensor} for name, tensor in point.items()]
