"""`solve`: zero loss at once, in a network of one hidden layer."""

from __future__ import annotations

import time
from typing import Any, Final

import torch
from torch import Tensor

from isthmus import graph
from isthmus._types import Conflicts, PathLike, Progress
from isthmus.certificate import TOLERANCE
from isthmus.certify import certify, versions
from isthmus.constraints import Ball, Constraint, FloorAndRatio, Product
from isthmus.data.dataset import as_dataset
from isthmus.errors import InputError, NotCertified
from isthmus.narrow.solver.attempt import Attempt
from isthmus.narrow.solver.checkpoint import read_point, read_trials, write_point, write_trials
from isthmus.narrow.solver.choice import Choice, Method, Width, is_whole
from isthmus.narrow.solver.dual import available, usable
from isthmus.narrow.solver.outcome import Outcome, Trial
from isthmus.narrow.solver.problem import ACTIVATIONS, SHARP, Problem, SolverActivation, Targets, pose
from isthmus.narrow.solver.smallest import Record, smallest
from isthmus.narrow.solver.solution import Solution, Status
from isthmus.precision import compare_precision

ITERATIONS: Final = 300
SMALL: Final = 1 << 20  # inputs in all, up to which one thread is faster: more of them wait for one another
FLOOR: Final = 1e-3  # ζ, if the output weights allow it
LARGE: Final = {torch.float64: 1e6, torch.float32: 1e4}  # output weights that cost digits


@torch.inference_mode(False)
def solve(
    data: Any,
    *,
    width: Width = None,
    radius: float | None = None,
    method: Method | None = None,
    targets: Targets | None = None,
    activation: SolverActivation = "tanh",
    bias: bool = True,
    target_loss: float | None = None,
    tolerance: float | None = None,
    dtype: torch.dtype = torch.float64,
    memory: int | None = None,
    iterations: int = ITERATIONS,
    seed: int = 0,
    device: torch.device | str = "cpu",
    conflicts: Conflicts = "error",
    checkpoint: PathLike | None = None,
    on_progress: Progress | None = None,
    raise_on_failure: bool = True,
) -> Solution:
    """Fit every row with a network of one hidden layer, by second-order methods, and certify it.

    Args:
        data: a `Dataset` or a pair (x, y).
        width: m, the hidden units; by default a tenth more than Theorem 1's 2 N / d. ``"smallest"`` searches
            for the fewest that fit all rows.
        radius: ε: the hidden weights (and biases) stay within this distance of a mirrored start, as in
            problem (10), and the network has a paired head. Inputs are then taken as they are.
        method: ``chord`` (Theorem 1, one factorization, h d >= N K) or ``lm`` (Levenberg-Marquardt, down to
            as many parameters as equations); by default chord for up to 4,000 equations, if the width allows.
        targets: of classes: ``codes`` (one output and N equations, decoded by a last affine map),
            ``dead-zone`` (the same, where only what is off by more than .35 of a code counts), ``one-hot``
            (N K equations), or ``softmax`` (cross entropy, until all rows are right).
        activation: of the hidden layer.
        bias: whether hidden units have one. Without a radius, inputs are then whitened on the way, and the
            output has a bias, too.
        target_loss: ``|y - f|^2 / |y|^2`` to reach. By default 1e-20 is tried for, and the certificate
            decides; and Levenberg-Marquardt on codes stops when all rows are right with half of the
            margin to spare.
        tolerance: of the certificate, see `isthmus.certify`; for regression.
        dtype: of the parameters; solved for in float64.
        memory: bytes to stay below; by default most of what is free.
        iterations: of Levenberg-Marquardt, at most.
        seed: of the start.
        device: where to solve; the network comes back on the CPU.
        conflicts: what to do about equal inputs with different targets, see `Dataset.resolve`.
        checkpoint: a file that is kept up to date, and gone on from if it exists; for Levenberg-Marquardt
            and for the search for the smallest width. The one-factorization solve keeps none.
        on_progress: told what is done and which part of it.
        raise_on_failure: False returns what there is, and its status, instead of raising.

    Raises:
        InputError: options that do not go together, or a memory that is too small.
        DataError: conflicting rows, or targets that no network without biases takes.
        WidthError: too few hidden units for the method; the message says how many do.
        NotCertified: not every row is right in the end.

    Source:
        Zhang et al. 2021 (arXiv 2210.12001), Theorem 1, and Levenberg-Marquardt below its width.
    """
    _require_numbers(seed, dtype, iterations, memory, target_loss, tolerance)
    if target_loss is not None and targets in {"dead-zone", "softmax"}:
        raise InputError(f"a target loss is for values, codes and one-hot, not for {targets}; leave it out.")
    if checkpoint is not None and (radius is not None or method == "chord"):
        raise InputError("the one-factorization solve keeps no checkpoint; begin it anew, or take 'lm'.")
    place, seed, iterations = usable(device), int(seed), int(iterations)  # NumPy's integers are not JSON's
    data = as_dataset(data).resolve(conflicts)
    choice = Choice(width, radius, method, targets, activation)
    choice.require_together(data)
    if tolerance is None and data.task == "regression":
        tolerance = TOLERANCE * data.target_range()
    start = time.perf_counter()
    sigma = ACTIVATIONS[activation]
    aim = targets or ("values" if data.task == "regression" else "codes")
    mirrored = radius is not None or method == "chord"
    problem = pose(data, aim, sigma, place, bias=bias, centered=bias and radius is None, paired=mirrored)
    choice = choice.settled(problem, exact=target_loss is not None)
    assert choice.targets is not None
    if choice.targets != aim:
        problem = problem.aimed(choice.targets)
    limit = available(place) if memory is None else int(memory)
    attempt = Attempt(problem, sigma, target_loss, limit, iterations, seed, on_progress)
    recipe = {
        "plan": {
            "method": choice.method,
            "width": choice.width,
            "activation": activation,
            "targets": choice.targets,
            "bias": bias,
            "radius": radius,
            "target_loss": target_loss,
            "iterations": iterations,
        },
        "seed": seed,
        "dtype": graph.dtype_name(dtype),
        "data": data.digest,
        "versions": versions(),
    }
    prepared = time.perf_counter()
    threads = torch.get_num_threads()
    if problem.coordinates.rows.numel() < SMALL:
        torch.set_num_threads(1)
    try:
        attempt, outcome, tried = _fitted(attempt, choice, method, targets, checkpoint, recipe)
    finally:
        torch.set_num_threads(threads)
    solved = time.perf_counter()
    model = attempt.problem.network(outcome, sigma, dtype, paired=radius is not None)
    constraint = None if radius is None else _constraint(problem, outcome, radius, dtype)
    if constraint is not None:  # in which rounding to the dtype might not have kept the weights
        constraint.project_({name: model.get_parameter(name).data for name in constraint.center})
    certificate = certify(model, data, tolerance=tolerance, on_progress=on_progress)
    notes = _notes(attempt.problem, outcome, activation, dtype)
    certificate = certificate.model_copy(update={"notes": (*certificate.notes, *notes)})
    missed = outcome.failure is not None and target_loss is not None
    solution = Solution(
        model=model,
        certificate=certificate,
        recipe=recipe,
        loss=outcome.loss,
        history=outcome.history,
        status=Status.NOT_CONVERGED if missed or certificate.wrong else Status.SOLVED,
        reason=outcome.failure or "",
        seconds={
            "prepare": prepared - start,
            "solve": solved - prepared,
            "certify": time.perf_counter() - solved,
        },
        data=data,
        constraint=constraint,
        precision=(compare_precision(model, data, "float32", tolerance),) if dtype == torch.float64 else (),
        tried=tried,
    )
    if solution.status is Status.NOT_CONVERGED and raise_on_failure:
        raise NotCertified(_diagnosis(solution))
    return solution


