"""Slopes: how steep a second-layer unit must be on a group's ramp to be clipped at all rows but its own.

Groups are traversed in "snake" order, forwards and backwards in turn, so that alpha, the ramp's value,
ascends along the traversal and unit j owns the j-th row of every group (Yun, Sra and Jadbabaie 2019,
Lemma B.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

SAFETY = 1.2  # S: slopes exceed what clipping the neighboring rows needs by this factor


def alternating_signs(count: int) -> Tensor:
    """+1, -1, +1, ...: s_k, the direction in which group k is traversed, and v_j, unit j's output weight."""
    return 1.0 - 2.0 * (torch.arange(count, dtype=torch.float64) % 2)


def slope_requirement(alpha: Tensor, highest: Tensor, lowest: Tensor) -> Tensor:
    """The weight that unit j needs on a group's ramp to be clipped at all rows but its own.

    S max((1 + v y) / (gap before the own row), (1 - v y) / (gap after it)), over all outputs.

    Args:
        alpha: ramp values in traversal order [..., n].
        highest: the row's largest target [..., n].
        lowest: the row's smallest target [..., n].
    """
    rising = alternating_signs(alpha.shape[-1]) > 0
    above = torch.where(rising, highest, -lowest)
    below = torch.where(rising, lowest, -highest)
    end = torch.ones_like(alpha[..., :1])
    gaps = torch.cat([-end, alpha, end], -1).diff(dim=-1)
    return SAFETY * torch.maximum((1 + above) / gaps[..., :-1], (1 - below) / gaps[..., 1:])
