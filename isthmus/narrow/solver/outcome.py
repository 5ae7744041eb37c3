"""What the solvers hand back: where they ended, how they got there, and why they stopped."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Step:
    """One iteration.

    Attributes:
        loss: ``|y - f|^2 / |y|^2`` after it.
        damping: λ of Levenberg-Marquardt, or the scale s of the one-factorization solve.
        factorizations: so far.
        seconds: so far.
    """

    loss: float
    damping: float
    factorizations: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The step, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """Where a solver ended.

    Attributes:
        weight: W [m, p], in the solver's coordinates.
        outer: U [K, m].
        center: W_0 [m, p], where W began.
        loss: relative, at the end.
        history: every iteration.
        failure: why the loss is not as small as asked; None if it is.
    """

    weight: Tensor
    outer: Tensor
    center: Tensor
    loss: float
    history: tuple[Step, ...]
    failure: str | None


@dataclass(frozen=True)
class Trial:
    """A width that was tried: how near it came, and in how long."""

    targets: str
    width: int
    loss: float
    solved: bool
    iterations: int
    seconds: float
