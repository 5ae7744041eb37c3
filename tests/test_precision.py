"""What narrower dtypes are said to make of a network, against what they make of it."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from isthmus import graph
from isthmus.certify import certify
from isthmus.data import Dataset, from_arrays, load
from isthmus.errors import PrecisionError, UnsupportedModel
from isthmus.memorize import memorize
from isthmus.nets.patched import Gates, Patched
from isthmus.nets.residual import Residual
from isthmus.precision import LANES, SIGMAS, compare_precision, expected_error
from tests.saved import random_network

ACTIVATIONS = (nn.Hardtanh(), nn.ReLU(), nn.LeakyReLU(0.1), nn.Tanh())
NETWORKS = 60  # for every activation


def ratios(dtype, activation):
    """Largest error measured over largest error predicted, for random networks."""
    for seed in range(NETWORKS):
        random = np.random.default_rng(seed)
        widths = [*random.integers(2, 60, random.integers(2, 5)).tolist(), 3]
        model = random_network(seed, widths, activation, scale=max(widths) ** -0.5)
        x = torch.from_numpy(random.normal(size=(200, widths[0])))
        predicted = SIGMAS * float(expected_error(graph.stages(model), x, dtype).amax())
        output = graph.cast(model, dtype)(x.to(dtype)).double()
        yield float((output - model(x)).abs().amax()) / predicted


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda module: type(module).__name__)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 1.0), (torch.float32, 4.0)])
def test_errors_are_as_predicted(dtype, most, activation):
    """All of the networks lie between a hundredth and ``most`` times what is predicted.

    PyTorch sums float16 in float32, so that the prediction is a bound there; float32 sums of some sixty terms
    may be a few times as far off.
    """
    found = np.array(list(ratios(dtype, activation)))
    assert ((found >= 0.01) & (found <= most)).all(), (found.min(), found.max())


def test_one_product_by_hand():
    """The standard deviation of w x + b with two roundings and a sixth of w x and one of b."""
    model = nn.Sequential(nn.Linear(1, 1)).double().requires_grad_(False)
    model[0].weight.data.fill_(3.0)
    model[0].bias.data.fill_(-2.0)
    x = torch.tensor([[0.0], [1.0], [4.0]]).double()
    unit = 2.0**-24
    wanted = [unit * (((2 + 1 / LANES) * 9 * value**2 + 4) / 3) ** 0.5 for value in (0.0, 1.0, 4.0)]
    found = expected_error(graph.stages(model), x, torch.float32)
    np.testing.assert_allclose(found[:, 0].numpy(), wanted, rtol=1e-12)
    # An input that the dtype rounds brings an error of its own.
    assert expected_error(graph.stages(model), x + 0.1, torch.float32)[1] > 1.1 * wanted[1]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda module: type(module).__name__)
def test_errors_of_residual_networks_are_as_predicted(activation):
    for seed in range(NETWORKS):
        random = np.random.default_rng(seed)
        size, depth = random.integers(2, 40), random.integers(1, 6)
        blocks = [
            random_network(seed + 99 * k, [size, random.integers(2, 40), size], activation, scale=0.3)
            for k in range(depth)
        ]
        model = nn.Sequential(*(Residual(*block) for block in blocks))
        x = torch.from_numpy(random.normal(size=(200, size)))
        for dtype, least in ((torch.float32, 0.01), (torch.float16, 0.01)):
            predicted = SIGMAS * float(expected_error(graph.stages(model), x, dtype).amax())
            output = graph.cast(model, dtype)(x.to(dtype)).double()
            ratio = float((output - model(x)).abs().amax()) / predicted
            assert least <= ratio <= 4.0, (seed, dtype)


def test_one_sum_by_hand():
    """Of x + 3 x: the product with two roundings and a sixth, the sum with one, or none where a term is 0."""
    model = nn.Sequential(Residual(nn.Linear(1, 1, bias=False))).double().requires_grad_(False)
    model[0][0].weight.data.fill_(3.0)
    x = torch.tensor([[0.0], [1.0], [4.0]]).double()
    unit = 2.0**-24
    wanted = [unit * (((2 + 1 / LANES) * 9 + 16) / 3) ** 0.5 * value for value in (0.0, 1.0, 4.0)]
    found = expected_error(graph.stages(model), x, torch.float32)
    np.testing.assert_allclose(found[:, 0].numpy(), wanted, rtol=1e-12)
    model[0][0].weight.data.zero_()
    assert not expected_error(graph.stages(model), x, torch.float32).any()
    model[0] = Residual(nn.Identity())
    assert torch.isinf(expected_error(graph.stages(model), 4e4 + x, torch.float16)).all()


def test_gates_are_refused():
    stage = graph.stages(nn.Sequential(Patched(nn.Linear(2, 1).double(), [Gates(2, 1, 1)])))
    with pytest.raises(UnsupportedModel, match="float64"):
        expected_error(stage, torch.zeros(1, 2, dtype=torch.float64), torch.float32)


def test_clipped_units_pass_no_error_on():
    model = random_network(0, [3, 8, 2], nn.Hardtanh(), scale=30.0)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 3)))
    clipped = (model[0](x).abs() > 1.001).all(1)
    assert 0 < clipped.sum() < 50
    found, signs = expected_error(graph.stages(model), x, torch.float32), model[0](x).sign()
    alone = expected_error(graph.stages(model[2:]), signs, torch.float32)
    assert torch.equal(found[clipped], alone[clipped])
    assert (found[~clipped] > 1.1 * alone[~clipped]).all()


@pytest.mark.parametrize("where", ["weight", "sum", "input"])
def test_overflow_in_float16_is_no_number(where):
    model = nn.Sequential(nn.Linear(2, 2)).double().requires_grad_(False)
    model[0].weight.data.copy_(torch.eye(2) * (1e5 if where == "weight" else 300.0))
    model[0].bias.data.zero_()
    x = torch.eye(2).double() * {"weight": 1.0, "sum": 300.0, "input": 1e5}[where]
    data = Dataset(x, torch.tensor([0, 1]), "classification", (0, 1))
    narrow = compare_precision(model, data, "float16")
    assert (narrow.predicted_error, narrow.measured_error, narrow.level) == (None, None, "none")
    assert "error predicted none, measured none" in str(narrow)
    wide = compare_precision(model, data, "float32")
    assert wide.measured_error is not None
    assert wide.measured_error <= wide.predicted_error
    assert (wide.wrong, wide.rows) == (0, 2)


def test_a_comparison_is_that_of_the_cast_network():
    random = np.random.default_rng(0)
    data = from_arrays(random.normal(size=(60, 8)), random.integers(0, 3, 60))
    found = memorize(data)
    assert [narrow.dtype for narrow in found.precision] == ["float32", "float16"]
    for narrow in found.precision:
        cast = graph.cast(found.model, graph.DTYPES[narrow.dtype])
        seen = certify(cast, data)
        assert (narrow.wrong, narrow.level, narrow.rows) == (seen.wrong, seen.level, 60)
        output = cast(data.x.to(graph.DTYPES[narrow.dtype])).double()
        assert narrow.measured_error == float((output - found.model(data.x)).abs().max())
    assert next(found.model.parameters()).dtype == torch.float64
    assert memorize(data, dtype=torch.float32).precision == ()


REFUSED = {
    "float16 and classes": (torch.float16, lambda random: (random.normal(size=(40, 1)), np.arange(40) % 3)),
    "float16 and values": (
        torch.float16,
        lambda random: (random.normal(size=(30, 2)), random.normal(size=30)),
    ),
    "float32 and values": (
        torch.float32,
        lambda random: (random.normal(size=(40, 1)), random.normal(size=40)),
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_dtype_too_coarse_names_one_that_does(kind):
    dtype, make = REFUSED[kind]
    table = make(np.random.default_rng(1))
    options = {} if "classes" in kind else {"tolerance": 5e-3 if "16" in kind else 1e-6}
    with pytest.raises(PrecisionError, match=r"choose dtype float\d\d\.$") as refusal:
        memorize(table, dtype=dtype, **options)
    name = re.search(r"choose dtype (\w+)\.$", str(refusal.value))[1]
    found = memorize(table, dtype=graph.DTYPES[name], **options)
    assert found.certificate.level in {"proven", "bitwise"}
    assert "-".join(map(str, found.widths)) in str(refusal.value)


def test_digits_in_float32_take_one_layer_of_at_most_80_units():
    data = load("digits")
    found = memorize(data, method="gates", dtype=torch.float32)
    assert len(found.widths) == 1
    assert found.hidden_units <= 80
    assert found.certificate.level in {"proven", "bitwise"}
    assert (found.model(data.x.float().flatten(1)).argmax(1) == data.y).all()
