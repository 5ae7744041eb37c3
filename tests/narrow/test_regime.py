"""The attached regime: radii that hold under every optimizer; its rules for saving, loading, copying."""

import copy
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isthmus
from isthmus.errors import InputError, ModelFileError, PrecisionError, UnsupportedModel, WidthError
from isthmus.nets.mlp import mlp
from isthmus.nets.resnet import resnet18

STEPS = 200
RADIUS = 0.3

Build = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Build] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, foreach=False),
    "sgd, foreach": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, nesterov=True, foreach=True),
    "sgd, fused": lambda p: torch.optim.SGD(p, lr=0.5, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, foreach=False),
    "adam, foreach": lambda p: torch.optim.Adam(p, lr=0.05, foreach=True),
    "adam, fused": lambda p: torch.optim.Adam(p, lr=0.05, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, foreach=False),
    "adamw, foreach": lambda p: torch.optim.AdamW(p, lr=0.05, foreach=True),
    "adamw, fused": lambda p: torch.optim.AdamW(p, lr=0.05, fused=True),
    "adamw, tensor rate": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.05), capturable=False),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.05),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.05),
    "l-bfgs": lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=3),
    "l-bfgs, wolfe": lambda p: torch.optim.LBFGS(p, max_iter=3, line_search_fn="strong_wolfe"),
}


def _network(seed: int = 0) -> nn.Sequential:
    return mlp(10, [24, 16], 3, seed=seed)


def _data(rows: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 10, generator=generator), 3 * torch.randn(rows, 3, generator=generator)


def _sets() -> isthmus.Product:
    return isthmus.Product({"layer2": isthmus.Ball(RADIUS), "fc": isthmus.FloorAndRatio(1e-2, 20.0)})


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    x, y = _data()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


def _radius(model: nn.Module, center: dict[str, Tensor]) -> float:
    """The distance in float64, written down once more."""
    own = dict(model.named_parameters())
    total = sum(
        (own[name].detach().double() - value.double()).square().sum() for name, value in center.items()
    )
    return math.sqrt(float(total))


