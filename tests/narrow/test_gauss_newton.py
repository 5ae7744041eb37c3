"""Gauss-Newton against dense steps in NumPy; what it reaches, what it keeps, and what it refuses."""

import copy
import io
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from torch import Tensor, nn
from torch.nn import functional

import isthmus
from isthmus.errors import InputError, UnsupportedModel
from isthmus.jacobian.samples import bytes_of_a_row, linearize
from isthmus.narrow.gauss_newton import GaussNewton, normal_equations
from isthmus.narrow.gauss_newton.curvature import Curvature, curvature
from isthmus.nets.mlp import mlp

Loss = Callable[[Tensor, Tensor], Tensor]

N, D = 12, 4  # rows and inputs of small problems


def _network(widths: tuple[int, ...], outputs: int, inputs: int = D, seed: int = 0) -> nn.Sequential:
    return mlp(inputs, list(widths), outputs, paired=False, seed=seed).double()


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _labels(rows: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed))


def _closure(
    model: nn.Module, x: Tensor, y: Tensor, loss: Loss = functional.mse_loss
) -> Callable[[], Tensor]:
    return lambda: loss(model(x), y)


def _vector(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()


@torch.no_grad()
def _at(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The mean squared error."""
    return functional.mse_loss(model(x), y).item()


def _bits(model: nn.Module) -> list[bytes]:
    return [parameter.detach().numpy().tobytes() for parameter in model.parameters()]


def _dense(model: nn.Module, x: Tensor, y: Tensor, loss: Loss, damping: float) -> np.ndarray:
    """-(J^T H J + λ τ I)^-1 J^T g with all of J and of H written out, τ the trace over the rank."""
    names = {name: parameter.detach() for name, parameter in model.named_parameters()}
    blocks = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x,)))(names)
    outputs = model(x).detach()
    jacobian = torch.cat([blocks[name].reshape(outputs.numel(), -1) for name in names], 1).detach().numpy()
    slope, hessian = torch.func.grad(loss)(outputs, y), torch.func.hessian(loss)(outputs, y)
    g, h = slope.numpy().ravel(), hessian.numpy().reshape(outputs.numel(), -1)
    matrix = jacobian.T @ h @ jacobian
    equations = max(np.linalg.matrix_rank(block) for block in _own(h, outputs.shape[1])) * len(x)
    scale = np.trace(matrix) / min(equations, len(matrix))
    return -np.linalg.solve(matrix + damping * scale * np.eye(len(matrix)), jacobian.T @ g)


def _own(hessian: np.ndarray, outputs: int) -> list[np.ndarray]:
    """The blocks of H along its diagonal."""
    starts = range(0, len(hessian), outputs)
    return [hessian[s : s + outputs, s : s + outputs] for s in starts]


LOSSES: dict[str, tuple[Loss, Tensor]] = {
    "squares, mean": (functional.mse_loss, _random(N, 3, seed=2)),
    "squares, half a sum": (lambda f, y: (f - y).square().sum() / 2, _random(N, 3, seed=2)),
    "cross entropy": (functional.cross_entropy, _labels(N, 3)),
    "cross entropy, sum": (partial(functional.cross_entropy, reduction="sum"), _labels(N, 3)),
    "logistic": (functional.binary_cross_entropy_with_logits, (_random(N, 3, seed=2) > 0).double()),
    "Poisson": (functional.poisson_nll_loss, _labels(N, 3)[:, None].expand(N, 3).double()),
    "Huber, flat for some": (partial(functional.huber_loss, delta=0.8), _random(N, 3, seed=2)),
}


@pytest.mark.parametrize("widths", [(2,), (9, 7)], ids=["fewer parameters", "fewer equations"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_step_is_that_of_dense_algebra(name: str, widths: tuple[int, ...]) -> None:
    loss, y = LOSSES[name]
    model, x = _network(widths, 3), _random(N, D, seed=1)
    expected = _dense(model, x, y, loss, 0.7)
    before = _vector(model)
    GaussNewton(model, damping=0.7, tries=1).step(_closure(model, x, y, loss))
    moved = (_vector(model) - before).numpy()
    assert np.abs(moved).max() > 1e-3
    assert np.abs(moved - expected).max() <= 1e-10 * np.abs(expected).max()


def test_convolutions_and_one_value_per_row_without_an_axis_of_its_own() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 1), nn.Flatten(0)
    ).double()
    x, y = _random(9, 1, 3, 3), _random(9, seed=3)
    with_axis = copy.deepcopy(model)[:-1]
    expected = _dense(with_axis, x, y[:, None], functional.mse_loss, 1.0)
    before = _vector(model)
    GaussNewton(model).step(_closure(model, x, y))
    assert np.abs((_vector(model) - before).numpy() - expected).max() <= 1e-10 * np.abs(expected).max()


def test_ends_where_scipys_least_squares_does() -> None:
    """With more equations than parameters the least loss is not 0."""
    model, x = _network((2,), 2, inputs=3)[:2], _random(40, 3)
    y = torch.tanh(x @ _random(3, 2, seed=2)) + 0.3 * _random(40, 2, seed=1)
    names = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def residuals(theta: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(theta).split([each.numel() for each in names.values()])
        at = {name: part.view_as(each) for (name, each), part in zip(names.items(), parts, strict=True)}
        return (torch.func.functional_call(model, at, (x,)) - y).detach().numpy().ravel()

    optimizer = GaussNewton(model)
    for _ in range(40):
        optimizer.step(_closure(model, x, y))
    start = torch.cat([each.flatten() for each in names.values()]).numpy()
    found = least_squares(residuals, start, method="lm", xtol=1e-13, ftol=1e-13, gtol=1e-13)
    loss = 40 * _at(model, x, y)
    assert 1 < loss
    assert loss == pytest.approx(found.cost, rel=1e-10)
    assert np.abs(_vector(model).numpy() - found.x).max() < 1e-5


def _equations(
    model: nn.Module, x: Tensor, y: Tensor, loss: Loss
) -> tuple[normal_equations.Linearized, Curvature, int]:
    outputs = model(x).detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss(outputs, y), outputs, create_graph=True)
    linearized = linearize(model, dict(model.named_parameters()), (x,))
    return linearized, curvature(slope, outputs), bytes_of_a_row(linearized, outputs.detach())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("at_once", [N, 5, 1])
def test_both_spaces_and_all_sizes_of_parts_give_one_step(name: str, at_once: int) -> None:
    loss, y = LOSSES[name]
    linearized, bent, _ = _equations(_network((5,), 3), _random(N, D, seed=1), y, loss)
    steps = []
    for primal, gram in ((True, normal_equations._primal), (False, normal_equations._dual)):
        matrix = gram(linearized, bent.root, at_once)
        steps.append(normal_equations.NormalEquations(linearized, bent, matrix, primal).step(1e-3))
    assert float((steps[0] - steps[1]).abs().max()) <= 1e-9 * float(steps[0].abs().max())


def _peak(run: Callable[[], object]) -> int:
    """The most bytes that PyTorch's allocator had given out at once, beyond what it had before."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("rows", "widths", "outputs"), [(150, (4,), 1), (12, (30, 30), 2)])
def test_memory_is_kept_to(dtype: torch.dtype, rows: int, widths: tuple[int, ...], outputs: int) -> None:
    model = _network(widths, outputs, inputs=10).to(dtype)
    x, y = _random(rows, 10).to(dtype), _random(rows, outputs).to(dtype)
    linearized, bent, row = _equations(model, x, y, functional.mse_loss)

    def step(memory: int) -> Tensor:
        return normal_equations.normal_equations(linearized, bent, row_bytes=row, memory=memory).step(0.1)

    with pytest.raises(InputError, match=r"takes \d+ bytes") as refused:
        step(1000)
    least = int(str(refused.value).split(" bytes")[0].split()[-1])
    with pytest.raises(InputError, match="allow more"):
        step(least - 1)
    unlimited = step(1 << 40)
    most = _peak(partial(step, 1 << 40))
    for memory in (least, int(1.2 * least)):
        assert _peak(partial(step, memory)) < min(memory, most)
        assert torch.allclose(step(memory), unlimited, rtol=0, atol=1e-4 * float(unlimited.abs().max()))


def test_a_model_that_is_too_large_is_refused_untouched() -> None:
    model, x, y = _network((30, 30), 2), _random(N, D), _random(N, 2)
    before = _bits(model)
    with pytest.raises(InputError, match=r"takes \d+ bytes or more: its matrix is 24 x 24"):
        GaussNewton(model, memory=10_000).step(_closure(model, x, y))
    assert _bits(model) == before


@pytest.mark.parametrize(("widths", "steps"), [((12, 10), 60), ((10, 10, 9), 60), ((11, 9), 100)])
def test_deep_networks_reach_zero_with_little_more_parameters_than_rows(
    widths: tuple[int, ...], steps: int
) -> None:
    x, y = _random(200, 10), _random(200, 1, seed=1)
    model = _network(widths, 1, inputs=10)
    assert 190 < len(_vector(model)) < 350
    optimizer, losses = GaussNewton(model), []
    for _ in range(steps):
        losses.append(float(optimizer.step(_closure(model, x, y))))
        if losses[-1] <= 1e-20 * float(y.square().mean()):
            break
    assert losses[-1] <= 1e-20 * float(y.square().mean())
    assert all(after <= before for before, after in pairwise(losses))


def test_a_convolutional_network_reaches_zero() -> None:
    torch.manual_seed(0)
    conv = [nn.Conv2d(1, 4, 3, stride=2), nn.Tanh(), nn.Conv2d(4, 6, 2), nn.Tanh()]
    model = nn.Sequential(*conv, nn.Flatten(), nn.Linear(24, 2)).double()
    x, y = _random(60, 1, 8, 8), _random(60, 2, seed=1)
    optimizer = GaussNewton(model)
    for _ in range(20):
        optimizer.step(_closure(model, x, y))
    assert _at(model, x, y) <= 1e-20 * float(y.square().mean())


def test_random_labels_are_learned() -> None:
    x, y = _random(120, 10), _labels(120, 5)
    model = _network((16,), 5, inputs=10)
    optimizer = GaussNewton(model)
    for _ in range(30):
        optimizer.step(_closure(model, x, y, functional.cross_entropy))
    assert bool((model(x).argmax(1) == y).all())


def test_float32_gets_to_its_rounding() -> None:
    model = _network((20, 20), 1, inputs=10).float()
    x, y = _random(100, 10).float(), _random(100, 1, seed=1).float()
    optimizer = GaussNewton(model)
    for _ in range(30):
        optimizer.step(_closure(model, x, y))
    assert _at(model, x, y) < 1e-12
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_closures_for_lbfgs_do_and_gradients_are_left_alone() -> None:
    x, y = _random(N, D), _random(N, 1, seed=1)
    plain, other = _network((8,), 1), _network((8,), 1)
    first, second = GaussNewton(plain), GaussNewton(other)
    held = [torch.ones_like(parameter) for parameter in other.parameters()]
    for parameter, gradient in zip(other.parameters(), held, strict=True):
        parameter.grad = gradient.clone()

    def closure() -> Tensor:
        residual = other(x)
        residual -= y
        loss = residual.square().mean()
        loss.backward()
        return loss

    for _ in range(5):
        assert torch.equal(first.step(_closure(plain, x, y)), second.step(closure))
    assert _bits(plain) == _bits(other)
    assert all(torch.equal(p.grad, g) for p, g in zip(other.parameters(), held, strict=True))
    assert not other._forward_hooks


def test_random_numbers_buffers_and_modes_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1))
    model.double().eval()
    model[0].train()
    buffers = copy.deepcopy(dict(model.named_buffers()))
    state = torch.get_rng_state()
    GaussNewton(model).step(_closure(model, _random(N, D), _random(N, 1, seed=1)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert [module.training for module in model] == [True, False, False, False, False]


def test_where_no_try_lowers_the_loss_parameters_stay_bit_for_bit() -> None:
    model, x, y = _network((8,), 1), _random(N, D), _random(N, 1, seed=1)
    before, calls = _bits(model), []

    def ever_worse() -> Tensor:
        calls.append(_bits(model))
        return functional.mse_loss(model(x), y) + len(calls)

    optimizer = GaussNewton(model, tries=4)
    optimizer.step(ever_worse)
    assert len(calls) == 5
    assert len(set(map(tuple, calls))) == 5
    assert _bits(model) == before
    assert optimizer.damping == 4.0**4

    def failing() -> Tensor:
        calls.append(_bits(model))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return functional.mse_loss(model(x), y)

    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(failing)
    assert calls[0] != calls[1]
    assert _bits(model) == before
    assert not model._forward_hooks


def test_a_perfect_fit_stays() -> None:
    model, x = _network((8,), 1), _random(N, D)
    before, optimizer = _bits(model), GaussNewton(model)
    assert optimizer.step(_closure(model, x, model(x).detach())) == 0
    assert _bits(model) == before
    assert optimizer.damping == 1


def test_a_saved_optimizer_goes_on_bit_for_bit() -> None:
    x, y = _random(60, D), _random(60, 1, seed=1)
    model = _network((7, 6), 1)
    optimizer = GaussNewton(model, damping=0.3, tries=7)
    for _ in range(4):
        optimizer.step(_closure(model, x, y))
    assert optimizer.damping != 0.3
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = _network((7, 6), 1, seed=5)
    again = GaussNewton(other)
    other.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    twin, third = copy.deepcopy((model, optimizer))
    for each, run in ((model, optimizer), (other, again), (twin, third)):
        for _ in range(4):
            run.step(_closure(each, x, y))
    assert _bits(model) == _bits(other) == _bits(twin)
    assert optimizer.state_dict() == again.state_dict() == third.state_dict()


def test_frozen_parameters_stay_and_tied_ones_move_together() -> None:
    model = _network((8,), 1)
    model.layer1.bias.requires_grad_(False)
    before = model.layer1.bias.clone()
    x, y = _random(N, D), _random(N, 1, seed=1)
    GaussNewton(model).step(_closure(model, x, y))
    assert torch.equal(model.layer1.bias, before)

    tied = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D), nn.Tanh(), nn.Linear(D, 1)).double()
    tied[2].weight = tied[0].weight
    optimizer = GaussNewton(tied)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 5
    first = float(optimizer.step(_closure(tied, x, y)))
    assert tied[2].weight is tied[0].weight
    assert _at(tied, x, y) < first


