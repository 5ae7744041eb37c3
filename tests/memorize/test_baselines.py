"""The affine map against NumPy's least squares, the broken line against numpy.interp."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isthmus.data import from_arrays
from isthmus.memorize.baselines import affine_map, broken_line, interpolant
from isthmus.memorize.lines import draw_line
from isthmus.nets.sequential import LEAK, sequential

LEAKS = {"relu": 0.0, "leaky_relu": LEAK}
SEEDS = st.integers(0, 2**32)


@pytest.mark.parametrize("activation", LEAKS)
@given(seed=SEEDS, points=st.integers(2, 30), columns=st.integers(1, 3))
def test_broken_line_is_interp_and_goes_on_at_both_ends(activation, seed, points, columns):
    random = np.random.default_rng(seed)
    knots = (0.1 + random.exponential(size=points)).cumsum() - 5
    values = random.normal(size=(points, columns))
    network = broken_line(
        torch.ones(1, dtype=torch.float64),
        torch.from_numpy(knots),
        torch.from_numpy(values),
        LEAKS[activation],
    )
    assert len(network[0].bias) == points - 1
    span = knots[-1] - knots[0]
    t = np.concatenate([knots, random.uniform(knots[0] - span, knots[-1] + span, 50)])
    for column, y in enumerate(values.T):
        slopes = np.diff(y) / np.diff(knots)
        expected = np.interp(t, knots, y)
        expected += np.minimum(t - knots[0], 0) * slopes[0] + np.maximum(t - knots[-1], 0) * slopes[-1]
        found = sequential(network, activation)(torch.from_numpy(t)[:, None])[:, column].numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * points * span * np.abs(slopes).max())


@pytest.mark.parametrize("activation", LEAKS)
@given(seed=SEEDS, rows=st.integers(2, 40), inputs=st.integers(1, 4))
def test_interpolant_passes_through_every_row(activation, seed, rows, inputs):
    random = np.random.default_rng(seed)
    data = from_arrays(
        np.arange(rows)[:, None] + random.uniform(-0.1, 0.1, (rows, inputs)), random.normal(size=(rows, 2))
    )
    line = draw_line(data, 0, torch.Generator().manual_seed(seed))
    model = sequential(interpolant(line, data.targets(), LEAKS[activation]), activation)
    steepest = float((data.targets()[line.order].diff(dim=0).abs() / line.position.diff()[:, None]).max())
    room = 1e-14 * rows * steepest * float(line.position[-1] - line.position[0] + line.position.abs().max())
    torch.testing.assert_close(model(data.x), data.y, rtol=0, atol=room)


@given(seed=SEEDS, rows=st.integers(1, 30), inputs=st.integers(1, 6))
def test_affine_map_is_least_squares(seed, rows, inputs):
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(rows, inputs)) + 3, random.normal(size=(rows, 2))
    ((weight, bias),) = affine_map(from_arrays(x, y), torch.from_numpy(y))
    design = np.column_stack([x, np.ones(rows)])
    solution = np.linalg.lstsq(design, y, rcond=None)[0]
    fitted = x @ weight.numpy().T + bias.numpy()
    np.testing.assert_allclose(fitted, design @ solution, rtol=0, atol=1e-7)
