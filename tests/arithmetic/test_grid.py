"""Dyadic grids against fractions, which know every power of two."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isthmus.arithmetic.grid import SIGNIFICAND, round_to_grid, value_grid

DTYPES = {torch.float64: st.floats(allow_nan=False, allow_infinity=False)}
DTYPES[torch.float32] = st.floats(allow_nan=False, allow_infinity=False, width=32)


def tensors(dtype, bound=math.inf):
    cells = DTYPES[dtype].filter(lambda value: abs(value) <= bound) | st.integers(-64, 64).map(float)
    return st.lists(cells, min_size=1, max_size=6).map(lambda cells: torch.tensor(cells, dtype=dtype))


def naive_grid(values):
    """The exponents of the largest powers of two that divide them: count halvings, or doublings."""
    found = math.inf
    for value in filter(None, values.tolist()):
        numerator, denominator = value.as_integer_ratio()
        found = min(found, (numerator & -numerator).bit_length() - denominator.bit_length())
    return found


def naive_rounding(values, bits):
    smallest = Fraction(torch.finfo(values.dtype).smallest_normal) * Fraction(torch.finfo(values.dtype).eps)
    exponent = math.frexp(max(map(abs, values.tolist())))[1]
    step = max(Fraction(2) ** (exponent - bits), smallest)
    return [round(Fraction(value) / step) * step for value in values.tolist()]


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.data())
def test_value_grid(dtype, data):
    values = data.draw(tensors(dtype))
    assert float(value_grid(values)) == naive_grid(values)


@given(st.integers(1, 5), st.integers(0, 2**32))
def test_value_grid_along_a_dimension(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-40, 40, (rows, 3), generator=generator)
    assert value_grid(values, dim=1).tolist() == [naive_grid(row) for row in values.double()]
    assert value_grid(values, dim=0).tolist() == [naive_grid(row) for row in values.double().T]


@pytest.mark.parametrize("value", [5e-324, 2.0**-1074 * 12, 2.0**-1022, 2.0**1023, 1.7976931348623157e308])
def test_value_grid_at_the_ends_of_float64(value):
    values = torch.tensor([value], dtype=torch.float64)
    assert float(value_grid(values)) == naive_grid(values)


def test_value_grid_of_nothing_but_zeros():
    assert float(value_grid(torch.tensor([0.0, -0.0]))) == math.inf


@given(st.integers(-900, 900), st.integers(1, 2**SIGNIFICAND - 1))
def test_value_grid_is_reached(exponent, odd):
    value = math.ldexp(odd | 1, exponent)
    assert float(value_grid(torch.tensor(value, dtype=torch.float64))) == exponent


# Below 2^1020, so that rounding up does not overflow.
@pytest.mark.parametrize(("dtype", "bound", "most"), [(torch.float64, 1e307, 52), (torch.float32, 1e37, 23)])
@given(st.data())
def test_round_to_grid(dtype, bound, most, data):
    values = data.draw(tensors(dtype, bound))
    bits = data.draw(st.integers(1, most))
    rounded = round_to_grid(values, bits, dim=0)
    assert rounded.dtype == dtype
    assert [Fraction(value) for value in rounded.tolist()] == naive_rounding(values, bits)


def test_round_to_grid_takes_every_row_by_itself():
    values = torch.tensor([[5.0, 0.3], [0.3, 1e-3]], dtype=torch.float64)
    rounded = round_to_grid(values, 3, dim=1)
    assert rounded.tolist() == [[5.0, 0.0], [0.3125, 0.0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_round_to_grid_leaves_the_smallest_numbers_alone(dtype):
    info = torch.finfo(dtype)
    values = info.smallest_normal * info.eps * torch.arange(-3, 4, dtype=dtype)
    assert torch.equal(round_to_grid(values, 20, dim=0), values)


@given(tensors(torch.float64, 1e307), st.integers(1, 52))
def test_rounded_values_add_up_without_rounding(values, bits):
    # Fewer than 2^3 values of at most `bits` bits each: every order of summation must be exact.
    bits = min(bits, SIGNIFICAND - 4)
    rounded = round_to_grid(values, bits, dim=0)
    exact = sum(map(Fraction, rounded.tolist()))
    assert Fraction(float(rounded.sum())) == Fraction(float(rounded.flip(0).cumsum(0)[-1])) == exact
