"""The rounding bound against the rational forward pass on 1,000 random networks: never below the error."""

from __future__ import annotations

from itertools import pairwise
from statistics import median

import torch
from table import Table
from torch import nn

from isthmus import graph
from isthmus.arithmetic.exact import exact_forward
from isthmus.arithmetic.rounding import running_bound

ACTIVATIONS = (nn.Hardtanh, nn.ReLU, nn.LeakyReLU, nn.ReLU6)
NETWORKS = 1000


def network(generator: torch.Generator, dtype: torch.dtype) -> nn.Sequential:
    """A random network of 1 to 4 layers of 1 to 12 units, with weights over several orders of magnitude."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    sizes = [draw(1, 12) for _ in range(draw(2, 5))]
    activation = ACTIVATIONS[draw(0, len(ACTIVATIONS) - 1)]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs, dtype=dtype)
        for parameter in linear.parameters():
            scale = torch.exp2(torch.randint(-12, 13, parameter.shape, generator=generator).double())
            parameter.data = (
                torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
            ).to(dtype)
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1]).requires_grad_(False)


def main() -> None:
    table = Table("True error as a part of the bound, largest over outputs: at most 1")
    for dtype in (torch.float64, torch.float32):
        generator = torch.Generator().manual_seed(0)
        parts = []
        for _ in range(NETWORKS):
            model = network(generator, dtype)
            stages = graph.stages(model)
            inputs = next(stage for stage in stages if isinstance(stage, graph.Dense)).weight.shape[1]
            x = torch.randn(8, inputs, generator=generator, dtype=torch.float64).to(dtype)
            exact = exact_forward(stages, x).fractions()
            output, bound = model(x).double(), running_bound(stages, x)[1]
            for row in range(len(x)):
                for column in range(output.shape[1]):
                    error = abs(
                        float(exact[row][column] - type(exact[row][column])(float(output[row, column])))
                    )
                    limit = float(bound[row, column])
                    parts.append(error / limit if limit else float(error > 0) * 2)
        table.row(f"{NETWORKS} networks, {dtype}", max(parts), 1, f"median {median(parts):.2g}")


if __name__ == "__main__":
    main()
