"""`memorize`: build the plans one after the other and keep the first that is certified."""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import isfinite
from numbers import Integral
from typing import Any, get_args

import torch
from torch import nn

from isthmus import graph
from isthmus._types import Activation, Conflicts, Progress, Rule
from isthmus.bounds.deep import Minimize
from isthmus.certificate import LEVELS, TOLERANCE, Certificate, Level
from isthmus.certify import certify
from isthmus.data.dataset import Dataset, as_dataset
from isthmus.errors import InputError, NotCertified, PrecisionError
from isthmus.memorize.build import build
from isthmus.memorize.held import require_targets_held, rows_as_held
from isthmus.memorize.lines import column_reach
from isthmus.memorize.plan import Method, Plan, Wish
from isthmus.memorize.planner import plans
from isthmus.memorize.result import Attempt, Memorized, Status
from isthmus.precision import compare_precision

BUDGET = 60.0  # seconds in which another candidate may be begun
SAMPLE = 2000  # rows on which a candidate must do before it is checked on all


@dataclass(frozen=True)
class _Built:
    """A network, the plan with the widths it came to, and the seconds it took."""

    plan: Plan
    model: nn.Sequential
    seconds: float


def memorize(
    data: Any,
    *,
    method: Method | None = None,
    activation: Activation = "hardtanh",
    widths: Sequence[int] | None = None,
    depth: int | None = None,
    minimize: Minimize = "units",
    rule: Rule = "tight",
    dtype: torch.dtype = torch.float64,
    tolerance: float | None = None,
    level: Level | None = None,
    conflicts: Conflicts = "error",
    budget: float = BUDGET,
    seed: int = 0,
    on_progress: Progress | None = None,
    raise_on_failure: bool = True,
) -> Memorized:
    """Write down the weights of a network that gets every row right, without training, and certify it.

    Candidates are ranked by hidden units and built upwards; the first that is certified is returned. For
    classes it is right, but its outputs need not be one-hot unless ``level="bitwise"`` asks for that.

    Args:
        data: a `Dataset` or a pair (x, y).
        method: one construction only: ``affine`` (no hidden layer), ``interpolant`` (N - 1 ReLUs in one),
            ``gates`` (Corollary 4.2, or real targets from gates, one hidden layer), ``three-layer``
            (Theorem 3.1, two), ``zigzag`` (two, of ReLUs without twins), ``classifier`` (Proposition 3.2,
            three), ``residual`` (Theorem 4.1), ``deep`` (Proposition 3.4, A.1) and ``deep-classifier`` (A.2,
            A.3) of any depth.
        activation: of the hidden layers.
        widths: of the hidden layers, at most; their number stands for a method. Without them, the smallest.
        depth: L, the number of layers in place of widths: a deep network has L - 1 hidden ones; a residual
            one L - 1 blocks of gates, or as many as it has gates, and a last hidden layer.
        minimize: which deep network of that depth: fewest ``units`` or ``parameters``, or the least largest
            ``width``.
        rule: ``paper`` for the theorem's widths and gates, ``tight`` for the improved ones.
        dtype: of the parameters, float64, float32 or float16; weights are computed in float64.
        tolerance: largest error of a regression, in units of the target; 1e-8 of its range by default.
        level: what the certificate must reach; ``proven`` by default, ``measured`` if widths are given.
        conflicts: what to do about equal inputs with different targets, see `Dataset.resolve`.
        budget: seconds in which another candidate may be begun.
        seed: of the random directions.
        on_progress: told what is done and which part of it.
        raise_on_failure: False returns the best candidate and its status instead of raising.

    Returns:
        The network, its certificate, and all that was tried.

    Raises:
        InputError: options that do not go together.
        DataError: conflicting rows.
        WidthError: widths that miss the theorem's condition; the message gives some that meet it.
        PrecisionError: rows that float64 cannot tell apart, or a dtype too coarse where float64 would do;
            also where failure is not to raise, if there is no network at all to return.
        NotCertified: no candidate reached the level.

    Source:
        Yun, Sra and Jadbabaie 2019 (arXiv 1810.07770).
    """
    if not 0 <= seed < 2**63:
        raise InputError(f"seed {seed} is out of range; choose one from 0 to 2^63 - 1.")
    if dtype not in graph.DTYPES.values():
        raise InputError(f"dtype {dtype} is not offered; choose one of {', '.join(graph.DTYPES)} of torch.")
    if level is None:
        level = "proven" if widths is None else "measured"
    for option, value, choices in (
        ("activation", activation, get_args(Activation)),
        ("rule", rule, get_args(Rule)),
        ("level", level, LEVELS[1:]),
    ):
        if value not in choices:
            raise InputError(f"unknown {option} '{value}'; choose one of {', '.join(choices)}.")
    data = as_dataset(data).resolve(conflicts)
    column_reach(data)  # refuses columns that span more than float64 holds
    if not isfinite(data.target_range()):
        raise PrecisionError(f"{data.source}: the targets span more than float64 holds; rescale them.")
    if data.task == "regression":
        tolerance = TOLERANCE * data.target_range() if tolerance is None else tolerance
        if not 0 <= tolerance < torch.inf:
            raise InputError(f"a tolerance of {tolerance} says nothing; choose a finite one, 0 or more.")
    # NumPy's integers are integers, too.
    hidden = None if widths is None else tuple(int(w) if isinstance(w, Integral) else w for w in widths)
    wish = Wish(activation, rule, method, hidden, depth, minimize, one_hot=level == "bitwise", dtype=dtype)
    search = partial(_search, data, wish, tolerance, level, budget, seed, on_progress)
    try:
        result = search(dtype)
    except PrecisionError as error:
        if raise_on_failure and (other := _wider(search, dtype)) is not None:
            raise PrecisionError(f"{error} {_advice(other)}") from None
        raise
    if result.status is not Status.CERTIFIED and raise_on_failure:
        _refuse(result, level, _wider(search, dtype))
    return result


