"""KKT residuals against gradients by hand, and the radius below which all KKT points are global minima."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

import isthmus
from isthmus.constraints import Constraint
from isthmus.errors import InputError
from isthmus.narrow.radius import CURVATURE
from isthmus.nets.mlp import mlp


def _problem(
    rows: int,
    inputs: int,
    width: int,
    *,
    bias: bool = False,
    seed: int = 0,
    activation: type[nn.Module] = nn.Tanh,
) -> tuple[nn.Sequential, isthmus.Dataset]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator, dtype=torch.float64)
    y = torch.randn(rows, generator=generator, dtype=torch.float64)
    model = mlp(inputs, [width], 1, bias=bias, seed=seed, activation=activation).double()
    isthmus.mirror(model.layer1)
    return model, isthmus.from_arrays(x, y)


def _anchored(model: nn.Module, constraint: Constraint) -> Constraint:
    """Attached to the model as it is."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return isthmus.attach(model, optimizer, blocks="layer1", head="fc", constraint=constraint).constraint


def _moved(model: nn.Module, size: float, seed: int = 1) -> None:
    with torch.no_grad():
        weight = model.get_submodule("layer1").weight
        step = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed), dtype=weight.dtype)
        weight += size * step / step.norm()


def test_residuals_by_hand() -> None:
    """One ball, on the sphere: -g = n + rest with n along W - W0."""
    model, data = _problem(9, 3, 6)
    constraint = _anchored(model, isthmus.Product({"layer1": isthmus.Ball(0.7)}))
    _moved(model, 0.7)
    found = isthmus.kkt(model, data, constraint)
    x, y = data.x, data.y.flatten()
    weight, v = model.layer1.weight.detach(), model.fc.weight.detach().flatten()
    value = torch.tanh(x @ weight.T)
    r = y - (value[:, :3] - value[:, 3:]) @ v
    jacobian = torch.cat([v, -v]) * (1 - value**2)
    g = -(jacobian * r[:, None]).T @ x
    offset = weight - constraint.center["layer1.weight"]
    multiplier = max(0.0, float((-g * offset).sum())) / 0.7**2
    free = -((value[:, :3] - value[:, 3:]).T @ r)
    assert found.loss == pytest.approx(float(r @ r) / 2, rel=1e-12)
    assert found.gradient == pytest.approx(math.hypot(g.norm(), free.norm()), rel=1e-12)
    assert found.stationarity == pytest.approx(
        math.hypot((g + multiplier * offset).norm(), free.norm()), rel=1e-9
    )
    assert found.multiplier == pytest.approx(multiplier * 0.7, rel=1e-9)
    assert found.primal <= 1e-15
    assert found.to_dict()["rows"] == 9


def test_infeasible_points_say_by_how_much_and_stationary_ones_are_known() -> None:
    model, data = _problem(9, 3, 6)
    constraint = _anchored(model, isthmus.Ball(0.5))
    _moved(model, 0.8)
    assert isthmus.kkt(model, data, constraint).primal == pytest.approx(0.3, rel=1e-12)
    zero = isthmus.from_arrays(data.x, model(data.x).detach().flatten())
    found = isthmus.kkt(model, zero, constraint)
    assert found.gradient < 1e-15


def _descended(model: nn.Sequential, data: isthmus.Dataset, radius: float) -> Constraint:
    """A KKT point with hidden weights in a ball, by a solver that knows nothing of networks; v is fixed."""
    constraint = _anchored(model, isthmus.Ball(radius))
    center = constraint.center["layer1.weight"].numpy()
    x, y, v = data.x.numpy(), data.y.numpy().ravel(), model.fc.weight.detach().numpy().ravel()
    outer = np.concatenate([v, -v])

    def loss(z: np.ndarray) -> tuple[float, np.ndarray]:
        value = np.tanh(x @ z.reshape(center.shape).T)
        r = value @ outer - y
        return float(r @ r / 2), (((1 - value**2) * outer * r[:, None]).T @ x).ravel()

    room = {
        "type": "ineq",
        "fun": lambda z: radius**2 - np.square(z - center.ravel()).sum(),
        "jac": lambda z: -2 * (z - center.ravel()),
    }
    found = minimize(
        loss,
        center.ravel(),
        jac=True,
        method="SLSQP",
        constraints=[room],
        options={"maxiter": 500, "ftol": 1e-16},
    )
    with torch.no_grad():
        model.layer1.weight.copy_(torch.from_numpy(found.x.reshape(center.shape)))
    model.fc.weight.requires_grad_(False)
    return constraint