def _center(handle: isthmus.Regime) -> dict[str, Tensor]:
    return {
        name: value.clone() for name, value in handle.constraint.center.items() if name.startswith("layer2")
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_radius_holds_with_every_optimizer(name: str) -> None:
    model = _network()
    optimizer = OPTIMIZERS[name]([*model.parameters()])
    handle = isthmus.attach(model, optimizer, blocks="layer2", head="fc", constraint=_sets())
    center = _center(handle)
    assert set(center) == {"layer2.weight", "layer2.bias"}
    assert not model(_data()[0]).any()
    worst = 0.0
    for _ in range(STEPS // 10):
        _train(model, optimizer, 10)
        worst = max(worst, _radius(model, center))
        norms = torch.linalg.vector_norm(model.fc.weight.detach().double(), dim=0)
        assert norms.min() >= 1e-2 * (1 - 1e-6)
        assert norms.max() <= 20 * norms.min() * (1 + 1e-6)
    assert 0.99 * RADIUS < worst <= RADIUS
    assert (model(_data()[0]) - _data()[1]).square().mean() < 0.9 * _data()[1].square().mean()


def test_algorithm_2_by_hand() -> None:
    """Gradients, momentum, both projections and the start written out in NumPy."""
    data = np.random.default_rng(0)
    n, d, h, lr, momentum, radius, floor, ratio = 40, 5, 6, 0.002, 0.9, 0.4, 0.02, 3.0
    x, y = data.normal(size=(n, d)), data.normal(size=n)
    model = mlp(d, [2 * h], 1, bias=False, seed=3).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    sets = isthmus.Product({"layer1": isthmus.Ball(radius), "fc": isthmus.FloorAndRatio(floor, ratio)})
    handle = isthmus.attach(model, optimizer, blocks="layer1", head="fc", constraint=sets, seed=11)

    generator = torch.Generator().manual_seed(11)
    half = (torch.randn(2 * h, d, generator=generator, dtype=torch.float64) / d**0.5).numpy()[:h]
    center = np.concatenate([half, half])
    v = torch.randn(1, h, generator=torch.Generator().manual_seed(11), dtype=torch.float64).numpy()[0]
    v /= (2 * h) ** 0.5
    sign = np.sign(v)

    def into_b(v: np.ndarray) -> np.ndarray:
        """The nearest point by looking at all levels near the best of many."""
        size = sign * v
        low, high = floor, max(size.max(), floor)
        for _ in range(60):
            levels = np.linspace(low, high, 101)
            nearest = np.clip(size, levels[:, None], ratio * levels[:, None])
            best = np.square(nearest - size).sum(1).argmin()
            low, high = levels[max(best - 1, 0)], levels[min(best + 1, 100)]
        return sign * np.clip(size, levels[best], ratio * levels[best])

    weight, v = center.copy(), into_b(v)
    speed_w, speed_v = np.zeros_like(weight), np.zeros_like(v)
    for _ in range(200):
        value = np.tanh(x @ weight.T)
        r = (value[:, :h] - value[:, h:]) @ v - y
        gradient_w = (r[:, None] * np.concatenate([v, -v]) * (1 - value**2)).T @ x
        speed_w = momentum * speed_w + gradient_w
        speed_v = momentum * speed_v + (value[:, :h] - value[:, h:]).T @ r
        weight, v = weight - lr * speed_w, into_b(v - lr * speed_v)
        offset = weight - center
        weight = center + offset * min(1.0, radius / np.linalg.norm(offset))

        optimizer.zero_grad()
        ((model(torch.from_numpy(x)).squeeze(1) - torch.from_numpy(y)).square().sum() / 2).backward()
        optimizer.step()
    assert handle.moved() > 0.3
    np.testing.assert_allclose(model.layer1.weight.detach().numpy(), weight, rtol=0, atol=1e-6)
    np.testing.assert_allclose(model.fc.weight.detach().numpy()[0], v, rtol=0, atol=1e-6)


def test_without_a_step_nothing_happens_and_without_a_limit_nothing_is_projected() -> None:
    plain, free = _network(), _network()
    isthmus.mirror(plain.layer2)
    one, two = (torch.optim.SGD(model.parameters(), lr=0.1) for model in (plain, free))
    isthmus.attach(free, two, blocks="layer2", head="fc")
    for model, optimizer in ((plain, one), (free, two)):
        _train(model, optimizer, 20)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, free.state_dict()[name]), name


def test_radius_zero_pins_the_blocks_to_the_center() -> None:
    model = _network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    handle = isthmus.attach(model, optimizer, blocks="layer2", head="fc", constraint=isthmus.Ball(0.0))
    _train(model, optimizer, 20)
    assert torch.equal(model.layer2.weight, handle.constraint.center["layer2.weight"])
    assert handle.moved() == 0


def test_a_plain_head_is_paired_and_takes_its_place_in_the_optimizer() -> None:
    model = mlp(10, [24, 16], 3, paired=False)
    old = model.fc.weight
    optimizer = torch.optim.Adam(
        [{"params": [model.layer1.weight, model.layer1.bias]}, {"params": model.fc.parameters(), "lr": 0.5},
         {"params": model.layer2.parameters()}], lr=0.1
    )  # fmt: skip
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    isthmus.attach(model, optimizer, blocks="layer2", head="fc", constraint=isthmus.Ball(1.0))
    assert isinstance(model.fc, isthmus.PairedHead)
    assert torch.equal(model.fc.weight, old[:, :8])
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2, 2]
    assert optimizer.param_groups[1]["params"][0] is model.fc.weight
    assert optimizer.param_groups[1]["params"][1] is model.fc.bias
    assert not model(_data()[0]).any()
    before = model.fc.weight.detach().clone()
    _train(model, optimizer, 2)
    scheduler.step()
    assert not torch.equal(model.fc.weight, before)