def _require_numbers(
    seed: int,
    dtype: torch.dtype,
    iterations: object,
    memory: object,
    target_loss: float | None,
    tolerance: float | None,
) -> None:
    """Refuse numbers out of their ranges.

    Raises:
        InputError: which.
    """
    if not (is_whole(seed, 0) and int(seed) < 2**63):
        raise InputError(f"a seed is a whole number from 0 to 2^63 - 1, not {seed!r}.")
    if dtype not in graph.DTYPES.values():
        raise InputError(f"dtype {dtype} is not offered; choose one of {', '.join(graph.DTYPES)} of torch.")
    for name, value in (("iterations", iterations), ("memory", memory)):
        if not (is_whole(value, 1) or (value is None and name == "memory")):
            raise InputError(f"{name} is a whole number, 1 or more, not {value!r}.")
    if target_loss is not None and not 0 < target_loss < 1:
        raise InputError(f"a target loss is relative, above 0 and below 1, not {target_loss}.")
    if tolerance is not None and not 0 <= tolerance < torch.inf:
        raise InputError(f"a tolerance of {tolerance} says nothing; choose a finite one, 0 or more.")


def _fitted(
    attempt: Attempt,
    choice: Choice,
    method: Method | None,
    targets: Targets | None,
    checkpoint: PathLike | None,
    recipe: dict[str, Any],
) -> tuple[Attempt, Outcome, tuple[Trial, ...]]:
    """Do what was chosen, and write what came of it into the recipe's plan.

    Args:
        attempt: at the problem.
        choice: settled.
        method: as it was asked for; where it was left open, Levenberg-Marquardt takes over from the
            one-factorization solve, for it needs no Jacobian of full rank at the start.
        targets: as they were asked for.
        checkpoint: where to keep the state.
        recipe: of the run.

    Returns:
        The attempt that succeeded or failed, its outcome, and all widths tried.
    """
    plan = recipe["plan"]
    if not isinstance(choice.width, int):
        record = _recorded(checkpoint, recipe, attempt.problem.coordinates.rows)
        open_targets = targets is None and attempt.problem.targets == "codes" and attempt.target_loss is None
        outcome, attempt = smallest(attempt, record, any_targets=open_targets)
        plan |= {"width": len(outcome.weight), "targets": attempt.problem.targets}
        return attempt, outcome, record.trials
    if choice.method == "chord":
        outcome = attempt.chord(choice.width, choice.radius)
        if outcome.failure is None or method is not None or choice.radius is not None:
            return attempt, outcome, ()
        plan["method"] = "lm"
    return attempt, _descended(attempt, choice.width, checkpoint, recipe), ()


