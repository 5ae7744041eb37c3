"""``isthmus patch``: repair a deployed model on given cases exactly, or take repairs back."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from isthmus.cli import options
from isthmus.cli.output import emit, progress
from isthmus.errors import DataError, InputError

if TYPE_CHECKING:
    from isthmus._types import Progress
    from isthmus.patch.result import Repair, Repaired

LISTED = 10  # cases in a printed table


def command(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="A model directory, or an .onnx file.", show_default=False),
    ],
    cases: Annotated[
        str,
        typer.Argument(
            metavar="CASES", help="DATA that the model must get right, as for memorize.", show_default=False
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="PLACE", help="The repaired model: a directory, or an .onnx file.", show_default=False
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Other inputs, to be left as they are.", show_default=False),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Inputs to measure on what else changes; by default a quarter of the reference.",
            show_default=False,
        ),
    ] = None,
    similar: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Inputs like the cases, to measure generalization on; by default these with noise or moved.",
            show_default=False,
        ),
    ] = None,
    target: options.Target = None,
    task: options.Task = "auto",
    conflicts: options.Conflicts = "error",
    gates: Annotated[
        Literal["slab", "ball"],
        typer.Option(
            help="Few gates with many cases each, or one around every case and what is similar to it."
        ),
    ] = "slab",
    half_width: Annotated[
        float | None,
        typer.Option(
            metavar="DISTANCE",
            help="How far gates reach at most; by default as far as the cases and the reference allow.",
            show_default=False,
        ),
    ] = None,
    widen: Annotated[
        bool, typer.Option("--widen", help="Reach reference rows, too, as far as --max-touched allows.")
    ] = False,
    max_touched: Annotated[
        float | None,
        typer.Option(
            metavar="PART", help="Refuse to touch more than this part of other inputs.", show_default=False
        ),
    ] = None,
    cases_per_gate: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="At most; by default as many as keep their margin.", show_default=False
        ),
    ] = None,
    tolerance: options.Tolerance = None,
    remove: Annotated[
        str | None,
        typer.Option(
            metavar="ROWS|all",
            help="Take back the repairs of these CASES (3,17), or MODEL's whole last patch.",
            show_default=False,
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write all cases, before and after, as CSV.", show_default=False),
    ] = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write model.onnx too, and run it on every case.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an older model.")] = False,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Add a few gates to MODEL so that it gets every row of CASES right, and measure how little else changes.

    With --remove, MODEL was patched for these CASES, and gets them (or some of them) back as they were.
    """
    _require_place(model, out, onnx, force)
    if table is not None and not table.parent.is_dir():
        raise InputError(f"{table} cannot be written: the folder {table.parent} does not exist.")
    options.set_threads(threads)
    from isthmus.data import load_inputs
    from isthmus.patch import patch
    from isthmus.patch.attach import open_model
    from isthmus.patch.removal import restored, unpatched

    def rows(source: str | None) -> Any:
        if source is None:
            return None
        # Conflicts within one source are for the patch to judge.
        return options.load_rows(source, target, task, None, "true", "error", seed)

    def others(source: str | None) -> Any:
        """Rows with targets, or without, if there are as many inputs then as the model takes."""
        try:
            return None if source is None else opened.taken(rows(source))
        except DataError as reason:
            size = opened.size
            try:
                return opened.shaped(load_inputs(source, opened.columns, size)) if size else rows(source)
            except DataError:
                raise reason from None

    with progress(quiet) as on_progress:
        opened = open_model(model)
        if remove is not None:
            opened = unpatched(opened)
        if remove == "all":
            back = restored(opened, rows(cases))
            _write(back, out, onnx, force, on_progress)
            emit(
                {"removed": "all", "model": str(out)}, f"removed     the last patch\nsaved       {out}", json
            )
            return
        found = patch(
            opened,
            rows(cases),
            reference=others(reference),
            held_out=others(held_out),
            similar=rows(similar),
            gates=gates,
            half_width=half_width,
            widen=widen,
            max_touched=max_touched,
            cases_per_gate=cases_per_gate,
            tolerance=tolerance,
            conflicts=conflicts,
            seed=seed,
            on_progress=on_progress,
        )
        if remove is not None:
            if opened.issued_for not in {None, found.data.digest}:
                raise InputError(
                    f"{model} was patched for other cases than {cases}; give these to remove some."
                )
            found = found.without(_numbers(remove))
        _write(found, out, onnx, force, on_progress)
    if table is not None:
        _write_table(table, found)
    emit(found.to_dict() | {"model": str(out)}, _account(found, out), json)


