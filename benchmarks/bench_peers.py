"""`isthmus.solve` side by side with other solvers: seconds to a loss, the best loss in a time, and memory.

Networks of m tanh units without biases, on n Gaussian rows in 100 inputs with Gaussian targets, in float64:
at m = 2 n / d, the least width of Theorem 1 of Zhang et al. 2021, and at 1.2 n / d, where there are 1.2
parameters for each equation. Every run is a process of its own with one thread. Seconds are the processor's,
from when libraries are loaded and, for JAX, compiled; memory is the growth of the largest resident size.

Tuning is for the others only. A peer begins with a run of a quarter of the time at each of its settings, and
the one that came nearest then has all of the time; for every loss, the fastest of all these runs counts.
Settings are learning rates, the size of the output weights at the start (L-BFGS), radii and rates (projected
gradient descent, whose losses are relative, too), dampings at the start and linear solvers. Solvers of second
order, and Adam and L-BFGS but for the output weights, begin where `isthmus.solve` does, which is better for
them than PyTorch's default. `isthmus.solve` is called as a user would, and then by each of its
methods; its time includes preparing the data but not the certificate, with which it takes what is noted.

On images, or with m far above 2 n / d, comparisons may turn out otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from table import Table

INPUTS = 100
SECONDS = {1000: 30.0, 5000: 120.0}  # by rows
QUICK = {500: 2.0}
TARGETS = (1e-6, 1e-10, 1e-20)
TRIAL = 0.25  # of the seconds, for a setting
FASTER = 5.0  # than the best peer, with 5,000 rows or 1.2 parameters for each equation
MEMORY = 12.0  # GiB
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Peer:
    """A row of the table.

    Attributes:
        solver: its function in `peers`.
        settings: that it is run with.
        needs: modules, and what installs them.
    """

    name: str
    solver: str
    settings: tuple[Options, ...]
    needs: tuple[str, str] = ("torch", "pip install torch")

    @property
    def missing(self) -> bool:
        """Whether a module is not installed."""
        return any(find_spec(module) is None for module in self.needs[0].split())


def grid(**values: Iterable[Any]) -> tuple[Options, ...]:
    """All combinations."""
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


JAX = ("jax optimistix", "pip install jax optimistix")
TORCH_LM = (
    "torch_levenberg_marquardt pytorch_lightning torchmetrics",
    "pip install torch-levenberg-marquardt==1.2.3",
)
OURS = Peer("isthmus.solve", "solve", ({"method": None},))
BY_METHOD = tuple(
    Peer(f"isthmus.solve, {method}", "solve", ({"method": method},)) for method in ("chord", "lm")
)
PEERS = (
    Peer("Adam, cosine", "adam", grid(rate=(0.01, 0.003, 0.03))),
    Peer("L-BFGS", "lbfgs", grid(size=(1.0, 3.0))),
    Peer("projected gradient descent", "projected", grid(radius=(100.0, 10.0), rate=(0.1, 0.3))),
    Peer("torch-levenberg-marquardt", "torch_lm", grid(damping=(0.1, 1e-3, 10.0)), TORCH_LM),
    Peer("SciPy, trf", "scipy_trf", grid(solver=("exact", "lsmr")), ("scipy", "pip install scipy")),
    Peer(
        "optimistix, dense",
        "jax_lm",
        ({"solver": "QR", "damping": 1.0}, *grid(solver=["normal equations"], damping=(1.0, 100.0, 1e4))),
        JAX,
    ),
    *(
        Peer(f"optimistix, LSMR to {rate}", "jax_lm", grid(solver=[rate], damping=(100.0, 1.0, 1e4)), JAX)
        for rate in ("1e-3", "1e-6", "1e-11")
    ),
)


@dataclass(frozen=True)
class Run:
    """What a process said.

    Attributes:
        reached: seconds by loss.
        best: loss.
        memory: bytes.
        total: seconds, with what came after the best loss.
        note: how it was set, and why it ended early.
    """

    reached: Mapping[float, float]
    best: float
    memory: int
    total: float
    note: str


def run(peer: Peer, options: Options, rows: int, width: int, seconds: float, memory: float) -> Run:
    """One solver in a process of its own."""
    task = {
        "solver": peer.solver,
        "options": options,
        "rows": rows,
        "width": width,
        "seconds": seconds,
        "memory": int(memory * 2**30),
    }
    command = [sys.executable, str(Path(__file__).with_name("peers.py")), json.dumps(task)]
    said: dict[str, Any] = {"loss": math.inf, "baseline": 0, "total": seconds, "reason": ""}
    reached: dict[float, float] = {}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | ONE_THREAD
        )
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                said |= json.loads(line)
                for target in TARGETS:
                    if said["loss"] <= target:
                        reached.setdefault(target, said["seconds"])
        _, status, usage = os.wait4(process.pid, 0)  # the only way to one child's largest resident size
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        last = (errors.read().strip().splitlines() or [""])[-1]
    match process.returncode:
        case 0:
            reason = said["reason"]
        case code if code == -signal.SIGXCPU:
            reason = "out of time, in a step"
        case code if code == -signal.SIGKILL:
            reason = "killed; out of memory?"
        case code:
            reason = f"ended with {code}: {last}"
    note = ", ".join(f"{name} {value}" for name, value in options.items() if value is not None)
    used = max(0, usage.ru_maxrss - said["baseline"]) * 1024
    return Run(reached, said["loss"], used, said["total"], "; ".join(filter(None, (note, reason))))


def tuned(peer: Peer, rows: int, width: int, seconds: float, memory: float) -> Run:
    """The best of all settings: for every loss, and in the end."""
    runs = []
    if len(peer.settings) > 1:
        runs = [run(peer, options, rows, width, TRIAL * seconds, memory) for options in peer.settings]
    if not runs or min(trial.best for trial in runs) > TARGETS[-1]:
        losses = [trial.best for trial in runs] or [0.0]
        chosen = peer.settings[losses.index(min(losses))]
        runs.append(run(peer, chosen, rows, width, seconds, memory))
    reached = {
        target: min(found.reached[target] for found in runs if target in found.reached)
        for target in TARGETS
        if any(target in found.reached for found in runs)
    }
    best = min(reversed(runs), key=lambda found: found.best)
    return Run(reached, best.best, best.memory, best.total, best.note)


def row(name: str, found: Run) -> None:
    times = "".join(f"{found.reached[t]:10.3g}" if t in found.reached else f"{'-':>10}" for t in TARGETS)
    print(f"{name:28}{times}{found.best:11.1e}{found.memory / 2**20:10.0f}  {found.note}", flush=True)


def side_by_side(
    rows: int, width: int, seconds: float, memory: float, peers: Iterable[Peer]
) -> tuple[Run, dict[str, Run]]:
    """All solvers on one problem."""
    ratio = width * (INPUTS + 1) / rows
    print(f"\nn = {rows}, m = {width}: {ratio:.2f} parameters for each equation, {seconds:g} s for a run")
    print(f"{'seconds to a relative loss of':28}" + "".join(f"{target:10.0e}" for target in TARGETS), end="")
    print(f"{'best':>11}{'MiB':>10}  setting of the best")
    ours = tuned(OURS, rows, width, seconds, memory)
    row(OURS.name, ours)
    print(f"{'':28}with its certificate, {ours.total:.3g} s")
    if width * INPUTS >= 2 * rows:
        for method in BY_METHOD:
            row(method.name, tuned(method, rows, width, seconds, memory))
    found = {}
    for peer in peers:
        found[peer.name] = tuned(peer, rows, width, seconds, memory)
        row(peer.name, found[peer.name])
    return ours, found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, help="of a run; by default 30, and 120 for 5,000 rows")
    parser.add_argument(
        "--rows", type=int, choices=SECONDS, nargs="+", default=[*SECONDS], help="of these alone"
    )
    parser.add_argument("--memory", type=float, default=MEMORY, help="GiB that a solver may take")
    parser.add_argument("--quick", action="store_true", help="500 rows, 2 s, and one setting each")
    chosen = parser.parse_args()
    peers = []
    for peer in PEERS:
        if peer.missing:
            print(f"{peer.name} is left out; to have it: {peer.needs[1]}")
        else:
            settings = peer.settings[:1] if chosen.quick else peer.settings
            peers.append(Peer(peer.name, peer.solver, settings, peer.needs))
    results = {}
    sizes = QUICK if chosen.quick else {rows: SECONDS[rows] for rows in chosen.rows}
    for rows, default in sizes.items():
        for width in (2 * -(-rows // INPUTS), 2 * -(-6 * rows // (10 * INPUTS))):
            seconds = chosen.seconds or default
            results[rows, width] = seconds, side_by_side(rows, width, seconds, chosen.memory, peers)
    table = Table("Seconds of isthmus.solve; required is a fifth of the best peer's, or its own where noted")
    for (rows, width), (seconds, (ours, found)) in results.items():
        easy = rows < max(SECONDS) and width * INPUTS >= 2 * rows
        for target in TARGETS:
            others = {name: each.reached[target] for name, each in found.items() if target in each.reached}
            name = min(others, key=others.__getitem__) if others else "no peer"
            fastest = others.get(name, seconds)
            mine = ours.reached.get(target, math.inf)
            more = "" if others else "more than "
            note = f"{name}: {more}{fastest:.3g} s, {more}{fastest / mine:.2g} times ours"
            required = fastest if easy else fastest / FASTER
            case = f"n = {rows}, m = {width}, to {target:.0e}"
            table.row(case, mine, required, note + ("; required: no slower" if easy else ""))


if __name__ == "__main__":
    main()