class _Counting(nn.Module):
    """Changes its buffer and its input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.clamp_(min=-1)


def test_modules_that_stand_twice_or_work_in_place() -> None:
    torch.manual_seed(0)
    twice = nn.Linear(D, D)
    model = nn.Sequential(_Counting(), twice, nn.Tanh(), twice, nn.Tanh(), nn.Linear(D, 1)).double()
    parameters = list(model.parameters())
    plain = nn.Sequential(*copy.deepcopy([twice]), nn.Tanh(), *copy.deepcopy([*model][3:]))
    x, y = _random(N, D), _random(N, 1, seed=1)
    assert torch.equal(plain(x.clamp(min=-1)), model(x.clone()))
    names = {name: parameter.detach() for name, parameter in plain.named_parameters()}
    blocks = torch.func.jacrev(lambda p: torch.func.functional_call(plain, p, (x.clamp(min=-1),)))(names)
    both = [blocks[f"0.{each}"] + blocks[f"2.{each}"] for each in ("weight", "bias")]
    columns = [*both, blocks["4.weight"], blocks["4.bias"]]
    jacobian = torch.cat([each.reshape(N, -1) for each in columns], 1).detach()
    gram = jacobian @ jacobian.T * 2 / N
    shift = float(gram.diagonal().mean())
    residual = (plain(x.clamp(min=-1)) - y).detach() * 2 / N
    weights = torch.linalg.solve(gram + shift * torch.eye(N, dtype=x.dtype), residual)
    expected = -(jacobian.T @ weights)[:, 0]

    before, calls = _vector(model), float(model[0].calls)
    GaussNewton(model, tries=1).step(_closure(model, x, y))
    assert model[0].calls == calls + 2
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert torch.allclose(_vector(model) - before, expected, rtol=1e-10, atol=1e-12)


def test_several_inputs_and_compiled_models() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = _network((8,), 1)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.inner(x * scale)

    x, scale, y = _random(N, D), _random(N, D, seed=4), _random(N, 1, seed=1)
    model = Product()
    compiled = torch.compile(model, backend="eager")
    optimizer = GaussNewton(compiled)
    for _ in range(30):
        optimizer.step(lambda: functional.mse_loss(compiled(x, scale), y))
    assert _at(model.inner, x * scale, y) < 1e-20


@pytest.mark.parametrize("radius", [1.0, 100.0])
def test_attached_it_is_projected_and_goes_on_from_there(radius: float) -> None:
    x, y = _random(40, 10), _random(40, 1, seed=1)
    model = _network((8, 6), 1, inputs=10)
    optimizer = GaussNewton(model)
    ball = isthmus.Product({"layer2": isthmus.Ball(radius)})
    handle = isthmus.attach(model, optimizer, blocks="layer2", head="fc", constraint=ball)
    assert not model(x).any()
    farthest = 0.0
    for _ in range(12):
        with torch.no_grad():
            now = _at(model, x, y)
        assert float(optimizer.step(_closure(model, x, y))) == now
        center = handle.constraint.center
        moved = [p.detach() - center[f"layer2.{n}"] for n, p in model.layer2.named_parameters()]
        farthest = max(farthest, float(torch.cat([each.flatten() for each in moved]).norm()))
    assert farthest <= radius
    assert (farthest > 0.99 * radius) == (radius == 1)
    assert _at(model, x, y) < (0.1 if radius == 1 else 1e-20)


class _Centered(nn.Module):
    """Takes the mean over samples away."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class _Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn(x.shape, dtype=x.dtype)


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (nn.BatchNorm1d(8), r"1 \(BatchNorm1d\) takes statistics of the batch.*eval\(\)"),
        (nn.BatchNorm1d(8, track_running_stats=False).eval(), "takes statistics of the batch"),
        (nn.Dropout(0.5), r"1 \(Dropout\) draws random numbers"),
        (nn.RReLU(), "draws random numbers"),
        (_Centered(), "gives the last of 12 samples another output when it comes alone"),
        (_Noisy(), "random"),
    ],
)
def test_models_without_a_jacobian_of_every_sample_are_refused(module: nn.Module, says: str) -> None:
    model = nn.Sequential(nn.Linear(D, 8), module, nn.Linear(8, 1)).double()
    before = _bits(model)
    with pytest.raises(UnsupportedModel, match=says):
        GaussNewton(model).step(_closure(model, _random(N, D), _random(N, 1)))
    assert _bits(model) == before


