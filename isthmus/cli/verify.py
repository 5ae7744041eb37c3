"""``isthmus verify``: check a saved model against data, independently of what built it."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from isthmus.cli import options
from isthmus.cli.output import emit, progress


def command(
    model: options.ModelDirectory,
    data: options.Data,
    target: options.Target = None,
    task: options.Task = "auto",
    rows: options.Rows = None,
    labels: options.Labels = "true",
    conflicts: options.Conflicts = "error",
    backend: Annotated[
        Literal["numpy", "torch", "onnxruntime", "exact"],
        typer.Option(help="What evaluates the saved files."),
    ] = "numpy",
    tolerance: options.Tolerance = None,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check the saved model DIR on every row of DATA; exit code 1 if a row is wrong."""
    options.set_threads(threads)
    from isthmus.verify import verify

    with progress(quiet) as on_progress:
        rows_ = options.load_rows(data, target, task, rows, labels, conflicts, seed)
        seen = verify(model, rows_, backend=backend, tolerance=tolerance, on_progress=on_progress)
    emit(seen.to_dict(), str(seen), json)
    if not seen.verified:
        sys.exit(1)
