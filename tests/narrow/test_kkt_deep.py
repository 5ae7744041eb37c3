"""KKT residuals of a residual block and of a deep MLP, against J by torch.func and residuals by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import isthmus
from isthmus.nets.mlp import mlp
from tests.jacobian.networks import Block, randn, randomized

MODELS = {
    "residual block": (
        Block,
        (12, 2, 5, 5),
        ("block.conv1.weight", "block.conv2.weight", "block.bn2.weight"),
    ),
    "mlp": (lambda: mlp(5, [6, 7, 8], 3, paired=False), (12, 5), ("layer2.weight", "layer3.weight")),
    "paired mlp": (lambda: mlp(5, [6, 7, 8], 3), (12, 5), ("layer3.weight", "layer3.bias")),
}
TASKS = {
    "values": lambda: randn(12, 3, seed=5),
    "classes": lambda: torch.arange(12) % 3,
}


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, dict[str, Tensor]]:
    """The loss, and J^T times its derivative in the outputs, in evaluation mode."""
    point = {name: parameter.detach() for name, parameter in model.named_parameters()}
    model.eval()
    outputs = model(x).detach()
    jacobian = torch.func.jacrev(lambda point: torch.func.functional_call(model, point, (x,)))(point)
    model.train()
    if y.is_floating_point():
        loss, slope = ((outputs - y) ** 2).sum() / 2, outputs - y
    else:
        chances = outputs.exp() / outputs.exp().sum(1, keepdim=True)
        loss = -chances[range(len(y)), y].log().sum()
        slope = chances - torch.eye(3, dtype=chances.dtype)[y]
    return float(loss), {
        name: torch.einsum("nk,nk...->...", slope, block).detach() for name, block in jacobian.items()
    }


def _dot(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return math.fsum(float((a[name] * b[name]).sum()) for name in a)


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("outwards", [True, False])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("case", MODELS)
def test_residuals_on_the_sphere(case: str, task: str, outwards: bool, joint: bool) -> None:
    """The weights lie so that -g points out of the ball, or into it."""
    make, shape, names = MODELS[case]
    model, x, y = randomized(make()), randn(*shape), TASKS[task]()
    loss, gradient = _gradient(model, x, y)
    point = {name: model.get_parameter(name).detach().clone() for name in names}
    g = {name: gradient[name] for name in names}
    free = math.sqrt(_dot(gradient, gradient) - _dot(g, g))

    sign, radius = -1 if outwards else 1, 0.6
    parts = [names] if joint else [(name,) for name in names]
    center, normal, stepped = {}, {}, {}
    multiplier = 0.0
    for part in parts:
        own = {name: g[name] for name in part}
        # Half along the gradient, half across it.
        across = {name: randn(*own[name].shape, seed=7) for name in part}
        size = math.sqrt(_dot(own, own)), math.sqrt(_dot(across, across))
        u = {name: sign * own[name] / size[0] + across[name] / size[1] for name in part}
        length = math.sqrt(_dot(u, u))
        u = {name: tensor / length for name, tensor in u.items()}
        center |= {name: point[name] - radius * u[name] for name in part}
        pull = max(0.0, -_dot(own, u))
        assert (pull > 0) == outwards
        normal |= {name: pull * u[name] for name in part}
        multiplier = math.hypot(multiplier, pull)
        away = {name: radius * u[name] - own[name] for name in part}
        shrunk = min(1.0, radius / math.sqrt(_dot(away, away)))
        stepped |= {name: center[name] + shrunk * away[name] for name in part}

    found = isthmus.kkt(model, (x, y), isthmus.Ball(radius, joint=joint).at(center))
    rest = {name: g[name] + normal[name] for name in names}
    step = {name: point[name] - stepped[name] for name in names}
    scale = math.sqrt(_dot(gradient, gradient))
    assert found.loss == pytest.approx(loss, rel=1e-12)
    assert found.gradient == pytest.approx(scale, rel=1e-10)
    assert found.stationarity == pytest.approx(math.hypot(math.sqrt(_dot(rest, rest)), free), rel=1e-10)
    assert found.natural == pytest.approx(math.hypot(math.sqrt(_dot(step, step)), free), rel=1e-10)
    assert found.multiplier == pytest.approx(multiplier, rel=1e-10, abs=1e-10 * scale)
    assert found.primal <= 1e-10
    assert abs(found.complementarity) <= 1e-10 * scale * radius
    assert model.training


@pytest.mark.parametrize("case", MODELS)
def test_inside_the_ball_nothing_pulls(case: str) -> None:
    make, shape, names = MODELS[case]
    model, x, y = randomized(make()), randn(*shape), TASKS["values"]()
    _, gradient = _gradient(model, x, y)
    center = {name: model.get_parameter(name).detach() + 0.01 for name in names}
    found = isthmus.kkt(model, (x, y), isthmus.Ball(10.0).at(center))
    assert found.stationarity == found.gradient
    assert found.gradient == pytest.approx(math.sqrt(_dot(gradient, gradient)), rel=1e-10)
    assert (found.multiplier, found.primal, found.complementarity) == (0, 0, 0)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("case", MODELS)
def test_the_gradient_is_that_of_finite_differences(case: str, task: str) -> None:
    """Along a few directions, by central differences of the sixth order."""
    make, shape, names = MODELS[case]
    model, x, y = randomized(make()), randn(*shape), TASKS[task]()
    _, gradient = _gradient(model, x, y)
    constraint = isthmus.Ball(10.0).at({name: model.get_parameter(name).detach() for name in names})
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for seed in range(2):
        direction = {name: randn(*tensor.shape, seed=seed) for name, tensor in start.items()}
        length = math.sqrt(_dot(direction, direction))
        slope = 0.0
        for step, weight in zip((-3, -2, -1, 1, 2, 3), (-1, 9, -45, 45, -9, 1), strict=True):
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(start[name] + 1e-3 * step * direction[name] / length)
            slope += weight * isthmus.kkt(model, (x, y), constraint).loss / 0.06
        assert slope == pytest.approx(_dot(gradient, direction) / length, rel=1e-8, abs=1e-9)
