"""A part of many rows, and how far the part in the population may be from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

CONFIDENCE = 0.95
HALVINGS = 60  # of the interval in which a bound lies


@dataclass(frozen=True)
class Share:
    """So many of so many rows.

    Attributes:
        count: rows of which something holds.
        rows: all that were looked at.
        low, high: the exact two-sided confidence interval of its probability (Clopper and Pearson 1934).
    """

    count: int
    rows: int
    low: float
    high: float

    @property
    def fraction(self) -> float:
        """The part of the rows."""
        return self.count / self.rows

    def __str__(self) -> str:
        return (
            f"{self.count:,} of {self.rows:,} ({self.fraction:.2g}; 95%: {self.low:.2g} to {self.high:.2g})"
        )


def share(count: int, rows: int) -> Share:
    """A part of some rows, with the confidence interval for others drawn as they were."""
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if count == 0 else _bisect(_at_most(count - 1, rows), 1 - tail)
    return Share(count, rows, low, _highest(count, rows))


def most_allowed(fraction: float, rows: int) -> int:
    """The largest count in so many rows whose interval ends at a fraction or below; -1 if there is none."""
    low, high = -1, int(fraction * rows) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _highest(middle, rows) <= fraction else (low, middle)
    return low


def _highest(count: int, rows: int) -> float:
    return 1.0 if count == rows else _bisect(_at_most(count, rows), (1 - CONFIDENCE) / 2)


def _at_most(count: int, rows: int) -> Callable[[float], float]:
    """The chance of that many successes or fewer, of independent rows, as a function of their probability."""
    k = torch.arange(count + 1, dtype=torch.float64)
    ways = math.lgamma(rows + 1) - torch.lgamma(k + 1) - torch.lgamma(rows - k + 1)
    return lambda p: float((ways + k * math.log(p) + (rows - k) * math.log1p(-p)).exp().sum())


def _bisect(chance: Callable[[float], float], level: float) -> float:
    """The probability from which on a chance, which falls with it, is below a level."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if chance(middle) < level else (middle, high)
    return high