def _without_gradients(f: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return functional.mse_loss(f, y)


def _freed(f: Tensor, y: Tensor) -> Tensor:
    loss = functional.mse_loss(f, y)
    torch.autograd.backward(loss)
    return loss


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda f, y: functional.mse_loss(f, y).sqrt(), "mixes rows"),
        (lambda f, y: functional.mse_loss(f, y) + 1e-2 * f.mean().square(), "mixes rows"),
        (lambda f, y: (f[::2] - f[1::2]).square().sum(), "mixes rows"),
        (functional.l1_loss, "no curvature"),
        (lambda f, y: f.sum(), "no curvature"),
        (lambda f, y: functional.mse_loss(f, y, reduction="none"), "one number"),
        (lambda f, y: functional.mse_loss(f, y).item(), "one number, not"),
        (lambda f, y: functional.mse_loss(f, y).detach(), "not detached"),
        (lambda f, y: functional.mse_loss(f, y) * torch.nan, "the loss is nan before the step"),
        (_without_gradients, "no gradient in the model's outputs"),
        (_freed, "not torch.autograd.backward"),
        (lambda f, y: y.clone().requires_grad_().sum(), "does not depend on the model's outputs"),
    ],
)
def test_losses_that_do_not_do_are_refused(loss: Loss, says: str) -> None:
    model = _network((8,), 1)
    before = _bits(model)
    with pytest.raises(InputError, match=says):
        GaussNewton(model).step(_closure(model, _random(N, D), _random(N, 1, seed=1), loss))
    assert _bits(model) == before
    assert not model._forward_hooks


