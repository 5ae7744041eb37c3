"""``isthmus inspect``: instruments that look at a saved model; all of them, unless some are named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from isthmus.cli import options
from isthmus.cli.output import emit
from isthmus.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from isthmus.bounds.pieces import Pieces
    from isthmus.data import Dataset
    from isthmus.model_file import Description

EXACT = {"auto": None, "exact": True, "float64": False}
LISTED = 5_000  # numbers that one list in the JSON may hold; in Python there is no limit


def command(
    model: options.ModelDirectory,
    data: options.Data,
    target: options.Target = None,
    task: options.Task = "auto",
    rows: options.Rows = None,
    labels: options.Labels = "true",
    conflicts: options.Conflicts = "error",
    pieces: Annotated[
        bool, typer.Option("--pieces", help="Count the linear pieces along the line through two rows.")
    ] = False,
    start: Annotated[int, typer.Option("--from", metavar="ROW", help="The first of the two rows.")] = 1,
    stop: Annotated[
        int | None,
        typer.Option(
            "--to", metavar="ROW", help="The second; the last of DATA by default.", show_default=False
        ),
    ] = None,
    arithmetic: Annotated[
        Literal["auto", "exact", "float64"],
        typer.Option(help="What pieces are counted in; auto: exact where that takes seconds."),
    ] = "auto",
    draw: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw the outputs along the line (.svg, .png, .pdf).", show_default=False
        ),
    ] = None,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Look at the saved model DIR on DATA: its linear pieces along a line, and how many there can be.

    In the JSON, a list of more than 5,000 numbers is null; isthmus.linear_pieces has them all.
    """
    options.set_threads(threads)
    import torch

    from isthmus.bounds.pieces import linear_pieces
    from isthmus.data import load_inputs
    from isthmus.export import instantiate
    from isthmus.model_file import read_model
    from isthmus.report.along_line import require_format

    if draw is not None:
        require_format(draw)
    saved = read_model(model)
    described = saved.description
    loaded = options.load_rows(data, target, task, rows, labels, conflicts, seed)
    # The line that is looked at leads through the rows as the model takes them, rounded to its dtype.
    x = load_inputs(loaded, described.columns, described.inputs).to(getattr(torch, described.dtype))

    asked = {"pieces": pieces}
    wanted = [name for name, flag in asked.items() if flag] or list(asked)
    result: dict[str, Any] = {}
    lines: list[str] = []
    if "pieces" in wanted:
        stop = loaded.rows if stop is None else stop
        ends = _row(x, start, "--from"), _row(x, stop, "--to")
        if torch.equal(*ends):
            raise InputError(
                f"rows {start} and {stop} of {loaded.source} are the same point; "
                "choose two others with --from and --to."
            )
        found = linear_pieces(instantiate(saved), *ends, exact=EXACT[arithmetic])
        result["pieces"] = {"from": start, "to": stop, **found.to_dict()}
        for name in ("breakpoints", "slopes", "intercepts"):
            if getattr(found, name).size > LISTED:
                result["pieces"][name] = None
        lines += [
            f"line           row {start:,} (t = 0) to row {stop:,} (t = 1) of {loaded.source}",
            str(found),
        ]
        if draw is not None:
            _draw(draw, found, loaded, x, described, (start, stop))
            result["pieces"]["file"] = str(draw)
            lines.append(f"drawn          {draw}")
    emit(result, "\n".join(lines), json)


def _row(x: Tensor, number: int, option: str) -> Tensor:
    if not 1 <= number <= len(x):
        raise InputError(f"{option} {number}: the data has rows 1 to {len(x)}.")
    return x[number - 1]


def _draw(
    path: Path, found: Pieces, data: Dataset, x: Tensor, described: Description, ends: tuple[int, int]
) -> None:
    """The figure, with the data's targets as the model's outputs should be."""
    from isthmus.report.along_line import draw_along_line, rows_on_line

    if data.task != described.task:
        raise InputError(
            f"{data.source} was read as {data.task}, but the model is for {described.task}; choose the task."
        )
    if data.task == "classification":
        data = data.with_classes(described.classes)
    elif data.outputs != described.outputs:
        raise InputError(
            f"{data.source}: {data.outputs} targets, but the model has {described.outputs} outputs."
        )
    on_line, places = rows_on_line(x, *(x[number - 1] for number in ends))
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
