"""What `solve` returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from torch import nn

from isthmus.certificate import Certificate
from isthmus.constraints import Constraint
from isthmus.data.dataset import Dataset
from isthmus.narrow.solver.outcome import Step, Trial
from isthmus.precision import Precision


class Status(Enum):
    """How a solver ended; the value is the sentence."""

    SOLVED = "every row is right"
    NOT_CONVERGED = "the solver stopped before every row was right"


@dataclass(frozen=True, repr=False)
class Solution:
    """A network of one hidden layer that fits its data.

    Attributes:
        model: a plain `torch.nn.Sequential` in evaluation mode, on rows as they are stored.
        certificate: what was checked of it.
        recipe: what rebuilds it bit for bit on this machine and version, ready for JSON.
        loss: ``|y - f|^2 / |y|^2`` at the end, about the mean where the network has an output bias.
        history: the solver's iterations.
        status: how the solver ended.
        reason: why it stopped early; empty if it did not.
        seconds: spent on preparing, solving and certifying.
        data: the rows it was certified on.
        constraint: the ball that was asked for, with its center, and the output weights' floor and ratio;
            None without a radius.
        precision: a float64 network's weights in float32, on all rows.
        tried: every width of a search for the smallest.
    """

    model: nn.Sequential
    certificate: Certificate
    recipe: dict[str, Any]
    loss: float
    history: tuple[Step, ...]
    status: Status
    reason: str
    seconds: dict[str, float]
    data: Dataset
    constraint: Constraint | None = None
    precision: tuple[Precision, ...] = ()
    tried: tuple[Trial, ...] = ()

    @property
    def width(self) -> int:
        """m, the hidden units."""
        return self.recipe["plan"]["width"]

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def to_dict(self) -> dict[str, Any]:
        """The result without the tensors, ready for JSON."""
        plan = self.recipe["plan"]
        return {
            "model": {
                "kind": plan["method"],
                "widths": [self.width],
                "hidden_units": self.width,
                "parameters": self.parameters,
                "activation": plan["activation"],
                "dtype": self.certificate.dtype,
            },
            "certificate": self.certificate.model_dump(mode="json"),
            "history": [step.to_dict() for step in self.history],
            "final": {"loss": self.loss, "accuracy": 1 - self.certificate.wrong / self.certificate.rows},
            "status": self.status.name,
            "reason": self.reason,
            "seconds": dict(self.seconds),
            "precision": [narrower.to_dict() for narrower in self.precision],
            "tried": [asdict(trial) for trial in self.tried],
        }

    def __repr__(self) -> str:
        plan, seen = self.recipe["plan"], self.certificate
        shape = f"{self.data.inputs}-{self.width}-{self.data.outputs}"
        return (
            f"Solution({plan['method']}, {plan['activation']} {shape}, relative loss {self.loss:.1e} in "
            f"{len(self.history)} iterations, {seen.dtype}: {seen.level}, {seen.wrong} of {seen.rows} rows "
            "wrong)"
        )
