"""The result of `isthmus.bounds`: rows of theorems, as objects, as JSON and as a text table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from isthmus._types import Task
from isthmus.bounds.assumptions import Assumption

Direction = Literal["sufficient", "impossible"]

_TITLES: dict[Direction, str] = {
    "sufficient": "Sufficient: these widths fit every data set of this size that meets the assumptions",
    "impossible": "Impossible: these widths, and smaller ones, fail for some data set of this size",
}
_COLUMNS = ("theorem", "network", "widths", "hidden units", "parameters", "assumptions", "condition")
_ALIGNMENT = "<<>>><<"
_VERDICT = {True: "met", False: "not met", None: "unchecked"}


@dataclass(frozen=True)
class Bound:
    """One theorem, applied to one data set.

    Attributes:
        id: the theorem and the kind of network, unique in a table.
        paper: where it is from.
        network: the networks it speaks of.
        direction: ``"sufficient"`` (these widths suffice) or ``"impossible"`` (none with these widths, or
            smaller ones, fits every data set of this size).
        widths: hidden widths; None where a theorem gives no numbers.
        hidden_units: their sum.
        parameters: weights and biases of the dense network with these widths.
        condition: the condition the widths meet (sufficient), or miss the data by (impossible).
        assumptions: what the theorem assumes about the data.
    """

    id: str
    paper: str
    network: str
    direction: Direction
    widths: tuple[int, ...] | None
    hidden_units: int | None
    parameters: int | None
    condition: str
    assumptions: tuple[Assumption, ...] = ()

    @property
    def met(self) -> bool | None:
        """Whether the data meets the assumptions: False if one fails, else None if one is not known."""
        verdicts = {assumption.met for assumption in self.assumptions}
        return False if False in verdicts else None if None in verdicts else True

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON-ready values."""
        row = asdict(self) | {"met": self.met}
        return row | {
            "widths": None if self.widths is None else list(self.widths),
            "assumptions": list(row["assumptions"]),
        }


@dataclass(frozen=True)
class DataSummary:
    """The size of a data set; ``distinct`` rows and affine ``rank`` are None when only the size is known."""

    rows: int
    inputs: int
    outputs: int
    task: Task
    distinct: int | None
    rank: int | None

    def __str__(self) -> str:
        outputs = (
            f"{self.outputs:,} classes" if self.task == "classification" else f"{self.outputs:,} target(s)"
        )
        known = (
            "rows not seen" if self.distinct is None else f"{self.distinct:,} distinct, rank {self.rank:,}"
        )
        return f"{self.rows:,} rows ({known}), {self.inputs:,} inputs, {outputs}"


@dataclass(frozen=True, repr=False)
class BoundsTable:
    """Every bound for one data set; ``str`` is a text table, ``table["3.1 R"]`` a row."""

    data: DataSummary
    bounds: tuple[Bound, ...]

    def __getitem__(self, id: str) -> Bound:
        for bound in self.bounds:
            if bound.id == id:
                return bound
        raise KeyError(id)

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON-ready values."""
        return {"data": asdict(self.data), "bounds": [bound.to_dict() for bound in self.bounds]}

    def __repr__(self) -> str:
        return f"BoundsTable({self.data}; {len(self.bounds)} bounds)"

    def __str__(self) -> str:
        cells = [_cells(bound) for bound in self.bounds]
        width = [max(map(len, column)) for column in zip(_COLUMNS, *cells, strict=True)]
        lines = [str(self.data)]
        for direction, title in _TITLES.items():
            chosen = [
                row for row, bound in zip(cells, self.bounds, strict=True) if bound.direction == direction
            ]
            lines += ["", title, *(_line(row, width) for row in (_COLUMNS, *chosen))]
        assumptions = dict.fromkeys(assumption for bound in self.bounds for assumption in bound.assumptions)
        lines += ["", "Assumptions", *(f"{a.name}: {_VERDICT[a.met]} ({a.reason})" for a in assumptions)]
        return "\n".join(lines)


def _cells(bound: Bound) -> tuple[str, ...]:
    return (
        bound.id,
        bound.network,
        "-" if bound.widths is None else " ".join(f"{width:,}" for width in bound.widths),
        _number(bound.hidden_units),
        _number(bound.parameters),
        _VERDICT[bound.met] if bound.assumptions else "none",
        bound.condition,
    )


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _line(cells: Sequence[str], width: Sequence[int]) -> str:
    padded = (f"{cell:{side}{size}}" for cell, side, size in zip(cells, _ALIGNMENT, width, strict=True))
    return "  ".join(padded).rstrip()