def _search(
    data: Dataset,
    wish: Wish,
    tolerance: float | None,
    level: Level,
    budget: float,
    seed: int,
    on_progress: Progress | None,
    dtype: torch.dtype,
) -> Memorized:
    """Build upwards until a network is certified; else the best one.

    Raises:
        PrecisionError: there is no network at all.
    """
    if tolerance is not None:
        require_targets_held(data, dtype, tolerance)
    distinct = rows_as_held(data, dtype)
    counts = distinct.y.unique(return_counts=True)[1].tolist() if data.classes else ()
    queue = plans(distinct.shape, replace(wish, dtype=dtype), counts)

    start = time.perf_counter()
    best: Memorized | None = None
    collision = PrecisionError(f"{data.source}: there is no network to try.")
    tried: list[Attempt] = []
    grown: dict[Plan, _Built] = {}
    status = Status.EXHAUSTED
    while queue:
        plan = queue.pop(0)
        if tried and plan not in grown and time.perf_counter() - start > budget:
            status = Status.OUT_OF_BUDGET
            continue
        try:
            built = grown.get(plan) or _build(distinct, plan, dtype, seed, on_progress)
        except PrecisionError as error:  # along this plan's lines; the next one draws others
            collision = error
            tried.append(_attempt(plan, "none", str(error), 0.0))
            continue
        allowed = plan.hidden_units if wish.widths is None else max(plan.hidden_units, sum(wish.widths))
        if built.plan.hidden_units > allowed:
            if wish.widths is None:  # its turn comes when it is the smallest again
                grown[built.plan] = built
                insort(queue, built.plan, key=lambda plan: plan.hidden_units)
            else:
                units, name = built.plan.hidden_units, graph.dtype_name(dtype)
                collision = PrecisionError(
                    f"{data.source}: margins that hold in {name} took {units} units; allow more, or leave "
                    f"the widths out."
                )
                tried.append(_attempt(plan, "none", str(collision), built.seconds))
            continue
        found = _certified(data, built, tolerance, level, seed, on_progress)
        tried.append(_report(built.plan, found, level))
        if best is None or _rank(found.certificate) > _rank(best.certificate):
            best = found
        if found.certificate.reaches(level):
            status = Status.CERTIFIED
            best = found
            break
    if best is None:
        raise collision
    narrower = [name for name in graph.DTYPES if name != "float64"] if dtype == torch.float64 else []
    sample = _sample(data)
    precision = tuple(compare_precision(best.model, sample, name, tolerance) for name in narrower)
    return replace(best, tried=tuple(tried), status=status, precision=precision)


def _wider(search: Callable[[torch.dtype], Memorized], dtype: torch.dtype) -> Memorized | None:
    """What the same search certifies in the narrowest wider dtype that would do, if one would."""
    wider = list(graph.DTYPES.values())[: list(graph.DTYPES.values()).index(dtype)]
    for other in reversed(wider):
        try:
            found = search(other)
        except PrecisionError:
            continue
        if found.status is Status.CERTIFIED:
            return found
    return None


def _advice(found: Memorized) -> str:
    shape = "-".join(map(str, found.widths)) or "no hidden layer"
    method, seen = found.recipe["plan"]["method"], found.certificate
    return f"In {seen.dtype}, {method} with {shape} is {seen.level}: choose dtype {seen.dtype}."


