"""``isthmus fit``: a network of one hidden layer that fits every row, by second-order methods."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from isthmus.cli import options
from isthmus.cli.output import MEANING, backend_line, emit, progress
from isthmus.errors import InputError

if TYPE_CHECKING:
    from isthmus.certificate import Certificate
    from isthmus.narrow.kkt import Kkt
    from isthmus.narrow.solver.solution import Solution


def command(
    data: options.Data,
    out: options.Out,
    target: options.Target = None,
    task: options.Task = "auto",
    rows: options.Rows = None,
    labels: options.Labels = "true",
    conflicts: options.Conflicts = "error",
    method: Annotated[
        Literal["chord", "lm"] | None,
        typer.Option(
            help="chord: Theorem 1, from one factorization, widths of at least 2 N / d; lm: "
            "Levenberg-Marquardt, down to about half of that. By default whichever suits the width.",
            show_default=False,
        ),
    ] = None,
    width: Annotated[
        str | None,
        typer.Option(
            metavar="N|smallest",
            help="Hidden units, or smallest to search for the fewest that fit all rows; by default a tenth "
            "more than 2 N / d.",
            show_default=False,
        ),
    ] = None,
    radius: Annotated[
        float | None,
        typer.Option(
            metavar="EPSILON",
            help="Keep the hidden weights within this distance of a mirrored start, with a paired head.",
            show_default=False,
        ),
    ] = None,
    targets: Annotated[
        Literal["codes", "dead-zone", "one-hot", "softmax"] | None,
        typer.Option(
            help="What the outputs of classes are fitted to: numbers, as many equations as rows (codes, "
            "dead-zone), or one output per class (one-hot, softmax). By default codes, or softmax where "
            "there are fewer parameters than rows.",
            show_default=False,
        ),
    ] = None,
    activation: Annotated[
        Literal["tanh", "sigmoid", "relu", "leaky_relu"], typer.Option(help="Of the hidden layer.")
    ] = "tanh",
    bias: Annotated[bool, typer.Option("--bias/--no-bias", help="With hidden biases.")] = True,
    target_loss: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Relative loss |y - f|^2 / |y|^2 that must be reached.", show_default=False
        ),
    ] = None,
    tolerance: options.Tolerance = None,
    dtype: Annotated[
        Literal["float64", "float32", "float16"], typer.Option(help="Of the weights.")
    ] = "float64",
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Stay below this, as 500MB or 6GB; by default most of what is free.",
            show_default=False,
        ),
    ] = None,
    iterations: Annotated[int, typer.Option(min=1, help="Of Levenberg-Marquardt, at most.")] = 300,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted run with the same options stood.")
    ] = False,
    onnx: options.Onnx = False,
    force: options.Force = False,
    seed: options.Seed = 0,
    device: Annotated[str, typer.Option(help="Where to solve: cpu, cuda, cuda:1, ...")] = "cpu",
    threads: options.Threads = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fit every row of DATA with a network of one hidden layer, certify it, and save it."""
    from isthmus.files import require_free

    units, limit = _width(width), _bytes(memory)
    require_free(out, "model.json", replace=force)
    options.set_threads(threads)
    import torch

    from isthmus import kkt
    from isthmus.export import save
    from isthmus.narrow.solver import solve

    checkpoint = out.with_name(f"{out.name}.checkpoint")
    keeps = radius is None and method != "chord"
    if resume and not keeps:
        raise InputError(
            "--resume is for Levenberg-Marquardt; the one-factorization solve keeps no checkpoint, so "
            "begin it anew."
        )
    if not resume:
        checkpoint.unlink(missing_ok=True)
    with progress(quiet) as on_progress:
        solution = solve(
            options.load_rows(data, target, task, rows, labels, conflicts, seed),
            width=units,
            radius=radius,
            method=method,
            targets=targets,
            activation=activation,
            bias=bias,
            target_loss=target_loss,
            tolerance=tolerance,
            dtype=getattr(torch, dtype),
            memory=limit,
            iterations=iterations,
            seed=seed,
            device=device,
            checkpoint=checkpoint if keeps else None,
            on_progress=on_progress,
        )
        start = time.perf_counter()
        certificate = save(out, solution, onnx=onnx, force=force, on_progress=on_progress)
        export = time.perf_counter() - start
    checkpoint.unlink(missing_ok=True)
    residuals = None
    if solution.constraint is not None and solution.data.task == "regression":
        residuals = kkt(solution.model, solution.data, solution.constraint)
    result = solution.to_dict()
    result["certificate"] = certificate.model_dump(mode="json")
    result["seconds"]["export"] = export
    result["final"] |= {
        "sigma_min": None if residuals is None else residuals.radius.sigma_min,
        "kkt": None if residuals is None else residuals.to_dict(),
    }
    emit(result, _account(solution, certificate, residuals, out), json)


