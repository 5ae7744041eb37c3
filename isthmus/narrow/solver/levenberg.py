"""Levenberg-Marquardt in the space of the equations: any start, down to as many parameters as equations.

For r = y - f and J in both layers, a step solves

    (J J^T + λ τ I) a = r,    Δ = J^T a,    τ the mean of J J^T's diagonal,

which is the same Δ as (J^T J + λ τ I) Δ = J^T r, at N K equations in place of m d + m. The gain, the decrease
of |r|^2 over that of |r - J Δ|^2, judges the step and steers λ.

The first steps, with large λ, are found by conjugate gradients with products alone. When that takes too many,
J J^T + λ τ I is factorized; and one factorization serves several steps, as a preconditioner at weights and λ
that have moved on, for as long as conjugate gradients need few iterations with it.

Source: Levenberg 1944, Marquardt 1963; in this form for narrow networks, below the width of Zhang et al.
2021, Theorem 1.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from isthmus._types import Progress
from isthmus.jacobian.shallow import Shallow, linearize
from isthmus.linalg.cholesky import NotPositiveDefinite
from isthmus.linalg.conjugate import conjugate_gradients
from isthmus.narrow.solver.dual import INEXACT, LEAST_ITERATIONS, PATIENCE, Inverse, Memory, invert
from isthmus.narrow.solver.leading import leading
from isthmus.narrow.solver.outcome import Outcome, Step

DAMPING: Final = 1.0  # λ at the start
LEAST, MOST = 1e-14, 1e10  # λ's range
TAKEN: Final = 1e-4  # least gain of a step that is taken
ROUGH: Final = 1e-3  # part of a right side that float32 may leave
PLAIN: Final = 40  # equations per iteration that the first factorization is worth


@dataclass(frozen=True)
class Misfit:
    """What is to become 0, and how stiffly each equation is held where it is.

    Attributes:
        residual: r [N K].
        hold: least λ of every equation [N K]; None for all alike.
        done: whether the outputs are good enough.
    """

    residual: Tensor
    hold: Tensor | None
    done: bool


@dataclass(frozen=True)
class Base:
    """Where J J^T + Λ was factorized: W [m, d], U [K, m], and Λ, one number [] or one per equation [N K]."""

    weight: Tensor
    outer: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Point:
    """Where an iteration ended, and all that the next one needs.

    Attributes:
        weight: W [m, d].
        outer: U [K, m].
        damping: λ.
        history: the iterations so far.
        base: of the factorization in use; None before the first.
    """

    weight: Tensor
    outer: Tensor
    damping: float = DAMPING
    history: tuple[Step, ...] = ()
    base: Base | None = None


def levenberg_marquardt(
    x: Tensor,
    point: Point,
    activation: nn.Module,
    misfit: Callable[[Tensor], Misfit],
    size: float,
    *,
    memory: Memory,
    iterations: int,
    on_step: Callable[[Point], None] | None = None,
    on_progress: Progress | None = None,
) -> Outcome:
    """Fit targets with both layers.

    Args:
        x: X [N, d], float64.
        point: where to begin, or to go on.
        activation: σ, smooth.
        misfit: of outputs [N K], all rows of one output after the other.
        size: the norm to which losses are relative.
        memory: for the factor.
        iterations: at most, those in the point's history included.
        on_step: told every point.
        on_progress: told what is done.

    Raises:
        InputError: the memory is too small.
    """
    start = time.perf_counter() - (point.history[-1].seconds if point.history else 0.0)
    factorizations = point.history[-1].factorizations if point.history else 0
    center = point.weight

    def outputs(weight: Tensor, outer: Tensor) -> Tensor:
        return (outer @ activation(x @ weight.T).T).reshape(-1)

    def ended(failure: str | None) -> Outcome:
        return Outcome(point.weight, point.outer, center, loss, point.history, failure)

    seen = misfit(outputs(point.weight, point.outer))
    loss = (float(torch.linalg.vector_norm(seen.residual)) / size) ** 2
    memory.route(len(seen.residual))  # refuses now what would be refused when a factor is needed
    solver = _Solver(x, activation, memory, on_progress)
    if point.base is not None and not seen.done:
        solver.factorize(point.base)
    while not seen.done:
        if len(point.history) >= iterations:
            return ended(f"{iterations} iterations were not enough")
        jacobian = linearize(x, point.weight, point.outer, activation)
        scale = float(jacobian.gram_diagonal().mean())
        norm, damping, gain = float(torch.linalg.vector_norm(seen.residual)), point.damping, -math.inf
        accuracy = min(INEXACT, math.sqrt(norm / size))
        while True:
            least = x.new_tensor(damping) if seen.hold is None else seen.hold.clamp(min=damping)
            try:
                here = Base(point.weight, point.outer, scale * least)
                a = solver(jacobian, here, seen.residual, accuracy)
            except NotPositiveDefinite:
                damping *= 4
                if damping > MOST:
                    return ended("the Jacobian is 0: no row has a unit that could change its output")
                continue
            weight, outer = jacobian.pull(a)
            assert outer is not None
            left = float(torch.linalg.vector_norm(seen.residual - jacobian.push(weight, outer))) / norm
            weight, outer = point.weight + weight, point.outer + outer
            tried = misfit(outputs(weight, outer))
            ratio = float(torch.linalg.vector_norm(tried.residual)) / norm
            gain = (1 - ratio**2) / (1 - left**2) if left < 1 else -math.inf
            if gain > TAKEN:
                break
            damping *= 4
            if damping > MOST:
                return ended("no step lowers the loss any more")
        damping = steered(damping, gain)
        seen = tried
        loss = (ratio * norm / size) ** 2
        step = Step(loss, damping, factorizations + solver.factorizations, time.perf_counter() - start)
        point = Point(weight, outer, max(damping, LEAST), (*point.history, step), solver.base)
        if on_step is not None:
            on_step(point)
    return ended(None)


def steered(damping: float, gain: float) -> float:
    """λ after a step that was taken, by its gain."""
    if gain > 0.9:
        return damping / 10
    if gain > 0.6:
        return damping / 4
    return 3 * damping if gain < 0.25 else damping


class _Solver:
    """Solves for steps, with the last factorization as long as that is quick, else with a new one."""

    def __init__(
        self, x: Tensor, activation: nn.Module, memory: Memory, on_progress: Progress | None
    ) -> None:
        self.factorizations = 0
        self.base: Base | None = None
        self._x, self._activation, self._memory, self._on_progress = x, activation, memory, on_progress
        self._last: Inverse | None = None

    def __call__(self, jacobian: Shallow, here: Base, right: Tensor, accuracy: float) -> Tensor:
        """Solve (J J^T + Λ) a = r, J and Λ being those here, up to ``accuracy |r|``.

        Raises:
            NotPositiveDefinite: J J^T + Λ is singular in float64.
        """
        found = self._by_products(jacobian, here.shift, right, accuracy)
        if found is not None:
            return found
        self.factorizations += 1
        return self.factorize(here, jacobian)(right, accuracy)

    def _by_products(self, jacobian: Shallow, shift: Tensor, right: Tensor, accuracy: float) -> Tensor | None:
        """The same without a new factorization; None if that takes longer than one.

        Conjugate gradients in float32, put right in float64 where that is not accurate enough.
        """
        single, lower = jacobian.to(torch.float32), shift.float()
        if self._last is not None:
            precondition, worth = self._last.precondition, len(right) // PATIENCE
        else:
            precondition, worth = leading(single, lower), len(right) // PLAIN
        solution, left, reached = torch.zeros_like(right), right, 1.0
        size, worth, taken = float(torch.linalg.vector_norm(right)), max(LEAST_ITERATIONS, worth), 0

        def product(a: Tensor) -> Tensor:
            nonlocal taken
            taken += 1
            if self._on_progress is not None:
                self._on_progress("conjugate gradients", min(1.0, taken / worth))
            return single.gram_product(a) + lower * a

        while precondition is not None and taken < worth:
            tolerance = max(ROUGH, accuracy / reached)
            found = conjugate_gradients(
                product,
                left.float(),
                precondition=precondition,
                tolerance=tolerance,
                iterations=worth - taken,
            )
            if not found.residual <= tolerance:
                break
            solution += found.solution
            if accuracy >= ROUGH:
                return solution
            left = right - jacobian.gram_product(solution) - shift * solution
            reached = float(torch.linalg.vector_norm(left)) / size
            if reached <= accuracy:
                return solution
        return None

    def factorize(self, base: Base, jacobian: Shallow | None = None) -> Inverse:
        """Factorize at a point, whose Jacobian may be known.

        Raises:
            NotPositiveDefinite: J J^T + Λ is singular in float64.
        """
        self._last = self.base = None  # its memory is needed for the next one
        if jacobian is None:
            jacobian = linearize(self._x, base.weight, base.outer, self._activation)
        self._last = invert(jacobian, base.shift, self._memory, self._on_progress)
        self.base = base
        return self._last
