"""Loops of Lightning Fabric and accelerate: what they wrap is seen through, and the radius holds."""

import math

import pytest
import torch
from torch import Tensor, nn

import isthmus
from isthmus.nets.mlp import mlp

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore"),  # theirs are not ours to judge
]

RADIUS, STEPS = 0.3, 1000


def _prepared() -> tuple[nn.Sequential, torch.optim.Optimizer, Tensor, Tensor]:
    model = mlp(10, [24, 16], 3)
    isthmus.mirror(model.layer2)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(64, 10, generator=generator), 3 * torch.randn(64, 3, generator=generator)
    return model, torch.optim.AdamW(model.parameters(), lr=0.05), x, y


def _radius(model: nn.Module, handle: isthmus.Regime) -> float:
    own = dict(model.named_parameters())
    center = handle.constraint.center
    squares = sum((own[name].detach().double() - center[name].double()).square().sum() for name in center)
    return math.sqrt(float(squares))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabric(precision: str) -> None:
    fabric = pytest.importorskip("lightning_fabric").Fabric(accelerator="cpu", devices=1, precision=precision)
    model, optimizer, x, y = _prepared()
    wrapped, stepped = fabric.setup(model, optimizer)
    handle = isthmus.attach(wrapped, stepped, blocks="layer2", head="fc", constraint=isthmus.Ball(RADIUS))
    worst = 0.0
    for _ in range(STEPS):
        stepped.zero_grad()
        fabric.backward((wrapped(x) - y).square().mean())
        stepped.step()
        worst = max(worst, _radius(model, handle))
    assert 0.99 * RADIUS < worst <= RADIUS


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(precision: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=5)
    model, optimizer, x, y = _prepared()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    wrapped, stepped, scheduler = accelerator.prepare(model, optimizer, scheduler)
    handle = isthmus.attach(wrapped, stepped, blocks="layer2", head="fc", constraint=isthmus.Ball(RADIUS))
    calls, worst = 0, 0.0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    optimizer.register_step_post_hook(count)
    for _ in range(STEPS):
        with accelerator.accumulate(wrapped):
            accelerator.backward((wrapped(x) - y).square().mean())
            stepped.step()
            scheduler.step()
            stepped.zero_grad()
        worst = max(worst, _radius(model, handle))
    assert calls == STEPS // 5
    assert 0.99 * RADIUS < worst <= RADIUS
