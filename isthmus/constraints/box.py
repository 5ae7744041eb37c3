"""The box low <= x <= high, entry by entry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isthmus.constraints.constraint import Constraint, Tensors, number, tolerance
from isthmus.errors import InputError
from isthmus.sharded import local


@dataclass(frozen=True, eq=False)
class Box(Constraint):
    """Limits for every entry.

    Attributes:
        low: the least that an entry may be.
        high: the most.

    Raises:
        InputError: low is not below high.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, number(getattr(self, name), f"a box's {name} limit"))
        if not self.low < self.high:
            raise InputError(f"a box has its low limit below its high one, not {self.low} and {self.high}.")

    def to_dict(self) -> dict[str, Any]:
        """What the set is, as plain data."""
        return {"set": "Box", "low": self.low, "high": self.high}

    @torch.no_grad()
    def project_(self, point: Tensors) -> None:
        """Clamp the tensors of a point in place."""
        for tensor in point.values():
            # A limit beyond the dtype is none.
            most = torch.finfo(tensor.dtype).max
            low = self.low if self.low >= -most else None
            local(tensor.detach()).clamp_(low, self.high if self.high <= most else math.inf)

    def _normal(self, point: Tensors, direction: Tensors) -> dict[str, Tensor]:
        normal = {}
        for name, tensor in point.items():
            near = tolerance(tensor)
            normal[name] = torch.zeros_like(tensor)
            for limit, outwards in (
                (self.low, direction[name].clamp(max=0)),
                (self.high, direction[name].clamp(min=0)),
            ):
                if math.isfinite(limit):
                    normal[name] += outwards.where((tensor - limit).abs() <= near * max(1.0, abs(limit)), 0.0)
        return normal
