"""The line of a group on its own against brute force over all rows on all lines."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from isthmus.data import from_arrays
from isthmus.memorize.lines import cut_groups, draw_line
from isthmus.memorize.spacing import REACH, choose_spaced
from isthmus.memorize.tilts import NEIGHBORS, draw_tilts


@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(2, NEIGHBORS),
    columns=st.integers(1, 4),
    size=st.integers(1, 12),
    spare=st.integers(0, 4),
)
def test_no_other_line_spaces_the_rows_of_a_group_better(seed, rows, columns, size, spare):
    x = np.random.default_rng(seed).normal(size=(rows, columns))
    data = from_arrays(x, np.zeros(rows))
    line = draw_line(data, 3, torch.Generator().manual_seed(seed))
    size = min(size, rows)
    groups = min(rows, -(-rows // size) + spare)
    bounds = cut_groups(line.position, groups, size)
    tilts = draw_tilts(data, line, bounds, size)
    tilt, ends = choose_spaced(tilts, torch.arange(groups))
    for k, (first, last) in enumerate(zip(bounds.tolist(), bounds[1:].tolist(), strict=False)):
        found, spacings = ends[k].tolist(), []
        for shift, direction in zip(tilts.shift[k], tilts.direction, strict=True):
            position = line.position
            if line.pencil.shape[1]:
                position = position + shift * line.offsets[:, direction]
            before, own, after = position[:first], position[first:last].sort().values, position[last:]
            room = float(own[-1] - own[0]) or 1.0
            below = float(own[0] - before.max()) if len(before) else room
            above = float(after.min() - own[-1]) if len(after) else room
            edges = [float(own[0]) - REACH * below, *own.tolist(), float(own[-1]) + REACH * above]
            sound = below > 0 and above > 0
            spacings.append((min(np.diff(edges)) / (edges[-1] - edges[0]) if sound else 0.0, edges))
        spacing, edges = spacings[tilt[k]]
        assert spacing >= max(other for other, _ in spacings) * (1 - 1e-6)
        np.testing.assert_allclose(found, [edges[0], edges[-1]], rtol=1e-9, atol=1e-12)
