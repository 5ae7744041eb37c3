"""``isthmus inspect``: instruments that look at a saved model; all of them, unless some are named."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from isthmus.cli import options
from isthmus.cli.output import emit
from isthmus.errors import InputError

EXACT = {"auto": None, "exact": True, "float64": False}


def command(
    model: options.ModelDirectory,
    data: options.Data,
    target: options.Target = None,
    task: options.Task = "auto",
    rows: options.Rows = None,
    labels: options.Labels = "true",
    conflicts: options.Conflicts = "error",
    spectrum: Annotated[
        bool, typer.Option("--spectrum", help="Singular values of the Jacobian in the weights, per layer.")
    ] = False,
    kkt: Annotated[
        bool,
        typer.Option("--kkt", help="Residuals of the KKT conditions under the constraint that fit saved."),
    ] = False,
    margins: Annotated[
        bool, typer.Option("--margins", help="How far every row is from being wrong.")
    ] = False,
    pieces: Annotated[
        bool, typer.Option("--pieces", help="Count the linear pieces along the line through two rows.")
    ] = False,
    start: Annotated[
        int | None,
        typer.Option(
            "--from", metavar="ROW", help="The first of the two rows; 1 by default.", show_default=False
        ),
    ] = None,
    stop: Annotated[
        int | None,
        typer.Option(
            "--to", metavar="ROW", help="The second; the last of DATA by default.", show_default=False
        ),
    ] = None,
    arithmetic: Annotated[
        Literal["auto", "exact", "float64"] | None,
        typer.Option(
            help="What pieces are counted in; auto, the default: exact where that takes seconds.",
            show_default=False,
        ),
    ] = None,
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
    """Look at the saved model DIR on DATA, with the instruments named, or with all that can look at it.

    In the JSON, a list of more than 5,000 numbers is null; isthmus.linear_pieces has them all.
    """
    options.set_threads(threads)
    import torch

    from isthmus.cli import instruments
    from isthmus.data import load_inputs
    from isthmus.export import instantiate
    from isthmus.model_file import read_model
    from isthmus.report.along_line import require_format

    if draw is not None:
        require_format(draw)
    saved = read_model(model)
    described = saved.description
    loaded = options.load_rows(data, target, task, rows, labels, conflicts, seed)
    x = load_inputs(loaded, described.columns, described.inputs).to(getattr(torch, described.dtype))
    subject = instruments.Subject(model, instantiate(saved), described, loaded, x)

    exact = EXACT[arithmetic or "auto"]
    looks = {
        "margins": lambda: instruments.look_at_margins(subject),
        "kkt": lambda: instruments.look_at_kkt(subject),
        "spectrum": lambda: instruments.look_at_spectrum(subject),
        "pieces": lambda: instruments.look_at_pieces(
            subject, 1 if start is None else start, stop, exact, draw
        ),
    }
    along_line = any(option is not None for option in (start, stop, arithmetic, draw))
    asked = {"margins": margins, "kkt": kkt, "spectrum": spectrum, "pieces": pieces or along_line}
    named = [name for name, flag in asked.items() if flag]
    result: dict[str, Any] = {}
    lines: list[str] = []
    for name in named or looks:
        try:
            result[name], account = looks[name]()
        except InputError as reason:
            if named:
                raise
            result[name], account = {"reason": str(reason)}, [f"{name:14} not looked at: {reason}"]
        lines += account
    emit(result, "\n".join(lines), json)
