"""Spectra against NumPy's singular values of a Jacobian by plain autograd."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isthmus
from isthmus.errors import InputError
from isthmus.jacobian import Jacobian
from isthmus.jacobian import spectrum as module
from isthmus.jacobian.hidden import ENTRYWISE, read_shallow
from isthmus.jacobian.spectrum import spectrum
from isthmus.nets.mlp import mlp
from tests.jacobian.networks import CASES, jacobian, randn, randomized


def _singular(model: nn.Module, x: Tensor, names: Sequence[str] | None = None) -> np.ndarray:
    return np.linalg.svd(jacobian(model, x, names).flatten(0, 1).detach().numpy(), compute_uv=False)


def _layers(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, list[str]]:
    layers: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        if names is None or name in names:
            layers.setdefault(name.rpartition(".")[0], []).append(name)
    return layers


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every Jacobian were too large for all of its singular values."""
    monkeypatch.setattr(module, "SMALL", 0)


@pytest.mark.parametrize("case", CASES)
def test_all_singular_values_of_the_whole_and_of_each_layer(case: str) -> None:
    model, x = CASES[case]()
    found = spectrum(model, x)
    layers = _layers(model)
    assert list(found.layers) == list(layers)
    for each, names in [(found, None), *((found.layers[layer], layers[layer]) for layer in layers)]:
        expected = _singular(model, x, names)
        assert each.method == "dense"
        assert each.singular_values is not None
        np.testing.assert_allclose(each.singular_values, expected, rtol=1e-10, atol=1e-14 * expected[0])
        assert each.rank == np.linalg.matrix_rank(jacobian(model, x, names).flatten(0, 1).detach().numpy())
        assert each.sigma_max == each.singular_values[0]
        tall = each.parameters < each.equations
        assert each.sigma_min == (0 if tall else each.singular_values[-1])
        assert each.condition == (math.inf if tall else each.sigma_max / each.sigma_min)


@pytest.mark.parametrize("case", ["residual block", "mlp"])
@pytest.mark.parametrize("method", ["auto", "dense", "qr", "gram"])
def test_every_method_is_as_good_as_it_says(case: str, method: str, large: None) -> None:
    model, x = CASES[case]()
    found = spectrum(model, x, method=method)
    layers = _layers(model)
    for each, names in [(found, None), *((found.layers[layer], layers[layer]) for layer in layers)]:
        expected = _singular(model, x, names)
        assert each.sigma_max == pytest.approx(expected[0], rel=1e-10)
        if each.parameters < each.equations:
            assert (each.sigma_min, each.error) == (0, 0)
        else:
            assert each.method in {method, "gram", "qr"}
            assert each.sigma_min == pytest.approx(expected[-1], rel=max(each.error, 1e-14))
            assert each.error < (1e-8 if method == "auto" else 1e-6 if method == "gram" else 1e-10)
        assert each.rank == np.linalg.matrix_rank(jacobian(model, x, names).flatten(0, 1).detach().numpy())


def test_where_j_j_t_is_too_coarse_j_is_decomposed(large: None) -> None:
    """σ_min at 1e-7 σ_max is lost in J J^T."""
    model, x = CASES["mlp"]()
    x = x[:6]
    with torch.no_grad():
        x[5] = x[4] + 1e-6 * randn(5)
    expected = _singular(model, x)
    assert expected[-1] < 1e-6 * expected[0]
    found = spectrum(model, x)
    assert found.method == "qr"
    assert found.sigma_min == pytest.approx(expected[-1], rel=1e-9)
    assert found.rank == len(expected)
    assert found.layers["layer3"].method == "qr"
    coarse = spectrum(model, x, method="gram")
    assert coarse.method == "gram"
    assert coarse.error > 1e-4
    assert coarse.rank is None or coarse.rank == len(expected)