def test_closures_that_do_not_do_are_refused() -> None:
    model, x, y = _network((8,), 1), _random(N, D), _random(N, 1, seed=1)
    optimizer, batches, buffer = GaussNewton(model), iter(range(1, 100)), torch.empty_like(x)

    def mse(f: Tensor) -> Tensor:
        return functional.mse_loss(f, y)

    def decayed() -> Tensor:
        return mse(model(x)) + model.fc.weight.square().sum()

    def unguarded() -> Tensor:
        with torch.no_grad():
            output = model(x)
        return mse(output)

    def in_bfloat16() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return mse(model(x))

    for closure, says in (
        (None, "step\\(closure\\)"),
        (lambda: mse(_network((8,), 1)(x)), "called the model 0 times"),
        (lambda: mse(model(x)) + mse(model(x)), "called the model 2 times"),
        (lambda: mse(model(input=x)), "by position"),
        (decayed, r"a term in fc\.weight"),
        (unguarded, r"torch\.no_grad"),
        (in_bfloat16, "autocast"),
        (lambda: mse(model(_random(N, D, seed=next(batches)))), "other inputs"),
        (lambda: mse(model(buffer.copy_(_random(N, D, seed=next(batches))))), "other inputs"),
    ):
        with pytest.raises(InputError, match=says):
            optimizer.step(closure)
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode"):
        optimizer.step(lambda: mse(model(x)))
    with torch.no_grad():  # of the loop, not of the closure
        assert optimizer.step(lambda: mse(model(x))) > mse(model(x))


