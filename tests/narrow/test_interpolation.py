"""The certificate against exact fits found in 60 digits, and against data that no network fits."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from mpmath import mpf
from torch import Tensor, nn

import isthmus
from isthmus.arithmetic import balls
from isthmus.errors import DataError, InputError, MissingExtra
from isthmus.narrow.interpolation import STEEPEST, Interpolation, newton_kantorovich
from isthmus.narrow.radius import CURVATURE
from isthmus.nets.mirrored import MirroredLinear
from isthmus.nets.mlp import mlp
from isthmus.nets.paired import PairedHead
from tests.narrow.sixty_digits import EXACT, Exact


def _draw(
    seed: int,
    *,
    rows: int,
    inputs: int,
    width: int,
    outputs: int = 1,
    activation: type[nn.Module] = nn.Tanh,
    bias: bool = False,
    paired: bool = False,
    offset: bool = False,
    dtype: torch.dtype = torch.float64,
) -> tuple[nn.Sequential, Tensor]:
    """A random network and random rows."""
    torch.manual_seed(seed)
    hidden = (MirroredLinear if paired else nn.Linear)(inputs, width, bias, dtype=dtype)
    head = (PairedHead if paired else nn.Linear)(width, outputs, offset, dtype=dtype)
    with torch.no_grad():
        for parameter in (*hidden.parameters(), *head.parameters()):
            parameter.copy_(torch.randn(parameter.shape))
    return nn.Sequential(hidden, activation(), head), torch.randn(rows, inputs, dtype=dtype)


def _case(seed: int) -> tuple[nn.Sequential, Tensor, Tensor, bool]:
    """A small network of any kind, and targets that it misses by 1e-10 to 3."""
    rng = np.random.default_rng(seed)
    paired, head, bias, offset = (bool(rng.integers(2)) for _ in range(4))
    rows, outputs = int(rng.integers(1, 5)), int(rng.integers(1, 3))
    inputs = int(rng.integers(1, 4))
    width = math.ceil(rows * outputs / inputs) + int(rng.integers(1, 4))
    model, x = _draw(
        seed,
        rows=rows,
        inputs=inputs,
        width=2 * math.ceil(width / 2) if paired else width,
        outputs=outputs,
        activation=list(EXACT)[seed % 4],
        bias=bias,
        paired=paired,
        offset=offset,
        dtype=[torch.float64, torch.float32][int(rng.integers(2))],
    )
    missed = torch.from_numpy(rng.normal(size=(rows, outputs))) * 10 ** rng.uniform(-10, 0.5)
    return model, x, (model(x).double() + missed).detach(), head


@pytest.mark.parametrize("part", range(5))
def test_exact_fits_are_where_the_certificate_says(part: int) -> None:
    """110 random cases, certified or not, in 60 digits."""
    certified = 0
    for seed in range(22 * part, 22 * part + 22):
        model, x, y, head = _case(seed)
        found = newton_kantorovich(model, (x, y), head=head)
        oracle = Exact(model, x, y, head)
        smallest, size = oracle.smallest()
        if not found.sigma_min:
            assert smallest < 1e-7 * size
            assert found.reason
            continue
        true = oracle.figures()
        assert found.sigma_min <= true.pop("sigma_min")
        for figure, value in true.items():
            assert getattr(found, figure) >= value * (1 - mpf(10) ** -40), figure
        assert found.exists == (found.product <= 1)
        if size < 1e5 * smallest:  # and not far off
            assert found.sigma_min >= 0.99 * smallest
            assert found.eta <= 1.001 * true["eta"]
            assert found.input_norm <= 1.003 * true["input_norm"]
            assert found.product <= 1.02 * true["product"]
        if found.exists:
            certified += 1
            distance = oracle.nearest()
            assert distance is not None
            assert distance <= found.distance
    assert 5 <= certified <= 21


def _never(model: nn.Module, x: Tensor, y: Tensor) -> None:
    for head in (False, True):
        found = newton_kantorovich(model, (x, y), head=head)
        assert not found.exists
        assert found.reason


@pytest.mark.parametrize("seed", range(24))
def test_no_certificate_where_no_function_fits(seed: int) -> None:
    """A row that occurs twice with targets that differ by little, or a tiny bit, near the outputs."""
    model, x = _draw(seed, rows=4, inputs=3, width=6, bias=seed % 2 == 0, paired=seed % 3 == 0)
    x[3] = x[1]
    y = model(x).detach()
    for missed in (1e-3, 1e-9, 1e-13, 1e-15):
        targets = y.clone()
        targets[3] = targets[1] + missed
        _never(model, x, targets)
    assert not newton_kantorovich(model, (x, targets), rigorous=False).exists


@pytest.mark.parametrize("seed", range(20))
def test_no_certificate_where_symmetry_forbids(seed: int) -> None:
    """Tanh without biases is odd; the rows x and -x have targets that are not."""
    model, x = _draw(seed, rows=4, inputs=3, width=6, paired=seed % 2 == 0)
    x[2] = -x[0]
    for missed in (1e-6, 1e-12, 1e-15):
        y = model(x).detach()
        y[2] = -y[0] + missed
        _never(model, x, y)


@pytest.mark.parametrize("seed", range(20))
def test_no_certificate_where_targets_are_out_of_reach(seed: int) -> None:
    """Outputs of tanh are below Σ |u|, from near which the network starts."""
    model, x = _draw(seed, rows=3, inputs=3, width=6)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        model[0].weight *= 10 ** rng.uniform(-1, 1)
    most = float(model[2].weight.detach().abs().sum())
    y = model(x).detach()
    y[1] = most * (1 + 10 ** rng.uniform(-12, 0))
    assert not newton_kantorovich(model, (x, y)).exists


@pytest.mark.parametrize("seed", range(20))
def test_nearly_equal_rows(seed: int) -> None:
    """Rows an ulp or a few apart: J is almost singular, and the bound on σ_min stays below the truth."""
    model, x = _draw(seed, rows=3, inputs=2, width=6)
    x[2] = x[1] * (1 + 2.0 ** -np.random.default_rng(seed).integers(20, 53))
    y = model(x).detach()
    found = newton_kantorovich(model, (x, y))
    true = Exact(model, x, y, False).figures()
    assert found.sigma_min is None or found.sigma_min <= true["sigma_min"]
    if found.exists:
        assert found.eta >= true["eta"]


@pytest.mark.parametrize("rigorous", [False, True])
def test_rows_that_only_rounding_makes_independent(rigorous: bool) -> None:
    """J = X with x3 = x1 + x2; squares of 0.6 ulp, rounded up thousands of times, make X X^T definite."""
    x = torch.full((3, 8000), math.sqrt(0.6) * 2.0**-26, dtype=torch.float64)
    x[0, 0], x[1, 0] = 1.0, -1.0
    x[2] = x[0] + x[1]
    model = nn.Sequential(nn.Linear(8000, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.zero_()
        model[2].weight.fill_(1.0)
    assert not newton_kantorovich(model, (x, torch.zeros(3)), rigorous=rigorous).sigma_min


@pytest.mark.parametrize(("bits", "missed"), [(26, 1e-6), (10, 100.0)])
def test_errors_of_enclosures_are_passed_on(
    bits: int, missed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Balls of few bits, so that features, slopes and residuals are off by more than float64 rounds."""
    monkeypatch.setattr(balls, "BITS", bits)
    known = 0
    for seed in range(40):
        model, x, y, head = _case(seed)
        y = (model(x).double() + missed * (y - model(x).double())).detach()
        if head and bits == 10:  # then J is made of features alone
            model[2].weight.detach().zero_()
        found, oracle = newton_kantorovich(model, (x, y), head=head), Exact(model, x, y, head)
        if found.sigma_min:
            known += 1
            true = oracle.figures()
            assert found.sigma_min <= true["sigma_min"]
            assert found.eta >= true["eta"]
            assert found.residual >= true["residual"]
    assert known >= 20