def test_a_solvers_point_on_the_sphere_has_small_residuals_and_a_large_multiplier() -> None:
    model, data = _problem(12, 3, 8)
    constraint = _descended(model, data, 0.2)
    found = isthmus.kkt(model, data, constraint)
    assert found.loss > 0.1
    assert found.gradient > 0.1
    assert found.stationarity < 1e-5 * found.gradient
    assert found.natural < 1e-5
    assert found.primal < 1e-8
    assert abs(found.complementarity) < 1e-6
    assert found.multiplier == pytest.approx(found.gradient, rel=1e-6)


def test_classes_and_losses_of_ones_own() -> None:
    data = isthmus.load("wine")
    model = mlp(data.inputs, [8], 3).double()
    constraint = _anchored(model, isthmus.Ball(0.5))
    found = isthmus.kkt(model, data, constraint)
    assert found.loss == pytest.approx(data.rows * math.log(3), rel=1e-9)
    assert found.radius.at_point is None
    own = isthmus.kkt(model, data, constraint, loss=lambda f, y: nn.functional.cross_entropy(f, y))
    assert own.loss == pytest.approx(math.log(3), rel=1e-9)
    with pytest.raises(InputError, match="gives outputs"):
        isthmus.kkt(mlp(data.inputs, [8], 4).double(), data, constraint)
    with pytest.raises(InputError, match=r"layer1\.weight, which the model does not have"):
        isthmus.kkt(nn.Sequential(nn.Linear(13, 3)).double(), data, constraint)
    with pytest.raises(InputError, match="no center yet"):
        isthmus.kkt(model, data, isthmus.Ball(1.0))


def _jacobian(model: nn.Sequential, x: Tensor) -> Tensor:
    """J~ by automatic differentiation, row by row, with output weights of size 1 [n, m (d + bias)]."""
    with torch.no_grad():
        model.fc.weight.fill_(1.0)
    names = [name for name, _ in model.named_parameters() if name.startswith("layer1")]
    parameters = {name: model.get_parameter(name).detach() for name in names}

    def output(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (row[None],))[0, 0]

    rows = torch.func.vmap(torch.func.grad(output), (None, 0))(parameters, x)
    return torch.cat([rows[name].flatten(1) for name in names], 1).detach()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU])
def test_the_radius_is_made_of_a_jacobian_by_autograd(bias: bool, activation: type[nn.Module]) -> None:
    model, data = _problem(11, 4, 8, bias=bias, activation=activation)
    sets = isthmus.Product({"layer1": isthmus.Ball(0.4), "fc": isthmus.FloorAndRatio(1e-3, 5.0)})
    constraint = _anchored(model, sets)
    _moved(model, 0.3)
    radius = isthmus.kkt(model, data, constraint).radius
    assert radius.reason == ""
    size = model.fc.weight.detach().abs()
    x = torch.cat([data.x, torch.ones(11, 1, dtype=torch.float64)], 1) if bias else data.x
    scale = CURVATURE[activation] * x.norm(dim=1).max() * torch.linalg.svdvals(x)[0]
    sigma = torch.linalg.svdvals(_jacobian(model, data.x))[-1]
    assert radius.sigma_min == pytest.approx(float(sigma), rel=1e-8)
    assert radius.at_point == pytest.approx(float(2 * sigma / (size.max() / size.min() * scale)), rel=1e-8)
    with torch.no_grad():
        for name, value in constraint.center.items():
            model.get_parameter(name).copy_(value)
    at_center = torch.linalg.svdvals(_jacobian(model, data.x))[-1]
    assert radius.a_priori == pytest.approx(float(2 * at_center / (7 * scale)), rel=1e-8)


