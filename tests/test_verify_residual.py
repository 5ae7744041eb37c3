"""The independent check on residual networks: its bound is a bound, and all backends agree."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from isthmus import graph
from isthmus.arithmetic.rounding import running_bound
from isthmus.certify import certify, decision_margins
from isthmus.nets.residual import Residual
from isthmus.verify import verify
from tests.saved import named_by, random_network, saved
from tests.test_verify import ACTIVATIONS, BACKENDS, X, agree, assert_bounded, evaluated


def residual_network(seed, inputs, width, hidden, activation, dtype=torch.float64, scale=1.0):
    """Blocks of these hidden widths between two Linear layers, one more block inside the last of them."""
    blocks = [
        Residual(*random_network(seed + size + 9 * index, [width, size, width], activation, dtype, scale))
        for index, size in enumerate(hidden)
    ]
    blocks[-1].insert(
        2, Residual(activation, *random_network(seed, [hidden[-1]] * 2, activation, dtype, scale))
    )
    first, *_, last = random_network(seed, [inputs, width, 3], activation, dtype, scale)
    return nn.Sequential(first, *blocks, activation, last)


@settings(max_examples=300, derandomize=True)
@given(
    seed=st.integers(0, 10**9),
    width=st.integers(1, 6),
    hidden=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    activation=st.sampled_from(ACTIVATIONS),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16]),
    scale=st.sampled_from([1e-20, 1e-3, 0.3, 1.0, 30.0, 1e5]),
    whole=st.booleans(),
)
def test_holds_for_residual_networks(seed, width, hidden, activation, dtype, scale, whole):
    scale = min(max(scale, 1e-3), 1.0) if dtype == torch.float16 else scale
    model = residual_network(seed, 3, width, hidden, activation, dtype, scale)
    x = np.random.default_rng(seed).standard_normal((4, 3))
    if whole:
        power = np.ldexp(1.0, int(np.log2(scale)))
        for parameter in model.parameters():
            parameter.data = (parameter.double() / scale * 4).round().mul(power).to(dtype)
        x = np.round(x * 4)
    said = assert_bounded(model, x.astype(str(dtype).removeprefix("torch.")))
    assert said.all() or scale > 1e3 or dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_a_block_rounds_its_sum_once_or_not_at_all(dtype):
    model = random_network(0, [1, 1], nn.ReLU(), dtype)
    model.insert(0, Residual(*random_network(0, [1, 1], nn.ReLU(), dtype)))
    unit = float(torch.finfo(dtype).eps) / 2
    for layer, weight in ((model[0][0], unit), (model[1], 1.0)):
        layer.weight.data.fill_(weight)
        layer.bias.data.zero_()
    x = np.array([[1.0], [2.0], [3.0], [0.0]], dtype=str(dtype).removeprefix("torch."))
    assert assert_bounded(model, x).all()
    _, error = evaluated(model[:1], x)
    assert error.ravel().tolist() == pytest.approx([unit, 2 * unit, 3 * unit, 0.0], rel=1.1 * unit + 1e-5)
    model[0][0].weight.data.fill_(2 * unit)  # the last bit of 1
    assert not evaluated(model, x[[0, 1, 3]])[1].any()


def test_a_block_that_adds_nothing_rounds_nothing():
    model = random_network(3, [3, 4, 2], nn.Hardtanh())
    before = evaluated(model, X / 7)[1]
    assert before.any()
    zero = Residual(nn.Linear(2, 2)).double().requires_grad_(False)
    for parameter in zero.parameters():
        parameter.zero_()
    assert np.array_equal(evaluated(nn.Sequential(*model, zero), X / 7)[1], before)
    some = Residual(*random_network(0, [2, 2], nn.ReLU()))
    assert not np.array_equal(evaluated(nn.Sequential(*model, some), X / 7)[1], before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS[:3], ids=str)
def test_all_agree_on_residual_networks(tmp_path, activation, dtype):
    model = residual_network(0, 3, 4, [2, 3], activation, dtype, 0.5)
    x = np.random.default_rng(0).integers(-9, 10, (99, 3)).astype(float)
    rows = named_by(model, x)
    lead, spread = decision_margins(*running_bound(graph.stages(model), rows.x.to(dtype)), rows.y)
    rows = named_by(model, x[(lead > 2 * spread).all(1).numpy()])
    assert rows.rows > 2
    place = saved(tmp_path / "m", model, rows, onnx=True)
    certificate = certify(model, rows)
    assert certificate.reaches("proven")
    for seen in agree(place, rows):
        assert seen.bound == pytest.approx(certificate.bound, rel=0.3)
    y = rows.y.clone()
    y[2] = (y[2] + 1) % 3
    for backend in BACKENDS:
        assert verify(place, replace(rows, y=y), backend=backend).first_wrong == (3,)