def _width(text: str | None) -> int | Any:
    if text in {None, "smallest"}:
        return text
    try:
        return int(text or "")
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not a width; give a number of units, or smallest.") from None


def _bytes(text: str | None) -> int | None:
    """A size as 500MB, 1.5GB or 2GiB in bytes."""
    if text is None:
        return None
    units = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "B": 1}
    number = text.upper().strip()
    for unit, size in units.items():
        if number.endswith(unit):
            try:
                found = float(number.removesuffix(unit)) * size
            except ValueError:
                break
            if 0 < found < 2**63:
                return int(found)
            break
    raise typer.BadParameter(f"'{text}' is not a size; write it as 500MB, 6GB or 2.5GiB.")


def _account(solution: Solution, certificate: Certificate, residuals: Kkt | None, out: Path) -> str:
    """What was found, in plain words."""
    data, plan = solution.data, solution.recipe["plan"]
    outputs = f"{data.outputs} classes" if data.task == "classification" else f"{data.outputs} target(s)"
    method = "one factorization" if plan["method"] == "chord" else "Levenberg-Marquardt"
    steps = solution.history[-1].factorizations if solution.history else 0
    lines = [
        f"data        {data.source}: {data.rows:,} rows, {data.inputs:,} inputs, {outputs}",
        f"network     {plan['activation']}, {data.inputs}-{solution.width}-{data.outputs}, fitted to "
        f"{plan['targets']}: {solution.parameters:,} parameters, {certificate.dtype}",
        f"solved      {method}: relative loss {solution.loss:.1e} after {len(solution.history)} iterations, "
        f"{steps} factorization(s)",
        f"certificate {certificate.level}: {MEANING[certificate.level]}",
    ]
    figures = {"margin": certificate.margin, "error": certificate.max_error, "bound": certificate.bound}
    if data.task == "regression":
        figures["tolerance"] = certificate.tolerance
    else:
        del figures["error"]
    known = ", ".join(f"{name} {value:.2g}" for name, value in figures.items() if value is not None)
    lines.append(f"            {known}")
    if residuals is not None:
        lines.append(
            f"radius      {plan['radius']:g}: distance beyond it {residuals.primal:.1g}, stationarity "
            f"{residuals.stationarity:.1e}, loss {residuals.loss:.1e}"
        )
    if certificate.merged:
        lines.append(f"            {certificate.merged:,} row(s) repeat an earlier one and were merged")
    lines += [f"            {note}" for note in certificate.notes]
    lines += [f"            {backend_line(backend)}" for backend in certificate.backends]
    lines += [f"narrower    {narrower}" for narrower in solution.precision]
    for trial in solution.tried:
        verdict = "fits" if trial.solved else f"does not fit, relative loss {trial.loss:.1e}"
        lines.append(
            f"tried       {trial.width} units, {trial.targets}: {verdict} ({trial.iterations} iterations, "
            f"{trial.seconds:.1f} s)"
        )
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in solution.seconds.items())
    lines += [f"time        {seconds}", f"saved       {out}"]
    return "\n".join(lines)
