"""Lines and cuts against brute force, exact sums against rational arithmetic."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isthmus.data import from_arrays
from isthmus.errors import PrecisionError
from isthmus.memorize.lines import FEWEST_BITS, ascending, column_reach, cut_groups, draw_line, exact_bits

SEEDS = st.integers(0, 2**32)


@st.composite
def cuttings(draw):
    rows = draw(st.integers(1, 60))
    groups = draw(st.integers(1, rows))
    size = draw(st.integers(-(-rows // groups), rows))
    position = np.random.default_rng(draw(SEEDS)).exponential(size=rows).cumsum()
    return torch.from_numpy(position), groups, size


@given(cuttings())
def test_cut_groups_leaves_no_group_empty_or_too_large(cutting):
    position, groups, size = cutting
    bounds = cut_groups(position, groups, size)
    assert len(bounds) == groups + 1
    assert (bounds[0], bounds[-1]) == (0, len(position))
    assert bounds.diff().min() >= 1
    assert bounds.diff().max() <= size


@given(cuttings())
def test_every_cut_is_in_the_widest_gap_of_its_window(cutting):
    position, groups, size = cutting
    rows = len(position)
    t = position.tolist()
    reach = Fraction(min(size * groups - rows, rows - groups), 2 * groups)
    for k, cut in enumerate(cut_groups(position, groups, size)[1:-1].tolist(), 1):
        even = Fraction(k * rows, groups)
        window = [place for place in range(1, rows) if abs(place - even) <= reach] or [floor(even)]
        assert cut in window
        assert t[cut] - t[cut - 1] == max(t[place] - t[place - 1] for place in window)


@pytest.mark.parametrize(("rows", "groups"), [(12, 3), (12, 12), (12, 1), (2000, 1000)])
def test_groups_that_are_all_full_leave_no_choice(rows, groups):
    position = torch.rand(rows, dtype=torch.float64).cumsum(0)
    bounds = cut_groups(position, groups, rows // groups)
    assert bounds.tolist() == list(range(0, rows + 1, rows // groups))


def table(seed, rows, inputs, kind):
    random = np.random.default_rng(seed)
    integers = random.integers(0, 256, (rows, inputs))
    return {
        "uint8": integers.astype(np.uint8),
        "sixteenths": integers / 16 - 3,
        "thousands": integers * 1024.0,
        "zeros": np.zeros((rows, inputs)),
        "timestamps": 1.7e9 + integers,
    }[kind]


@pytest.mark.parametrize("kind", ["uint8", "sixteenths", "thousands", "zeros", "timestamps"])
@given(seed=SEEDS, rows=st.integers(1, 20), inputs=st.integers(1, 9))
def test_weights_of_exact_bits_sum_without_rounding_in_any_order(kind, seed, rows, inputs):
    x = table(seed, rows, inputs, kind)
    bits = exact_bits(from_arrays(x, np.arange(rows), task="regression"))
    if bits == 0:
        assert kind == "timestamps"
        return
    assert bits >= FEWEST_BITS
    random = np.random.default_rng(seed + 1)
    weight = random.integers(-(2**bits), 2**bits + 1, inputs)
    for row in x.astype(float):
        largest = int(np.ceil(np.abs(row).sum())) or 1
        terms = [float(w) * v for w, v in zip(weight.tolist(), row.tolist(), strict=True)]
        terms.append(float(random.integers(-largest * 2**bits, largest * 2**bits, endpoint=True)))
        exact = sum((Fraction(term) for term in terms), Fraction(0))
        total = 0.0
        for index in random.permutation(len(terms)):
            total += terms[index]
        assert Fraction(total) == exact


def test_fractions_in_all_bits_leave_none():
    x = np.random.default_rng(0).normal(size=(5, 3))
    assert exact_bits(from_arrays(x, np.arange(5), task="regression")) == 0


@given(seed=SEEDS, rows=st.integers(1, 30), inputs=st.integers(1, 6), directions=st.integers(0, 5))
def test_a_line_is_the_sorted_projection(seed, rows, inputs, directions):
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, inputs)) * 10.0 ** random.integers(-6, 9, inputs)
    constant = random.integers(0, 2, inputs).astype(bool)
    x[:, constant] = 7.0
    line = draw_line(
        from_arrays(x, np.arange(rows), task="regression"), directions, torch.Generator().manual_seed(seed)
    )
    rows_of = torch.from_numpy(x)[line.order]
    assert sorted(line.order.tolist()) == list(range(rows))
    assert (line.position.diff() >= 0).all()
    # Rows as far apart as a column's range count as 1, whatever its unit.
    torch.testing.assert_close(
        line.position, rows_of @ line.direction, rtol=1e-12, atol=float(1e-12 * line.position.abs().max())
    )
    assert torch.equal(line.direction == 0, torch.from_numpy(constant) | (rows == 1))
    assert (line.pencil[torch.from_numpy(constant)] == 0).all()
    assert line.pencil.shape[1] == line.offsets.shape[1]
    assert line.pencil.shape[1] == (directions if rows > 1 and (~constant).sum() > 1 else 0)
    if rows > 1 and line.pencil.shape[1]:
        moved = rows_of @ line.pencil
        torch.testing.assert_close(line.offsets, moved - moved.mean(0), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(line.offsets.square().mean(0), torch.ones(directions).double())
    assert line.alone().pencil.shape == (inputs, 0)


@given(seed=SEEDS, rows=st.integers(1, 30), inputs=st.integers(1, 6))
def test_the_reach_of_a_column_is_its_largest_distance_from_the_first_row(seed, rows, inputs):
    x = np.random.default_rng(seed).normal(size=(rows, inputs)) * 1e3
    found = column_reach(from_arrays(x, np.arange(rows), task="regression"))
    assert found.tolist() == np.abs(x - x[0]).max(0).tolist()


@given(seed=SEEDS, shape=st.lists(st.integers(1, 9), min_size=1, max_size=3), missing=st.booleans())
def test_ascending_sorts_the_last_dimension_and_says_from_where(seed, shape, missing):
    values = torch.from_numpy(np.random.default_rng(seed).normal(size=shape))
    if missing:
        values[..., 0] = torch.inf
    found, place = ascending(values)
    assert torch.equal(found, values.sort(-1).values)
    assert torch.equal(values.gather(-1, place), found)


def test_a_column_beyond_float64_is_refused():
    data = from_arrays([[0.0, -1.7e308], [1.0, 1.7e308]], [0, 1])
    with pytest.raises(PrecisionError, match=r"input column 2 spans more than float64 holds; rescale"):
        draw_line(data, 2, torch.Generator().manual_seed(0))
