"""What `patch` returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from isthmus.certificate import Certificate
from isthmus.data.dataset import Dataset
from isthmus.patch.cases import is_right, leads
from isthmus.patch.measures import Measures

if TYPE_CHECKING:
    from isthmus.patch.task import Task


class Status(Enum):
    """How a repair ended; the value is the sentence."""

    REPAIRED = "every case is right"
    NOT_REPAIRED = "some cases are still wrong"
    TOO_MUCH_TOUCHED = "more of the other inputs are touched than is allowed"


@dataclass(frozen=True)
class Repair:
    """One case, before and after.

    Attributes:
        row: its first row in the cases as given, from 1.
        wanted: the target.
        before, after: the predicted class, or the values.
        lead_before, lead_after: by how much the wanted class leads, or by how much the values miss.
        gate: the number of the gate that repairs it, from 1; None if it was right already.
        repaired: whether it is right now.
    """

    row: int
    wanted: str | int | list[float]
    before: str | int | list[float]
    after: str | int | list[float]
    lead_before: float | None
    lead_after: float | None
    gate: int | None
    repaired: bool


@dataclass(frozen=True, repr=False)
class Repaired:
    """A repaired model.

    Attributes:
        model: the model with its gates, in evaluation mode: a `Patched`, or an `OnnxModel` with its
            ``.proto``.
        certificate: what was checked of the model on the cases.
        measures: what was gained, and what it cost elsewhere.
        status: how the repair ended.
        proven: wrong cases that are right whatever the rounding in the gates, with the model's own outputs
            taken as measured.
        owner: the gate of every case, or -1 [P].
        after: the repaired model's outputs on the cases [P, K].
        task: the model as it was, the cases, and the options.
    """

    model: nn.Module
    certificate: Certificate
    measures: Measures
    status: Status
    proven: int
    owner: Tensor
    after: Tensor
    task: Task

    @property
    def base(self) -> nn.Module:
        """The model as it was."""
        return self.task.base

    @property
    def data(self) -> Dataset:
        """The distinct cases, with classes numbered as the model's outputs."""
        return self.task.cases.data

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know."""
        return self.task.notes

    @property
    def gates(self) -> int:
        """How many gates were added, G."""
        return int(self.owner.max()) + 1

    @property
    def recipe(self) -> dict[str, Any]:
        """What repeats it bit for bit on this machine and version, ready for JSON."""
        return {"plan": {"method": "patch"}, **self.task.options()}

    @property
    def repaired(self) -> int:
        """How many of the wrong cases are right now."""
        right = is_right(self.after, self.data, self.task.cases.tolerance)
        return int(right[self.task.cases.wrong].sum())

    @cached_property
    def table(self) -> tuple[Repair, ...]:
        """Every distinct case, before and after."""
        right = is_right(self.after, self.data, self.task.cases.tolerance).tolist()
        shown = [_shown(output, self.data) for output in (self.task.cases.before, self.after)]
        wanted = (
            [self.data.classes[label] for label in self.data.y.tolist()]
            if self.data.classes
            else self.data.y.tolist()
        )
        figures = [_figures(output, self.data) for output in (self.task.cases.before, self.after)]
        rows, owner = self.task.cases.number.tolist(), self.owner.tolist()
        return tuple(
            Repair(
                rows[case],
                wanted[case],
                shown[0][case],
                shown[1][case],
                figures[0][case],
                figures[1][case],
                owner[case] + 1 if owner[case] >= 0 else None,
                right[case],
            )
            for case in range(self.data.rows)
        )

    def without(self, rows: Sequence[int]) -> Repaired:
        """Take repairs back: the outputs there are the model's own again, bit for bit.

        The gates of the cases that stay are drawn anew, and keep off those that are taken back.

        Args:
            rows: numbers of cases as in the table. `base` is the model without any.

        Raises:
            InputError: a number that no case has.
        """
        from isthmus.patch.task import without

        return without(self, rows)

    def to_dict(self) -> dict[str, Any]:
        """The result without the tensors, ready for JSON."""
        touched = self.measures.touched
        return {
            "cases": self.task.cases.given,
            "wrong": len(self.task.cases.wrong),
            "repaired": self.repaired,
            "proven": self.proven,
            "gates": self.gates,
            "added_units": self.measures.added_units,
            "touched_fraction": None if touched is None else touched.fraction,
            "measures": self.measures.to_dict(),
            "certificate": self.certificate.model_dump(mode="json"),
            "status": self.status.name.lower(),
            "notes": list(self.notes),
            "table": [asdict(repair) for repair in self.table],
        }

    def __repr__(self) -> str:
        touched = self.measures.touched
        other = "nothing known of other inputs" if touched is None else f"{touched} other inputs touched"
        return (
            f"Repaired({self.repaired} of {len(self.task.cases.wrong)} wrong cases, {self.proven} proven, by "
            f"{self.gates} gates; {other})"
        )


def _shown(output: Tensor, data: Dataset) -> list[Any]:
    if data.classes:
        return [data.classes[index] for index in output.argmax(1).tolist()]
    return output.tolist()


def _figures(output: Tensor, data: Dataset) -> list[float | None]:
    figure = leads(output, data.y) if data.classes else (output.double() - data.y).abs().amax(1)
    return [value if abs(value) < torch.inf else None for value in figure.tolist()]