def _build(data: Dataset, plan: Plan, dtype: torch.dtype, seed: int, on_progress: Progress | None) -> _Built:
    start = time.perf_counter()
    model = build(data, plan, seed, dtype, on_progress)
    widths = graph.widths(graph.stages(model))
    return _Built(replace(plan, widths=widths), model, time.perf_counter() - start)


def _certified(
    data: Dataset,
    built: _Built,
    tolerance: float | None,
    level: Level,
    seed: int,
    on_progress: Progress | None,
) -> Memorized:
    start = time.perf_counter()
    # A few rows tell a hopeless candidate, at a fraction of the cost.
    sample = _sample(data)
    certificate = certify(built.model, sample, tolerance=tolerance)
    if sample.rows < data.rows and certificate.reaches(level):
        certificate = certify(built.model, data, tolerance=tolerance, on_progress=on_progress)
    notes = [*certificate.notes, *_notes(data)]
    recipe = {
        "plan": asdict(built.plan),
        "seed": seed,
        "dtype": certificate.dtype,
        "data": data.digest,
        "versions": certificate.versions,
    }
    seconds = {"build": built.seconds, "certify": time.perf_counter() - start}
    certificate = certificate.model_copy(update={"notes": tuple(notes)})
    return Memorized(built.model, certificate, recipe, (), Status.EXHAUSTED, seconds, data)


def _sample(data: Dataset) -> Dataset:
    """Some `SAMPLE` rows evenly through the data, or all."""
    return data.take(torch.arange(0, data.rows, max(1, data.rows // SAMPLE)))


def _notes(data: Dataset) -> list[str]:
    """What a reader of the certificate should know about the rows."""
    constant = int((column_reach(data) == 0).sum())
    return (
        [f"{constant} of {data.inputs} input columns are constant; their weights are 0."] if constant else []
    )


def _report(plan: Plan, found: Memorized, level: Level) -> Attempt:
    seen = found.certificate
    if seen.reaches(level):
        reason = "certified"
    elif seen.wrong:
        reason = f"{seen.wrong} of the {seen.rows} rows checked are wrong"
    elif seen.reaches("proven"):
        reason = "proven, but the outputs are not the targets bit for bit"
    elif seen.task == "regression":
        reason = f"the rounding bound {seen.bound:.1e} is too large for the tolerance {seen.tolerance:.1e}"
    else:
        reason = (
            f"{seen.rows - seen.proven_rows} of the {seen.rows} rows checked have a margin below the bound"
        )
    return _attempt(plan, seen.level, reason, sum(found.seconds.values()))


def _attempt(plan: Plan, level: Level, reason: str, seconds: float) -> Attempt:
    return Attempt(plan.method, plan.widths, plan.hidden_units, plan.chain, level, reason, seconds)


def _rank(certificate: Certificate) -> tuple[float, ...]:
    """Orders certificates by how near they come to the level asked for."""
    error = certificate.max_error if certificate.max_error is not None else torch.inf
    return (LEVELS.index(certificate.level), -certificate.wrong / certificate.rows, -error)


def _refuse(found: Memorized, level: Level, wider: Memorized | None) -> None:
    """Say why nothing was certified, and what would help.

    Args:
        found: the best there is.
        level: what it misses.
        wider: what a wider dtype gives.

    Raises:
        PrecisionError: a wider dtype would do.
        NotCertified: none would.
    """
    seen = found.certificate
    shape = "-".join(map(str, found.widths)) or "without hidden layers"
    if seen.wrong:
        what = f"{seen.wrong} of {seen.rows} rows are wrong"
    else:
        what = f"all rows are right as measured, but not {level}"
    if seen.task == "regression":
        error, bound = (torch.inf if value is None else value for value in (seen.max_error, seen.bound))
        what += f" (largest error {error:.1e}, rounding bound {bound:.1e}, tolerance {seen.tolerance:.1e})"
    elif seen.bound:
        what += f" (rounding bound {seen.bound:.1e})"
    tries = f"the best of {len(found.tried)} candidate(s), {shape}: {what}"
    if wider is not None:
        raise PrecisionError(f"{seen.dtype} is too coarse for these gaps: {tries}. {_advice(wider)}")
    if found.status is Status.OUT_OF_BUDGET:
        advice = "give a larger budget"
    elif not found.widths:
        advice = "choose a method with hidden layers, or rescale the columns in which rows hardly differ"
    else:
        advice = "allow a larger tolerance, or more units (widths)"
        if seen.task == "classification":
            advice = "give more units (widths)"
        if found.recipe["plan"]["activation"] != "hardtanh":
            advice += ", or choose activation 'hardtanh'"
    if not seen.wrong:
        advice += f", or be content with level '{seen.level}'"
    raise NotCertified(f"{found.status.value}: {tries}; {advice}.")
