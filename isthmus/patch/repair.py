"""`patch`: find the cases that a model gets wrong, put gates around them, and measure what else changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import torch

from isthmus._types import Conflicts, Progress
from isthmus.errors import InputError
from isthmus.patch.attach import open_model
from isthmus.patch.cases import Cases, Others, read_cases, read_others
from isthmus.patch.result import Repaired
from isthmus.patch.task import Shape, Task, repair, similar_to

MEASURED = 4  # every so many-th reference row is held out, unless there are others


def patch(
    model: Any,
    cases: Any,
    *,
    reference: Any = None,
    held_out: Any = None,
    similar: Any = None,
    gates: Shape = "slab",
    half_width: float | None = None,
    widen: bool = False,
    max_touched: float | None = None,
    cases_per_gate: int | None = None,
    tolerance: float | None = None,
    classes: Sequence[str | int] = (),
    conflicts: Conflicts = "error",
    seed: int = 0,
    on_progress: Progress | None = None,
    raise_on_failure: bool = True,
) -> Repaired:
    """Repair a model on given cases exactly, and leave (nearly) all else alone.

    Beside the model stand a few gates, each exactly 1 on some of the cases and exactly 0 on all other inputs
    but those in a thin slab (or a ball): there, and nowhere else, something is added to the outputs. The
    model itself is not changed.

    Args:
        model: a `torch.nn.Module` that maps ``[N, *shape]`` to [N, K], put in evaluation mode; an ONNX
            classifier or regressor (a path, or an `onnx.ModelProto`); or a model directory.
        cases: a `Dataset` or a pair (x, y); x as the model takes it, y the right classes or values. Cases
            that are right already stay so.
        reference: other inputs that the gates keep off: ``[N, *shape]``, a pair with targets, or a `Dataset`.
            Without ``held_out``, a random quarter of them is held out to measure what a patch touches.
        held_out: more such inputs, which have no part in the patch.
        similar: a pair (x, y) or a `Dataset` of inputs like the cases, to measure generalization on; by
            default the wrong cases under noise and, if they are images, shifted by a pixel.
        gates: ``slab`` for few gates with many cases each, ``ball`` for one around every case, which repairs
            what is similar, too.
        half_width: the largest distance from its plane or center at which a gate acts; by default a quarter
            (a ball: half) of the distance to the nearest row that is kept off, or next to nothing without a
            reference.
        widen: let gates reach reference rows, as widely as ``max_touched`` allows.
        max_touched: the part of other inputs that may be touched; a patch that touches more is refused.
        cases_per_gate: how many cases a slab may hold; as many as keep their margin by default.
        tolerance: largest error of a value that counts as right; by default 1e-8 of the range of the targets,
            or what rounding in the model's dtype comes to.
        classes: names of the outputs, if they are not the numbers from 0 or known from the file.
        conflicts: what to do about equal cases with different targets, see `Dataset.resolve`; unless
            ``"error"``, reference rows that contradict a case are left out.
        seed: of the random directions.
        on_progress: told what is done and which part of it.
        raise_on_failure: False returns what was reached, and its status, instead of raising.

    Returns:
        The repaired model with its certificate, measures, and a table of the cases.

    Raises:
        InputError: options that do not go together, or a model that cannot be repaired like this.
        DataError: cases that contradict one another or the reference.
        PrecisionError: cases nearer to other rows than float64 tells apart.
        NotCertified: a case is still wrong, or more is touched than allowed.

    Source: after Yun, Sra, Jadbabaie 2019 (arXiv 1810.07770), Corollary 4.2; the repair is an addition.
    """
    _require_options(gates, half_width, widen, max_touched, cases_per_gate, reference, held_out, seed)
    opened = open_model(model)
    if classes and opened.names and list(map(str, classes)) != list(map(str, opened.names)):
        names = ", ".join(map(str, opened.names))
        raise InputError(f"the model itself names its outputs {names}; leave out classes=.")
    opened = replace(opened, classes=opened.classes or tuple(classes))
    opened.module.eval()  # and so it stays, as a part of what is returned
    known = read_cases(opened, cases, tolerance, conflicts)
    none = Others(known.data.x[:0], None, 0)
    others = none if reference is None else read_others(known, opened, reference, "reference", conflicts)
    kept, measured = others, None
    if held_out is not None:
        measured = read_others(known, opened, held_out, "held-out rows", conflicts)
    elif len(others.x) >= MEASURED:
        order = torch.randperm(len(others.x), generator=torch.Generator().manual_seed(seed))
        part = len(order) // MEASURED
        measured, kept = others.take(order[:part].sort().values), others.take(order[part:].sort().values)
    kinds = similar_to(known, seed)
    if similar is not None:
        given = read_others(known, opened, similar, "similar inputs", "drop")
        if given.y is None:
            raise InputError("similar inputs need targets: give a pair (x, y) or a Dataset.")
        kinds = {"given": (given.x, given.y)}
    notes = _notes(known, others, reference is None)
    task = Task(
        base=opened.module,
        cases=known,
        kept=kept,
        held_out=measured,
        similar=kinds,
        shape=gates,
        half_width=half_width,
        widen=widen,
        max_touched=max_touched,
        cases_per_gate=cases_per_gate,
        seed=seed,
        notes=notes,
    )
    return repair(task, on_progress, raise_on_failure)


def _require_options(
    gates: str,
    half_width: float | None,
    widen: bool,
    max_touched: float | None,
    cases_per_gate: int | None,
    reference: Any,
    held_out: Any,
    seed: int,
) -> None:
    """Refuse options that do not go together.

    Raises:
        InputError: which.
    """
    if gates not in get_args(Shape):
        raise InputError(f"unknown gates '{gates}'; choose one of {', '.join(get_args(Shape))}.")
    if half_width is not None and not 0 < half_width < torch.inf:
        raise InputError(f"a half-width of {half_width} is none; choose a finite one above 0.")
    if max_touched is not None and not 0 <= max_touched <= 1:
        raise InputError(f"max_touched {max_touched} is no part of all inputs; choose one from 0 to 1.")
    if max_touched is not None and reference is None and held_out is None:
        raise InputError("max_touched needs reference rows, on which to see what a patch touches.")
    if widen and (not max_touched or reference is None):
        raise InputError(
            "to widen gates, give reference rows and max_touched, the part of them that may be touched."
        )
    if cases_per_gate is not None and (gates == "ball" or cases_per_gate < 1):
        raise InputError("cases_per_gate is for slabs, and at least 1; a ball holds one case.")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed {seed} is out of range; choose one from 0 to 2^63 - 1.")


def _notes(cases: Cases, others: Others, alone: bool) -> tuple[str, ...]:
    repeated = cases.given - cases.data.rows
    found = {
        f"{repeated} case(s) repeat an earlier one or were dropped": repeated,
        f"{int(cases.right.sum())} case(s) were right already, and stay so": bool(cases.right.any()),
        f"{others.same} reference row(s) equal a case, and were left out": others.same,
        "without a reference nothing is known of other inputs, so gates are as narrow as they can be": alone,
    }
    return tuple(note for note, applies in found.items() if applies)
