"""Residual and deep networks, real targets from gates and the zigzag at exact equality of their widths.

Rows wrong, or the worst error, over seeds; what a network gives is computed in rational arithmetic on up to
200 rows, and in float64 on all. Theorem 3.1, Proposition 3.2 and Corollary 4.2 have benchmarks of their own
(`bench_paper_widths`, `bench_gates`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch
from table import Table

import isthmus
from isthmus import graph
from isthmus._types import Activation
from isthmus.arithmetic.exact import exact_forward
from isthmus.bounds.deep import deep_problem, smallest_deep
from isthmus.errors import NotCertified, PrecisionError

ACTIVATIONS: tuple[Activation, ...] = ("hardtanh", "relu", "leaky_relu")
SHAPES = ((60, 6), (500, 10), (2000, 20))  # rows, inputs
DEPTHS = (4, 8, 13)
CLASSES = 10
SEEDS = range(3)
RATIONAL_ROWS = 200


def sets(rows: int, inputs: int, *, values: bool) -> Iterator[tuple[int, Any]]:
    """Gaussian rows with random targets.

    Yields:
        The seed and the data set.
    """
    targets = "task=regression" if values else f"k={CLASSES if inputs > CLASSES else 4}"
    for seed in SEEDS:
        yield seed, isthmus.load(f"gaussian:n={rows},d={inputs},{targets},seed={seed}")


def shortfall(data: isthmus.Dataset, values: bool, **options: Any) -> tuple[float, int]:
    """The worst error, or the rows wrong, of one network; and its hidden units. All rows if it is refused."""
    options |= {"tolerance": 1e-6} if values else {}
    try:
        found = isthmus.memorize(data, level="measured", **options)
    except (NotCertified, PrecisionError):
        return (float("inf") if values else data.rows), 0
    some = slice(None, None, -(-data.rows // RATIONAL_ROWS))
    exact = exact_forward(graph.stages(found.model), data.x[some])
    if values:
        wanted = [Fraction(value) for value in data.y[some].flatten().tolist()]
        error = max(abs(a - b) for a, b in zip(exact.fractions().flat, wanted, strict=True))
        return max(float(error), float((found.model(data.x) - data.y).abs().max())), found.hidden_units
    wrong = int((exact.winners() != data.y[some].numpy()).sum())
    return max(wrong, found.certificate.wrong), found.hidden_units


def deep_widths(data: isthmus.Dataset, activation: Activation, depth: int, values: bool) -> tuple[int, ...]:
    """The paper's narrowest widths; of the layers that blocks stand in none is wider than it must be."""
    problem = deep_problem(data.rows, data.inputs, data.outputs, activation, "paper", not values)
    return smallest_deep(problem, depth, "width")


def deep(table: Table, activation: Activation, values: bool) -> None:
    for rows, inputs in SHAPES:
        for depth in DEPTHS:
            worst, start = 0.0, time.perf_counter()
            widths: tuple[int, ...] = ()
            for seed, data in sets(rows, inputs, values=values):
                widths = deep_widths(data, activation, depth, values)
                method = "deep" if values else "deep-classifier"
                options: dict[str, Any] = {
                    "method": method,
                    "widths": widths,
                    "rule": "paper",
                    "activation": activation,
                }
                worst = max(worst, shortfall(data, values, seed=seed, **options)[0])
            name = f"{'3.4, A.1' if values else 'A.2, A.3'} {activation}, N = {rows}, L = {depth}"
            note = f"at most {max(widths)} wide; {time.perf_counter() - start:.1f} s for {len(SEEDS)}"
            table.row(name, worst, 1e-6 if values else 0, note)


def main() -> None:
    table = Table("Residual networks (4.1) at 2N/d + 2K units, or 4N/d + 4K: rows wrong over 3 seeds")
    for activation in ACTIVATIONS:
        for rows, inputs in SHAPES:
            for depth in DEPTHS:
                worst, units = 0.0, 0
                for seed, data in sets(rows, inputs, values=False):
                    options = {
                        "method": "residual",
                        "depth": depth,
                        "rule": "paper",
                        "activation": activation,
                    }
                    wrong, most = shortfall(data, False, seed=seed, **options)
                    worst, units = max(worst, wrong), max(units, most)
                table.row(f"{activation}, N = {rows}, d = {inputs}, L = {depth}", worst, 0, f"{units} units")
    units = Table("Residual network, N = 2000, d = 20, K = 10: all hidden hard-tanh units against 220")
    for rule in ("paper", "tight"):
        for seed, data in sets(2000, 20, values=False):
            wrong, most = shortfall(data, False, method="residual", depth=4, rule=rule, seed=seed)
            units.row(f"rule '{rule}', seed {seed}", most, 220, f"{wrong:.0f} rows wrong")
    for values in (True, False):
        what = "worst error" if values else "rows wrong"
        table = Table(f"Deep networks at the paper's narrowest widths: {what} over 3 seeds")
        for activation in ACTIVATIONS:
            deep(table, activation, values)
    table = Table("Real targets from gates (Bubeck et al.), 2 ceil(N/d) hard-tanh units or 4 ceil(N/d) ReLUs")
    for activation in ACTIVATIONS:
        for rows, inputs in SHAPES:
            width = (2 if activation == "hardtanh" else 4) * -(-rows // inputs)
            worst = max(
                shortfall(data, True, method="gates", widths=(width,), activation=activation, seed=seed)[0]
                for seed, data in sets(rows, inputs, values=True)
            )
            table.row(f"{activation}, N = {rows}, d = {inputs}", worst, 1e-6, f"{width} units")
    table = Table("Zigzag, N = 1024 at 32 x 32 ReLUs: error against 1e-3")
    names = [f"gaussian:n=1024,d=16,task=regression,seed={seed}" for seed in SEEDS]
    for name in [*names, "gaussian:n=1024,d=1,task=regression", "zigzag:n=1024"]:
        data = isthmus.load(name)
        start = time.perf_counter()
        found = isthmus.memorize(
            data, method="zigzag", activation="relu", widths=(32, 32), tolerance=1e-3, raise_on_failure=False
        )
        error = found.certificate.max_error
        exact = exact_forward(graph.stages(found.model), data.x).fractions().astype(float)
        rational = float(abs(exact - data.y.numpy()).max())
        note = f"{rational:.1e} in rational arithmetic; {time.perf_counter() - start:.1f} s"
        table.row(name, float("inf") if error is None else error, 1e-3, note)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
