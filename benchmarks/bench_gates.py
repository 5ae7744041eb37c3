"""One hidden layer (Corollary 4.2): the paper's widths on Gaussian rows, and real data that are not general.

Rows wrong against none, and hidden units against the theorem's number or better.
"""

from __future__ import annotations

import torch
from table import Table

import isthmus
from isthmus._types import Activation
from isthmus.bounds.theorems import HARDTANH_GATE, RELU_GATE, smallest_gates

SHAPES = ((50, 3, 2), (500, 10, 3), (1000, 50, 10), (2000, 20, 10), (2000, 4, 5), (1999, 100, 100))
SEEDS = range(5)
ACTIVATIONS: tuple[Activation, ...] = ("hardtanh", "relu", "leaky_relu")


def main() -> None:
    table = Table("Corollary 4.2 at the paper's widths: rows wrong, over 5 seeds")
    for activation in ACTIVATIONS:
        gate = HARDTANH_GATE if activation == "hardtanh" else RELU_GATE
        for rows, inputs, classes in SHAPES:
            wrong, levels = 0, []
            width = smallest_gates(rows, inputs, classes, gate)
            for seed in SEEDS:
                data = isthmus.load(f"gaussian:n={rows},d={inputs},k={classes},seed={seed}")
                found = isthmus.memorize(
                    data,
                    widths=(width,),
                    activation=activation,
                    rule="paper",
                    seed=seed,
                    raise_on_failure=False,
                )
                wrong += found.certificate.wrong
                levels.append(found.certificate.level)
            counts = ", ".join(f"{levels.count(level)} {level}" for level in dict.fromkeys(levels))
            table.row(
                f"{activation}, N = {rows}, d = {inputs}, K = {classes}", wrong, 0, f"{width} units; {counts}"
            )

    units = Table("Real data: hidden units against the number required")
    cases: tuple[tuple[str, str, Activation, torch.dtype, int], ...] = (
        ("digits", "true", "hardtanh", torch.float32, 80),
        ("digits", "true", "relu", torch.float64, 120),
        ("fashion-mnist", "true", "relu", torch.float64, 347),
        ("fashion-mnist", "random", "relu", torch.float64, 347),
        ("fashion-mnist", "true", "hardtanh", torch.float64, 174),
        ("fashion-mnist", "random", "hardtanh", torch.float64, 174),
    )
    for name, labels, activation, dtype, most in cases:
        data = isthmus.load(name, labels="random" if labels == "random" else "true")
        found = isthmus.memorize(data, method="gates", activation=activation, dtype=dtype)
        seconds = ", ".join(f"{what} {time:.1f} s" for what, time in found.seconds.items())
        case = f"{name}, {labels} labels, {activation}, {found.certificate.dtype}"
        units.row(case, found.hidden_units, most, f"{found.certificate}; {seconds}")


if __name__ == "__main__":
    main()
