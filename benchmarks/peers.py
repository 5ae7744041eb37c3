"""One solver on one problem, in a process of its own; `bench_peers` starts it, and reads what it says.

All solvers fit networks f(x) = Σ_j u_j tanh(w_j · x) without biases to the same Gaussian rows, in float64 and
on one thread. After a rehearsal on a few rows, which loads what libraries load late, the clock starts; what
JAX compiles is compiled before. Each new least loss, ``|y - f|^2 / |y|^2``, is a line of JSON with the
seconds of the processor until then.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

import isthmus
from isthmus.nets.mlp import mlp

INPUTS: Final = 100
ENOUGH: Final = 1e-20  # relative loss at which a solver may stop
GAIN, SIZE = 1.5, 3.0  # at the start, the standard deviation of w · x, and an output weight
NEVER: Final = 2.3e-16  # the smallest tolerance that SciPy takes, so that the clock alone stops a solver
GRACE: Final = 2  # seconds beyond the limit, for a step to end
LAYERS: Final = ("layer1.weight", "fc.weight")


class Enough(Exception):
    """The loss is as small as asked, or the time is up."""


class Clock:
    """Tells of each new least loss when it is reached.

    Args:
        seconds: of the processor, that a solver has.
        memory: bytes, likewise; None for a rehearsal, which nothing stops.
        tell: takes what there is to say, by name.
    """

    def __init__(self, seconds: float, memory: int | None, tell: Callable[..., None]) -> None:
        self.limit, self._memory, self._tell = seconds, memory, tell
        self._best, self._begun = math.inf, 0.0

    def start(self) -> None:
        """From here on, time and memory count; the kernel stops what takes more than it may."""
        if self._memory is not None:
            last = math.ceil(time.process_time() + self.limit + GRACE)
            resource.setrlimit(resource.RLIMIT_CPU, (last, last + GRACE))
            if sys.platform == "linux":
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                space = pages * resource.getpagesize() + self._memory
                resource.setrlimit(resource.RLIMIT_AS, (space, space))
        self._tell(baseline=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        self._begun = time.process_time()

    @property
    def passed(self) -> float:
        """Seconds of the processor since the start, those of all threads together."""
        return time.process_time() - self._begun

    def see(self, loss: float, seconds: float | None = None) -> None:
        """Take note of a loss that is reached now, or was at a time that is told.

        Raises:
            Enough: there is no need to go on.
        """
        seconds = self.passed if seconds is None else seconds
        if loss < self._best and seconds <= self.limit:
            self._best = loss
            self._tell(loss=loss, seconds=seconds)
        if loss <= ENOUGH or seconds > self.limit:
            raise Enough


@dataclass(frozen=True)
class Problem:
    """What is to be fitted: X [n, 100] and y [n], all from N(0, 1), by m units."""

    rows: int
    width: int
    seed: int = 0

    @cached_property
    def data(self) -> tuple[Tensor, Tensor]:
        """X and y."""
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(self.rows, INPUTS, generator=generator, dtype=torch.float64)
        return x, torch.randn(self.rows, generator=generator, dtype=torch.float64)

    def network(self, size: float = SIZE) -> nn.Sequential:
        """W from N(0, 1.5^2 / d), and u = ± size: where `isthmus.solve` begins without a radius."""
        model = mlp(INPUTS, [self.width], 1, bias=False, paired=False, seed=self.seed).double()
        with torch.no_grad():
            model.get_parameter("layer1.weight").mul_(GAIN)
            model.get_parameter("fc.weight").sign_().mul_(size)
        return model

    def loss(self, model: nn.Module) -> Tensor:
        """``|y - f|^2 / |y|^2``."""
        x, y = self.data
        return (model(x).squeeze(1) - y).square().sum() / y.square().sum()

    def differentiated(self, clock: Clock, model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        """The loss, with gradients."""
        optimizer.zero_grad()
        loss = self.loss(model)
        clock.see(loss.item())
        loss.backward()
        return loss


def solve(problem: Problem, clock: Clock, method: Any) -> None:
    """`isthmus.solve`; a loss counts as no less than that of the network which it returns."""
    reached: list[float] = []

    def note(part: str, _: float) -> None:
        if "relative loss" in part:  # said after every iteration
            reached.append(clock.passed)

    clock.start()
    solution = isthmus.solve(
        problem.data,
        width=problem.width,
        method=method,
        bias=False,
        target_loss=ENOUGH,
        seed=problem.seed,
        on_progress=note,
        raise_on_failure=False,
    )
    with torch.no_grad():
        least = float(problem.loss(solution.model))
    # Where a second method took over, the history is of that one alone.
    for step, seconds in zip(solution.history, reached[-len(solution.history) :], strict=True):
        clock.see(max(step.loss, least), seconds)


def adam(problem: Problem, clock: Clock, rate: float) -> None:
    """Adam, whose rate falls like half a cosine over the time there is."""
    model = problem.network(problem.width**-0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    clock.start()
    while True:
        done = clock.passed / clock.limit if clock.limit else 1.0
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * min(1.0, done))) / 2
        problem.differentiated(clock, model, optimizer)
        optimizer.step()


def lbfgs(problem: Problem, clock: Clock, size: float) -> None:
    """PyTorch's L-BFGS with strong Wolfe conditions and a history of 50."""
    model = problem.network(size)
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        history_size=50,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )
    clock.start()
    while True:
        optimizer.step(partial(problem.differentiated, clock, model, optimizer))


