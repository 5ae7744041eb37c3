"""``isthmus memorize``: build a network that gets every row right, certify it, save it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from isthmus.cli import options
from isthmus.cli.output import MEANING, backend_line, emit, progress

if TYPE_CHECKING:
    from isthmus.certificate import Certificate
    from isthmus.memorize import Memorized


def command(
    data: options.Data,
    out: options.Out,
    target: options.Target = None,
    task: options.Task = "auto",
    rows: options.Rows = None,
    labels: options.Labels = "true",
    conflicts: options.Conflicts = "error",
    method: Annotated[
        Literal[
            "affine",
            "interpolant",
            "gates",
            "residual",
            "three-layer",
            "zigzag",
            "classifier",
            "deep",
            "deep-classifier",
        ]
        | None,
        typer.Option(
            help="One construction only; by default all, fewest hidden units first.",
            show_default=False,
        ),
    ] = None,
    activation: Annotated[
        Literal["hardtanh", "relu", "leaky_relu"], typer.Option(help="Of the hidden layers.")
    ] = "hardtanh",
    widths: Annotated[
        str | None,
        typer.Option(
            metavar="A[,B,...]",
            help="Hidden widths to keep within; the smallest by default.",
            show_default=False,
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            metavar="L",
            help="Layers in place of widths: a deep network has L - 1 hidden ones, a residual one L - 1 "
            "blocks of gates and a last hidden layer.",
            show_default=False,
        ),
    ] = None,
    minimize: Annotated[
        Literal["units", "parameters", "width"],
        typer.Option(help="Of deep networks with that depth, take the one with least of this."),
    ] = "units",
    dtype: Annotated[
        Literal["float64", "float32", "float16"], typer.Option(help="Of the weights.")
    ] = "float64",
    rule: Annotated[
        Literal["paper", "tight"], typer.Option(help="The theorem's widths and gates, or the improved ones.")
    ] = "tight",
    tolerance: options.Tolerance = None,
    level: Annotated[
        Literal["measured", "proven", "bitwise"] | None,
        typer.Option(
            help="What the certificate must reach; proven by default, measured if widths are given.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        float, typer.Option(metavar="SECONDS", help="Begin no candidate later than this.")
    ] = 60.0,
    onnx: options.Onnx = False,
    force: options.Force = False,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write down the weights of a small network that memorizes DATA, certify it on every row, and save it."""
    from isthmus.files import require_free

    hidden = _widths(widths)
    require_free(out, "model.json", replace=force)
    options.set_threads(threads)
    import torch

    from isthmus.export import save
    from isthmus.memorize import memorize

    with progress(quiet) as on_progress:
        found = memorize(
            options.load_rows(data, target, task, rows, labels, conflicts, seed),
            method=method,
            activation=activation,
            widths=hidden,
            depth=depth,
            minimize=minimize,
            rule=rule,
            dtype=getattr(torch, dtype),
            tolerance=tolerance,
            level=level,
            budget=budget,
            seed=seed,
            on_progress=on_progress,
        )
        start = time.perf_counter()
        certificate = save(out, found, onnx=onnx, force=force, on_progress=on_progress)
        export = time.perf_counter() - start
    result = found.to_dict()
    result["certificate"] = certificate.model_dump(mode="json")
    result["seconds"]["export"] = export
    emit(result, _account(found, certificate, out), json)


def _widths(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not a list of widths such as 519,245,9.") from None


def _account(found: Memorized, certificate: Certificate, out: Path) -> str:
    """What was found, in plain words."""
    data, plan = found.data, found.recipe["plan"]
    sizes = "-".join(map(str, (data.inputs, *found.widths, data.outputs)))
    kind = f"{plan['method']}, {plan['activation']}" if found.widths else plan["method"]
    outputs = f"{data.outputs} classes" if data.task == "classification" else f"{data.outputs} target(s)"
    lines = [
        f"data        {data.source}: {data.rows:,} rows, {data.inputs:,} inputs, {outputs}",
        f"network     {kind}, {sizes}: {found.hidden_units:,} hidden units, "
        f"{found.parameters:,} parameters, {certificate.dtype}",
        f"certificate {certificate.level}: {MEANING[certificate.level]}",
    ]
    if data.task == "regression":
        bound = "none known" if certificate.bound is None else f"{certificate.bound:.1e}"
        proven = (
            "their sum is"
            if certificate.reaches("proven")
            else "the error alone, so verify will not confirm it, is"
        )
        lines.append(
            f"            largest error {certificate.max_error:.1e}, rounding bound {bound}; "
            f"{proven} within the tolerance {certificate.tolerance:.1e} on every row"
        )
    elif certificate.margin is not None:
        lines.append(
            f"            smallest margin {certificate.margin:.3g}, rounding bound {certificate.bound:.1e}"
        )
    if certificate.merged:
        lines.append(f"            {certificate.merged:,} row(s) repeat an earlier one and were merged")
    lines += [f"            {note}" for note in certificate.notes]
    lines += [f"            {backend_line(backend)}" for backend in certificate.backends]
    lines += [f"narrower    {narrower}" for narrower in found.precision]
    if certificate.level == "proven" and data.task == "classification":
        lines.append(
            "one-hot     the outputs are right, but not 0 and 1 bit for bit; --level bitwise asks for that"
        )
    for attempt in found.tried[:-1]:
        shape = "-".join(map(str, attempt.widths)) or "without hidden layers"
        lines.append(f"tried       {attempt.method} {shape}: {attempt.reason}")
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in found.seconds.items())
    lines += [f"time        {seconds}", f"saved       {out}"]
    return "\n".join(lines)
