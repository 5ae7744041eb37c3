"""The rounding bound of residual networks against rational arithmetic, and of one block by hand."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from isthmus.arithmetic.exact import dyadic, exact_forward
from isthmus.arithmetic.rounding import running_bound
from isthmus.graph import Clip
from isthmus.nets.residual import Residual
from tests.arithmetic.evaluations import (
    ACTIVATIONS,
    DTYPES,
    KINDS,
    NETWORKS,
    beside,
    bounds_of,
    dense,
    integers,
    large,
    subnormal,
    within_the_bound,
)

ALL_DTYPES = [*DTYPES, torch.float16]


def residual_network(rng, kind, dtype):
    """A random network of residual blocks, some within others, and inputs [3, d]."""
    info = torch.finfo(dtype)

    def numbers(shape):
        chosen = kind if rng.random() < 0.7 else KINDS[rng.integers(5)]
        values = torch.from_numpy(np.asarray(chosen(rng, shape, info), dtype=float))
        return values.clamp(-info.max, info.max).to(dtype)  # float16 has not the range of all kinds

    def linear(before, after):
        module = nn.Linear(before, after, bias=bool(rng.random() < 0.7), dtype=dtype)
        for parameter in module.parameters():
            parameter.data = numbers(tuple(parameter.shape))
        return module

    def block(width, depth):
        activation = ACTIVATIONS[rng.integers(len(ACTIVATIONS))]()
        if rng.random() < 0.15:
            return Residual(activation)
        hidden = int(rng.integers(1, 7))
        inner = [linear(width, hidden), activation, linear(hidden, width)]
        if depth and rng.random() < 0.4:
            place = int(rng.integers(2, 4))
            inner.insert(place, block(hidden if place == 2 else width, depth - 1))
        return Residual(*inner)

    width, outputs = rng.integers(1, 7, 2).tolist()
    model = nn.Sequential()
    for _ in range(rng.integers(1, 4)):
        model.append(block(width, 2))
        if rng.random() < 0.5:
            model.append(ACTIVATIONS[rng.integers(len(ACTIVATIONS))]())
    if rng.random() < 0.5 or not list(model.parameters()):  # whose dtype the constants take
        model.append(linear(width, outputs))
    return model.requires_grad_(False), numbers((3, width))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_evaluation_of_a_residual_network_is_within_the_bound(kind, dtype):
    rng = np.random.default_rng([99, KINDS.index(kind), ALL_DTYPES.index(dtype)])
    finite, zero = [], []
    for _ in range(NETWORKS):
        model, x = residual_network(rng, kind, dtype)
        known, bound = within_the_bound(model, x, rng)
        finite.append(known.mean())
        zero.append((bound == 0).double().mean())
    coarse = dtype == torch.float16 or kind in {large, subnormal}
    assert np.mean(finite) > (0.08 if coarse else 0.9)
    assert np.mean(zero) < 0.5
    assert kind is not integers or np.mean(zero) > 0.1


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_the_sum_of_a_block_is_rounded_once_or_not_at_all(dtype):
    unit = torch.finfo(dtype).eps / 2
    scaled = beside(dense([[unit]], dtype=dtype))
    # 1 + u is halfway between two numbers, 3 u + 3 too long for the last bit, 4 + 4 u too; 0 + 0 is not.
    x = torch.tensor([[1.0], [3.0], [4.0], [0.0]], dtype=dtype)
    value, bound = running_bound([scaled], x)
    errors = abs(exact_forward([scaled], x).fractions() - dyadic(value).fractions())
    assert errors.ravel().tolist() == [Fraction(unit), Fraction(unit), Fraction(4 * unit), 0]
    assert (errors <= bound.numpy()).all()
    assert (bound.squeeze(1) <= torch.tensor([1.01, 3.01, 4.02, 0.0]) * unit * (1 + unit)).all()
    # A sum that is a number of the dtype has no error, however far its terms are apart.
    fits = beside(dense([[2 * unit]], dtype=dtype))
    assert bounds_of([fits], [[1.0], [-2.0], [0.5]], dtype).tolist() == [[0.0], [0.0], [0.0]]


def test_a_block_that_adds_nothing_passes_the_error_on_as_it_is():
    first = dense([[0.1, 0.2], [0.3, -0.7]])
    x = [[1.0, 1.0], [1.5, 2.5]]
    error = bounds_of([first], x)
    assert (error > 0).all()
    zero = beside(dense([[0.0, 0.0], [0.0, 0.0]]))
    off = beside(Clip(-1.0, 1.0), dense([[1.0, 1.0], [1.0, 1.0]], [-9.0, -9.0]), Clip(0.0, math.inf))
    for block in (zero, off):
        assert torch.equal(bounds_of([first, block], x), error)
    # One unit is off on all rows; what is added to 0 keeps its error.
    gone = dense([[1.0, 0.0], [0.0, 1.0]], [-9.0, 0.0])
    clipped = bounds_of([first, gone, Clip(0.0, math.inf)], x)
    assert (clipped[:, 0] == 0).all()
    added = bounds_of([first, gone, Clip(0.0, math.inf), beside(dense([[0.0, 0.1], [0.0, 0.0]]))], x)
    inner = bounds_of([first, gone, Clip(0.0, math.inf), dense([[0.0, 0.1], [0.0, 0.0]])], x)
    assert torch.equal(added[:, 0], inner[:, 0])


def test_what_is_0_only_as_computed_is_still_added_with_rounding():
    # Below 0 by less than rounding may take: 0 behind the ReLU, but with an error.
    near = (dense([[0.1, 0.2], [0.0, 1.0]], [-0.3 - 2e-16, 0.0]), Clip(0.0, math.inf))
    x = [[1.0, 1.0]]
    value, error = running_bound([*near], torch.tensor(x, dtype=torch.float64))
    assert value[0, 0] == 0 < error[0, 0]
    assert bounds_of([beside(*near)], x)[0, 0] > error[0, 0] + 0.99 * 2.0**-53
    other = dense([[0.0, 1.0], [0.0, 0.0]])
    added = bounds_of([*near, other], x)[0, 0]
    assert bounds_of([*near, beside(other)], x)[0, 0] > error[0, 0] + added + 0.99 * 2.0**-53


def test_errors_of_both_ways_add_up():
    first, inner = dense([[0.1, 0.2]]), dense([[3.0]], [0.1])
    x = [[1.0, 1.0]]
    one, other = bounds_of([first], x).item(), bounds_of([first, inner], x).item()
    value, bound = running_bound([first, beside(inner)], torch.tensor(x, dtype=torch.float64))
    rounding = 2.0**-53 * (value.item() + 2 * (one + other))
    assert one + other + 0.999 * rounding < bound.item() < one + other + 1.001 * rounding


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_a_block_that_may_overflow_has_no_finite_bound(dtype):
    top = torch.finfo(dtype).max
    double = beside()
    bound = bounds_of([double], [[0.75 * top], [-0.75 * top], [0.5 * top], [0.25 * top]], dtype)
    assert bound.squeeze(1).tolist() == [math.inf, math.inf, 0.0, 0.0]
    opposite = beside(dense([[-1.0]], dtype=dtype))
    assert bounds_of([opposite], [[2.0 ** (math.log2(top) // 1 - 3)]], dtype).tolist() == [[0.0]]
