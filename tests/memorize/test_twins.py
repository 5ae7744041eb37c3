"""Twins compute the same function as their hard-tanh network, at any input."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isthmus.memorize.twins import twins
from isthmus.nets.sequential import LEAK, Affine, sequential

LEAKS = {"relu": 0.0, "leaky_relu": LEAK}


@pytest.mark.parametrize("activation", LEAKS)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=5), st.integers(0, 2**32))
def test_twins_equal_hardtanh_pointwise(activation, sizes, seed):
    random = np.random.default_rng(seed)
    network = [
        Affine(
            torch.from_numpy(random.normal(size=(below, above))), torch.from_numpy(random.normal(size=below))
        )
        for above, below in pairwise(sizes)
    ]
    x = torch.from_numpy(3 * random.normal(size=(50, sizes[0])))
    doubled = twins(network, LEAKS[activation])
    torch.testing.assert_close(
        sequential(doubled, activation)(x), sequential(network, "hardtanh")(x), rtol=1e-12, atol=1e-12
    )
    assert [len(bias) for _, bias in doubled] == [2 * width for width in sizes[1:-1]] + [sizes[-1]]


@pytest.mark.parametrize("activation", LEAKS)
def test_layers_before_the_first_are_left_as_they_are(activation):
    random = np.random.default_rng(0)
    one, two, three = (
        Affine(torch.from_numpy(random.normal(size=(4, 4))), torch.from_numpy(random.normal(size=4)))
        for _ in range(3)
    )
    doubled = twins([one, two, three], LEAKS[activation], kept=(len(one.bias),))
    x = torch.from_numpy(random.normal(size=(20, 4)))
    hidden = sequential([one], activation)(x)
    hidden = torch.nn.functional.leaky_relu(hidden, LEAKS[activation])
    expected = sequential([two, three], "hardtanh")(hidden)
    torch.testing.assert_close(sequential(doubled, activation)(x), expected, rtol=1e-12, atol=1e-12)
