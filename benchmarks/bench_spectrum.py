"""The smallest singular value of a narrow network's Jacobian, by its structure, against that of the matrix.

Networks of one hidden layer of m tanh units on n Gaussian rows in 100 inputs, at a mirrored start with a
gain, and J [n, 100 m] in the hidden weights, with m at 1.2 times the least that Theorem 1 of Zhang et al.
2021 takes. All on one thread, and seconds are the processor's. Every size has a process of its own, in which
memory is the growth of the largest resident size.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TypeVar

import torch
from table import Table
from torch import Tensor, nn

from isthmus.jacobian import per_sample_jacobian
from isthmus.jacobian.result import Spectrum
from isthmus.jacobian.spectrum import spectrum
from isthmus.nets.fold import fold
from isthmus.nets.mlp import mlp

INPUTS, GAIN = 100, 1.5
SIZES = ((1_000, 24), (2_000, 48))  # n, m
LARGE = (10_000, 240)
ERROR, FASTER, MEMORY = 1e-8, 50.0, 2.0  # of σ_min; than the SVD; in n^2 numbers
REPEATS = 5
T = TypeVar("T")


def problem(rows: int, width: int, *, paired: bool) -> tuple[nn.Module, Tensor]:
    """The network and its rows."""
    x = torch.randn(rows, INPUTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = mlp(INPUTS, [width], 1, bias=False, paired=True, seed=0).double()
    with torch.no_grad():
        model.get_parameter("layer1.weight").mul_(GAIN)
    return model if paired else fold(model), x


def fastest(run: Callable[[], T], repeats: int) -> tuple[float, T]:
    """Seconds of the fastest of some runs, and what the last gave."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        found = run()
        seconds.append(time.process_time() - start)
    return min(seconds), found


@dataclass(frozen=True)
class Comparison:
    """Relative errors, and seconds."""

    sigma_min: float
    sigma_max: float
    seconds: float
    svd: float
    vectors: float
    method: str


def against_svd(rows: int, width: int, paired: bool) -> Comparison:
    """The spectrum by its structure, and J's singular values."""
    torch.set_num_threads(1)
    model, x = problem(rows, width, paired=paired)
    jacobian = per_sample_jacobian(model, x, "layer1").flatten(0, 1)
    svd, values = fastest(lambda: torch.linalg.svdvals(jacobian), 2)
    vectors, _ = fastest(lambda: torch.linalg.svd(jacobian), 1)
    seconds, found = fastest(lambda: spectrum(model, x, parameters="layer1"), REPEATS)
    return Comparison(
        abs(found.sigma_min / float(values[-1]) - 1),
        abs(found.sigma_max / float(values[0]) - 1),
        seconds,
        svd,
        vectors,
        found.method,
    )


def alone(rows: int, width: int) -> tuple[float, float, Spectrum]:
    """Seconds, memory in n^2 numbers, and what was found."""
    torch.set_num_threads(1)
    spectrum(*problem(500, 12, paired=True), parameters="layer1")  # loads what PyTorch loads late
    model, x = problem(rows, width, paired=True)
    before = peak()
    seconds, found = fastest(lambda: spectrum(model, x, parameters="layer1"), 1)
    return seconds, (peak() - before) / (8 * rows**2), found


def peak() -> int:
    """The largest resident size so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def apart(run: Callable[..., T], *arguments: object) -> T:
    """Run in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run, *arguments).result()


def main() -> None:
    results = {
        f"n={rows:,}, m={width}, {'paired head' if paired else 'one Linear'}": apart(
            against_svd, rows, width, paired
        )
        for rows, width in SIZES
        for paired in (True, False)
    }
    table = Table("relative error against the SVD of J")
    for case, found in results.items():
        table.row(f"sigma_min, {case}", found.sigma_min, ERROR, found.method)
        table.row(f"sigma_max, {case}", found.sigma_max, ERROR, found.method)
    table = Table(f"seconds, against a {FASTER:g}th of the SVD's")
    for case, found in results.items():
        times = (
            f"{found.svd / found.seconds:.0f} times as fast as {found.svd:.2f} s of svdvals, "
            f"{found.vectors / found.seconds:.0f} as {found.vectors:.2f} s of svd"
        )
        table.row(case, found.seconds, found.svd / FASTER, times)

    rows, width = LARGE
    seconds, memory, found = apart(alone, rows, width)
    table = Table(f"n={rows:,}, m={width}: J would have {rows * width * INPUTS:.1e} entries")
    note = f"{found.method}, {seconds:.0f} s"
    table.row("memory, n^2 numbers", memory, MEMORY, note)
    table.row("sigma_min, estimated relative error", found.error, ERROR, f"sigma_min {found.sigma_min:.6g}")


if __name__ == "__main__":
    main()
