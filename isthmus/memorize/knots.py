"""Knots: a ReLU first layer for Theorem 3.1 without twins, d1 = 2 G - 1 units for G groups.

With two knots in every gap between groups, a second-layer unit's pre-activation is a free affine function on
every group, joined by straight lines in the gaps, where both ends are clipped to the same side thanks to the
snake order. Nothing is handed from group to group, so rounding does not grow; but all groups share one line.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isthmus._types import Progress
from isthmus.data.dataset import Dataset
from isthmus.memorize.baselines import broken_line
from isthmus.memorize.lines import Line
from isthmus.memorize.ramps import draw_ramps
from isthmus.memorize.three_layer import output_layer, solve_chains
from isthmus.nets.sequential import Affine


def memorize_values_on_knots(
    data: Dataset,
    line: Line,
    targets: Tensor,
    groups: int,
    size: int,
    leak: float,
    on_progress: Progress | None = None,
) -> list[Affine]:
    """The network of Theorem 3.1 with ReLU-like units in the first layer and hard-tanh units in the second.

    Args:
        data: distinct rows, at least two.
        line: the same rows, sorted; it is not tilted.
        targets: y in [-1, 1] [N, K].
        groups: G.
        size: n, second-layer units per output.
        leak: slope of the first layer's activation below 0; 0 for ReLU.
        on_progress: told what is done and which part of it.

    Returns:
        Three affine maps, of widths d -> 2 G - 1 -> n K -> K; see `twins` for the second layer.

    Raises:
        PrecisionError: two rows lie together along the line.
    """
    ramps = draw_ramps(data, line.alone(), targets, groups, size, 1, on_progress)
    left, right = solve_chains(ramps, targets, 1)
    values = torch.stack([left, right], 1).flatten(0, 1)
    return [
        *broken_line(line.direction, ramps.ends.flatten(), values, leak),
        output_layer(size, targets.shape[1]),
    ]