def _descended(attempt: Attempt, width: int, checkpoint: PathLike | None, recipe: dict[str, Any]) -> Outcome:
    """From the start or, if there is one, from a checkpoint, which is kept up to date meanwhile."""
    start = attempt.start(width)
    if checkpoint is None:
        return attempt.descend(start)
    run = _run(recipe)
    point = read_point(checkpoint, run, start) or start
    return attempt.descend(point, lambda point: write_point(checkpoint, point, run))


def _recorded(checkpoint: PathLike | None, recipe: dict[str, Any], rows: Tensor) -> Record:
    """The trials of a search, likewise."""
    if checkpoint is None:
        return Record([], lambda done: None)
    run = {**_run(recipe), "iterations": recipe["plan"]["iterations"]}  # of every trial
    known = read_trials(checkpoint, run, rows)
    return Record(known, lambda done: write_trials(checkpoint, done, run))


def _run(recipe: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for a run to go on; more iterations may be allowed."""
    flat = {**recipe, **recipe["plan"]}
    return {name: value for name, value in flat.items() if name not in {"plan", "iterations"}}


def _constraint(problem: Problem, outcome: Outcome, radius: float, dtype: torch.dtype) -> Constraint:
    """Problem (10)'s set: the ball around the start, and equal output weights.

    With several outputs only the ball: their columns are drawn, and differ.
    """
    weight, bias = problem.coordinates.fold(outcome.center)
    prefix = int(problem.data.x.ndim > 2)  # a Flatten comes first
    hidden, head = str(prefix), str(prefix + 2)
    center = {f"{hidden}.weight": weight} | ({} if bias is None else {f"{hidden}.bias": bias})
    if len(problem.offset) > 1:
        return Ball(radius).at({name: tensor.cpu().to(dtype) for name, tensor in center.items()})
    center[f"{head}.weight"] = problem.scale * outcome.outer.chunk(2, 1)[0]
    center = {name: tensor.cpu().to(dtype) for name, tensor in center.items()}
    floor = min(FLOOR, float(center[f"{head}.weight"].min()))
    return Product({hidden: Ball(radius), head: FloorAndRatio(floor, 1.0)}).at(center)


def _notes(problem: Problem, outcome: Outcome, activation: SolverActivation, dtype: torch.dtype) -> list[str]:
    """What a reader of the certificate should know."""
    notes = []
    dropped = problem.data.inputs - (problem.inputs - problem.coordinates.bias)
    if dropped > 0:
        notes.append(
            f"{dropped} of {problem.data.inputs} directions hardly vary among the rows and have no weight."
        )
    parameters = outcome.weight.numel() + outcome.outer.numel()
    if activation in SHARP:  # a factor may pass through each unit
        parameters -= len(outcome.weight)
    if problem.targets != "softmax" and parameters < problem.equations:
        notes.append(
            f"{parameters} parameters for {problem.equations} equations: generic targets could not be fitted."
        )
    largest = problem.scale * float(outcome.outer.abs().max())
    if largest > LARGE.get(dtype, 1.0):
        notes.append(
            f"Output weights of up to {largest:.1e}: in {graph.dtype_name(dtype)}, outputs lose about "
            f"{20 * torch.finfo(dtype).eps * largest:.0e} to rounding."
        )
    if activation in SHARP:
        notes.append(f"{activation} is not smooth, so the theorems on narrow networks do not speak of it.")
    return notes


def _diagnosis(solution: Solution) -> str:
    seen, plan = solution.certificate, solution.recipe["plan"]
    advice = "Try more units, another seed, or isthmus.memorize."
    reason = solution.reason
    if not reason:  # the solver is done, but the network as it is saved is not
        error = "infinite" if seen.max_error is None else f"{seen.max_error:.1e}"
        reason = f"its error in {seen.dtype} is {error}"
        ways = ["float64"] if seen.dtype != "float64" else []
        if seen.tolerance is not None:
            reason += f", above the tolerance {seen.tolerance:.1e}"
            ways.append("a larger tolerance")
        remedy = f"Choose {', or '.join(ways)}; large" if ways else "Large"
        advice = f"{remedy} weights, and inputs far from 0, lose digits."
    return (
        f"{solution.data.source}: {solution.width} units by {plan['method']} do not fit every row: {reason}. "
        f"Relative loss {solution.loss:.1e}, {seen.wrong:,} of {seen.rows:,} rows wrong. {advice}"
    )
