"""Zero loss with a kink: ReLU and leaky ReLU as limits of smooth units, and rows brought back to life.

On a row where every ReLU is off the Jacobian is 0: no step changes its output, and Levenberg-Marquardt
stalls. Two things are done about that.

The kink is *rounded*, and sharpened as the network fits. An activation of slopes s < 1 below 0 and 1 above
is (1 + s)/2 z + (1 - s)/2 |z|, and

    σ_β(z) = (1 + s)/2 z + (1 - s)/2 (z^2 + β^-2)^(1/2)

is smooth. Its slope far below 0 is about s + (1 - s) (2 β z)^-2, which rows do feel. Levenberg-Marquardt
solves for β = 1/2, and from there for twice the β each time. Since 0 < σ_β - σ <= (1 - s) / (2 β), outputs
are within (1 - s) / (2 β) Σ_j |u_j| of the sharp network's, which is solved last.

A row that is lost on the way is *lifted*. Where a stage stalls, a row with all its units off, and with a
larger residual than rows have on average, is given a unit: of those with u_j r > 0 the one that is closest to
being on, whose value for this row is then z in place of σ_β(z), with slope 1. So lifted, at a loss of 0 and
with sharp ReLUs, a row with no other unit on has u_j z = y, and y was its residual, so z > 0: the unit is on,
and the row needs it lifted no more.

The path to the sharp network may fold, and rows may die again. The later stages are then gone through once
more, from the weights there are. None of this is sure to end at a loss of 0. With a tenth more free
parameters than equations it nearly always did, with 1 or 2 in 100 more at times (benchmarks/bench_relu.py).

Source: isthmus' own. The rounding is that of Smale 1987 and of Chen and Harker 1993 for complementarity
problems.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from isthmus._types import Progress
from isthmus.jacobian.shallow import slopes
from isthmus.narrow.solver.dual import Memory
from isthmus.narrow.solver.levenberg import Misfit, Point, levenberg_marquardt
from isthmus.narrow.solver.outcome import Outcome

SHARPNESS: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, None)  # β of the stages; None for the kink itself
AGAIN: Final = 4  # how many of them come once only
OPENING, PATIENCE = 60, 10  # iterations of the first descent, and of any other, until it has stalled
ROUND: Final = 2 * PATIENCE * (len(SHARPNESS) - AGAIN)  # iterations that the others may take
SOLVED: Final = 1e-4  # |r| over the size, at which a rounded network may be sharpened
DAMPING: Final = 1e-2  # λ where a descent begins
OFF: Final = 0.1  # slope below which a unit is off


@dataclass(frozen=True)
class Staged(Point):
    """A point on the way to the sharp network.

    Attributes:
        stage: of the way.
        rounds: how often the way's end was reached, and not zero loss.
        since: how many iterations were behind it when the descent began that it belongs to.
        lifted: whether unit j is lifted for row i [N, m]; None if none is.
    """

    stage: int = 0
    rounds: int = 0
    since: int = 0
    lifted: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.stage < len(SHARPNESS):
            raise ValueError(f"there is no stage {self.stage}")

    @property
    def limit(self) -> int:
        """Iterations at which its descent has stalled."""
        return self.since + (PATIENCE if self.since else OPENING)

    @property
    def begins_again(self) -> bool:
        """Whether the later stages begin once more."""
        return self.rounds > 0 and self.stage == AGAIN and len(self.history) == self.since

    def next(self, found: Outcome, lifted: Tensor | None) -> Staged:
        """Where the next descent begins: in the same stage if rows are lifted, else in the next."""
        stage, rounds = self.stage + (lifted is None), self.rounds
        if stage == len(SHARPNESS):
            stage, rounds = AGAIN, rounds + 1
        return Staged(
            found.weight,
            found.outer,
            DAMPING,
            found.history,
            stage=stage,
            rounds=rounds,
            since=len(found.history),
            lifted=lifted,
        )


class Rounded(nn.Module):
    """σ_β: an activation with a kink at 0, rounded there.

    Args:
        slope: s, below 0; it is 1 above.
        sharpness: β.
    """

    def __init__(self, slope: float, sharpness: float) -> None:
        super().__init__()
        self.slope, self.sharpness = slope, sharpness

    def forward(self, before: Tensor) -> Tensor:
        """Of pre-activations of any shape."""
        size = (before.square() + self.sharpness**-2).sqrt()
        return (1 + self.slope) / 2 * before + (1 - self.slope) / 2 * size


class Lifted(nn.Module):
    """An activation, except for some rows and units, where it is the identity.

    Args:
        activation: σ.
        lifted: which [N, m].
    """

    def __init__(self, activation: nn.Module, lifted: Tensor) -> None:
        super().__init__()
        self.activation, self.lifted = activation, lifted

    def forward(self, before: Tensor) -> Tensor:
        """Of pre-activations [N, m]."""
        return torch.where(self.lifted, before, self.activation(before))


def sharpen(
    x: Tensor,
    point: Staged,
    activation: nn.Module,
    misfit: Callable[[Tensor], Misfit],
    size: float,
    *,
    memory: Memory,
    iterations: int,
    on_step: Callable[[Staged], None] | None = None,
    on_progress: Progress | None = None,
) -> Outcome:
    """Fit targets with both layers, as `levenberg_marquardt` does, with an activation that has a kink at 0.

    Args:
        x: X [N, d], float64.
        point: where to begin, or to go on.
        activation: σ, of slope s < 1 below 0 and 1 above.
        misfit: of outputs [N K], all rows of one output after the other.
        size: the norm to which losses are relative.
        memory: for the factor.
        iterations: at most, those in the point's history included.
        on_step: told every point.
        on_progress: told what is done.

    Returns:
        With the sharp network's loss; those in the history are of the networks that were solved for.
    """
    slope = -float(activation(x.new_tensor(-1.0)))
    center = point.weight
    at = point

    def outputs(unit: nn.Module, weight: Tensor, outer: Tensor) -> Tensor:
        return (outer @ unit(x @ weight.T).T).reshape(-1)

    def roughly(output: Tensor) -> Misfit:
        """To the accuracy at which it pays to sharpen."""
        seen = misfit(output)
        return replace(seen, done=bool(torch.linalg.vector_norm(seen.residual) <= SOLVED * size))

    def told(point: Point) -> None:
        if on_step is not None:
            on_step(replace(at, **vars(point)))

    while True:
        seen = misfit(outputs(activation, at.weight, at.outer))
        loss = (float(torch.linalg.vector_norm(seen.residual)) / size) ** 2
        outcome = partial(Outcome, at.weight, at.outer, center, loss, at.history)
        if seen.done and len(at.history) == at.since:
            return outcome(None)
        if len(at.history) + (ROUND if at.begins_again else 1) > iterations:
            return outcome(f"{iterations} iterations were not enough")
        beta = SHARPNESS[at.stage]
        unit, goal = (activation, misfit) if beta is None else (Rounded(slope, beta), roughly)
        found = levenberg_marquardt(
            x,
            at,
            unit if at.lifted is None else Lifted(unit, at.lifted),
            goal,
            size,
            memory=memory,
            iterations=min(at.limit, iterations),
            on_step=told,
            on_progress=on_progress,
        )
        lifted = None
        if found.failure is not None and at.lifted is None:
            residual = misfit(outputs(unit, found.weight, found.outer)).residual
            lifted = _lifted(x @ found.weight.T, found.outer, unit, residual)
        if at.begins_again and lifted is None and len(found.history) == at.since:
            return outcome(found.failure)
        at = at.next(found, lifted)


def _lifted(before: Tensor, outer: Tensor, unit: nn.Module, residual: Tensor) -> Tensor | None:
    """For every row that died, the unit that is to bring it back [N, m]; None if there is no such row.

    Args:
        before: X W^T [N, m].
        outer: U [K, m].
        unit: σ_β or σ.
        residual: r [N K].
    """
    residual = residual.reshape(len(outer), -1).T
    loss = residual.square().sum(1)
    dead = (slopes(unit, before) < OFF).all(1) & (loss > loss.mean())
    helps = residual @ outer > 0
    closest = before.masked_fill(~helps, -torch.inf).argmax(1)
    lifted = functional.one_hot(closest, before.shape[1]).bool() & helps & dead[:, None]
    return lifted if lifted.any() else None
