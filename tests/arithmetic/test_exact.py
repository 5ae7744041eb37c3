"""The rational forward pass against fractions, one at a time; with FLINT and without."""

import math
from fractions import Fraction
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from isthmus import graph
from isthmus.arithmetic import exact
from isthmus.arithmetic.exact import Dyadic, dyadic, exact_forward
from isthmus.arithmetic.rounding import running_bound
from isthmus.errors import InputError, UnsupportedModel
from isthmus.graph import Clip, Dense, Flatten, Leaky, Smooth, Sum

floats = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9).map(float)
activations = (
    st.builds(Clip, st.just(0.0), st.sampled_from([6.0, float("inf")]))
    | st.builds(lambda a, b: Clip(*sorted([a, b])), floats, floats)
    | st.builds(Leaky, st.floats(0, 1))
)


@st.composite
def networks(draw):
    """Stages, and inputs [N, 2, 1]."""

    def tensor(*shape):
        size = math.prod(shape)
        return torch.tensor(
            draw(st.lists(floats, min_size=size, max_size=size)), dtype=torch.float64
        ).reshape(shape)

    stages = [Flatten()]
    for before, after in pairwise([2, *draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))]):
        bias = tensor(after) if draw(st.booleans()) else None
        stages += [Dense(tensor(after, before), bias), draw(activations)]
        if draw(st.booleans()):
            inner = (Dense(tensor(2, after), None), draw(activations), Dense(tensor(after, 2), tensor(after)))
            branches = ((), inner, (draw(activations), Sum(((), (draw(activations),)))))
            stages.append(Sum(branches[: draw(st.integers(2, 3))]))
    return stages[: len(stages) - draw(st.integers(0, 1))], tensor(draw(st.integers(1, 3)), 2, 1)


def naive(stages, row):
    """One row through the network, in fractions."""
    values = row if isinstance(row, list) else [Fraction(value) for value in row.reshape(-1).tolist()]
    for stage in stages:
        match stage:
            case Dense(weight, bias):
                offsets = [0.0] * len(weight) if bias is None else bias.tolist()
                values = [
                    sum((Fraction(w) * v for w, v in zip(ws, values, strict=True)), Fraction(offset))
                    for ws, offset in zip(weight.tolist(), offsets, strict=True)
                ]
            case Clip(low, high):
                values = [Fraction(low) if v < low else Fraction(high) if v > high else v for v in values]
            case Leaky(slope):
                values = [v if v >= 0 else Fraction(slope) * v for v in values]
            case Sum(branches):
                values = [sum(parts) for parts in zip(*(naive(b, values) for b in branches), strict=True)]
    return values


@pytest.mark.parametrize("product", [exact.fmpz_mat, None], ids=["installed", "python"])
@given(network=networks())
def test_exact_forward_equals_fractions(product, network):
    stages, x = network
    with mock.patch.object(exact, "fmpz_mat", product):
        outputs = exact_forward(stages, x)
    assert outputs.exponent <= 0
    assert outputs.fractions().tolist() == [naive(stages, row) for row in x]


def test_flint_and_python_agree_on_a_larger_network():
    pytest.importorskip("flint")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.Hardtanh(), nn.Linear(40, 5)).double()
    x = torch.randn(7, 30, dtype=torch.float64)
    fast = exact_forward(graph.stages(model), x)
    with mock.patch.object(exact, "fmpz_mat", None):
        slow = exact_forward(graph.stages(model), x)
    assert fast.exponent == slow.exponent
    assert fast.integers.tolist() == slow.integers.tolist()
    assert all(type(value) is int for value in fast.integers.flat)


def test_a_large_network_of_raw_pixels_stays_within_its_rounding_bound():
    pytest.importorskip("flint")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.LeakyReLU(), nn.Linear(256, 10)
    )
    stages = graph.stages(model.double())
    x = torch.randint(0, 256, (50, 784))
    outputs = exact_forward(stages, x)
    value, bound = running_bound(stages, x.double())
    errors = abs(outputs.fractions() - dyadic(value).fractions())
    assert 0 < errors.max()
    assert (errors <= bound.numpy()).all()
    assert outputs.winners().tolist() == value.argmax(1).tolist()


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([[1.5, -0.1], [5e-324, 1.7e308]], dtype=torch.float64),
        torch.tensor([0.1, -3e-45, 3e38], dtype=torch.float32),
        torch.tensor([0.1, -65504.0], dtype=torch.float16),
        torch.tensor([0.1, -3e38], dtype=torch.bfloat16),
        torch.tensor([2**53 + 1, -(2**63)]),
        torch.tensor([0, 255], dtype=torch.uint8),
        np.array([0.1, -0.0]),
        np.array([2**64 - 1], dtype=np.uint64),
        np.array(0.3, dtype=np.float32),
        np.zeros((2, 0)),
    ],
    ids=lambda values: str(values.dtype),
)
def test_dyadic_is_exact(values):
    found = dyadic(values)
    assert found.fractions().shape == values.shape
    assert found.fractions().reshape(-1).tolist() == [
        Fraction(value) for value in values.reshape(-1).tolist()
    ]


@given(st.lists(floats, min_size=1), st.integers(0, 9))
def test_a_finer_exponent_changes_no_number(values, finer):
    found = dyadic(np.array(values))
    assert found.at(found.exponent - finer).fractions().tolist() == [Fraction(value) for value in values]


@given(st.lists(st.tuples(*3 * [st.integers(-2, 2)]), min_size=1))
def test_winners(rows):
    winners = Dyadic(np.array(rows, dtype=object), -1).winners()
    expected = [row.index(max(row)) if row.count(max(row)) == 1 else -1 for row in rows]
    assert winners.tolist() == expected


def test_winners_are_decided_beyond_floats():
    model = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 2.0**-80]]))
    x = torch.ones(1, 2, dtype=torch.float64)
    assert model(x).tolist() == [[1.0, 1.0]]
    assert exact_forward(graph.stages(model), x).winners().tolist() == [1]


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_what_is_not_finite_is_refused(value):
    with pytest.raises(InputError, match="no exact value"):
        exact_forward([], torch.tensor([[1.0, value]]))
    with pytest.raises(InputError, match="no exact value"):
        exact_forward([Dense(torch.tensor([[value]]), None)], torch.ones(1, 1))


@pytest.mark.parametrize("function", ["tanh", "sigmoid"])
def test_smooth_stages_are_refused(function):
    for stage in (Smooth(function), Sum(((), (Smooth(function),)))):
        with pytest.raises(UnsupportedModel, match="tanh and sigmoid have no exact value"):
            exact_forward([stage], torch.ones(1, 1))
