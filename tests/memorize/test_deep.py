"""The blocks of a deep network, layer by layer."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.data import from_arrays
from isthmus.errors import PrecisionError
from isthmus.memorize.deep import Block, memorize_values_in_blocks
from isthmus.memorize.lines import draw_line
from isthmus.memorize.twins import twins
from isthmus.nets.sequential import LEAK

SLOPES = {"relu": 0.0, "leaky_relu": LEAK}


@st.composite
def problems(draw):
    """A few blocks of any parity, and rows for them."""
    blocks, start = [], draw(st.integers(1, 3))
    for _ in range(draw(st.integers(1, 4))):
        groups, size = draw(st.integers(1, 5)), draw(st.integers(1, 5))
        rows = draw(st.integers(max(groups, (groups - 1) * size + 1), groups * size))
        blocks.append(Block(start, rows, groups, size, draw(st.integers(1, groups))))
        start += draw(st.integers(2, 4))
    rows, outputs = sum(block.rows for block in blocks), draw(st.integers(1, 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = random.uniform(size=(rows, draw(st.integers(1, 4))))
    x[:, 0] = random.permutation(np.arange(rows) + random.uniform(-0.2, 0.2, rows))
    data = from_arrays(x, random.uniform(-1, 1, (rows, outputs)), task="regression")
    hidden = blocks[-1].start + 1 + draw(st.integers(0, 2))
    return data, blocks, hidden


def run(network, x, activation):
    """The values of all hidden layers, and the outputs."""
    layers = []
    for weight, bias in network[:-1]:
        x = activation(x @ weight.T + bias)
        layers.append(x)
    return layers, x @ network[-1].weight.T + network[-1].bias


@given(problems())
@settings(max_examples=80)
def test_every_block_adds_to_its_own_rows_alone(problem):
    data, blocks, hidden = problem
    line = draw_line(data, 4, torch.Generator().manual_seed(0))
    y = data.targets()
    network, carried = memorize_values_in_blocks(data, line, y, blocks, hidden)
    assert len(network) == hidden + 1
    layers, output = run(network, data.flat, lambda x: x.clamp(-1, 1))
    noise = 1e-13 * max(float(weight.abs().sum(1).max()) for weight, _ in network)
    torch.testing.assert_close(output, y, rtol=0, atol=noise)
    for values, count in zip(layers, carried, strict=True):
        assert (values[:, :count] >= -noise).all()
        assert (values[:, :count] <= 1 + noise).all()
    # Between blocks every layer begins with the position, up to the last block, and with the sums.
    position = layers[0][:, 0]
    order, done = position.argsort(), 0
    for block, later in pairwise(blocks):
        done += block.rows
        for number in range(block.start + 2, later.start + 1):
            values = layers[number - 1]
            if number < blocks[-1].start:
                assert torch.equal(values[:, 0], position)
            sums = values[order][:, carried[number - 1] - y.shape[1] : carried[number - 1]]
            torch.testing.assert_close(sums[:done], (y[order][:done] + 1) / 2, rtol=0, atol=noise)
            level = sums[done].round()
            torch.testing.assert_close(sums[done:], level.expand_as(sums[done:]), rtol=0, atol=noise)


@pytest.mark.parametrize("activation", SLOPES)
@given(problems())
@settings(max_examples=30)
def test_twins_leave_what_is_carried_alone(activation, problem):
    data, blocks, hidden = problem
    line = draw_line(data, 4, torch.Generator().manual_seed(0))
    network, carried = memorize_values_in_blocks(data, line, data.targets(), blocks, hidden)
    doubled = twins(network, SLOPES[activation], carried)
    for (_, narrow), (_, wide), count in zip(network, doubled, carried, strict=False):
        assert len(wide) == count + 2 * (len(narrow) - count)
    slope = SLOPES[activation]
    _, output = run(doubled, data.flat, lambda x: torch.nn.functional.leaky_relu(x, slope))
    scale = max(float(weight.abs().sum(1).max()) for weight, _ in network)
    torch.testing.assert_close(output, data.targets(), rtol=0, atol=1e-11 * scale)


def test_two_odd_blocks_need_the_turned_targets():
    """A block of three groups of three adds 1 to all later rows, which the next block builds upon."""
    random = np.random.default_rng(0)
    x = np.arange(18.0)[:, None]
    data = from_arrays(x, random.uniform(-1, 1, (18, 1)), task="regression")
    blocks = [Block(1, 9, 3, 3, 3), Block(4, 9, 3, 3, 3)]
    line = draw_line(data, 0, torch.Generator().manual_seed(1))
    network, _ = memorize_values_in_blocks(data, line, data.targets(), blocks, 5)
    layers, output = run(network, data.flat, lambda x: x.clamp(-1, 1))
    between = layers[2]
    assert sorted((between[:, 1] > 1 - 1e-9).tolist()) == [False] * 9 + [True] * 9
    torch.testing.assert_close(output, data.targets(), rtol=0, atol=1e-10)


def test_integers_are_carried_without_rounding():
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (200, 50))
    data = from_arrays(x, random.uniform(-1, 1, (200, 1)), task="regression")
    line = draw_line(data, 4, torch.Generator().manual_seed(0))
    blocks = [Block(2, 100, 10, 10, 10), Block(4, 100, 10, 10, 10)]
    network, _ = memorize_values_in_blocks(data, line, data.targets(), blocks, 5)
    weight, bias = network[0]
    forwards = data.flat.double() @ weight.T + bias
    backwards = (data.flat.double().flip(1) @ weight.flip(1).T) + bias
    assert torch.equal(forwards, backwards)


def test_rows_together_on_the_line_are_refused():
    x = np.array([[0.0], [1.0], [np.nextafter(1.0, 2)], [2.0], [3.0], [4.0]])
    data = from_arrays(x, np.linspace(-1, 1, 6)[:, None], task="regression")
    line = draw_line(data, 0, torch.Generator().manual_seed(0))
    with pytest.raises(PrecisionError, match="cannot tell rows 2 and 3"):
        memorize_values_in_blocks(data, line, data.targets(), [Block(2, 6, 1, 6, 1)], 3)