def test_below_the_radius_a_solver_ends_at_zero_loss() -> None:
    """Theorem 2 sharpened: with v fixed at a size that lets it reach the targets, and ε < ε0."""
    model, data = _problem(6, 4, 8)
    with torch.no_grad():
        model.fc.weight.fill_(1.0)
    probe = isthmus.kkt(model, data, _anchored(model, isthmus.Ball(1.0))).radius
    assert probe.at_point is not None
    radius = 0.5 * probe.at_point
    with torch.no_grad():
        model.fc.weight.fill_(1000 / radius)
    constraint = _descended(model, data, radius)
    assert "not trained" in isthmus.kkt(model, data, constraint).radius.reason
    model.fc.weight.requires_grad_(True)
    found = isthmus.kkt(model, data, constraint)
    assert radius < found.radius.at_point
    assert found.loss < 1e-9 * float(data.y.square().sum())


def test_where_nothing_is_known_the_reason_is_said() -> None:
    ball = isthmus.Product({"layer1": isthmus.Ball(0.5)})
    model, data = _problem(11, 4, 8)
    unlimited = isthmus.kkt(model, data, _anchored(model, ball)).radius
    assert unlimited.a_priori is None
    assert unlimited.at_point > 0
    assert "ratio" in unlimited.reason
    for says, other in (
        ("ReLU has no bounded second derivative", _problem(11, 4, 8, activation=nn.ReLU)[0]),
        ("not 2", mlp(4, [8], 2).double()),
        ("does not end in", nn.Sequential(*model[:2], nn.Linear(8, 1, dtype=torch.float64))),
    ):
        if isinstance(other[-1], nn.Linear):
            radius = isthmus.kkt(other, data, isthmus.Ball(1.0).at({"0.weight": other[0].weight})).radius
        else:
            y = data.y if other[-1].out_features == 1 else torch.cat([data.y, data.y], 1)
            radius = isthmus.kkt(other, isthmus.from_arrays(data.x, y), _anchored(other, ball)).radius
        assert says in radius.reason
        assert radius.at_point is None
    narrow, wide = _problem(11, 4, 2)
    assert isthmus.kkt(narrow, wide, _anchored(narrow, ball)).radius.at_point == 0
    biased, data = _problem(11, 4, 8, bias=True)
    constraint = isthmus.Ball(1.0).at({"layer1.weight": biased.layer1.weight})
    assert "not one ball on layer1" in isthmus.kkt(biased, data, constraint).radius.reason
    model, data = _problem(11, 4, 8)
    _moved(model, 1.0)
    constraint = isthmus.Ball(1.0).at({"layer1.weight": model.layer1.weight})
    assert "not mirrored" in isthmus.kkt(model, data, constraint).radius.reason


def test_floating_point_targets_are_values_however_few_there_are() -> None:
    model = mlp(3, [4], 1).double()
    x = torch.randn(8, 3, dtype=torch.float64)
    constraint = _anchored(model, isthmus.Ball(1.0))
    assert isthmus.kkt(model, (x, torch.ones(8)), constraint).loss == 4.0
    assert isthmus.kkt(model, (x.numpy(), np.ones((8, 1))), constraint).loss == 4.0
    signs = torch.tensor([1.0, -1.0] * 4)
    assert isthmus.kkt(model, (x, signs), constraint).loss == 4.0
    own = isthmus.kkt(model, (x, 3 * torch.ones(8)), constraint, loss=lambda f, y: (y - f).square().sum() / 2)
    assert own.loss == 36.0


def test_models_are_asked_as_they_come() -> None:
    model = mlp(3, [4], 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = isthmus.attach(model, optimizer, blocks="layer1", head="fc", constraint=isthmus.Ball(1.0))
    data = torch.randn(8, 3, dtype=torch.float64), torch.ones(8)
    with torch.inference_mode():
        assert isthmus.kkt(torch.compile(model, backend="eager"), data, handle).loss == 4.0
    flat = nn.Sequential(model, nn.Flatten(0))
    inner = isthmus.Ball(1.0).at({"0.layer1.weight": model.layer1.weight})
    assert isthmus.kkt(flat, data, inner).loss == 4.0
    for options, says in (
        ({"constraint": None}, "give kkt the handle"),
        ({"loss": lambda f, y: f.squeeze()}, "gives their sum, one number"),
        ({"loss": lambda f, y: f.sum() * math.nan}, "the loss is nan"),
    ):
        with pytest.raises(InputError, match=says):
            isthmus.kkt(model, data, **{"constraint": handle, **options})
