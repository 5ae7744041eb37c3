"""Real targets from gates, unit by unit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.data import from_arrays
from isthmus.errors import PrecisionError, WidthError
from isthmus.memorize import memorize
from isthmus.memorize.real_gates import memorize_values_on_gates
from isthmus.memorize.twins import twins
from isthmus.nets.sequential import LEAK

from .rational import rational_error


@st.composite
def tables(draw):
    rows, columns, outputs = draw(st.integers(1, 80)), draw(st.integers(1, 8)), draw(st.integers(1, 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    y = random.normal(size=(rows, outputs)) * 10.0 ** random.integers(-3, 4) + random.normal()
    return from_arrays(random.normal(size=(rows, columns)), y, task="regression")


def built(data, most=None, *, adding=False):
    generator = torch.Generator().manual_seed(0)
    most = data.inputs if most is None else most
    return memorize_values_on_gates(data, data.targets(), most, torch.float64, generator, adding=adding)


@given(tables())
@settings(max_examples=60)
def test_every_gate_gives_its_rows_their_targets_and_nothing_to_others(data):
    first, last = built(data)
    y, outputs = data.targets(), data.outputs
    hidden = (data.flat @ first.weight.T + first.bias).clamp(-1, 1).reshape(data.rows, -1, outputs + 1)
    open_ = (hidden[..., :-1] != hidden[..., -1:]).any(-1)
    gates = hidden.shape[1]
    if gates > 1:
        assert gates >= -(-data.rows // data.inputs)
        assert (open_.sum(1) <= 1).all()  # a target in the middle of all opens none
        # Far from its plane a gate is clipped, with both its units on the same side.
        closed = hidden[~open_]
        assert (closed.abs() == 1).all() or (closed[..., :-1] == closed[..., -1:]).all()
    error = (hidden.flatten(1) @ last.weight.T + last.bias - y).abs().max()
    assert error <= 1e-9 * (y.abs().max() + 1)


@pytest.mark.parametrize("leak", [0.0, LEAK])
@given(tables())
@settings(max_examples=30)
def test_twins_are_the_four_relus_of_a_gate(leak, data):
    network = twins(built(data, adding=True), leak)
    assert len(network[0].bias) % (2 * (data.outputs + 1)) == 0
    hidden = torch.nn.functional.leaky_relu(data.flat @ network[0].weight.T + network[0].bias, leak)
    y = data.targets()
    error = (hidden @ network[1].weight.T + network[1].bias - y).abs().max()
    assert error <= 1e-7 * (y.abs().max() + 1)


def test_the_papers_count_in_rational_arithmetic():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(60, 6)), random.uniform(-1, 1, (60, 1))
    found = memorize((x, y), method="gates", activation="relu", widths=(40,), tolerance=1e-6)
    assert found.widths == (40,)
    assert rational_error(found.model, torch.from_numpy(x), y) <= 1e-10


def test_fewer_rows_per_gate_where_margins_are_narrow():
    """A ladder of sizes; the first that is proven is kept."""
    random = np.random.default_rng(1)
    x, y = random.normal(size=(1000, 40)), random.uniform(-1, 1, (1000, 1))
    found = memorize((x, y), method="gates")
    assert found.certificate.level == "proven"
    assert [attempt.widths for attempt in found.tried] == sorted(attempt.widths for attempt in found.tried)
    assert found.widths[0] in {50, 100, 200}


def test_rows_that_an_affine_map_fits_take_one_gate():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(5, 8)), random.normal(size=(5, 2))
    found = memorize((x, y), method="gates")
    assert found.widths == (3,)


def test_wide_data_takes_gates_by_default():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(600, 100)), random.normal(size=(600, 1))
    found = memorize((x, y))
    assert found.recipe["plan"]["method"] == "gates"
    assert found.hidden_units < 2 * 600**0.5


def test_too_few_units_are_refused():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(60, 6)), random.normal(size=(60, 1))
    with pytest.raises(WidthError, match=r"ask for 4\*ceil\(N/d\): d1 >= 40, but here d1 = 39"):
        memorize((x, y), method="gates", activation="relu", widths=(39,))


def test_rows_on_a_line_are_right_or_refused():
    """Every hyperplane through two of them holds them all; so each takes a gate of its own."""
    x = np.arange(12.0)[:, None] * np.ones((1, 3))
    y = np.random.default_rng(0).normal(size=(12, 1))
    found = memorize((x, y), method="gates")
    assert found.widths == (24,)
    with pytest.raises(PrecisionError, match="took 24 units"):
        memorize((x, y), method="gates", widths=(23,), budget=1.0)
