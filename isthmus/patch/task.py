"""A patch that is to be drawn: gates for it, and the model with these beside it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isthmus._types import Progress
from isthmus.arithmetic.rounding import RunningBound
from isthmus.certify import certify, decision_margins
from isthmus.errors import InputError, NotCertified
from isthmus.graph import dtype_name, gated
from isthmus.nets.patched import Gates
from isthmus.patch.attach import attach
from isthmus.patch.balls import draw_balls
from isthmus.patch.cases import Cases, Others, is_right, labeled_right
from isthmus.patch.measures import Measures, elsewhere, generalization, similar_cases, touched_curve
from isthmus.patch.planes import draw_planes
from isthmus.patch.regions import WORKSPACE, Regions, budgeted, half_widths, open_to
from isthmus.patch.result import Repaired, Status
from isthmus.patch.running import outputs
from isthmus.patch.values import class_shifts, residuals, typical_lead

Shape = Literal["slab", "ball"]
UNITS = 3  # ReLUs of a gate: two sides and a roof
ALONE = 256  # cases that are run one by one, at most
SHARES_OFF = 1e-3  # by which shares may be below 0, and their sum may differ from 1


@dataclass(frozen=True)
class Task:
    """A patch to be drawn: the model, the rows, and the options."""

    base: nn.Module
    cases: Cases
    kept: Others
    held_out: Others | None
    similar: dict[str, tuple[Tensor, Tensor]]
    shape: Shape
    half_width: float | None
    widen: bool
    max_touched: float | None
    cases_per_gate: int | None
    seed: int
    notes: tuple[str, ...]

    def options(self) -> dict[str, Any]:
        """What is not data, ready for JSON."""
        chosen = ("shape", "half_width", "widen", "max_touched", "cases_per_gate", "seed")
        return {name: getattr(self, name) for name in chosen}


def repair(task: Task, on_progress: Progress | None = None, raise_on_failure: bool = True) -> Repaired:
    """Draw the gates of a task, put them beside the model, and see what has changed.

    Args:
        task: what to repair, and how.
        on_progress: told what is done and which part of it.
        raise_on_failure: False returns what was reached, and its status, instead of raising.

    Raises:
        PrecisionError: cases nearer to other rows than float64 tells apart.
        NotCertified: a case is still wrong, or more is touched than allowed.
    """
    start = time.perf_counter()
    cases, held_out = task.cases, task.held_out
    generator = torch.Generator().manual_seed(task.seed)
    model, curve, parameters, proven = task.base, (), 0, 0
    owner = torch.full((cases.data.rows,), -1)
    if len(cases.wrong):
        regions, half_width = _draw(task, generator, on_progress)
        shares = cases.tolerance is None and _are_shares(cases.before)
        model, owner = attach(task.base, regions.gates, shares), regions.owner
        parameters = sum(tensor.numel() for tensor in regions.gates.buffers())
        proven = int(_proven(regions.gates, cases)[cases.wrong].sum())
        if held_out is not None:
            curve = touched_curve(regions, held_out.x, half_width)
    after = outputs(model, cases.data.x)
    certificate = certify(model, cases.data, tolerance=cases.tolerance, on_progress=on_progress)
    seconds = time.perf_counter() - start
    right = is_right(after, cases.data, cases.tolerance)[cases.wrong]
    measures = Measures(
        efficacy=float(right.double().mean()) if len(right) else 1.0,
        generalization=generalization(task.base, model, cases, task.similar),
        curve=curve,
        added_units=UNITS * (int(owner.max()) + 1),
        added_parameters=parameters,
        seconds=seconds,
        **elsewhere(task.base, model, cases, held_out),
    )
    status = Status.REPAIRED
    if certificate.wrong or not _holds(model, cases):
        status = Status.NOT_REPAIRED
    elif task.max_touched is not None and measures.touched and measures.touched.fraction > task.max_touched:
        status = Status.TOO_MUCH_TOUCHED
    result = Repaired(model, certificate, measures, status, proven, owner, after, task)
    if raise_on_failure:
        _require(result)
    return result


def without(result: Repaired, rows: Sequence[int]) -> Repaired:
    """The same task without some of its cases, which the gates keep off; see `Repaired.without`.

    Raises:
        InputError: a number that no case has, or one of a case that was right already.
    """
    task, cases = result.task, result.task.cases
    strange = sorted(set(rows) - set(cases.number.tolist()))
    if strange:
        raise InputError(f"there is no case {strange[0]}; the table lists which there are.")
    taken = torch.isin(cases.number, torch.tensor(list(rows), dtype=torch.int64))
    if (taken & cases.right).any():
        number = int(cases.number[taken & cases.right][0])
        raise InputError(f"case {number} was right already, so there is no repair of it to take back.")
    if taken.all():
        raise InputError("no case would be left; the model without any repair is .base.")
    left = torch.nonzero(~taken).squeeze(1)
    kept = replace(task.kept, x=torch.cat([task.kept.x, cases.data.x[taken]]), y=None)
    fewer = replace(
        cases,
        data=cases.data.take(left),
        number=cases.number[left],
        before=cases.before[left],
        right=cases.right[left],
    )
    similar = task.similar if "given" in task.similar else similar_to(fewer, task.seed)
    return repair(replace(task, cases=fewer, kept=kept, similar=similar))


def _draw(task: Task, generator: torch.Generator, on_progress: Progress | None) -> tuple[Regions, Tensor]:
    """The gates as wide as they are to be and with all that they add, and their half-widths [G]."""
    cases, most, kept = task.cases, task.cases_per_gate, task.kept.x
    # Rows that planes were drawn to keep off say little of others.
    kept, unseen = (kept[::2], kept[1::2]) if task.widen else (kept, kept)
    labels = cases.data.y if cases.tolerance is None else None
    pools = [cases.wrong]
    if labels is not None:
        pools = [own for own in (cases.wrong[labels[cases.wrong] == k] for k in labels.unique()) if len(own)]
    while True:
        if task.shape == "ball":
            regions = draw_balls(cases, kept, labels, task.widen, generator)
        else:
            regions = draw_planes(cases, pools, kept, labels, task.widen, most, generator, on_progress)
        if labels is not None:
            regions.gates.shift = class_shifts(cases, regions, _lead(task))
            break
        shift, tilt, error = residuals(cases, regions)
        if float(error.max()) <= (cases.tolerance or 0.0) / 2:
            regions.gates.shift = shift
            if tilt.any():
                regions.gates.tilt, regions.gates.tilted = tilt, True
            break
        # No affine function takes these values; fewer cases at a time are easier.
        most = max(1, int(torch.bincount(regions.owner[regions.owner >= 0]).max()) // 2)
    asked = task.half_width
    if task.widen and task.max_touched is not None:
        budget = budgeted(regions, unseen, task.max_touched)
        asked = budget if asked is None else min(asked, budget)
    half_width = half_widths(regions, asked, unknown=not len(task.kept.x))
    open_to(regions.gates, half_width)
    return regions, half_width


def _lead(task: Task) -> float:
    """By how much repaired classes lead: as others do, or more where rounding would matter."""
    before = task.cases.before
    rounding = 64 * torch.finfo(before.dtype).eps * float(before.abs().max())
    return max(typical_lead(before), rounding)


def _proven(gates: Gates, cases: Cases) -> Tensor:
    """Which cases are right under any rounding in the gates and in adding what they open [P]."""
    bound = RunningBound([gated(gates)])
    step = max(1, WORKSPACE // (gates.gates * (gates.outputs if gates.tilted else 1) + gates.inputs))
    parts = [bound(part) for part in cases.data.flat.split(step)]
    added, error = (torch.cat(column) for column in zip(*parts, strict=True))
    total = cases.before.double() + added.double()
    # The sum is rounded in float64, and to the dtype of the outputs.
    for dtype in (torch.float64, cases.before.dtype):
        error = error + torch.finfo(dtype).eps * (total.abs() + error)
    if cases.tolerance is not None:
        return ((total - cases.data.y).abs() + error <= cases.tolerance).all(1)
    lead, spread = decision_margins(total, error, cases.data.y)
    return (lead > spread).all(1)


def _holds(model: nn.Module, cases: Cases) -> bool:
    """Whether labels that a graph gives itself are right, too, and repaired cases (some) one by one."""
    alone = cases.wrong[:ALONE]
    if len(alone):
        own = outputs(model, cases.data.x[alone], 1)
        if not is_right(own, cases.data.take(alone), cases.tolerance).all():
            return False
    return bool(labeled_right(model, cases.data).all())


def _are_shares(output: Tensor) -> bool:
    """Whether outputs [P, K] are shares of 1, as of a softmax."""
    total = output.double().sum(1)
    return output.shape[1] > 1 and bool(
        (output >= -SHARES_OFF).all() and ((total - 1).abs() < SHARES_OFF).all()
    )


def similar_to(cases: Cases, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """What generalization is measured on, unless inputs are given; see `similar_cases`."""
    if cases.tolerance is not None or not len(cases.wrong):
        return {}  # how values should change with the inputs is not known
    return similar_cases(cases, torch.Generator().manual_seed(seed))


def _require(result: Repaired) -> None:
    """Raise what a status that is not a success says.

    Raises:
        NotCertified: a case is still wrong, or more is touched than allowed.
    """
    measures, limit = result.measures, result.task.max_touched
    if result.status is Status.NOT_REPAIRED:
        raise NotCertified(f"not every case is right now: {_reason(result)}.")
    if result.status is Status.TOO_MUCH_TOUCHED and limit is not None:
        smaller = next((width for width, part in measures.curve if part <= limit), None)
        advice = (
            "give more reference rows, which the gates keep off"
            if smaller is None
            else f"half_width={smaller:.2g} would do"
        )
        raise NotCertified(
            f"the patch touches {measures.touched} other inputs, more than the {limit:g} allowed; {advice}."
        )


def _reason(result: Repaired) -> str:
    """Why cases are still wrong, though gates are open there."""
    cases, after = result.task.cases, result.after
    dtype = dtype_name(after.dtype)
    if not torch.isfinite(after).all():
        return f"their outputs would be more than {dtype} holds"
    spacing = torch.finfo(after.dtype).eps * float(cases.data.y.abs().max())
    if cases.tolerance is not None and cases.tolerance < spacing:
        return f"{dtype} holds the targets to {spacing:.1e}, more than the tolerance {cases.tolerance:.1e}"
    if not labeled_right(result.model, cases.data).all():
        return "the graph's labels are not those of its largest scores"
    return "the model's own outputs differ from call to call, or from batch to batch, by more than that"