def test_models_and_options_that_do_not_do_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = _network((8,), 1), _random(N, D), _random(N, 1, seed=1)
    for options in ({"damping": 0.0}, {"damping": float("nan")}, {"tries": 0}, {"memory": 0}):
        with pytest.raises(InputError, match="are to be positive"):
            GaussNewton(model, **options)
    optimizer = GaussNewton(model)
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_world_size", lambda: 2)
        with pytest.raises(InputError, match="one process"):
            optimizer.step(_closure(model, x, y))
    model.fc = nn.Linear(8, 1).double()
    with pytest.raises(InputError, match="no longer"):
        optimizer.step(_closure(model, x, y))
    model.requires_grad_(False)
    with pytest.raises(InputError, match="no parameter of the model requires a gradient"):
        GaussNewton(model).step(_closure(model, x, y))
    pair = nn.LSTM(D, 3, batch_first=True).double()
    with pytest.raises(InputError, match="one tensor of real numbers, not tuple"):
        GaussNewton(pair).step(lambda: pair(_random(N, 2, D))[0].sum())
    turned = nn.Sequential(nn.Linear(D, 1), nn.Flatten(0, 1)).double()
    with pytest.raises(InputError, match=r"as many rows, and are \[12, 2, 4\], \[24, 1\]"):
        GaussNewton(turned).step(_closure(turned, _random(N, 2, D), _random(2 * N, 1)))