def test_too_few_weights() -> None:
    model, x = _draw(0, rows=7, inputs=2, width=3)
    y = model(x).detach()
    found = newton_kantorovich(model, (x, y))
    assert not found.exists
    assert "7 equations are too many for 6 weights" in found.reason
    # The three output weights are just enough.
    found = newton_kantorovich(model, (x, y), head=True)
    assert found.exists
    assert Exact(model, x, y, True).nearest() <= found.distance
    # So is the offset, for one row more.
    model, x = _draw(3, rows=10, inputs=2, width=3, offset=True)
    found = newton_kantorovich(model, (x, model(x).detach()), head=True)
    assert 0 < found.sigma_min <= Exact(model, x, x[:, :1], True).smallest()[0]


def _chord(n: int, d: int, m: int, scale: float, seed: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A point of zero loss by the chord method from a mirrored start (narrow.md, section 7.1)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = torch.randn(n, generator=generator, dtype=torch.float64)
    half = torch.randn(m // 2, d, generator=generator, dtype=torch.float64) * 1.5 / d**0.5
    slope = (1 - torch.tanh(x @ half.T) ** 2) * m**-0.5
    gram = torch.linalg.cholesky(x @ x.T * (2 * slope @ slope.T))
    weight, r = torch.cat([half, half]), y
    while r.norm() > 1e-11 * y.norm():
        step = (slope * torch.cholesky_solve(r[:, None], gram)).T @ x / scale
        weight = weight + torch.cat([step, -step])
        value = torch.tanh(x @ weight.T)
        r = y - scale * m**-0.5 * (value[:, : m // 2] - value[:, m // 2 :]).sum(1)
    model = mlp(d, [m], 1, bias=False).double()
    with torch.no_grad():
        model.layer1.weight.copy_(weight)
        model.fc.weight.fill_(scale * m**-0.5)
    return model, x, y


def test_a_thousand_random_targets() -> None:
    """Acceptance: exact within 1e-12 at the solution, still proven at 1e-6 from it, not at 1e-4."""
    model, x, y = _chord(1000, 100, 24, 100.0, seed=0)
    found = newton_kantorovich(model, (x, y))
    assert found.exists
    assert found.rigorous
    assert found.product < 1e-9
    assert found.distance < 1e-12
    assert str(found).endswith("with the output layer as it is: proven.")
    assert "IEEE double" in found.to_dict()["assumes"]
    noise = torch.randn(24, 100, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    solution = model.layer1.weight.detach().clone()
    for size, least, most in ((1e-6, 5e-3, 5e-2), (1e-4, 1.0, 3.0), (1e-2, 50.0, 200.0)):
        with torch.no_grad():
            model.layer1.weight.copy_(solution + size * noise)
        proven, floating = (newton_kantorovich(model, (x, y), rigorous=each) for each in (True, False))
        assert proven.exists == floating.exists == (size == 1e-6)
        assert least < floating.product < proven.product < most
        assert proven.product < 1.01 * floating.product
        if size == 1e-6:  # the solution that is known is within the distance, or another one is
            assert floating.distance < proven.distance < 1e-3


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("activation", EXACT)
def test_floating_figures_against_dense_linear_algebra(
    activation: type[nn.Module], paired: bool, head: bool
) -> None:
    model, x = _draw(
        3, rows=9, inputs=4, width=8, outputs=2, activation=activation, bias=True, paired=paired, offset=True
    )
    y = model(x).detach() + 0.01
    jacobian = _dense(model, x, head)
    found = newton_kantorovich(model, (x, y), head=head, rigorous=False)
    assert found.sigma_min == pytest.approx(float(torch.linalg.svdvals(jacobian)[-1]), rel=1e-3)
    step = torch.linalg.pinv(jacobian) @ (y - model(x)).detach().flatten()
    assert found.eta == pytest.approx(float(step.norm()), rel=1e-6)
    assert found.residual == pytest.approx(0.01 * 18**0.5, rel=1e-9)
    rows = torch.cat([x, torch.ones(9, 1, dtype=x.dtype)], 1)
    assert found.row_norm == pytest.approx(float(rows.norm(dim=1).max()), rel=1e-12)
    assert found.input_norm == pytest.approx(float(torch.linalg.svdvals(rows)[0]), rel=1e-12)


def _dense(model: nn.Sequential, x: Tensor, head: bool) -> Tensor:
    """J by automatic differentiation [N K, parameters]."""
    names = [name for name, _ in model.named_parameters() if head or name.startswith("0.")]
    point = {name: model.get_parameter(name).detach() for name in names}
    found = torch.func.jacrev(lambda theta: torch.func.functional_call(model, theta, (x,)).flatten())(point)
    return torch.cat([part.flatten(1) for part in found.values()], 1).detach()


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_the_jacobian_changes_no_faster_than_said(seed: int, paired: bool, head: bool) -> None:
    model, x = _draw(
        seed,
        rows=5,
        inputs=2,
        width=8,
        outputs=2,
        activation=list(EXACT)[seed % 4],
        bias=True,
        paired=paired,
        offset=True,
    )
    found = newton_kantorovich(model, (x, model(x).detach() + 1.0), head=head)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    before, generator = _dense(model, x, head), torch.Generator().manual_seed(seed)
    for _ in range(40):
        moved = {
            name: torch.randn(value.shape, generator=generator, dtype=value.dtype)
            for name, value in start.items()
            if head or name.startswith("0.")
        }
        length = float(torch.cat([value.flatten() for value in moved.values()]).norm())
        size = found.distance * float(torch.rand(1, generator=generator))
        with torch.no_grad():
            for name, value in moved.items():
                model.get_parameter(name).copy_(start[name] + size / length * value)
        change = torch.linalg.matrix_norm(_dense(model, x, head) - before, ord=2)
        assert change <= found.lipschitz * size


@pytest.mark.parametrize("activation", EXACT)
def test_the_lipschitz_constant_is_attained(activation: type[nn.Module]) -> None:
    """One unit, one row, where σ'' is largest; and where the output weight is 0, all is σ'."""
    grid = torch.linspace(-6, 6, 240001, dtype=torch.float64)
    first = torch.func.vmap(torch.func.grad(activation()))(grid)
    second = torch.func.vmap(torch.func.grad(torch.func.grad(activation())))(grid)
    assert second.abs().max() <= CURVATURE[activation] * (1 + 1e-12)
    assert first.abs().max() <= STEEPEST[activation]
    model = nn.Sequential(nn.Linear(1, 1, bias=False), activation(), nn.Linear(1, 1)).double()
    x = torch.full((1, 1), 1.7, dtype=torch.float64)
    for head, at, outer in ((False, second, 2.5), (True, first, 0.0)):
        steepest = float(grid[at.abs().argmax()])
        parameters = {"0.weight": steepest / 1.7, "2.weight": outer}
        with torch.no_grad():
            for name, value in parameters.items():
                model.get_parameter(name).fill_(value)
        y = model(x).detach() + 1e-9 if head else model(x).detach()
        found = newton_kantorovich(model, (x, y), head=head)
        before, size = _dense(model, x, head), 1e-6
        with torch.no_grad():
            model.get_parameter("0.weight").add_(size)
        change = torch.linalg.matrix_norm(_dense(model, x, head) - before, ord=2)
        assert 0.99 * found.lipschitz * size <= change <= 1.0001 * found.lipschitz * size


def test_weights_and_rows_are_taken_as_stored() -> None:
    model, x = _draw(1, rows=5, inputs=3, width=6, dtype=torch.float32)
    y = model(x).detach() + 1e-6
    assert newton_kantorovich(model, (x, y)) == newton_kantorovich(model.double(), (x.double(), y))
    model, _ = _draw(1, rows=5, inputs=3, width=6, dtype=torch.bfloat16)
    pixels = torch.tensor([[0, 255, 3], [17, 4, 90], [1, 2, 200]], dtype=torch.uint8)
    with torch.no_grad():
        model[0].weight /= 128
    y = model.double()(pixels.double()).detach()
    wide = newton_kantorovich(model, (pixels.double(), y))
    assert wide.exists
    assert newton_kantorovich(model.bfloat16(), (pixels, y)) == wide


def test_models_are_read_as_they_come() -> None:
    model, x = _draw(2, rows=4, inputs=6, width=6, bias=True)
    y = model(x).detach()
    plain = newton_kantorovich(model, (x, y))
    assert plain.exists
    images = x.reshape(4, 2, 3)
    nested = nn.Sequential(nn.Flatten(), nn.Sequential(model[0], nn.Identity()), nn.Sequential(*model[1:]))
    nested.train()
    for given in (nested, torch.compile(nested, backend="eager")):
        assert newton_kantorovich(given, isthmus.from_arrays(images, y, task="regression")) == plain
    assert nested.training
    assert model[0].weight.grad is None
    assert model[0].weight.requires_grad
    with torch.inference_mode():
        assert newton_kantorovich(model, (x, y)) == plain
    swish, x = _draw(2, rows=4, inputs=6, width=6, activation=nn.SiLU)
    y = swish(x).detach() + 1e-3
    in_place = nn.Sequential(swish[0], nn.SiLU(inplace=True), swish[2])
    for rigorous in (False, True):
        assert newton_kantorovich(in_place, (x, y), rigorous=rigorous) == newton_kantorovich(
            swish, (x, y), rigorous=rigorous
        )
    assert newton_kantorovich(model, (x.numpy(), [1, 2, 3, 4])).residual is not None  # integers are values


def test_what_is_not_understood_is_said() -> None:
    model, x = _draw(0, rows=3, inputs=3, width=4)
    y = model(x).detach()
    hidden, _, head = model
    for other, says in (
        (nn.Sequential(hidden, nn.ReLU(), head), "ReLU() has no bounded second derivative"),
        (nn.Sequential(hidden, nn.GELU("tanh"), head), "GELU(approximate='tanh') has no"),
        (nn.Sequential(hidden, nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), head), "the model is not Linear, act"),
        (nn.Sequential(nn.Flatten(0), *model), "from dimension 1 to the last"),
        (nn.Linear(3, 1), "the model is not Linear, act"),
        (nn.Sequential(), "the model is not Linear, act"),
    ):
        found = newton_kantorovich(other, (x, y))
        assert found == Interpolation(False, True, False, reason=found.reason)
        assert found.reason.startswith(says) or says in found.reason
        assert str(found) == f"No exact fit is shown to exist near these weights: {found.reason}."
    square = nn.Linear(3, 3, bias=False).double()
    tied = nn.Sequential(square, nn.Tanh(), square)
    assert "one weight in common" in newton_kantorovich(tied, (x, x)).reason
    classes = isthmus.from_arrays(x, [0, 1, 0], task="classification")
    assert "the targets are classes" in newton_kantorovich(model, classes).reason
    for value, says in ((math.nan, "no number"), (1e70, "beyond 2e+60"), (0.0, "‖J‖ is only 0e+00")):
        with torch.no_grad():
            head.weight.fill_(value)
        for rigorous in (False, True):
            reason = newton_kantorovich(model, (x, y), rigorous=rigorous).reason
            assert says in reason or (rigorous and "‖J‖ is only" in reason)


def test_bad_input() -> None:
    model, x = _draw(0, rows=3, inputs=4, width=4)
    y = model(x).detach()
    for data, says in (
        ((x[:, :3], y), r"does not take inputs \[3\], but 4 in a row"),
        ((x.reshape(3, 2, 2), y), r"does not take inputs \[2, 2\]"),
        ((x, torch.cat([y, y], 1)), "gives 1 outputs, but the data has 2"),
    ):
        with pytest.raises(InputError, match=says):
            newton_kantorovich(model, data)
    with pytest.raises(DataError, match="expected a Dataset"):
        newton_kantorovich(model, x)


def test_without_flint_only_floating_point_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _draw(0, rows=3, inputs=4, width=4)
    data = x, model(x).detach()
    monkeypatch.setitem(sys.modules, "flint", None)
    with pytest.raises(MissingExtra, match=r"isthmus\[exact\]"):
        newton_kantorovich(model, data)
    found = newton_kantorovich(model, data, rigorous=False)
    assert found.exists
    assert "not proven" in str(found)
    assert found.to_dict()["distance"] == found.distance == 2 * found.eta
    assert found.to_dict()["assumes"] == ""
