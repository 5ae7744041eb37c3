"""The fewest hidden units that fit all rows, by bisection from a network that does.

Each width is tried twice: from a start of its own, and from what is left of the smallest network that fits
when its least units are taken out. That a width fails proves nothing, so the result is an upper bound.

Codes take as many parameters as rows, whatever the classes are. The cross entropy takes fewer if the classes
have to do with the inputs: so its widths are doubled from 1 while they are below those of codes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import torch

from isthmus.narrow.solver.attempt import Attempt, least_width
from isthmus.narrow.solver.levenberg import Point
from isthmus.narrow.solver.outcome import Outcome, Trial

FIRST: Final = 1.25  # of as many parameters as equations: fits nearly always, in few iterations
WIDER: Final = 1.5  # the next width, if it does not
WIDENINGS: Final = 4
BELOW: Final = 0.9  # of as many parameters as equations: classes may do with fewer
ITERATIONS: Final = 60  # of a trial with a smooth activation: those that fit take 10 to 30

Trials = list[tuple[Trial, Outcome]]


class Search:
    """A search at one problem.

    Args:
        attempt: at the problem.
        record: takes every trial down, and knows those that were done before an interruption.
    """

    def __init__(self, attempt: Attempt, record: Record) -> None:
        self._record = record
        most = attempt.iterations if attempt.kinked else ITERATIONS
        self._attempt = replace(attempt, iterations=min(attempt.iterations, most))

    def below(self, least: int, width: int) -> Outcome:
        """The smallest network of more than ``least`` units that fits; ``width`` is tried first."""
        found = self._tried(self._attempt.start(width))
        for _ in range(WIDENINGS):
            if found.failure is None:
                return self._bisected(found, least)
            least, width = width, int(WIDER * width) + 1
            found = self._tried(self._attempt.start(width))
        return found if found.failure is not None else self._bisected(found, least)

    def doubled(self, most: int) -> Outcome | None:
        """The same from 1, 2, 4, ... units on, up to ``most``; None if none fits."""
        least, width = 0, 1
        while width <= most:
            found = self._tried(self._attempt.start(width))
            if found.failure is None:
                return self._bisected(found, least)
            least, width = width, 2 * width
        return None

    def _bisected(self, best: Outcome, least: int) -> Outcome:
        while len(best.weight) - least > 1:
            width = (least + len(best.weight)) // 2
            found = self._tried(self._attempt.start(width))
            if found.failure is not None:
                found = self._tried(_pruned(best, width, self._attempt))
            if found.failure is None:
                best = found
            else:
                least = width
        return best

    def _tried(self, point: Point) -> Outcome:
        if (known := self._record.known()) is not None:
            return known
        start = time.perf_counter()
        outcome = self._attempt.descend(point)
        seconds, fits = time.perf_counter() - start, outcome.failure is None
        targets, width = self._attempt.problem.targets, len(point.weight)
        trial = Trial(targets, width, outcome.loss, fits, len(outcome.history), seconds)
        self._record.add(trial, outcome)
        return outcome


class Record:
    """Trials in order. A search that begins anew makes the same ones, without repeating those known.

    Args:
        known: from before.
        keep: told all of them after each new one.
    """

    def __init__(self, known: Trials, keep: Callable[[Trials], None]) -> None:
        self._known, self._keep, self._used = known, keep, 0

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Those that the search came to."""
        return tuple(trial for trial, _ in self._known[: self._used])

    def known(self) -> Outcome | None:
        """The outcome of the next trial, if it was made before."""
        if self._used == len(self._known):
            return None
        self._used += 1
        return self._known[self._used - 1][1]

    def add(self, trial: Trial, outcome: Outcome) -> None:
        """Take a trial down."""
        self._known = [*self._known, (trial, outcome)]
        self._used += 1
        self._keep(self._known)


def smallest(attempt: Attempt, record: Record, *, any_targets: bool) -> tuple[Outcome, Attempt]:
    """Search for the smallest width.

    Args:
        attempt: at codes, or at targets that were asked for.
        record: of the trials.
        any_targets: whether other targets may be tried: the cross entropy first.

    Returns:
        The smallest network that fits, or the last one if none does; and the attempt that it is of.
    """
    least = least_width(attempt.problem, kinked=attempt.kinked)
    if any_targets:
        softmax = replace(attempt, problem=attempt.problem.aimed("softmax"))
        found = Search(softmax, record).doubled(least // 2)
        if found is not None:
            return found, softmax
    search = Search(attempt, record)
    if attempt.problem.targets == "softmax":
        found = search.doubled(4 * least) or search.below(4 * least, 8 * least)
    else:
        found = search.below(max(0, int(BELOW * least) - 1), max(1, round(FIRST * least)))
    return found, attempt


def _pruned(outcome: Outcome, width: int, attempt: Attempt) -> Point:
    """Without the units that change the outputs least from row to row."""
    units = len(outcome.weight)
    value = attempt.activation(attempt.problem.coordinates.rows @ outcome.weight.T)
    spread = value.std(0) * torch.linalg.vector_norm(outcome.outer[:, :units], dim=0)
    kept = torch.topk(spread, width).indices.sort().values
    # What comes after the units' columns are biases.
    outer = torch.cat([outcome.outer[:, kept], outcome.outer[:, units:]], 1)
    return replace(attempt.start(width), weight=outcome.weight[kept], outer=outer)
