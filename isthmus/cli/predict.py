"""``isthmus predict``: what a saved model says about new rows."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli import options
from isthmus.cli.output import emit


def command(
    model: options.ModelDirectory,
    data: options.Data,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write them as CSV; printed by default.", show_default=False),
    ] = None,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Print or write the labels (by name) or values that the saved model DIR gives for the rows of DATA."""
    options.set_threads(threads)
    from isthmus.files import whole_file
    from isthmus.predict import predict

    predictions = predict(model, data)
    rows = [row if isinstance(row, list) else [row] for row in predictions]
    if out is None:
        emit({"predictions": predictions}, "\n".join(",".join(map(str, row)) for row in rows), json)
        return
    with whole_file(out) as draft, draft.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    emit({"rows": len(rows), "file": str(out)}, f"{len(rows):,} rows written to {out}", json)
