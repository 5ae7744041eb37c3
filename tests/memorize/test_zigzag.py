"""The zigzag, kink by kink."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus import linear_pieces
from isthmus.bounds.theorems import smallest_zigzag, zigzag_capacity
from isthmus.data import from_arrays, load
from isthmus.errors import PrecisionError, WidthError
from isthmus.memorize import memorize
from isthmus.memorize.zigzag import memorize_values_on_zigzag
from isthmus.nets.sequential import LEAK, sequential

from .rational import rational_error, rational_wrong

LEAKS = {"relu": 0.0, "leaky_relu": LEAK}


@st.composite
def problems(draw):
    groups, size, outputs = draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.integers(1, 2))
    rows = draw(st.integers(max(groups, (groups - 1) * size + 1), groups * size))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = random.normal(size=(rows, draw(st.integers(1, 6))))
    x[:, 0] = random.permutation(np.arange(rows) + random.uniform(-0.2, 0.2, rows))
    data = from_arrays(x, random.uniform(-1, 1, (rows, outputs)), task="regression")
    return data, groups, size


@pytest.mark.parametrize("activation", LEAKS)
@given(problems())
@settings(max_examples=60)
def test_as_many_rows_as_the_product_of_the_widths(activation, problem):
    data, groups, size = problem
    leak = LEAKS[activation]
    generator = torch.Generator().manual_seed(0)
    network = memorize_values_on_zigzag(data, data.targets(), groups, size, leak, generator)
    assert len(network[0].bias) == groups
    assert len(network[1].bias) == (size + (leak > 0)) * data.outputs
    error = rational_error(sequential(network, activation), data.flat, data.targets())
    assert error <= 1e-6


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3), st.booleans(), st.integers(1, 2000))
def test_capacity_and_smallest_agree(d1, d2, outputs, leaky, rows):
    assert zigzag_capacity((d1, d2), outputs, leaky=leaky) == d1 * max(0, d2 // outputs - leaky)
    widths = smallest_zigzag(rows, outputs, leaky=leaky)
    assert zigzag_capacity(widths, outputs, leaky=leaky) >= rows
    if zigzag_capacity((d1, d2), outputs, leaky=leaky) >= rows:
        assert d1 + d2 >= sum(widths)


@pytest.mark.parametrize(("activation", "widths"), [("relu", (32, 32)), ("leaky_relu", (32, 33))])
def test_32_by_32_units_hold_1024_rows(activation, widths):
    data = load("gaussian:n=1024,d=16,task=regression")
    found = memorize(data, method="zigzag", activation=activation, widths=widths, tolerance=1e-3)
    assert found.widths == widths
    assert rational_error(found.model, data.x, data.y) <= 1e-3


@pytest.mark.parametrize("activation", LEAKS)
def test_classes_take_half_the_units_of_twins(activation):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(400, 5)), random.integers(0, 4, 400)
    found = memorize((x, y), activation=activation, method="zigzag")
    assert found.certificate.level == "proven"
    assert rational_wrong(found.model, torch.from_numpy(x), y) == 0
    twins = memorize((x, y), activation=activation, method="three-layer")
    assert found.hidden_units < 0.6 * twins.hidden_units


@pytest.mark.parametrize(("groups", "size"), [(5, 8), (8, 5), (1, 40), (40, 1)])
def test_the_hard_data_set_and_its_pieces(groups, size):
    """The zigzag through the zigzag: N - 1 pieces at least, with barely more units than any network needs."""
    data = load("zigzag:n=40")
    found = memorize(data, method="zigzag", activation="relu", widths=(groups, size), tolerance=1e-9)
    pieces = linear_pieces(found.model, data.x[0], data.x[-1], exact=True)
    assert 39 <= pieces.count <= pieces.by_layer == (groups + 1) * (size + 1)


def test_too_few_units_are_refused():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(100, 3)), random.normal(size=(100, 2))
    with pytest.raises(WidthError, match=r"asks for d1\*floor\(d2/2\) >= 100, but here it is 90; the fewest"):
        memorize((x, y), method="zigzag", activation="relu", widths=(10, 19))
    with pytest.raises(WidthError, match=r"asks for d1\*\(floor\(d2/2\) - 1\) >= 100, but here it is 90"):
        memorize((x, y), method="zigzag", activation="leaky_relu", widths=(10, 20))


def test_slopes_beyond_float64_are_refused():
    """Every gap is twice as wide as the one before."""
    x = np.exp2(np.arange(900.0))[:, None]
    data = from_arrays(x, np.random.default_rng(0).uniform(-1, 1, (900, 1)), task="regression")
    with pytest.raises(PrecisionError, match="choose the method 'three-layer'"):
        memorize_values_on_zigzag(data, data.targets(), 900, 1, 0.0, torch.Generator().manual_seed(0))
