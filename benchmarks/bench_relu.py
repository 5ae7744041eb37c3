"""ReLU and leaky ReLU: how many starts of five end in a fit, by descent alone and by `isthmus.solve`.

Gaussian rows with Gaussian targets, to a relative loss of 1e-20, and Fashion-MNIST with ten random classes,
until every row is right. Descent alone is Levenberg-Marquardt from the same starts with as many iterations.
The first number behind a width is that of free parameters over equations: a factor may pass through each
ReLU, so a unit of d inputs, with a bias, has d + 1 of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal
from unittest.mock import patch

import torch
from table import Table

import isthmus
from isthmus.narrow.solver import attempt
from isthmus.narrow.solver.levenberg import Point, levenberg_marquardt

SEEDS = range(5)
GAUSSIAN = ((500, 50, (10, 11, 12, 15)), (1000, 100, (10, 11, 12)), (300, 5, (55, 63)))  # n, d, widths
IMAGES = ((1000, (2, 3)), (2000, (3, 4)))
LOSS = 1e-20
Activation = Literal["relu", "leaky_relu"]


def alone(x: Any, point: Any, **options: Any) -> Any:
    """Levenberg-Marquardt, from where `sharpen` would begin."""
    return levenberg_marquardt(x, Point(point.weight, point.outer), **options)


def fits(data: Callable[[int], Any], width: int, activation: Activation) -> tuple[int, int, float]:
    """Starts that end in a fit, iterations, and seconds for all of them."""
    start, fitted, iterations = time.process_time(), 0, 0
    for seed in SEEDS:
        found = isthmus.solve(
            data(seed), width=width, activation=activation, method="lm", seed=seed, raise_on_failure=False
        )
        exact = found.data.task == "classification" or found.loss <= LOSS
        fitted += exact and not found.certificate.wrong
        iterations += len(found.history)
    return fitted, iterations, time.process_time() - start


def gaussian(n: int, d: int, seed: int) -> Any:
    """Rows and targets from N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x, torch.randn(n, generator=generator, dtype=torch.float64)


def compare(table: Table, case: str, data: Callable[[int], Any], width: int, activation: Activation) -> None:
    with patch.object(attempt, "sharpen", alone):
        before, _, without = fits(data, width, activation)
    after, iterations, seconds = fits(data, width, activation)
    note = f"{iterations / len(SEEDS):.0f} iterations, {seconds / len(SEEDS):.2g} s; alone: "
    table.row(
        f"{case}, {activation}",
        len(SEEDS) - after,
        0,
        f"{note}{len(SEEDS) - before} fail, {without / len(SEEDS):.2g} s",
    )


def main() -> None:
    torch.set_num_threads(1)
    activations: tuple[Activation, ...] = ("relu", "leaky_relu")
    table = Table(f"Starts of {len(SEEDS)} that do not end in a fit")
    for n, d, widths in GAUSSIAN:
        for width in widths:
            for activation in activations:
                free = (width * (d + 1) + 1) / n
                case = f"Gaussian {n} x {d}, m = {width} ({free:.2f})"
                compare(table, case, lambda seed, n=n, d=d: gaussian(n, d, seed), width, activation)
    for rows, widths in IMAGES:
        images = isthmus.load("fashion-mnist", rows=rows, labels="random")
        for width in widths:
            for activation in activations:
                case = f"{rows} images, m = {width} ({width * 785 / rows:.2f})"
                compare(table, case, lambda _, images=images: images, width, activation)


if __name__ == "__main__":
    main()
