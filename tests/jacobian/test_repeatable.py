"""Models that change between two calls are refused with the module to blame; nothing else is disturbed."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from isthmus.errors import UnsupportedModel
from isthmus.jacobian import per_sample_jacobian, require_repeatable
from tests.jacobian.networks import CASES, randn


class Careless(nn.Module):
    """Dropout that does not know of evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.3, training=True)


class Noise(nn.Module):
    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-3 * self.draw(x)


class CountingBuffer(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


class CountingAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Between(nn.Module):
    """Random in its own code, between two layers that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(functional.dropout(self.first(x), 0.5))


class SkippedByChance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x) if torch.rand(()) < 0.5 else x


class SecondCall(nn.Module):
    """The same activation twice, and noise once in between."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.noise = nn.ReLU(inplace=True), Noise(torch.randn_like)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.noise(self.act(x.clone())))


BLAMED = {
    "Careless": (Careless, "mid"),
    "Noise": (lambda: Noise(torch.randn_like), "mid"),
    "NumPy": (lambda: Noise(lambda x: torch.from_numpy(np.random.standard_normal(x.shape))), "mid"),  # noqa: NPY002
    "random": (lambda: Noise(lambda x: torch.full_like(x, random.random())), "mid"),
    "CountingBuffer": (CountingBuffer, "mid"),
    "CountingAttribute": (CountingAttribute, "mid"),
    "Between": (Between, "mid"),
    "SkippedByChance": (SkippedByChance, "mid"),
    "SecondCall": (SecondCall, "mid.noise"),
    "nested": (lambda: nn.Sequential(nn.Tanh(), nn.Sequential(Between(), Careless())), "mid.1.0"),
}


class Around(nn.Module):
    """With layers, and harmless dropout, on both sides of what is tried."""

    def __init__(self, mid: nn.Module) -> None:
        super().__init__()
        self.head = nn.Linear(6, 2)  # it comes last, whatever its place in the list of modules
        self.mid = mid
        self.first, self.dropout = nn.Linear(4, 6), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.mid(self.dropout(self.first(x)))))


def _seed_that_skips_once(first: int) -> int:
    """After which one of two calls skips, and the other does not."""
    while (torch.rand(2, generator=torch.Generator().manual_seed(first)) < 0.5).sum() != 1:
        first += 1
    return first


@pytest.mark.parametrize("case", BLAMED)
@pytest.mark.parametrize("seed", range(3))
def test_the_module_to_blame_is_named(case: str, seed: int) -> None:
    make, name = BLAMED[case]
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    model = Around(make()).double()
    if case == "SkippedByChance":
        torch.manual_seed(_seed_that_skips_once(seed))
    kind = type(model.get_submodule(name)).__name__
    generators = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    state = {each: tensor.clone() for each, tensor in model.state_dict().items()}
    with pytest.raises(UnsupportedModel, match=rf"the module '{name}', a {kind}, gives different outputs"):
        require_repeatable(model, randn(8, 4))
    assert torch.equal(generators[0], torch.get_rng_state())
    assert generators[1:] == (random.getstate(), str(np.random.get_state()))  # noqa: NPY002
    assert all(torch.equal(state[each], tensor) for each, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_model_itself_may_be_to_blame() -> None:
    with pytest.raises(UnsupportedModel, match="the model itself, a Careless"):
        require_repeatable(Careless(), randn(8, 4))


def test_instruments_refuse_it() -> None:
    with pytest.raises(UnsupportedModel, match="'mid', a Careless"):
        per_sample_jacobian(Around(Careless()).double(), randn(8, 4))


def test_a_change_in_the_last_of_many_rows_is_seen() -> None:
    class Late(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x[:, :1] > 10, x + torch.randn_like(x), x)

    x = randn(3000, 4)
    require_repeatable(Late(), x)
    x[-1] = 11
    with pytest.raises(UnsupportedModel, match="a Late"):
        require_repeatable(Late(), x)


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_change_passes(case: str) -> None:
    model, x = CASES[case]()
    require_repeatable(nn.Sequential(model, nn.Dropout(0.5)).train(), x)


def test_outputs_that_are_not_numbers_are_no_change() -> None:
    require_repeatable(nn.Threshold(0.0, float("nan")), randn(8, 4))


@pytest.mark.parametrize(
    "mixing",
    [
        nn.BatchNorm1d(4, track_running_stats=False),
        nn.Softmax(dim=0),
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Tanh()),
    ],
)
def test_rows_that_depend_on_each_other_are_refused(mixing: nn.Module) -> None:
    model = nn.Sequential(mixing, nn.Linear(4, 2)).double()
    with pytest.raises(UnsupportedModel, match="depends on the rows beside it"):
        per_sample_jacobian(model, randn(8, 4))
