"""``isthmus export``: a saved model as ONNX."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli import options
from isthmus.cli.output import backend_line, emit, progress
from isthmus.errors import InputError


def command(
    model: options.ModelDirectory,
    onnx: Annotated[Path, typer.Option(metavar="FILE", help="The ONNX file to write.", show_default=False)],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="Run the file on these rows with ONNX Runtime.", show_default=False
        ),
    ] = None,
    target: options.Target = None,
    task: options.Task = "auto",
    threads: options.Threads = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the saved model DIR as an ONNX file; with --data, exit code 1 if a row is wrong there."""
    options.set_threads(threads)
    from isthmus.export import load_model, run_onnx, write_onnx
    from isthmus.files import whole_file
    from isthmus.model_file import read_model

    saved = read_model(model)
    described = saved.description
    rows = None if data is None else options.load_rows(data, target, task, None, "true", "error", 0)
    if rows is not None:
        rows = rows.with_classes(described.classes) if rows.classes else rows
        if (rows.inputs, rows.outputs) != (described.inputs, described.outputs):
            raise InputError(
                f"{rows.source}: {rows.inputs} inputs and {rows.outputs} outputs, but the model has "
                f"{described.inputs} and {described.outputs}."
            )
    network = load_model(model)
    backends = []
    with progress(quiet) as on_progress, whole_file(onnx) as draft:
        write_onnx(draft, network, saved.certificate, described.input_shape, described.classes)
        if rows is not None:
            backends.append(run_onnx(draft, network, rows, saved.certificate.tolerance, on_progress))
    lines = [f"written {onnx}, checked by onnx.checker"]
    lines += [backend_line(backend) for backend in backends]
    emit(
        {"file": str(onnx), "backends": [b.model_dump(mode="json") for b in backends]}, "\n".join(lines), json
    )
    if any(backend.wrong for backend in backends):
        sys.exit(1)
