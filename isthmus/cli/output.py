"""What commands print: a result as text or JSON on standard output, progress on standard error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from isthmus._types import Progress
    from isthmus.certificate import Backend

MEANING = {
    "none": "some rows are wrong",
    "measured": "every row is right as computed here, but rounding elsewhere could change that",
    "proven": "every row stays right whatever the order of summation",
    "bitwise": "every row stays right whatever the order of summation, and equals its target bit for bit",
}


def emit(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Print the result: all of it as JSON, or its account for people."""
    typer.echo(json.dumps(result, indent=2, allow_nan=False) if as_json else text)


def backend_line(seen: Backend) -> str:
    """What another evaluator made of the rows, in words."""
    return (
        f"{seen.name} {seen.version}: {seen.wrong} of {seen.rows:,} rows wrong, "
        f"outputs within {seen.max_difference:.1e} of PyTorch's"
    )


@contextmanager
def progress(quiet: bool) -> Iterator[Progress | None]:
    """Draw a bar per stage on standard error while inside; it is wiped on leaving.

    Args:
        quiet: draw nothing, as where standard error is no terminal.

    Yields:
        What long functions take as ``on_progress``; None if nothing is to be drawn.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%")
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def update(stage: str, part: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=1.0)
            bars.update(tasks[stage], completed=part)

        yield update
