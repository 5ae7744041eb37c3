"""Spacing: the ramp of a group on its own, with a separator on either side, where nothing is handed on.

Every unit's weight is then what its own gaps require (`slopes`), whatever the other groups do, so the line to
take is the one on which the group's closest rows are farthest apart. That takes one sort per line.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from isthmus.memorize.tilts import Tilts, least

REACH = 1 / 3  # how far a ramp reaches into the gaps beside its group
CLOSEST = 2.0**-48  # part of a ramp below which float64 might not keep two rows apart on it


def choose_spaced(tilts: Tilts, k: Tensor) -> tuple[Tensor, Tensor]:
    """For every group the line with the widest smallest gap, or -1 [B], and its ramp's ends [B, 2].

    Args:
        tilts: the lines of all groups.
        k: the groups [B].
    """
    along = tilts.along(k)
    own = along.own
    own.numpy().sort(axis=-1)
    lowest, highest = tilts.extent(k, own)
    ends = along.ends(lowest, highest, torch.full((1, 2), REACH, dtype=torch.float64))
    # Between missing rows the difference is no number, which the smallest passes over.
    smallest = np.fmin.reduce(own.diff(dim=-1).numpy(), axis=-1, initial=math.inf)
    left, right = ends.squeeze(2).unbind(-1)
    closest = torch.minimum(torch.from_numpy(smallest), torch.minimum(lowest - left, right - highest))
    spacing = closest / (right - left)
    spacing = spacing.where(along.clear(lowest, highest) & (spacing > CLOSEST), -math.inf)
    best = least(-spacing, partial(tilts.off_ramp, k, ends))
    return best, ends[torch.arange(len(k)), best, 0]
