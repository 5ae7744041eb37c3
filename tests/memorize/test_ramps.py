"""Ramps against the full matrix of all rows on all ramps, which the library never holds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.data import from_arrays
from isthmus.memorize.lines import draw_line
from isthmus.memorize.ramps import draw_ramps
from isthmus.memorize.slopes import SAFETY, alternating_signs, slope_requirement
from isthmus.memorize.tilts import fill

SEEDS = st.integers(0, 2**32)


@given(seed=SEEDS, size=st.integers(1, 9), missing=st.integers(0, 8))
def test_fill_adds_virtual_rows_and_keeps_the_others(seed, size, missing):
    missing = min(missing, size - 1)
    random = np.random.default_rng(seed)
    real = np.sort(random.uniform(0, 1, size - missing))
    position = torch.from_numpy(np.append(real, [np.inf] * missing))[None]
    left, right = torch.tensor([[-0.5]]).double(), torch.tensor([[1.5]]).double()
    filled, place = fill(position, torch.arange(size)[None], left, right)
    assert filled.shape == place.shape == (1, size)
    assert (torch.cat([left, filled, right], 1).diff() > 0).all()
    assert (place[0] < 0).sum() == missing
    assert filled[0][place[0] >= 0].tolist() == real.tolist()
    assert place[0][place[0] >= 0].tolist() == list(range(size - missing))


def test_fill_splits_the_widest_gap_in_the_middle():
    position = torch.tensor([[0.0, 1.0, 4.0, torch.inf]]).double()
    filled, place = fill(position, torch.arange(4)[None], torch.tensor([[-1.0]]), torch.tensor([[5.0]]))
    assert filled.tolist() == [[0.0, 1.0, 2.5, 4.0]]
    assert place.tolist() == [[0, 1, -1, 2]]


@given(seed=SEEDS, size=st.integers(1, 7), outputs=st.integers(1, 3))
def test_slope_requirement_clips_the_neighboring_rows(seed, size, outputs):
    random = np.random.default_rng(seed)
    alpha = np.sort(random.uniform(-1, 1, size))
    y = random.uniform(-1, 1, (size, outputs))
    edges = [-1, *alpha, 1]
    expected = [
        SAFETY
        * max(
            max(
                (1 + (-1) ** j * t) / (edges[j + 1] - edges[j]),
                (1 - (-1) ** j * t) / (edges[j + 2] - edges[j + 1]),
            )
            for t in y[j]
        )
        for j in range(size)
    ]
    found = slope_requirement(torch.from_numpy(alpha), torch.from_numpy(y.max(1)), torch.from_numpy(y.min(1)))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_signs_alternate():
    assert alternating_signs(3).tolist() == [1, -1, 1]


def inputs(random, kind, rows, columns):
    x = random.normal(size=(rows, columns))
    match kind:
        case "equispaced":
            x[:, 0] = np.arange(rows)
            x[:, 1:] = np.round(4 * x[:, 1:])
        case "heavy tails":
            x = random.standard_cauchy((rows, columns))
        case "clusters":
            x = 1e-3 * x + random.integers(0, 4, (rows, 1))
        case "scales":
            x = x * 10.0 ** random.integers(-6, 9, columns)
    return x


@pytest.mark.parametrize("kind", ["normal", "equispaced", "heavy tails", "clusters", "scales"])
@given(
    seed=SEEDS,
    rows=st.integers(1, 150),
    columns=st.integers(1, 6),
    per_group=st.integers(1, 150),
    slack=st.sampled_from([0.0, 0.1, 1.0]),
    chained=st.sampled_from([1, 3, 10**6]),
)
@settings(max_examples=40)
def test_only_the_rows_of_its_group_are_on_a_ramp(kind, seed, rows, columns, per_group, slack, chained):
    random = np.random.default_rng(seed)
    x = inputs(random, kind, rows, columns)
    y = random.uniform(-1, 1, (rows, 2))
    data = from_arrays(x, y)
    size = min(rows, per_group)
    groups = min(rows, int(np.ceil(rows / size) * (1 + slack)))
    line = draw_line(data, 4, torch.Generator().manual_seed(seed))
    ramps = draw_ramps(data, line, data.targets(), groups, size, min(chained, groups))

    on = torch.from_numpy(x) @ ramps.weight.T + ramps.bias  # [N, G]
    owned = ramps.row >= 0
    assert sorted(ramps.row[owned].tolist()) == list(range(rows))
    assert (ramps.alpha.diff(dim=-1) > 0).all()
    assert ramps.alpha.abs().max() < 1
    group = torch.empty(rows, dtype=torch.int64)
    group[ramps.row[owned]] = torch.arange(groups)[:, None].expand_as(ramps.row)[owned]
    own = on.gather(1, group[:, None]).squeeze(1)
    assert own.abs().max() < 1
    expected = torch.empty(rows, dtype=torch.float64)
    expected[ramps.row[owned]] = ramps.alpha[owned]
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-6)
    # A row of a later group has passed the ramp, one of an earlier group is still before it.
    side = (group[:, None] - torch.arange(groups)).sign() * alternating_signs(groups)
    others = side != 0
    assert (on[others] * side[others] >= 1).all()


def test_a_bias_keeps_its_bits_where_a_weight_is_a_power_of_two():
    """Integers two apart make weights of exactly 1; the bias must still tell halves apart."""
    data = from_arrays(np.arange(40.0), np.tile([0, 1], 20))
    line = draw_line(data, 0, torch.Generator().manual_seed(188))
    ramps = draw_ramps(data, line, data.targets()[:, :1], 20, 2, 20)
    assert line.bits
    assert ramps.alpha.abs().max() < 1
