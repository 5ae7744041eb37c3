"""Decoders: what they make of every f near a code, for any number of classes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isthmus.memorize.classifier import codes, decode
from isthmus.memorize.twins import twins
from isthmus.nets.sequential import LEAK, Affine, sequential

IDENTITY = Affine(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
UNITS = {"gates": lambda classes: 2 * classes, "thermometer": lambda classes: classes - 1, "nearest": None}


def around(classes, radius):
    """f within ``radius`` of every code, and the code's class."""
    offset = torch.linspace(-radius, radius, 41, dtype=torch.float64)
    return (codes(classes)[:, None] + offset).reshape(-1, 1), torch.arange(classes).repeat_interleave(41)


@given(st.integers(1, 200))
def test_codes_are_the_middles_of_equal_parts(classes):
    expected = [-1 + (2 * c + 1) / classes for c in range(classes)]
    assert codes(classes).tolist() == expected


@pytest.mark.parametrize("decoder", ["gates", "thermometer"])
@given(classes=st.integers(2, 150))
def test_outputs_are_bitwise_one_hot_within_half_a_part(decoder, classes):
    f, label = around(classes, (1 - 1e-9) / (2 * classes))
    network = decode([IDENTITY], classes, decoder)
    assert len(network[0].bias) == UNITS[decoder](classes)
    one_hot = torch.nn.functional.one_hot(label, classes).double()
    assert torch.equal(sequential(network, "hardtanh")(f), one_hot)
    for activation, leak in (("relu", 0.0), ("leaky_relu", LEAK)):
        output = sequential(twins(network, leak), activation)(f)
        torch.testing.assert_close(output, one_hot, rtol=0, atol=1e-12 * classes)


@pytest.mark.parametrize("decoder", ["gates", "thermometer", "nearest"])
@given(classes=st.integers(2, 150))
def test_the_largest_output_is_right_within_a_part(decoder, classes):
    f, label = around(classes, (1 - 1e-9) / classes)
    output = sequential(decode([IDENTITY], classes, decoder), "hardtanh")(f)
    own = output.gather(1, label[:, None])
    assert (own > output.scatter(1, label[:, None], -torch.inf)).all()


@given(st.integers(2, 150))
def test_the_nearest_code_leads_by_one_at_the_code(classes):
    (network,) = decode([IDENTITY], classes, "nearest")
    output = codes(classes)[:, None] @ network.weight.T + network.bias
    two = output.topk(2).values
    torch.testing.assert_close(two[:, 0] - two[:, 1], torch.ones(classes).double())