@pytest.mark.parametrize("method", ["auto", "qr", "dense"])
def test_rank_deficiency_is_counted(method: str, large: None) -> None:
    """At a mirrored start half of the columns repeat the others: rank h d, and not 2 h d."""
    model = mlp(3, [8], 1, bias=False, seed=0).double()
    x = randn(20, 3)
    found = spectrum(model, x, parameters="layer1", method=method)
    assert (found.parameters, found.equations, found.rank) == (24, 20, 12)
    assert found.sigma_min <= found.tolerance
    assert found.sigma_max == pytest.approx(_singular(model, x, ["layer1.weight"])[0], rel=1e-12)
    with pytest.raises(InputError, match=r"is singular.*method='qr' says"):
        spectrum(model, x, parameters="layer1", method="gram")


def test_a_jacobian_of_zeros() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1, bias=False)).double()
    with torch.no_grad():
        model[0].bias.fill_(-100)
    for method in ("auto", "qr"):
        found = spectrum(model, randn(3, 3), method=method)
        assert (found.sigma_max, found.sigma_min, found.rank) == (0, 0, 0)
        assert json.loads(json.dumps(found.to_dict()))["condition"] is None


@pytest.fixture
def no_columns(monkeypatch: pytest.MonkeyPatch, large: None) -> Callable[[], None]:
    """From then on nobody may ask for columns of J, unless they are fewer than the equations."""
    real = Jacobian.by_columns

    def refused(self: Jacobian, names: Sequence[str] | None = None, *, memory: int) -> object:
        assert self.width(names or self.point) < self.equations, "J was made"
        return real(self, names, memory=memory)

    return lambda: monkeypatch.setattr(Jacobian, "by_columns", refused)


SHALLOW = {
    "weights": (lambda: mlp(6, [8], 1, bias=False), (20, 6), "layer1"),
    "weights and biases": (lambda: mlp(6, [8], 1), (20, 6), "layer1"),
    "paired": (lambda: mlp(6, [8], 1), (20, 6), None),
    "paired, two outputs": (lambda: mlp(6, [8], 2), (20, 6), None),
    "one Linear": (lambda: mlp(6, [8], 3, paired=False), (15, 6), None),
    "head's weights only": (lambda: mlp(6, [24], 2, paired=False), (20, 6), ["fc.weight"]),
    "head": (lambda: mlp(6, [24], 2, paired=False), (20, 6), ["fc"]),
    "some of each": (lambda: mlp(6, [8], 2, paired=False), (15, 6), ["layer1.weight", "fc.bias"]),
    "behind two layers": (lambda: mlp(4, [5, 6, 8], 1), (20, 4), ["layer3", "fc"]),
    "pictures": (
        lambda: nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(9, 8), nn.GELU()), nn.Linear(8, 2)),
        (20, 3, 3),
        None,
    ),
    "behind a convolution": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(2)),
            nn.Flatten(),
            nn.Linear(18, 3),
            nn.Softplus(),
            nn.Linear(3, 1),
        ),
        (20, 1, 5, 5),
        ["2", "4"],
    ),
}


@pytest.mark.parametrize("case", SHALLOW)
def test_structure_in_place_of_j(case: str, no_columns: Callable[[], None]) -> None:
    make, shape, asked = SHALLOW[case]
    model, x = randomized(make()), randn(*shape)
    names = [
        name
        for name, _ in model.named_parameters()
        if asked is None or any(f"{name}.".startswith(f"{each}.") for each in np.atleast_1d(asked))
    ]
    no_columns()
    found = spectrum(model, x, parameters=asked)
    layers = _layers(model, names)
    pairs = [(found, names)]
    if len(layers) > 1:
        pairs += [(found.layers[layer], layers[layer]) for layer in layers]
    for each, own in pairs:
        expected = _singular(model, x, own)
        assert each.parameters == jacobian(model, x, own).shape[2]
        assert each.sigma_max == pytest.approx(expected[0], rel=1e-10)
        if each.parameters >= each.equations:
            assert each.method == "gram"
            assert each.sigma_min == pytest.approx(expected[-1], rel=1e-10)
        assert each.rank == np.linalg.matrix_rank(jacobian(model, x, own).flatten(0, 1).detach().numpy())


