"""A million Gaussian rows in 16 inputs and 1,000 random classes, written down on one core.

Networks of about 1.05 sqrt(N) groups of sqrt(N) rows with a separator in every gap: 2099-1000-999 hidden
units for a million rows. The number of classes is 1,000 at all sizes, so that of 10,000 rows the decoder's
million weights take longest. Building is set against what nothing can do without, one projection of the rows
and one sort; every size has a process of its own, in which memory is the growth of the largest resident size
over the loaded rows. Then the rows that lie closest to another on their ramp and 50,000 others are certified,
or all with --full (about ten minutes).
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from math import ceil, isqrt, log
from multiprocessing import get_context
from typing import TypeVar

import torch
from bench_memorize import project_and_sort
from table import Table
from torch import nn

from isthmus.certificate import Certificate
from isthmus.certify import certify
from isthmus.data.dataset import Dataset
from isthmus.memorize.build import build
from isthmus.memorize.plan import Plan

SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
INPUTS, CLASSES, DIRECTIONS = 16, 1000, 8
TIGHTEST, OTHERS = 3000, 50_000
SECONDS, MULTIPLE, MEMORY = 5.0, 10.0, 3.0  # for a million rows; of the reference; of the data
REPEATS = 3
T = TypeVar("T")


def problem(rows: int) -> tuple[Dataset, Plan]:
    """The rows, and the network for them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, INPUTS, generator=generator, dtype=torch.float64)
    y = torch.randperm(rows, generator=generator) % CLASSES
    data = Dataset(x, y, "classification", tuple(range(CLASSES)))
    size = isqrt(rows)
    groups = ceil(1.05 * rows / size)
    widths = (2 * groups - 1, size, CLASSES - 1)
    return data, Plan("classifier", "hardtanh", widths, groups, size, 1, "ramps", "thermometer", DIRECTIONS)


def peak() -> int:
    """The largest resident size so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure(rows: int) -> tuple[float, float, float]:
    """Seconds to build, seconds for a projection and a sort, and memory as a multiple of the rows'."""
    torch.set_num_threads(1)
    build(*problem(2000), 0)  # loads what PyTorch loads late
    data, plan = problem(rows)
    before = peak()
    build(data, plan, 0)
    memory = (peak() - before) / data.x.nbytes
    return (
        fastest(lambda: build(data, plan, 0)),
        min(project_and_sort(data) for _ in range(REPEATS)),
        memory,
    )


def tightest(model: nn.Sequential, data: Dataset, count: int) -> torch.Tensor:
    """The rows that lie closest to another one on their ramp [count]."""
    ramp = torch.empty(data.rows, dtype=torch.int64)
    value = torch.empty(data.rows, dtype=torch.float64)
    for rows, x in data.chunks(2000):
        on = model[0](x)
        ramp[rows] = (on.abs() < 1).int().argmax(1)
        value[rows] = on.gather(1, ramp[rows, None]).squeeze(1)
    order = torch.argsort(4 * ramp + value)
    gaps = (4 * ramp + value)[order].diff()
    edge = torch.full((1,), torch.inf)
    alone = torch.minimum(torch.cat([edge, gaps]), torch.cat([gaps, edge]))
    return order[alone.topk(count, largest=False).indices]


def check(rows: int, full: bool) -> tuple[Certificate, float, float]:
    """A certificate for the tightest and other rows, or for all; microseconds per row; memory as above."""
    torch.set_num_threads(1)
    build(*problem(2000), 0)
    data, plan = problem(rows)
    before = peak()
    model = build(data, plan, 0)
    sample = data
    if not full:
        random = torch.randperm(rows, generator=torch.Generator().manual_seed(1))[:OTHERS]
        sample = data.take(torch.cat([tightest(model, data, TIGHTEST), random]).unique())
    start = time.perf_counter()
    seen = certify(model, sample, on_progress=progress if full else None)
    micros = (time.perf_counter() - start) / sample.rows * 1e6
    return seen, micros, (peak() - before) / data.x.nbytes


def progress(part: str, done: float) -> None:
    """Say how far it is, on one line."""
    print(f"\r{part}: {done:6.1%}", end="" if done < 1 else "\n", file=sys.stderr, flush=True)


def apart(run: Callable[..., T], *arguments: object) -> T:
    """What a function returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run, *arguments).result()


def exponent(x: list[float], y: list[float]) -> float:
    """The slope of the line of least squares through the logarithms."""
    u, v = torch.tensor([x, y], dtype=torch.float64).log()
    return float(((u - u.mean()) * (v - v.mean())).sum() / (u - u.mean()).square().sum())


def main() -> None:
    times = Table("Building on one core, seconds; required is N log N through 5 s for a million rows")
    seconds, lines = [], []
    for rows in SIZES:
        took, base, memory = apart(measure, rows)
        seconds.append(took)
        case = f"{rows} rows, " + "-".join(map(str, problem(rows)[1].widths))
        share = rows * log(rows) / (SIZES[-1] * log(SIZES[-1]))
        times.row(case, took, SECONDS * share, f"{took / base:.1f} x ({base:.4f} s)")
        lines.append((case, took / base, memory))
    linear = exponent(list(SIZES), [rows * log(rows) for rows in SIZES])
    times.row("exponent of N, fitted; required is that of N log N", exponent(list(SIZES), seconds), linear)
    multiples = Table("Building as a multiple of one projection and one sort")
    case, multiple, _ = lines[-1]
    multiples.row(case, multiple, MULTIPLE)
    memories = Table("Memory to build, above the loaded rows and as a multiple of theirs")
    for case, _, memory in lines:
        memories.row(case, memory, MEMORY)

    full = "--full" in sys.argv[1:]
    seen, micros, memory = apart(check, SIZES[-1], full)
    table = Table(f"Of {SIZES[-1]} rows, {'all' if full else 'the tightest and others'}")
    note = f"{seen.level}, {seen.wrong} wrong, {micros:.0f} microseconds per row"
    table.row(f"rows not bitwise one-hot, of {seen.rows}", seen.rows - seen.bitwise_rows, 0, note)
    table.row("memory to build and certify, as above", memory, MEMORY)


if __name__ == "__main__":
    main()