def _require_place(model: Path, out: Path, onnx: bool, force: bool) -> None:
    """Refuse a place that does not fit the model or is taken, before any work is spent."""
    from isthmus.files import require_free

    is_file = model.suffix.lower() == ".onnx"
    if is_file != (out.suffix.lower() == ".onnx"):
        kind = "an .onnx file" if is_file else "a model directory"
        raise InputError(f"{model} is {kind}, so give --out the name of another.")
    if not is_file:
        require_free(out, "model.json", replace=force)
    elif onnx:
        raise InputError("--onnx is for model directories; an .onnx file is repaired as one.")
    elif out.exists() and not force:
        raise InputError(f"{out} exists already; give another name, or --force to replace it.")


def _write(result: Any, out: Path, onnx: bool, force: bool, on_progress: Progress | None) -> None:
    from isthmus.export import export_onnx, save

    if out.suffix.lower() == ".onnx":
        export_onnx(result, out, on_progress=on_progress)
    else:
        save(out, result, onnx=onnx, force=force, on_progress=on_progress)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"'{text}' is neither 'all' nor a list of case numbers such as 3,17."
        ) from None


def _write_table(path: Path, found: Repaired) -> None:
    from dataclasses import asdict

    from isthmus.files import whole_file

    with whole_file(path) as draft, draft.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(found.table[0])))
        writer.writeheader()
        writer.writerows(map(asdict, found.table))


def _account(found: Repaired, out: Path) -> str:
    """What was done, and what it changed, in plain words."""
    measures, wrong = found.measures, len(found.task.cases.wrong)
    lines = [
        f"cases       {found.task.cases.given:,}, of which {wrong:,} were wrong",
        f"repaired    {found.repaired:,} ({measures.efficacy:.2%}), {found.proven:,} of them "
        "whatever the rounding in the gates",
        f"gates       {found.gates:,} of three ReLUs: {measures.added_units:,} units, "
        f"{measures.added_parameters:,} parameters; the model's own are as they were",
    ]
    if measures.touched is not None:
        lines += [
            f"touched     {measures.touched} held-out inputs",
            f"changed     {measures.changed} of their predictions",
            f"locality    outputs moved by {measures.locality:.2g} on average, "
            f"{measures.largest_change:.2g} at most",
        ]
    if measures.drawdown is not None:
        what = "accuracy lost" if found.data.classes else "growth of the root mean square error"
        lines.append(f"drawdown    {measures.drawdown:.2g} ({what} on held-out inputs)")
    if measures.generalization:
        parts = ", ".join(f"{kind} {part:.1%}" for kind, part in measures.generalization.items())
        lines.append(f"similar     repaired, too: {parts}")
    for width, part in measures.curve[:: max(1, len(measures.curve) // 4)]:
        lines.append(f"half-width  {width:.2e} touches {part:.2e} of other inputs")
    lines += [f"note        {note}" for note in found.notes]
    lines += _listed([repair for repair in found.table if repair.gate is not None])
    lines += [f"time        {measures.seconds:.1f} s", f"saved       {out}"]
    return "\n".join(lines)


def _listed(repairs: list[Repair]) -> list[str]:
    """A table of the first repaired cases."""

    def shown(value: Any) -> str:
        return ", ".join(f"{part:.6g}" for part in value) if isinstance(value, list) else str(value)

    lines = [f"{'case':>12} {'wanted':>14} {'before':>14} {'after':>14} {'gate':>5}"] * bool(repairs)
    for repair in repairs[:LISTED]:
        values = " ".join(f"{shown(value):>14}" for value in (repair.wanted, repair.before, repair.after))
        lines.append(f"{repair.row:12,} {values} {repair.gate:5}")
    if len(repairs) > LISTED:
        lines.append(f"{'...':>12} and {len(repairs) - LISTED:,} more; --table FILE writes all")
    return lines
