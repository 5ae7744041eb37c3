"""One attempt at a width: the start that a method asks for, and the method."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from isthmus._types import Progress
from isthmus.errors import WidthError
from isthmus.narrow.solver.chord import LOSS, chord
from isthmus.narrow.solver.codes import near, within_zone
from isthmus.narrow.solver.dual import Memory
from isthmus.narrow.solver.levenberg import Misfit, Point, levenberg_marquardt
from isthmus.narrow.solver.outcome import Outcome
from isthmus.narrow.solver.problem import ACTIVATIONS, CODED, SHARP, Problem
from isthmus.narrow.solver.sharpen import Staged, sharpen
from isthmus.narrow.solver.softmax import fit_softmax

GAIN: Final = 1.5  # standard deviation of w · x at the start
STEEPER: Final = (3.0, 10.0)  # times that, where the Jacobian of a mirrored start is singular
VALUES: Final = 3.0  # of an output weight at Levenberg-Marquardt's start, where targets have mean square 1
CODES: Final = 10.0  # likewise, for codes
HELD: Final = 8  # arrays of N x m that a solver holds at a time


@dataclass(frozen=True)
class Attempt:
    """What all attempts at a problem have in common.

    Attributes:
        problem: the equations.
        activation: σ.
        target_loss: relative; None for what the kind of problem asks for.
        limit: bytes to stay below.
        iterations: of Levenberg-Marquardt.
        seed: of the start.
        on_progress: told what is done.
    """

    problem: Problem
    activation: nn.Module
    target_loss: float | None
    limit: int
    iterations: int
    seed: int
    on_progress: Progress | None

    @property
    def kinked(self) -> bool:
        """Whether σ has a kink at 0, and is linear on both sides."""
        return any(self.activation is ACTIVATIONS[name] for name in SHARP)

    def chord(self, width: int, radius: float | None) -> Outcome:
        """From a mirrored start, whose output weights are as equal as the theorem lets them be.

        Raises:
            WidthError: the width is odd, or less than 2 N K / p.
        """
        problem, half = self.problem, width // 2
        least = least_chord_width(problem)
        if width % 2 or width < least:
            raise WidthError(
                f"{problem.data.source}: the one-factorization solve takes an even width m of at least 2 "
                f"ceil({problem.equations} / {problem.rank}) = {least}, not {width}; method='lm' "
                "takes any, and needs about half."
            )
        hidden, outer = self._drawn(half)
        if len(outer) == 1:
            outer = torch.ones_like(outer)
        solved = partial(
            chord,
            problem.coordinates.rows,
            problem.target,
            outer=outer / math.sqrt(width),
            activation=self.activation,
            tolerance=self.target_loss,
            radius=radius,
            memory=self.memory(width),
            on_progress=self.on_progress,
        )
        outcome = solved(half=hidden)
        for steeper in STEEPER:
            if outcome.failure is None or outcome.history:
                break
            outcome = solved(half=steeper * hidden)
        return outcome

    def start(self, width: int) -> Point:
        """Where a descent begins: nothing is mirrored."""
        hidden, outer = self._drawn(width)
        if self.problem.targets == "softmax":
            return Point(hidden, torch.cat([outer, torch.zeros_like(outer[:, :1])], 1))
        if len(outer) == 1:  # as many units pull up as down, which ReLUs need
            outer = torch.ones_like(outer)
            outer[:, 1::2] = -1
        size = CODES if self.problem.targets in CODED else VALUES
        return (Staged if self.kinked else Point)(hidden, size * outer)

    def descend(self, point: Point, on_step: Callable[[Point], None] | None = None) -> Outcome:
        """From a point to zero loss, or until every row is right."""

        def told(point: Point) -> None:
            if on_step is not None:
                on_step(point)
            if self.on_progress is not None:
                done = len(point.history)
                loss = point.history[-1].loss
                self.on_progress(
                    f"{len(point.weight)} units: relative loss {loss:.0e}", done / self.iterations
                )

        rows = self.problem.coordinates.rows
        if self.problem.targets == "softmax":
            label = self.problem.data.y.to(rows.device)
            return fit_softmax(rows, label, point, self.activation, iterations=self.iterations, on_step=told)
        size = float(torch.linalg.vector_norm(self.problem.target)) or 1.0
        if isinstance(point, Staged):
            solved = partial(sharpen, point=point)
        else:
            solved = partial(levenberg_marquardt, point=point)
        return solved(
            rows,
            activation=self.activation,
            misfit=self._misfit(size),
            size=size,
            memory=self.memory(len(point.weight)),
            iterations=self.iterations,
            on_step=told,
            on_progress=self.on_progress,
        )

    def memory(self, width: int) -> Memory:
        """What the factor may take beside rows and weights."""
        rows, inputs = self.problem.coordinates.rows.shape
        # The rows in float64 and float32, and what is computed of them and of the weights.
        taken = rows * (12 * inputs + 8 * HELD * (width + len(self.problem.offset)))
        return Memory(self.limit, taken)

    def _drawn(self, units: int) -> tuple[Tensor, Tensor]:
        """Hidden weights [units, p] and output weights [K, units] from normal distributions."""
        rows = self.problem.coordinates.rows
        generator = torch.Generator().manual_seed(self.seed)
        hidden = torch.randn(units, rows.shape[1], generator=generator, dtype=torch.float64)
        outer = torch.randn(len(self.problem.offset), units, generator=generator, dtype=torch.float64)
        size = float(rows.square().sum(1).mean().sqrt()) or 1.0
        return GAIN / size * hidden.to(rows.device), outer.to(rows.device)

    def _misfit(self, size: float) -> Callable[[Tensor], Misfit]:
        target = self.problem.target.T.reshape(-1)
        match self.problem.targets:
            case "codes" if self.target_loss is None:
                return near(target, 1 / self.problem.scale)
            case "dead-zone":
                return within_zone(target, 1 / self.problem.scale)
        enough = math.sqrt(self.target_loss or LOSS) * size

        def misfit(output: Tensor) -> Misfit:
            residual = target - output
            return Misfit(residual, None, bool(torch.linalg.vector_norm(residual) <= enough))

        return misfit


def least_chord_width(problem: Problem, room: float = 1.0) -> int:
    """2 ceil(room N K / rank), from which a mirrored start has a Jacobian of full rank.

    Source: Zhang et al. 2021, Theorem 1.
    """
    return 2 * max(1, math.ceil(room * problem.equations / problem.rank))


def least_width(problem: Problem, *, kinked: bool) -> int:
    """The fewest hidden units with as many free parameters as equations.

    A factor may pass from a unit's weights through a kink at 0 to its output weights, and changes nothing.
    """
    return max(1, math.ceil(problem.equations / (problem.inputs + len(problem.offset) - kinked)))
