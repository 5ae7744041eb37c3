"""Theorem 3.1 and Proposition 3.2 at exact equality of the paper's widths, in float64.

For every activation, over aspect ratios of groups to rows per group: the worst error of a regression against
1e-6, the rows that a classifier gets wrong, and how often a network was refused instead.
"""

from __future__ import annotations

from typing import Any

import torch
from table import Table

import isthmus
from isthmus.errors import NotCertified, PrecisionError

SEEDS = range(3)
SHAPES = ((44, 44), (200, 10), (20, 100), (4, 500), (900, 2))  # groups, rows per group: both even
INPUTS = (1, 2, 16)


def rows(count: int, inputs: int, generator: torch.Generator) -> torch.Tensor:
    """Gaussian rows; on a line, with gaps of 0.2 to 2.2 times the mean [count, inputs]."""
    if inputs > 1:
        return torch.randn(count, inputs, generator=generator, dtype=torch.float64)
    gaps = torch.empty(count, dtype=torch.float64).exponential_(generator=generator) + 0.2
    return gaps.cumsum(0)[torch.randperm(count, generator=generator), None]


def main() -> None:
    torch.set_num_threads(1)
    errors = Table("Regression at the paper's widths: worst error over seeds")
    failures = []
    for activation in ("hardtanh", "relu", "leaky_relu"):
        units = 1 if activation == "hardtanh" else 2
        for outputs in (1, 3):
            for inputs in INPUTS:
                worst, refused, wrong, bitwise, total = 0.0, 0, 0, 0, 0
                for groups, size in SHAPES:
                    for seed in SEEDS:
                        generator = torch.Generator().manual_seed(seed)
                        x = rows(groups * size, inputs, generator)
                        y = torch.rand(len(x), outputs, generator=generator, dtype=torch.float64) * 2 - 1
                        labels = torch.randint(10, (len(x),), generator=generator)
                        widths = (units * groups, units * size * outputs)
                        common: dict[str, Any] = {"rule": "paper", "activation": activation, "seed": seed}
                        total += 1
                        try:
                            found = isthmus.memorize((x, y), widths=widths, tolerance=1e-6, **common)
                            worst = max(worst, float((found.model(x) - y).abs().max()))
                        except (NotCertified, PrecisionError):
                            refused += 1
                        if outputs > 1:
                            continue
                        try:
                            widths = (units * groups, units * size, 2 * 10 * units)
                            found = isthmus.memorize((x, labels), widths=widths, **common)
                            wrong += int((found.model(x).argmax(1) != labels).sum())
                            bitwise += found.certificate.level == "bitwise"
                        except (NotCertified, PrecisionError):
                            wrong += len(x)
                case = f"{activation}, {inputs} inputs, {outputs} outputs"
                errors.row(case, worst, 1e-6, f"{refused} of {total} refused")
                if outputs == 1:
                    failures.append((case, wrong, 0, f"{bitwise} of {total} networks bitwise"))
    table = Table("Classification at the paper's widths: rows wrong or refused")
    for failure in failures:
        table.row(*failure)


if __name__ == "__main__":
    main()
