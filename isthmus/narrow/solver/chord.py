"""Theorem 1 executed: zero loss in a ball of any radius around a mirrored start, from one factorization.

At W_0 = [A; A] the paired network f(x) = s Σ_j v_j (σ(w_j · x) - σ(w_{j+h} · x)) is 0 for any scale s, and so
is its gradient in s. Its Jacobian in W is s J with J = [J_A, -J_A], so J J^T = 2 J_A J_A^T has full rank for
almost all A if h d >= N K. Factorized once, it serves every s in the chord method

    W <- W + J^T (J J^T)^-1 r / s,    r = y - f(W).

The first step is ‖J^T (J J^T)^-1 y‖ / s long, and its error is quadratic in that: the larger s, the shorter
the way and the better J's inverse at W_0 does for all of it. The residual shrinks by about c / s in each
iteration, so one trial tells the s that any rate takes; and for s large enough the point is in the ball.

Rounding leaves a relative error of some 1e-15 s / √m in float64, so s is not made larger than need be.

Source: Zhang et al. 2021, Theorem 1 and its proof.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from isthmus._types import Progress
from isthmus.jacobian.shallow import linearize
from isthmus.linalg.cholesky import NotPositiveDefinite
from isthmus.narrow.solver.dual import Memory, invert
from isthmus.narrow.solver.outcome import Outcome, Step

RATE: Final = 0.5  # slower than this per iteration, and the scale is raised
SOLVED: Final = 0.05  # what a solve may leave: less than an iteration does
ITERATIONS: Final = 100  # at one scale: RATE^100 is beyond float64
MARGIN: Final = 1.02  # of the first step's length in the ball
LOSS: Final = 1e-20  # relative, at which targets count as met
LOST: Final = 1e-15  # relative error of an output in float64, times s / √m
FLOOR: Final = 10.0  # of that, what is counted on
WORST: Final = 1e-8  # beyond which nothing is fitted


@dataclass(frozen=True)
class _Point:
    """Where the iterations at one scale ended, and the last one's rate."""

    weight: Tensor
    scale: float
    loss: float
    goal: float
    rate: float


def chord(
    x: Tensor,
    target: Tensor,
    half: Tensor,
    outer: Tensor,
    activation: nn.Module,
    *,
    tolerance: float | None,
    radius: float | None,
    memory: Memory,
    on_progress: Progress | None = None,
) -> Outcome:
    """Fit targets exactly from a mirrored start.

    Args:
        x: X [N, d], float64.
        target: Y [N, K].
        half: A [h, d].
        outer: V [K, h].
        activation: σ, smooth.
        tolerance: of ``|y - f|^2 / |y|^2``; None for 1e-20, or as near as rounding lets it come.
        radius: ``|W - W_0|`` is at most this; any, if None.
        memory: for the factor.
        on_progress: told what is done.

    Returns:
        W [2 h, d] and U = [s V, -s V], with the scales as damping.
    """
    start = time.perf_counter()
    history: list[Step] = []
    center = torch.cat([half, half])
    y = target.T.reshape(-1)
    size = float(torch.linalg.vector_norm(y))
    best = _Point(center, 1.0, float(size > 0), 0.0, 0.0)

    def ended(failure: str | None) -> Outcome:
        heads = best.scale * torch.cat([outer, -outer], 1)
        return Outcome(best.weight, heads, center, best.loss, tuple(history), failure)

    if size == 0:
        return ended(None)
    # With √2 V the half network's Jacobian J_A has the Gram matrix of both halves together.
    jacobian = linearize(x, half, math.sqrt(2) * outer, activation, head=False)
    try:
        inverse = invert(jacobian, x.new_zeros(()), memory, on_progress)
    except NotPositiveDefinite as error:
        return ended(
            f"the Jacobian at the start has rank {error.pivot} of {len(y)}, so far as float64 can tell"
        )

    def move(residual: Tensor) -> Tensor:
        """J_A^T (J J^T)^-1 r, by which one half moves, and the other the other way."""
        return jacobian.pull(inverse(residual, SOLVED))[0] / math.sqrt(2)

    def descend(scale: float, goal: float) -> _Point:
        weight, residual, loss, rate = center.clone(), y, 1.0, 0.0
        upper, lower = weight.chunk(2)
        for _ in range(ITERATIONS):
            step = first / scale if residual is y else move(residual) / scale
            upper += step
            lower -= step
            output = (activation(x @ upper.T) - activation(x @ lower.T)) @ outer.T
            residual = y - scale * output.T.reshape(-1)
            before, loss = loss, (float(torch.linalg.vector_norm(residual)) / size) ** 2
            history.append(Step(loss, scale, 1, time.perf_counter() - start))
            if on_progress is not None:
                part = math.log(loss or 1e-99) / math.log(goal)
                on_progress(f"relative loss {loss:.0e}", min(1.0, max(0.0, part)))
            rate = math.sqrt(loss / before)
            if loss <= goal or not rate <= RATE:
                break
        return _Point(weight, scale, loss, goal, rate)

    first = move(y)
    length = math.sqrt(2) * float(torch.linalg.vector_norm(first))
    scale = 10.0 ** math.ceil(math.log10(float((x @ first.T).abs().max())))
    if radius is not None:
        scale = max(scale, MARGIN * length / radius)
    while True:
        lost = LOST * scale / math.sqrt(len(center))
        goal = LOSS if tolerance is None else tolerance
        point = descend(scale, goal if tolerance is not None else max(goal, (FLOOR * lost) ** 2))
        distance = float(torch.linalg.vector_norm(point.weight - center))
        inside = radius is None or distance <= radius
        if inside and point.loss <= best.loss:
            best = point
        if point.loss <= point.goal and inside:
            return ended(None)
        if FLOOR * lost > (WORST if tolerance is None else math.sqrt(tolerance)):
            return ended(
                f"output weights of {scale / math.sqrt(len(center)):.0e} and more would be needed, and these "
                "lose too much to rounding in float64"
            )
        if point.loss > point.goal:
            scale *= min(10.0, max(3.0, point.rate / RATE * 5)) if math.isfinite(point.rate) else 10.0
        else:
            scale *= 1.05 * distance / (radius or math.inf)
