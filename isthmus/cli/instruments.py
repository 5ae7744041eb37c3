"""What ``isthmus inspect`` can look at: each instrument's result for JSON, and its account for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from isthmus.bounds.pieces import Pieces
    from isthmus.data import Dataset
    from isthmus.model_file import Description

LISTED = 5_000  # numbers that one list in the JSON may hold; in Python there is no limit

Seen = tuple[dict[str, Any], list[str]]


@dataclass(frozen=True)
class Subject:
    """A saved model on data.

    Attributes:
        directory: where it was saved.
        model: the network.
        described: what its directory says of it.
        data: the rows as they were loaded.
        x: the rows as the model takes them, rounded to its dtype.
    """

    directory: Path
    model: nn.Module
    described: Description
    data: Dataset
    x: Tensor

    def targeted(self) -> Dataset:
        """The rows with targets numbered as the model's outputs are.

        Raises:
            InputError: the data is for another task, or has other classes or targets.
        """
        data, described = self.data, self.described
        if data.task != described.task:
            raise InputError(
                f"{data.source} was read as {data.task}, but the model is for {described.task}; choose the "
                "task."
            )
        if data.task == "classification":
            return data.with_classes(described.classes)
        if data.outputs != described.outputs:
            raise InputError(
                f"{data.source}: {data.outputs} targets, but the model has {described.outputs} outputs."
            )
        return data


def look_at_spectrum(subject: Subject) -> Seen:
    """Singular values of the Jacobian in all weights, and per layer."""
    from isthmus import spectrum

    found = spectrum(subject.model, subject.x)
    return found.to_dict(), str(found).splitlines()


def look_at_kkt(subject: Subject) -> Seen:
    """KKT residuals under the constraint that was saved with the model.

    Raises:
        InputError: none was.
    """
    from isthmus import kkt
    from isthmus.export import load_constraint

    constraint = load_constraint(subject.directory)
    if constraint is None:
        raise InputError(
            f"{subject.directory} was saved without a constraint; isthmus fit --radius saves one."
        )
    found = kkt(subject.model, subject.targeted(), constraint)
    radius = found.radius
    known = {"at this point": radius.at_point, "a priori": radius.a_priori}
    lines = [
        f"KKT            loss {found.loss:.3g}, gradient {found.gradient:.3g}, multiplier "
        f"{found.multiplier:.3g}",
        f"  residuals    stationarity {found.stationarity:.3g}, primal {found.primal:.3g}, complementarity "
        f"{found.complementarity:.3g}, natural {found.natural:.3g}",
    ]
    lines += [f"  eps0         {value:.3g} {name}" for name, value in known.items() if value is not None]
    lines += [f"  eps0         {radius.reason}"] if radius.reason else []
    return found.to_dict(), lines


def look_at_margins(subject: Subject) -> Seen:
    """How far every row is from being wrong."""
    from isthmus.margins import margins

    found = margins(subject.model, subject.targeted())
    return found.to_dict(), str(found).splitlines()


def look_at_pieces(
    subject: Subject, start: int, stop: int | None, exact: bool | None, draw: Path | None
) -> Seen:
    """Linear pieces along the line through two rows.

    Raises:
        InputError: there are no such rows, or they are the same point.
    """
    import torch

    from isthmus.bounds.pieces import linear_pieces

    data = subject.data
    stop = data.rows if stop is None else stop
    ends = _row(subject.x, start, "--from"), _row(subject.x, stop, "--to")
    if torch.equal(*ends):
        raise InputError(
            f"rows {start} and {stop} of {data.source} are the same point; "
            "choose two others with --from and --to."
        )
    found = linear_pieces(subject.model, *ends, exact=exact)
    result = {"from": start, "to": stop, **found.to_dict()}
    for name in ("breakpoints", "slopes", "intercepts"):
        if getattr(found, name).size > LISTED:
            result[name] = None
    lines = [
        f"line           row {start:,} (t = 0) to row {stop:,} (t = 1) of {data.source}",
        *str(found).splitlines(),
    ]
    if draw is not None:
        _draw(draw, found, subject, (start, stop))
        result["file"] = str(draw)
        lines.append(f"drawn          {draw}")
    return result, lines


def _row(x: Tensor, number: int, option: str) -> Tensor:
    if not 1 <= number <= len(x):
        raise InputError(f"{option} {number}: the data has rows 1 to {len(x)}.")
    return x[number - 1]


def _draw(path: Path, found: Pieces, subject: Subject, ends: tuple[int, int]) -> None:
    """The figure, with the data's targets as the model's outputs should be."""
    from isthmus.report.along_line import draw_along_line, rows_on_line

    data, described = subject.targeted(), subject.described
    on_line, places = rows_on_line(subject.x, *(subject.x[number - 1] for number in ends))
    names = [str(name) for name in described.classes] or [
        f"output {k}" for k in range(1, described.outputs + 1)
    ]
    draw_along_line(
        path,
        found,
        places,
        data.targets()[on_line].numpy(),
        (f"row {ends[0]:,}", f"row {ends[1]:,}"),
        names,
    )
