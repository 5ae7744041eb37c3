"""Gauss-Newton on networks of any depth: zero loss, and how long that takes Adam and L-BFGS.

Targets have nothing to do with the inputs, so that every row is to be learned by heart. Adam's rate falls
like a cosine; of three rates and two lengths, the best counts. L-BFGS is PyTorch's, with strong Wolfe lines.
All start from the same weights, on one thread. What PyTorch imports when it first differentiates sample by
sample (about 1 s) is done before. Random labels are Adam's: with parameters to spare it is faster there, and
with few it depends on the run (its schedule is in seconds).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from table import Table
from torch import Tensor, nn
from torch.nn import functional

from isthmus.narrow.gauss_newton import GaussNewton
from isthmus.nets.initial import drawn
from isthmus.nets.mlp import mlp

ZERO = 1e-20  # relative loss that is asked for
CLOSE = 1e-10  # and that is timed
BUDGET = 12.0  # seconds of a run
RATES = (3e-3, 1e-2, 3e-2)
LENGTHS = (BUDGET / 4, BUDGET)
SEEDS = range(3)

Closure = Callable[[], Tensor]
Step = Callable[[float], float]  # seconds passed to loss


@dataclass(frozen=True)
class Problem:
    """What is to be fitted, and by what.

    Attributes:
        make: a network from a seed.
        classes: whether targets are labels.
    """

    name: str
    make: Callable[[int], nn.Module]
    x: Tensor
    y: Tensor
    classes: bool = False

    def closure(self, model: nn.Module) -> Closure:
        """A loss as a function of nothing."""
        loss = functional.cross_entropy if self.classes else functional.mse_loss
        return lambda: loss(model(self.x), self.y)

    def missing(self, model: nn.Module, loss: float) -> float:
        """The relative loss; of labels, the part that is wrong."""
        if not self.classes:
            return loss / float(self.y.square().mean())
        with torch.no_grad():
            return float((model(self.x).argmax(1) != self.y).double().mean())


@dataclass(frozen=True)
class Run:
    """How near it came, and after how many seconds and steps it was near enough."""

    best: float
    seconds: float
    steps: int

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s" if math.isfinite(self.seconds) else f"never (best {self.best:.0e})"


def run(problem: Problem, model: nn.Module, step: Step, enough: float, budget: float = BUDGET) -> Run:
    """Repeat a step until it is near enough, or the time is up."""
    begun, steps, best = time.perf_counter(), 0, math.inf
    while (passed := time.perf_counter() - begun) < budget:
        best = min(best, problem.missing(model, step(passed)))
        if best <= enough:
            return Run(best, time.perf_counter() - begun, steps)
        steps += 1
    return Run(best, math.inf, steps)


def gauss_newton(problem: Problem, enough: float, seed: int = 0) -> Run:
    model = problem.make(seed)
    optimizer, closure = GaussNewton(model), problem.closure(model)
    return run(problem, model, lambda _: optimizer.step(closure).item(), enough)


def differentiated(optimizer: torch.optim.Optimizer, closure: Closure) -> Tensor:
    optimizer.zero_grad()
    loss = closure()
    loss.backward()
    return loss


def lbfgs(problem: Problem, enough: float) -> Run:
    model = problem.make(0)
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        history_size=50,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )
    closure = partial(differentiated, optimizer, problem.closure(model))
    return run(problem, model, lambda _: optimizer.step(closure).item(), enough)


def adam(problem: Problem, enough: float) -> Run:
    """The best of all rates and lengths."""
    runs = [one_adam(problem, enough, rate, length) for rate in RATES for length in LENGTHS]
    return min(runs, key=lambda found: (found.seconds, found.best))


def one_adam(problem: Problem, enough: float, rate: float, length: float) -> Run:
    model = problem.make(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    closure = problem.closure(model)

    def step(passed: float) -> float:
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * passed / length)) / 2
        loss = differentiated(optimizer, closure)
        optimizer.step()
        return loss.item()

    return run(problem, model, step, enough, length)


def network(widths: tuple[int, ...], outputs: int, inputs: int, seed: int) -> nn.Module:
    return mlp(inputs, widths, outputs, paired=False, seed=seed).double()


def convolutions(seed: int) -> nn.Module:
    def build() -> nn.Sequential:
        layers = [nn.Conv2d(1, 4, 3, stride=2), nn.Tanh(), nn.Conv2d(4, 6, 2), nn.Tanh()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, 2))

    return drawn(build, seed).double()


def problems() -> list[Problem]:
    def normal(*shape: int, seed: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    x, y = normal(200, 10, seed=0), normal(200, 1, seed=1)
    labels = torch.randint(10, (200,), generator=torch.Generator().manual_seed(2))
    many, values = normal(1000, 20, seed=3), normal(1000, 1, seed=4)
    images, pairs = normal(80, 1, 8, 8, seed=5), normal(80, 2, seed=6)
    return [
        Problem("2 hidden layers, 11-9, 200 rows", partial(network, (11, 9), 1, 10), x, y),
        Problem("2 hidden layers, 12-10, 200 rows", partial(network, (12, 10), 1, 10), x, y),
        Problem("3 hidden layers, 9-8-8, 200 rows", partial(network, (9, 8, 8), 1, 10), x, y),
        Problem("2 hidden layers, 32-20, 1000 rows", partial(network, (32, 20), 1, 20), many, values),
        Problem("2 convolutions, 80 images, 2 targets", convolutions, images, pairs),
        Problem("10 random labels, 14 tanh, 200 rows", partial(network, (14,), 10, 10), x, labels, True),
        Problem("10 random labels, 18 tanh, 200 rows", partial(network, (18,), 10, 10), x, labels, True),
    ]


def parameters(problem: Problem) -> str:
    count = sum(parameter.numel() for parameter in problem.make(0).parameters())
    equations = len(problem.x) if problem.classes else problem.y.numel()
    return f"{count} parameters, {equations} {'labels' if problem.classes else 'equations'}"


def main() -> None:
    torch.set_num_threads(1)
    every = problems()
    gauss_newton(every[0], CLOSE)

    table = Table(f"relative loss, or part of labels wrong, of {len(SEEDS)} seeds the worst")
    for problem in every:
        runs = [gauss_newton(problem, 0.0 if problem.classes else ZERO, seed) for seed in SEEDS]
        steps = ", ".join(str(found.steps) for found in runs)
        note = f"{parameters(problem)}; {steps} steps, at most {max(found.seconds for found in runs):.2f} s"
        required = 0.5 / len(problem.y) if problem.classes else ZERO
        table.row(problem.name, max(found.best for found in runs), required, note)

    table = Table(f"seconds to {CLOSE:.0e}, or to all labels, over those of the faster of Adam and L-BFGS")
    for problem in every:
        enough = 0.0 if problem.classes else CLOSE
        ours, others = gauss_newton(problem, enough), {"Adam": adam(problem, enough)}
        others["L-BFGS"] = lbfgs(problem, enough)
        note = ", ".join(f"{name} {found}" for name, found in others.items())
        fastest = min(found.seconds for found in others.values())
        table.row(problem.name, ours.seconds, min(fastest, BUDGET), f"{ours.steps} steps; {note}")


if __name__ == "__main__":
    main()
