"""Theorem 3.1's second layer, unit by unit, on networks small enough to hold in full."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.data import from_arrays
from isthmus.memorize.lines import draw_line
from isthmus.memorize.ramps import draw_ramps
from isthmus.memorize.slopes import alternating_signs, slope_requirement
from isthmus.memorize.three_layer import first_layer_width, memorize_values, output_layer, solve_chains


@st.composite
def problems(draw):
    rows = draw(st.integers(1, 120))
    columns, outputs = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    size = draw(st.integers(1, rows))
    groups = min(rows, -(-rows // size) + draw(st.integers(0, 3)))
    chain = min(groups, draw(st.sampled_from([1, 2, 5, 10**6])))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    # Neighbors far enough apart for long chains too.
    x = random.uniform(size=(rows, columns))
    x[:, 0] = np.arange(rows) + random.uniform(-0.2, 0.2, rows)
    data = from_arrays(x[random.permutation(rows)], random.uniform(-1, 1, (rows, outputs)))
    line = draw_line(data, 4, torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return data, line, groups, size, chain


@given(problems())
@settings(max_examples=60)
def test_every_unit_has_its_value_and_enough_slope(problem):
    data, line, groups, size, chain = problem
    y = data.targets()
    ramps = draw_ramps(data, line, y, groups, size, chain)
    left, right = solve_chains(ramps, y, chain)
    assert left.shape == right.shape == (groups, size * data.outputs)
    sign = alternating_signs(groups)[:, None]
    own = y[ramps.row.clamp_min(0)] * (ramps.row >= 0)[..., None]  # [G, n, K]
    need = slope_requirement(ramps.alpha, own.amax(-1), own.amin(-1))
    for output in range(data.outputs):
        units = slice(output * size, (output + 1) * size)
        entry, leave = left[:, units], right[:, units]
        beta = sign * ramps.alpha
        value = (1 - beta) / 2 * entry + (1 + beta) / 2 * leave
        scale = entry.abs() + leave.abs()
        expected = alternating_signs(size) * own[..., output]
        assert ((value - expected).abs() <= 1e-14 * scale).all()
        assert (sign * (leave - entry) / 2 >= need).all()
        for k in range(1, groups):
            if k % chain:
                assert torch.equal(entry[k], leave[k - 1])


@given(problems())
@settings(max_examples=60)
def test_units_are_clipped_on_all_rows_but_their_own(problem):
    data, line, groups, size, chain = problem
    y = data.targets()
    ramps = draw_ramps(data, line, y, groups, size, chain)
    first, second, last = memorize_values(data, line, y, groups, size, chain)
    assert first.weight.shape == (first_layer_width(groups, chain), data.inputs)
    assert second.weight.shape == (size * data.outputs, first_layer_width(groups, chain))
    hidden = (data.flat @ first.weight.T + first.bias).clamp(-1, 1)
    g = (hidden @ second.weight.T + second.bias).reshape(data.rows, data.outputs, size)
    noise = 1e-13 * float(second.weight.abs().sum(1).max())
    for row_of_unit in ramps.row:
        for j, row in enumerate(row_of_unit.tolist()):
            if row < 0:
                continue
            own = g[row]
            assert (own[:, :j] >= 1).all()  # units of rows before it have been passed
            assert (own[:, j + 1 :] <= -1).all()
            torch.testing.assert_close(own[:, j], alternating_signs(size)[j] * y[row], rtol=0, atol=noise)
    f = g.flatten(1).clamp(-1, 1) @ last.weight.T + last.bias
    torch.testing.assert_close(f, y, rtol=0, atol=noise)


@pytest.mark.parametrize(
    ("groups", "chain", "width"), [(5, 5, 5), (5, 1, 9), (5, 2, 7), (6, 2, 8), (1, 1, 1)]
)
def test_separators_stand_between_chains(groups, chain, width):
    assert first_layer_width(groups, chain) == width


@given(st.integers(1, 9), st.integers(1, 3))
def test_the_clipped_units_of_an_output_cancel(size, outputs):
    weight, bias = output_layer(size, outputs)
    for position in range(size):
        units = torch.cat([torch.ones(position), torch.zeros(1), -torch.ones(size - position - 1)]).double()
        assert (weight @ units.repeat(outputs) + bias).tolist() == [0.0] * outputs