def projected(problem: Problem, clock: Clock, radius: float, rate: float) -> None:
    """Algorithm 2 of Zhang et al. 2021: a paired network from a mirrored start, momentum .9, in a ball."""
    model = mlp(INPUTS, [problem.width], 1, bias=False, seed=problem.seed).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    isthmus.attach(model, optimizer, blocks="layer1", head="fc", constraint=isthmus.Ball(radius))
    clock.start()
    while True:
        problem.differentiated(clock, model, optimizer)
        optimizer.step()


def torch_lm(problem: Problem, clock: Clock, damping: float) -> None:
    """torch-levenberg-marquardt, with the fastest of its three ways to solve for a step."""
    package = import_module("torch_levenberg_marquardt")
    (x, y), model = problem.data, problem.network()
    module = package.training.LevenbergMarquardtModule(
        model=model,
        damping_strategy=package.damping.StandardDampingStrategy(damping, conditional_stopping=False),
        solve_method="cholesky",
    )
    mean_square = float(y.square().mean())
    clock.start()
    while True:
        _, loss, _, _ = module.training_step(x, y[:, None])
        clock.see(float(loss) / mean_square)


def scipy_trf(problem: Problem, clock: Clock, solver: str) -> None:
    """SciPy's least_squares by trf, with the Jacobian written down; its lm refuses more weights than rows."""
    numpy, least_squares = import_module("numpy"), import_module("scipy.optimize").least_squares
    x, y = (tensor.numpy() for tensor in problem.data)
    model = problem.network()
    start = torch.cat([model.get_parameter(name).detach().flatten() for name in LAYERS]).numpy()

    def split(point: Any) -> tuple[Any, Any]:
        weight, outer = numpy.split(point, [-problem.width])
        return numpy.tanh(x @ weight.reshape(problem.width, -1).T), outer

    def residual(point: Any) -> Any:
        features, outer = split(point)
        found = features @ outer - y
        clock.see(float(found @ found / (y @ y)))
        return found

    def jacobian(point: Any) -> Any:
        features, outer = split(point)
        hidden = ((1 - features**2) * outer)[:, :, None] * x[:, None, :]
        return numpy.concatenate([hidden.reshape(len(x), -1), features], 1)

    clock.start()
    found = least_squares(residual, start, jacobian, tr_solver=solver, ftol=None, gtol=None, xtol=NEVER)
    raise ArithmeticError(found.message)


def jax_lm(problem: Problem, clock: Clock, solver: str, damping: float) -> None:
    """LevenbergMarquardt of optimistix; its λ begins at 1, so residuals are scaled for another one."""
    jax, optimistix = import_module("jax"), import_module("optimistix")
    lineax, equinox = import_module("lineax"), import_module("equinox")
    jax.config.update("jax_enable_x64", True)
    match solver:
        case "QR":
            linear = lineax.QR()
        case "normal equations":
            linear = lineax.Normal(lineax.Cholesky())
        case tolerance:
            linear = lineax.LSMR(rtol=float(tolerance), atol=float(tolerance))
    lm = optimistix.LevenbergMarquardt(rtol=0, atol=0, linear_solver=linear)
    model, scale = problem.network(), damping**-0.5
    data = tuple(jax.numpy.asarray(tensor.numpy()) for tensor in problem.data)
    point = tuple(jax.numpy.asarray(model.get_parameter(name).detach().numpy()) for name in LAYERS)
    square = float(problem.data[1].square().sum()) * scale**2

    def residual(point: Any, data: Any) -> tuple[Any, None]:
        (weight, outer), (x, y) = point, data
        return scale * (jax.numpy.tanh(x @ weight.T) @ outer[0] - y), None

    fixed = {"fn": residual, "args": data, "options": {}, "tags": frozenset()}
    shape = jax.eval_shape(lambda: residual(point, data)[0])
    state = lm.init(y=point, f_struct=shape, aux_struct=None, **fixed)
    step = equinox.filter_jit(partial(lm.step, **fixed)).lower(y=point, state=state).compile()
    clock.start()
    while True:
        point, state, _ = step(y=point, state=state)
        found = state.f_info.residual
        clock.see(float(found @ found) / square)


SOLVERS: Final[dict[str, Callable[..., None]]] = {
    solver.__name__: solver for solver in (solve, adam, lbfgs, projected, torch_lm, scipy_trf, jax_lm)
}


def main() -> None:
    """Rehearse, then run what the first argument says."""
    task = json.loads(sys.argv[1])
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print what they like

    def tell(**said: float | str) -> None:
        print(json.dumps(said), file=channel, flush=True)

    torch.set_num_threads(1)
    run = partial(SOLVERS[task["solver"]], **task["options"])
    try:
        run(Problem(40, 4), Clock(0.0, None, lambda **_: None))
    except Enough:
        pass
    problem = Problem(task["rows"], task["width"])
    clock = Clock(task["seconds"], task["memory"], tell)
    assert problem.data
    try:
        run(problem, clock)
    except Enough:
        pass
    except Exception as error:
        # PyTorch, NumPy and XLA have a class each for this.
        short = isinstance(error, MemoryError) or "memory" in str(error).lower()
        tell(reason="out of memory" if short else f"{type(error).__name__}: {error}".splitlines()[0])
    tell(total=clock.passed)


if __name__ == "__main__":
    main()
