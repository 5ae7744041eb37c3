"""What a search for a network returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from torch import nn

from isthmus.certificate import Certificate, Level
from isthmus.data.dataset import Dataset
from isthmus.memorize.plan import Method
from isthmus.precision import Precision


class Status(Enum):
    """How a search ended; the value is the sentence."""

    CERTIFIED = "every row is right, at the level asked for"
    EXHAUSTED = "no candidate was certified"
    OUT_OF_BUDGET = "the time budget ended before a candidate was certified"


@dataclass(frozen=True)
class Attempt:
    """One candidate: what it was, how far it got and why no further."""

    method: Method
    widths: tuple[int, ...]
    hidden_units: int
    chain: int
    level: Level
    reason: str
    seconds: float


@dataclass(frozen=True, repr=False)
class Memorized:
    """A network that memorizes a data set.

    Attributes:
        model: a plain `torch.nn.Sequential` in evaluation mode.
        certificate: what was checked of it.
        recipe: what rebuilds it bit for bit on this machine and version, ready for JSON.
        tried: every candidate in order; the last one is the model.
        status: how the search ended.
        seconds: time spent on building and certifying the model.
        data: the rows it was certified on.
        precision: a float64 network's weights in narrower dtypes, on a sample of rows.
    """

    model: nn.Sequential
    certificate: Certificate
    recipe: dict[str, Any]
    tried: tuple[Attempt, ...]
    status: Status
    seconds: dict[str, float]
    data: Dataset
    precision: tuple[Precision, ...] = ()

    @property
    def widths(self) -> tuple[int, ...]:
        """Units of every hidden layer."""
        return tuple(self.recipe["plan"]["widths"])

    @property
    def hidden_units(self) -> int:
        """Units in all hidden layers."""
        return sum(self.widths)

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def to_dict(self) -> dict[str, Any]:
        """The result without the tensors, ready for JSON."""
        return {
            "model": {
                "kind": self.recipe["plan"]["method"],
                "widths": list(self.widths),
                "hidden_units": self.hidden_units,
                "parameters": self.parameters,
                "activation": self.recipe["plan"]["activation"] if self.widths else None,
                "dtype": self.certificate.dtype,
            },
            "certificate": self.certificate.model_dump(mode="json"),
            "tried": [asdict(attempt) for attempt in self.tried],
            "seconds": dict(self.seconds),
            "precision": [narrower.to_dict() for narrower in self.precision],
        }

    def __repr__(self) -> str:
        shape = "-".join(map(str, (self.data.inputs, *self.widths, self.data.outputs)))
        plan, seen = self.recipe["plan"], self.certificate
        return (
            f"Memorized({plan['method']}, {plan['activation']} {shape}, {self.hidden_units} hidden units, "
            f"{seen.dtype}: {seen.level}, {seen.wrong} of {seen.rows} rows wrong)"
        )