def test_a_seed_draws_the_same_regime_anew() -> None:
    weights = []
    for start in (1, 2):
        model = _network(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        isthmus.attach(model, optimizer, blocks="layer2", head="fc", seed=7)
        assert not model(_data()[0]).any()
        weights.append(torch.cat([model.layer2.weight.flatten(), model.fc.weight.flatten()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize(("mirrored", "paired"), [(True, False), (False, True), (False, False)])
def test_the_papers_ablations(mirrored: bool, paired: bool) -> None:
    model = mlp(10, [24, 16], 1, paired=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = isthmus.attach(
        model,
        optimizer,
        blocks="layer2",
        head="fc",
        constraint=isthmus.Ball(0.5),
        mirrored=mirrored,
        paired=paired,
    )
    assert isinstance(model.fc, isthmus.PairedHead if paired else nn.Linear)
    assert torch.equal(*model.layer2.weight.chunk(2)) == mirrored
    if not mirrored:
        assert torch.equal(model.layer2.weight, before["layer2.weight"])
        assert type(model.layer2) is nn.Linear
    if mirrored and not paired:
        first, second = model.fc.weight.chunk(2, 1)
        assert torch.equal(first, -second)
        assert model(_data()[0]).abs().max() < 1e-5
    if not mirrored and not paired:
        assert torch.equal(model.fc.weight, before["fc.weight"])
    x, y = _data()
    for _ in range(50):
        optimizer.zero_grad()
        (model(x) - y[:, :1]).square().mean().backward()
        optimizer.step()
    assert 0.49 < handle.moved() <= 0.5


def test_signs_of_output_weights_are_kept_and_the_start_is_within_the_set() -> None:
    model = mlp(10, [40], 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    sets = isthmus.Product({"fc": isthmus.FloorAndRatio(0.05, 3.0), "layer1": isthmus.Ball(1.0)})
    sign = model.fc.weight.detach().sign()
    isthmus.attach(model, optimizer, blocks="layer1", head="fc", constraint=sets)
    for _ in range(30):
        sizes = (sign * model.fc.weight.detach()).squeeze()
        assert sizes.min() >= 0.05 * (1 - 1e-7)
        assert sizes.max() <= 3 * sizes.min() * (1 + 1e-6)
        optimizer.zero_grad()
        (model(_data()[0]) - 5).square().mean().backward()
        optimizer.step()


def test_decay_towards_zero_is_adamws() -> None:
    """With its center at 0, a limiting case that has a known answer."""
    weights = []
    for own in (True, False):
        model = _network()
        with torch.no_grad():
            model.layer2.weight.zero_()
            model.layer2.bias.zero_()
        groups = [
            {"params": model.layer2.parameters(), "weight_decay": 0.0 if own else 0.3},
            {"params": [*model.layer1.parameters(), *model.fc.parameters()]},
        ]
        optimizer = torch.optim.AdamW(groups, lr=0.05, weight_decay=0.0)
        if own:
            isthmus.attach(model, optimizer, blocks="layer2", decay=0.3, mirrored=False)
        x, y = _data()
        for _ in range(30):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
        weights.append(model.layer2.weight)
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def test_decay_draws_blocks_back_and_leaves_the_head() -> None:
    moved = []
    for decay in (0.0, 1.0):
        model = _network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handle = isthmus.attach(model, optimizer, blocks="layer2", head="fc", constraint=_sets(), decay=decay)
        _train(model, optimizer, 3)
        optimizer.zero_grad(set_to_none=False)
        head = model.fc.weight.detach().clone()
        for _ in range(50):
            optimizer.step()
        assert torch.equal(model.fc.weight, head)
        moved.append(_radius(model, _center(handle)))
    assert moved[1] < 0.01 * moved[0]


def test_gradient_accumulation_and_gradient_scaling_project_once_a_step() -> None:
    model = _network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    handle = isthmus.attach(model, optimizer, blocks="layer2", head="fc", constraint=_sets())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x, y = _data()
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(_radius(model, _center(handle))))
    for step in range(12):
        with torch.autocast("cpu", torch.bfloat16):
            loss = (model(x) - y).square().mean()
        scaler.scale(loss * (math.inf if step == 7 else 1.0)).backward()
        if step % 3 == 2:
            before = model.layer2.weight.detach().clone()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if step == 8:  # a skipped step
                assert torch.equal(model.layer2.weight, before)
    assert len(calls) == 3
    assert max(calls) <= RADIUS


@pytest.mark.parametrize("what", ["model", "step", "all"])
def test_it_compiles_as_torch_does(what: str) -> None:
    torch._dynamo.reset()
    weights = []
    for compiled in (False, True):
        model = _network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        handle = isthmus.attach(model, optimizer, blocks="layer2", head="fc", constraint=_sets())
        x, y = _data()
        run: Callable[[Tensor], Tensor] = model
        if compiled and what == "model":
            run = torch.compile(model, backend="aot_eager")

        def train(
            run: Callable[[Tensor], Tensor] = run,
            optimizer: torch.optim.Optimizer = optimizer,
            x: Tensor = x,
            y: Tensor = y,
        ) -> None:
            (run(x) - y).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        if compiled and what == "step":
            optimizer.step = torch.compile(optimizer.step, backend="aot_eager")
        step = torch.compile(train, backend="aot_eager") if compiled and what == "all" else train
        for _ in range(20):
            step()
        assert 0.99 * RADIUS < _radius(model, _center(handle)) <= RADIUS
        weights.append(model.layer2.weight)
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def test_a_compiled_model_is_seen_through_if_it_is_initialized() -> None:
    model = mlp(10, [24, 16], 3, paired=False)
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.5)
    with pytest.raises(UnsupportedModel, match=r"wrapped already.*isthmus\.mirror\(model\.layer2\)"):
        isthmus.attach(compiled, optimizer, blocks="layer2", head="fc", constraint=_sets())
    isthmus.mirror(model.layer2)
    model.fc = isthmus.pair(model.fc)
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.5)
    for name in ("layer2", "_orig_mod.layer2"):
        handle = isthmus.attach(compiled, optimizer, blocks=name, head="fc", constraint=_sets())
        assert set(_center(handle)) == {"layer2.weight", "layer2.bias"}


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def begun() -> tuple[nn.Sequential, torch.optim.Optimizer, isthmus.Regime]:
        model = _network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        return (
            model,
            optimizer,
            isthmus.attach(model, optimizer, blocks="layer2", head="fc", constraint=_sets()),
        )

    model, optimizer, handle = begun()
    _train(model, optimizer, 30)
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "regime": handle.state_dict()}
    torch.save(saved, path := tmp_path / "state.pt")
    _train(model, optimizer, 30)

    again, other, second = begun()
    with torch.no_grad():
        again.layer2.weight += 1.0  # another start, of which nothing may be left
    second = isthmus.attach(again, other, blocks="layer2", head="fc", constraint=isthmus.Product(
        {"layer2": isthmus.Ball(9.0), "fc": isthmus.FloorAndRatio()}))  # fmt: skip
    state = torch.load(path, weights_only=True)
    again.load_state_dict(state["model"])
    other.load_state_dict(state["optimizer"])
    second.load_state_dict(state["regime"])
    assert second.digest == handle.digest
    _train(again, other, 30)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_states_that_do_not_fit_are_refused_and_change_nothing() -> None:
    model = _network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    handle = isthmus.attach(model, optimizer, blocks="layer2", head="fc", constraint=_sets())
    good, digest = handle.state_dict(), handle.digest
    center = good["center"]
    bad = {
        "not the state of a regime": {"weights": 3},
        "load what its state_dict": {**good, "format": "else"},
        "is damaged": {**good, "center": {**center, "layer2.bias": center["layer2.bias"] + 1}},
        "layer2.bias is missing": {**good, "center": {k: v for k, v in center.items() if k != "layer2.bias"}},
        "extra is not constrained": {**good, "center": {**center, "extra": torch.ones(1)}},
        "float64": {**good, "center": {k: v.double() for k, v in center.items()}},
        "describes no constraint": {**good, "constraint": {"set": "Sphere"}},
        "radius": {**good, "constraint": {"set": "Ball", "radius": -1.0, "joint": True}},
        "its decay is -1": {**good, "decay": -1.0},
        "could not convert": {**good, "decay": "much"},
        "not finite": {**good, "center": {k: v * math.nan for k, v in center.items()}},
    }
    for says, state in bad.items():
        with pytest.raises(ModelFileError, match=says):
            handle.load_state_dict(state)
        assert handle.digest == digest
    handle.load_state_dict(good)


def test_copies_made_together_are_attached_and_copies_alone_are_free() -> None:
    model = _network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    handle = isthmus.attach(model, optimizer, blocks="layer2", head="fc", constraint=_sets())
    _train(model, optimizer, 5)
    other, second, copied = copy.deepcopy((model, optimizer, handle))
    before = model.layer2.weight.detach().clone()
    _train(other, second, 50)
    assert torch.equal(model.layer2.weight, before)
    assert 0.99 * RADIUS < _radius(other, _center(copied)) <= RADIUS
    alone = copy.deepcopy(model)
    free = torch.optim.SGD(alone.parameters(), lr=0.5)
    _train(alone, free, 50)
    assert _radius(alone, _center(handle)) > 2 * RADIUS


def test_it_is_removed_without_a_trace_and_not_pickled() -> None:
    model = _network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    handle = isthmus.attach(model, optimizer, blocks="layer2", head="fc", constraint=_sets())
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(handle)
    assert "attached to SGD" in repr(handle)
    handle.remove()
    handle.remove()
    assert "detached from SGD" in repr(handle)
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks
    _train(model, optimizer, 50)
    assert _radius(model, _center(handle)) > 2 * RADIUS


def test_attaching_again_before_training_replaces_and_after_it_is_refused() -> None:
    model = _network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(3):
        handle = isthmus.attach(model, optimizer, blocks="layer2", head="fc", constraint=_sets())
    assert len(optimizer._optimizer_step_post_hooks) == 1
    _train(model, optimizer, 3)
    with pytest.raises(InputError, match="begun to train"):
        isthmus.attach(model, optimizer, blocks="layer2", head="fc", constraint=_sets(), seed=1)
    with pytest.raises(InputError, match="would undo that"):
        isthmus.attach(model, optimizer, blocks="layer2", head="fc", constraint=_sets())
    center = _center(handle)
    _train(model, optimizer, 30)
    assert _radius(model, center) <= RADIUS


def test_the_center_follows_the_model_to_another_dtype_only_by_a_new_regime() -> None:
    model = _network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    isthmus.attach(model, optimizer, blocks="layer2", head="fc", constraint=_sets())
    model.double()
    with pytest.raises(InputError, match="attach anew"):
        optimizer.step()


def test_a_block_of_convolutions_has_one_ball_and_its_norms_are_left_out_or_in() -> None:
    for norms in (False, True):
        model = resnet18(10, width=8, small_images=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        handle = isthmus.attach(
            model, optimizer, blocks=["layer4"], head="fc", constraint=isthmus.Ball(0.1), norms=norms
        )
        names = set(handle.constraint.center)
        convolutions = {
            f"layer4.{name}"
            for name, module in model.layer4.named_modules()
            for name in ([f"{name}.weight"] if isinstance(module, nn.Conv2d) else [])
        }
        assert len(convolutions) == 5
        assert names >= convolutions
        assert (names == convolutions) != norms
        x = torch.randn(4, 3, 32, 32)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), torch.arange(4)).backward()
            optimizer.step()
        assert handle.moved() <= 0.1


def test_an_example_shows_that_halves_cancel() -> None:
    x = torch.randn(5, 10)

    def attached(model: nn.Sequential) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        isthmus.attach(model, optimizer, blocks="1", head=str(len(model) - 1), example=x)

    attached(nn.Sequential(nn.Identity(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3)))
    with pytest.raises(UnsupportedModel, match=r"halves that differ by up to .* block before the last"):
        attached(nn.Sequential(nn.Identity(), nn.Linear(10, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)))


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode, self.fc = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.decode.weight = self.encode.weight


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_names_that_are_not_there_and_models_that_do_not_fit_are_refused() -> None:
    model = _network()
    with pytest.raises(InputError, match=r"no module 'layer3'; is it one of layer"):
        isthmus.attach(model, _sgd(model), blocks="layer3", head="fc")
    with pytest.raises(InputError, match="one block or more"):
        isthmus.attach(model, _sgd(model), blocks=[], head="fc")
    with pytest.raises(InputError, match="whole model is no block"):
        isthmus.attach(model, _sgd(model), blocks="", head="fc")
    with pytest.raises(InputError, match=r"does not have layer2\.weight, layer2\.bias"):
        isthmus.attach(model, _sgd(_network()), blocks="layer2", head="fc")
    with pytest.raises(InputError, match=r"expected a torch\.optim\.Optimizer, found list"):
        isthmus.attach(model, [], blocks="layer2", head="fc")
    with pytest.raises(InputError, match="nothing to constrain"):
        isthmus.attach(model, _sgd(model), blocks="activation2", head="fc")
    with pytest.raises(InputError, match="no module 'layer9'"):
        isthmus.attach(
            model, _sgd(model), blocks="layer2", constraint=isthmus.Product({"layer9": isthmus.Ball(1.0)})
        )
    with pytest.raises(InputError, match="head=NAME"):
        isthmus.attach(model, _sgd(model), blocks="layer2", constraint=isthmus.FloorAndRatio())
    with pytest.raises(InputError, match="decay"):
        isthmus.attach(model, _sgd(model), blocks="layer2", head="fc", decay=-1.0)
    with pytest.raises(PrecisionError, match=r"radius of .* or more"):
        isthmus.attach(model, _sgd(model), blocks="layer2", head="fc", constraint=isthmus.Ball(1e-9))
    tied = _Tied()
    with pytest.raises(UnsupportedModel, match=r"encode\.weight is tied to decode\.weight"):
        isthmus.attach(tied, _sgd(tied), blocks="encode", head="fc")
    odd = mlp(10, [24, 15], 3, paired=False)
    with pytest.raises(WidthError, match="m = 15"):
        isthmus.attach(odd, _sgd(odd), blocks="layer2", head="fc")
    two = mlp(10, [24, 16], 3, paired=False)
    hidden = torch.optim.SGD([*two.layer1.parameters(), *two.layer2.parameters()], lr=0.1)
    with pytest.raises(InputError, match=r"does not have fc\.weight.*pair first"):
        isthmus.attach(two, hidden, blocks="layer2", head="fc")


def test_nothing_is_changed_by_what_is_refused() -> None:
    model = mlp(10, [24, 16], 3, paired=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for options in (
        {"blocks": "layer2", "head": "fc", "constraint": isthmus.Product({"layer9": isthmus.Ball(1.0)})},
        {"blocks": ["layer2", "layer3"], "head": "fc"},
        {"blocks": "layer2", "head": "activation2"},
    ):
        with pytest.raises(InputError):
            isthmus.attach(model, _sgd(model), **options)
    assert type(model.fc) is nn.Linear
    assert type(model.layer2) is nn.Linear
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_trained_weights_are_not_mirrored_again() -> None:
    trained = _network()
    _train(trained, torch.optim.SGD(trained.parameters(), lr=0.1), 5)
    model = _network()
    model.load_state_dict(trained.state_dict())
    before = model.layer2.weight.detach().clone()
    with pytest.raises(InputError, match=r"Attach before loading.*mirrored=False.*seed"):
        isthmus.attach(model, _sgd(model), blocks="layer2", head="fc")
    assert torch.equal(model.layer2.weight, before)
    isthmus.attach(model, _sgd(model), blocks="layer2", head="fc", mirrored=False)
    assert torch.equal(model.layer2.weight, before)


def test_one_ball_needs_one_optimizer_and_two_balls_may_have_two() -> None:
    model = _network()
    weights = torch.optim.SGD([model.layer1.weight, model.layer2.weight, model.fc.weight], lr=0.5)
    biases = torch.optim.SGD([model.layer1.bias, model.layer2.bias, model.fc.bias], lr=0.5)
    with pytest.raises(InputError, match=r"does not have layer2\.bias.*to each with a Product"):
        isthmus.attach(model, weights, blocks="layer2", head="fc", constraint=isthmus.Ball(0.1))
    handles = [
        isthmus.attach(
            model,
            optimizer,
            blocks="layer2",
            head="fc",
            constraint=isthmus.Product({name: isthmus.Ball(radius)}),
        )
        for optimizer, name, radius in ((weights, "layer2.weight", 0.2), (biases, "layer2.bias", 0.1))
    ]
    x, y = _data()
    for _ in range(50):
        model.zero_grad()
        (model(x) - y).square().mean().backward()
        weights.step()
        biases.step()
    assert 0.19 < handles[0].moved() <= 0.2
    assert 0.09 < handles[1].moved("layer2") <= 0.1
    with pytest.raises(InputError, match="nothing in 'fc' is constrained"):
        handles[0].moved("fc")


def test_all_weights_of_a_block_are_in_the_ball_or_it_is_refused() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(OrderedDict(block=layer, fc=nn.Linear(8, 2)))
    handle = isthmus.attach(model, _sgd(model), blocks="block", constraint=isthmus.Ball(1.0), mirrored=False)
    assert "block.self_attn.in_proj_weight" in handle.constraint.center
    assert not any("norm" in name for name in handle.constraint.center)
    nn.utils.parametrizations.weight_norm(layer.linear1)
    with pytest.raises(UnsupportedModel, match=r"linear1.*parametrized"):
        isthmus.attach(model, _sgd(model), blocks="block", constraint=isthmus.Ball(1.0), mirrored=False)


def test_output_weights_are_constrained_without_their_bias_whoever_names_them() -> None:
    model = mlp(10, [8], 3, paired=False)
    sets = isthmus.Product({"layer1": isthmus.Ball(1.0), "fc": isthmus.FloorAndRatio(0.01, 10.0)})
    handle = isthmus.attach(model, _sgd(model), blocks="layer1", constraint=sets)
    assert set(handle.constraint.center) == {"layer1.weight", "layer1.bias", "fc.weight"}


class _Aliased(nn.Module):
    """A head and a body that have two names each, of which the second is used."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(10, 8), nn.Linear(8, 1)
        self.sequence = nn.Sequential(self.body, nn.Tanh(), self.head)

    def forward(self, x: Tensor) -> Tensor:
        return self.sequence(x)


@pytest.mark.parametrize(("block", "head"), [("body", "head"), ("sequence.0", "sequence.2")])
def test_modules_with_two_names_are_one(block: str, head: str) -> None:
    model = _Aliased()
    optimizer = _sgd(model)
    handle = isthmus.attach(model, optimizer, blocks=block, head=head, constraint=isthmus.Ball(0.5))
    assert model.head is model.sequence[2]
    assert not model(_data()[0]).any()
    assert set(map(id, model.parameters())) == set(map(id, optimizer.param_groups[0]["params"]))
    assert isthmus.kkt(model, (_data()[0], _data()[1][:, 0]), handle).primal == 0
    folded = isthmus.fold(model)
    assert folded.head is folded.sequence[2]
    assert type(folded.head) is nn.Linear


def test_weights_tied_within_the_blocks_count_once_and_a_tied_head_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    model[2].weight = model[0].weight
    handle = isthmus.attach(model, _sgd(model), blocks=["0", "2"], head="4", constraint=isthmus.Ball(0.5))
    assert set(handle.constraint.center) == {"0.weight", "0.bias", "2.bias"}
    words = nn.Sequential(OrderedDict(words=nn.Embedding(5, 8), body=nn.Linear(8, 8), fc=nn.Linear(8, 5)))
    words.fc.weight = words.words.weight
    with pytest.raises(UnsupportedModel, match=r"fc\.weight is tied to words\.weight"):
        isthmus.attach(words, _sgd(words), blocks="body", head="fc")


def test_a_handle_kept_on_the_model_is_copied_with_it() -> None:
    model = _network()
    model.handle = isthmus.attach(model, _sgd(model), blocks="layer2", head="fc", constraint=_sets())
    copied = copy.deepcopy(model)
    assert copied.handle is not model.handle
    assert copied.handle.moved() == 0
    assert type(isthmus.fold(model).fc) is nn.Linear
    model.handle.remove()
    assert "detached" in repr(copy.deepcopy(model.handle))


def test_a_fresh_adagrad_has_not_begun_to_train() -> None:
    model = mlp(10, [24, 16], 3, paired=False)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    handle = isthmus.attach(model, optimizer, blocks="layer2", head="fc", constraint=_sets(), seed=1)
    assert {id(tensor) for tensor in optimizer.state} == set(map(id, model.parameters()))
    assert all(state["sum"].shape == tensor.shape for tensor, state in optimizer.state.items())
    _train(model, optimizer, 20)
    assert 0.99 * RADIUS < _radius(model, _center(handle)) <= RADIUS


def test_numbers_of_any_make_are_saved_as_pythons_own(tmp_path: Path) -> None:
    model = _network()
    ball = isthmus.Ball(np.float64(0.5))
    handle = isthmus.attach(
        model, _sgd(model), blocks="layer2", head="fc", constraint=ball, decay=np.float32(0.5)
    )
    torch.save(handle.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True)["decay"] == 0.5
    for wrong in ("1", None, [1.0]):
        with pytest.raises(InputError, match="is a number, not"):
            isthmus.Ball(wrong)


def test_a_weight_that_is_no_number_stays_where_it_is() -> None:
    model = _network()
    optimizer = _sgd(model)
    isthmus.attach(model, optimizer, blocks="layer2", head="fc", constraint=isthmus.Ball(0.3))
    (model(_data()[0]) - _data()[1]).square().mean().backward()
    model.layer2.weight.grad[2, 3] = math.nan
    optimizer.step()
    assert model.layer2.weight.isnan().sum() == 1
    assert not model.layer2.bias.isnan().any()


def test_decay_leaves_what_is_not_trained_and_never_overshoots() -> None:
    model = _network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    handle = isthmus.attach(model, optimizer, blocks="layer2", head="fc", decay=5.0)
    with torch.no_grad():
        model.layer2.weight += 1
    moved = handle.moved()
    optimizer.step()
    assert handle.moved() == moved
    optimizer.zero_grad(set_to_none=False)
    model.layer2.weight.grad = torch.zeros_like(model.layer2.weight)
    optimizer.step()
    assert handle.moved() == 0


def test_an_example_shows_dropout_that_treats_halves_differently() -> None:
    def attached(*layers: nn.Module) -> None:
        model = nn.Sequential(*layers)
        head = str(len(layers) - 1)
        isthmus.attach(model, _sgd(model), blocks="1", head=head, example=(torch.randn(5, 10),))

    attached(nn.Dropout(0.5), nn.Linear(10, 8), nn.Tanh(), nn.Dropout(0.0), nn.Linear(8, 3))
    with pytest.raises(UnsupportedModel, match="3 drops other units in each half"):
        attached(nn.Identity(), nn.Linear(10, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))
    with pytest.raises(InputError, match="does not take the example"):
        attached(nn.Identity(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3))


def test_arguments_of_other_kinds_are_refused_in_a_sentence() -> None:
    model = _network()
    for options, says in (
        ({"blocks": model.layer2}, "blocks is for names of modules.* not for a MirroredLinear"),
        ({"blocks": None}, "blocks is for names"),
        ({"head": model.fc}, "head is for names of modules"),
        ({"constraint": 1.0}, r"a set such as isthmus\.Ball"),
        ({"constraint": isthmus.Ball}, r"a set such as isthmus\.Ball"),
        ({"decay": None}, "decay is a number"),
    ):
        with pytest.raises(InputError, match=says):
            isthmus.attach(model, _sgd(model), **{"blocks": "layer2", "head": "fc", **options})
    with pytest.raises(InputError, match=r"expected a torch\.nn\.Module, found generator"):
        isthmus.attach(model.parameters(), _sgd(model), blocks="layer2")
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode"):
        isthmus.attach(model, _sgd(model), blocks="layer2", head="fc")
    for wrong in ((), ([model.layer2],), ("layer2",)):
        with pytest.raises(InputError, match="mirror is for one module or more"):
            isthmus.mirror(*wrong)
    with pytest.raises(UnsupportedModel, match="a NoneType cannot be paired"):
        isthmus.pair(None)
    with pytest.raises(InputError, match="found NoneType"):
        isthmus.fold(None)
    with pytest.raises(InputError, match=r"a set such as Ball\(1\.0\)"):
        isthmus.Product({"a": 1.0})