@pytest.mark.parametrize("activation", sorted(ENTRYWISE, key=lambda each: each.__name__))
def test_every_activation_has_that_structure(activation: type[nn.Module], no_columns: object) -> None:
    model, x = randomized(mlp(8, [12], 1, paired=False, activation=activation)), randn(20, 8)
    found = spectrum(model, x)
    expected = _singular(model, x)
    assert found.method == "gram"
    assert found.sigma_min == pytest.approx(expected[-1], rel=1e-9)
    assert found.sigma_max == pytest.approx(expected[0], rel=1e-10)


def test_what_has_no_such_structure_is_told_from_what_has() -> None:
    linear, x = nn.Linear(4, 4), randn(5, 4)
    shared = nn.Sequential(linear, nn.Tanh(), linear, nn.Tanh(), nn.Linear(4, 1)).double()
    tied = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    tied[2].weight = tied[0].weight
    for model, names in (
        (shared, ["0.weight"]),
        (tied, ["0.weight"]),
        (nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 1)).double(), ["0.weight"]),
        (nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh()).double(), ["0.weight"]),
        (mlp(4, [4, 4], 1).double(), ["layer1.weight"]),
        (nn.Linear(4, 1).double(), ["weight"]),
    ):
        assert read_shallow(model, x, names) is None
        found = spectrum(model, x, parameters=names)
        np.testing.assert_allclose(
            found.singular_values, _singular(model, x, names), rtol=1e-10, atol=1e-14 * found.sigma_max
        )


def test_rows_come_as_a_data_set_a_pair_or_alone() -> None:
    model, x = CASES["mlp"]()
    y = torch.arange(len(x)) % 2
    results = [spectrum(model, data) for data in (isthmus.from_arrays(x, y), (x.numpy(), y), x)]
    assert results[0] == results[1] == results[2]
    stored = torch.arange(45).reshape(9, 5)  # integers, as pixels are
    assert spectrum(model, (stored, y)) == spectrum(model, stored.double())


def test_float32_says_how_much_is_lost(large: None) -> None:
    model, x = CASES["residual block"]()
    model, x = model.float(), x.float()
    exact = _singular(model.double(), x.double())
    found = spectrum(model.float(), x)
    assert found.error > 1e-4
    assert found.sigma_min == pytest.approx(exact[-1], rel=found.error)
    assert found.tolerance > 1e-7 * found.sigma_max
    # By its structure, J J^T is in float64.
    model = randomized(mlp(6, [8], 1)).float()
    x = randn(20, 6).float()
    exact = _singular(model.double(), x.double())
    found = spectrum(model.float(), x)
    assert found.sigma_min == pytest.approx(exact[-1], rel=1e-10)
    assert found.error < 1e-10


def test_the_result_as_text_and_as_json() -> None:
    model, x = CASES["residual block"]()
    found = spectrum(model, x)
    text = str(found).splitlines()
    assert text[0] == "Jacobian of 21 equations (7 rows, 3 output(s)) in 263 parameters"
    assert [line.split()[0] for line in text[1:]] == ["layer", "all", *found.layers]
    assert text[2].split()[1:4] == ["263", f"{found.sigma_max:.6g}", f"{found.sigma_min:.6g}"]
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["rank"] == 21
    assert plain["layers"]["fc"]["condition"] is None
    assert plain["singular_values"] == list(found.singular_values or ())


def test_options_that_make_no_sense() -> None:
    model, x = CASES["mlp"]()
    for options, says in (
        ({"method": "svd"}, "choose 'auto', 'dense', 'gram' or 'qr'"),
        ({"parameters": "layer9"}, "no parameters under the name 'layer9'"),
        ({"memory": 1000}, "of 18 equations takes"),
    ):
        with pytest.raises(InputError, match=says):
            spectrum(model, x, **options)
    shallow = randomized(mlp(6, [8], 1))
    with pytest.raises(InputError, match="a Cholesky factor takes"):
        spectrum(shallow, randn(20, 6), method="gram", memory=1000)


def test_the_seed_changes_nothing_that_is_told(large: None) -> None:
    model, x = CASES["mlp"]()
    first, second = (spectrum(model, x, seed=seed) for seed in (0, 1))
    assert first.sigma_min == pytest.approx(second.sigma_min, rel=1e-9)
    assert first.sigma_max == pytest.approx(second.sigma_max, rel=1e-12)
