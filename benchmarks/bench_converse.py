"""Theorem 3.3 and the sharper count against networks: linear pieces along a line, counted exactly.

Random networks with few, simple weights: how many have more pieces than a bound allows, and the nearest.
Networks that fit the zigzag of N rows: N - 1, which they must have, over the pieces they do have.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from table import Table
from torch import nn

import isthmus
from isthmus._types import Activation
from isthmus.bounds.pieces import linear_pieces
from isthmus.memorize.plan import Method
from isthmus.nets.residual import Residual

NETWORKS = 1000
WEIGHTS = (0, 0, 1, -1, 2, -2, 3, 0.5, -0.5, 0.375)
BENT = (nn.ReLU(), nn.LeakyReLU(0.25), nn.Hardtanh(), nn.Hardtanh(-0.5, 2.0), nn.ReLU6())
SHAPES = {"one hidden layer": (1, False), "2 to 4 hidden layers": (4, False), "residual": (4, True)}
ROWS = (40, 400, 2000)
ACTIVATIONS: tuple[Activation, ...] = ("relu", "hardtanh", "leaky_relu")


@dataclass
class Tally:
    """Networks beyond a bound, and the largest share of it that one has."""

    beyond: int = 0
    nearest: float = 0.0

    def add(self, count: int, bound: int) -> None:
        """Compare one network's pieces with a bound of them."""
        self.beyond += count > bound
        self.nearest = max(self.nearest, count / bound)


def main() -> None:
    table = Table(f"{NETWORKS} random networks, exact: how many have more pieces than a bound allows")
    for name, (depth, residual) in SHAPES.items():
        start = time.perf_counter()
        by_layer, by_unit = Tally(), Tally()
        for seed in range(NETWORKS):
            model, inputs = random_network(np.random.default_rng(seed), depth, residual)
            pieces = linear_pieces(model, [0.0] * inputs, [1.0, -0.5, 0.25][:inputs], exact=True)
            by_layer.add(pieces.count, pieces.by_layer)
            if pieces.by_unit is not None:
                by_unit.add(max(pieces.per_output), pieces.by_unit)
        seconds = f"{time.perf_counter() - start:.1f} s"
        table.row(f"{name}: sharper bound", by_layer.beyond, 0, f"nearest {by_layer.nearest:.3f}; {seconds}")
        if not residual:
            table.row(f"{name}: paper's bound", by_unit.beyond, 0, f"nearest {by_unit.nearest:.3f}")

    needed = Table("Networks through the zigzag of N rows: the N - 1 pieces needed against those there are")
    for rows in ROWS:
        zigzag(needed, "interpolant", "relu", rows)
        for activation in ACTIVATIONS:
            zigzag(needed, "three-layer", activation, rows)


def random_network(random: np.random.Generator, depth: int, residual: bool) -> tuple[nn.Module, int]:
    """A network with hidden layers of at most 6 units and one output, and how many inputs it takes."""
    inputs = int(random.integers(1, 4))
    layers: list[nn.Module] = []
    fan_in = inputs
    for _ in range(random.integers(min(2, depth), depth + 1)):
        fan_out = int(random.integers(1, 7))
        bent = BENT[random.integers(len(BENT))]
        if residual:
            layers.append(Residual(linear(random, fan_in, fan_out), bent, linear(random, fan_out, fan_in)))
        else:
            layers += [linear(random, fan_in, fan_out), bent]
            fan_in = fan_out
    return nn.Sequential(*layers, linear(random, fan_in, 1)), inputs


def linear(random: np.random.Generator, fan_in: int, fan_out: int) -> nn.Linear:
    layer = nn.Linear(fan_in, fan_out, dtype=torch.float64)
    for parameter in layer.parameters():
        parameter.data = torch.tensor(random.choice(WEIGHTS, tuple(parameter.shape)))
    return layer


def zigzag(table: Table, method: Method, activation: Activation, rows: int) -> None:
    data = isthmus.load(f"zigzag:n={rows}")
    found = isthmus.memorize(
        data, method=method, activation=activation, level="measured", raise_on_failure=False
    )
    widths = "-".join(map(str, found.widths))
    case = f"{method}, {activation}, N = {rows}, widths {widths}"
    if found.certificate.wrong:
        print(f"{case}: {found.certificate.wrong} rows wrong, so its pieces are not counted")
        return
    start = time.perf_counter()
    pieces = linear_pieces(found.model, data.x[0], data.x[-1], exact=True)
    seconds = time.perf_counter() - start
    note = f"bounds {pieces.by_layer} (sharper), {pieces.by_unit} (paper); {seconds:.2f} s"
    table.row(case, rows - 1, pieces.count, note)


if __name__ == "__main__":
    main()
