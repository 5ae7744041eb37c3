"""Re-spaced lines: equally spaced rows, and all others off the ramp."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.data import from_arrays
from isthmus.memorize import memorize
from isthmus.memorize.lines import cut_groups, draw_line
from isthmus.memorize.plan import Wish
from isthmus.memorize.planner import plans
from isthmus.memorize.ramps import draw_ramps
from isthmus.memorize.respacing import respace


def drawn(rows, columns, size, seed):
    random = np.random.default_rng(seed)
    data = from_arrays(
        random.normal(size=(rows, columns)), random.uniform(-1, 1, (rows, 1)), task="regression"
    )
    line = draw_line(data, 0, torch.Generator().manual_seed(seed))
    groups = -(-rows // size)
    return data, line, cut_groups(line.position, groups, size), groups


@given(
    rows=st.integers(2, 150), size=st.integers(1, 10), seed=st.integers(0, 2**32), extra=st.integers(0, 40)
)
@settings(max_examples=40)
def test_rows_are_equally_spaced_and_moves_are_what_they_say(rows, size, seed, extra):
    data, line, bounds, groups = drawn(rows, 2 * size + 8 + extra, size, seed)
    changed = respace(data, line, bounds)
    for k in range(groups):
        moves = data.flat[line.order] @ changed.delta[k] - changed.shift[k]
        assert abs(float(moves.abs().max()) - float(changed.farthest[k])) <= 1e-9
        own = (line.position + moves)[bounds[k] : bounds[k + 1]]
        gaps = own.diff()
        if len(gaps) > 1:
            assert gaps.min() > 0.999 * gaps.mean()  # in the order of the line, all alike
    # Where the change is least, no row that is far from the group's span moves much.
    assert torch.isfinite(changed.delta).all()


def test_rows_are_even_on_the_ramps():
    data, line, _, groups = drawn(400, 60, 20, 3)
    ramps = draw_ramps(data, line, data.targets(), groups, 20, groups, respacing=True)
    even = [float(alpha.diff().min() / alpha.diff().mean()) for alpha in ramps.alpha]
    plain = draw_ramps(data, line, data.targets(), groups, 20, groups)
    uneven = [float(alpha.diff().min() / alpha.diff().mean()) for alpha in plain.alpha]
    assert np.median(even) > 0.99
    assert np.median(uneven) < 0.3
    # All other rows are clipped.
    hidden = data.flat @ ramps.weight.T + ramps.bias
    for k, rows in enumerate(ramps.row):
        others = np.setdiff1d(np.arange(400), rows.numpy())
        assert (hidden[others, k].abs() >= 1).all()


def test_weights_of_minimal_networks_shrink():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(1024, 100)), random.uniform(-1, 1, (1024, 1))
    found = memorize((x, y), widths=(32, 32), level="proven")
    assert found.recipe["plan"]["first"] == "respaced"
    assert len(found.tried) == 1
    assert float(found.model[2].weight.abs().max()) < 100 * 32


@pytest.mark.parametrize(
    ("inputs", "dtype", "first"),
    [
        (100, torch.float64, ["respaced", "ramps"]),
        (10, torch.float64, ["ramps"]),
    ],
)
def test_only_where_there_is_freedom(inputs, dtype, first):
    data = from_arrays(np.random.default_rng(0).normal(size=(1024, inputs)), np.zeros((1024, 1)))
    wish = Wish("hardtanh", "tight", None, (32, 32), dtype=dtype)
    assert list(dict.fromkeys(plan.first for plan in plans(data.shape, wish))) == first


def test_float32_first_tries_equal_spacing_for_groups_on_their_own():
    data = from_arrays(np.random.default_rng(0).normal(size=(1024, 100)), np.zeros((1024, 1)))
    for dtype, first in ((torch.float64, "ramps"), (torch.float32, "respaced")):
        wish = Wish("hardtanh", "tight", None, (63, 32), dtype=dtype)
        plan = plans(data.shape, wish)[0]
        assert (plan.chain, plan.first) == (1, first)
