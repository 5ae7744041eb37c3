"""`isthmus.solve`: seconds, memory and rows right, and the time of one n^3 / 3 factorization beside it.

By default the cases that take seconds; `--images` adds Fashion-MNIST with ten random classes (10,000 and
20,000 rows), `--large N WIDTH` one more case with as many threads as `--threads` says. Each image case runs
in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from table import Table

import isthmus

RADII = (1.0, 0.1, 0.01, 1e-3, 1e-4)
SEEDS = range(5)
LOSS = 1e-20
GIB = 2**30


def gaussian(n: int, d: int, seed: int) -> isthmus.Dataset:
    """Rows and targets from N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return isthmus.from_arrays(x, torch.randn(n, generator=generator, dtype=torch.float64))


def theorem_1() -> None:
    table = Table("Theorem 1 executed: n = 1000, d = 100, m = 24, no biases")
    data = gaussian(1000, 100, 0)
    isthmus.solve(data, width=24, bias=False)  # warm up
    for radius in RADII:
        start = time.perf_counter()
        found = isthmus.solve(data, width=24, radius=radius, bias=False, raise_on_failure=False)
        seconds = time.perf_counter() - start
        assert found.constraint is not None
        last = found.history[-1]
        distance = isthmus.kkt(found.model, data, found.constraint).primal
        exists = isthmus.newton_kantorovich(found.model, data)
        note = (
            f"{seconds:.2f} s, {last.factorizations} factorization, beyond the ball by {distance:.1g}, "
            f"{found.certificate.level}; {exists}"
        )
        table.row(f"radius {radius:g}: relative loss", found.loss, LOSS, note)


def half_width() -> None:
    table = Table("Half the theorem's width: Gaussian 1000 x 100, m = 10, no biases; seconds")
    reached = 0
    for seed in SEEDS:
        data = gaussian(1000, 100, seed)
        start = time.perf_counter()
        found = isthmus.solve(data, width=10, bias=False, seed=seed, target_loss=LOSS, raise_on_failure=False)
        seconds = time.perf_counter() - start
        reached += found.loss <= LOSS
        table.row(
            f"seed {seed}", seconds, 10.0, f"relative loss {found.loss:.0e}, {len(found.history)} iterations"
        )
    print(f"{reached} of {len(SEEDS)} seeds reach {LOSS:g}")


def images(rows: int, width: int, threads: int) -> None:
    """One case in this process; prints JSON."""
    torch.set_num_threads(threads)
    data = isthmus.load("fashion-mnist", rows=rows, labels="random")
    start = time.perf_counter()
    found = isthmus.solve(data, width=width, raise_on_failure=False)
    seconds = time.perf_counter() - start
    (narrower,) = found.precision
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        json.dumps({
            "seconds": seconds,
            "phases": found.seconds,
            "loss": found.loss,
            "iterations": len(found.history),
            "factorizations": found.history[-1].factorizations,
            "wrong": found.certificate.wrong,
            "level": found.certificate.level,
            "wrong_in_float32": narrower.wrong,
            "gib": peak,
        })
    )


def in_process(rows: int, width: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", str(rows), str(width), "--threads", str(threads)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def image_table(cases: list[tuple[int, int, float, float]], threads: int) -> None:
    table = Table(f"Fashion-MNIST, ten random classes, {threads} thread(s): seconds, and GiB at the peak")
    for rows, width, seconds, gib in cases:
        seen = in_process(rows, width, threads)
        note = (
            f"{seen['wrong']} of {rows} rows wrong in float64 ({seen['level']}), "
            f"{seen['wrong_in_float32']} in float32; loss {seen['loss']:.0e}, "
            f"{seen['iterations']} iterations, {seen['factorizations']} factorization(s)"
        )
        table.row(f"{rows} rows, {width} units: seconds", seen["seconds"], seconds, note)
        table.row(f"{rows} rows, {width} units: GiB", seen["gib"], gib)


def against_factorization(sizes: list[tuple[int, int]], threads: int) -> None:
    """Whole solves, preparation and all, over one factorization of the same size by LAPACK."""
    table = Table("Seconds of a whole solve over those of one factorization of n x n in float64 (n^3 / 3)")
    torch.set_num_threads(threads)
    for rows, width in sizes:
        seen = in_process(rows, width, threads)
        matrix = torch.eye(rows, dtype=torch.float64).add_(1e-3)
        start = time.perf_counter()
        torch.linalg.cholesky(matrix)
        once = time.perf_counter() - start
        del matrix
        phases = seen["phases"]
        spent = phases["prepare"] + phases["solve"]
        note = f"{spent:.1f} s over {once:.1f} s; the certificate takes {phases['certify']:.1f} s more"
        table.row(f"{rows} images, {width} units", spent / once, 1.5, note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", action="store_true")
    parser.add_argument("--large", nargs=2, type=int, action="append", default=[], metavar=("N", "WIDTH"))
    parser.add_argument("--one", nargs=2, type=int, metavar=("N", "WIDTH"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        rows, width = options.one
        images(rows, width, options.threads)
        return
    if options.large:
        image_table([(rows, width, 3600.0, 24.0) for rows, width in options.large], options.threads)
        return
    theorem_1()
    half_width()
    image_table([(2000, 3, 30.0, 8.0)], options.threads)
    if options.images:
        image_table([(10_000, 28, 30.0, 8.0), (20_000, 56, 180.0, 8.0)], options.threads)
        against_factorization([(5000, 14), (10_000, 28)], options.threads)


if __name__ == "__main__":
    main()
