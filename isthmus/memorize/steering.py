"""Steering: the ramps of a chain of groups, drawn so that its second-layer weights stay small.

In a *chain* of groups each unit's value at the end of one group is its value at the start of the next.
The unit's weight then follows eta, a product of (1 - beta) / (1 + beta) over the groups so far: a random
walk in the logarithm, which spoils long chains. So the ramps of a chain are drawn one after the other,
out of many tilts of the line and ends in the gaps beside the group, to steer all walks back to zero.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from isthmus.memorize.lines import ascending
from isthmus.memorize.slopes import alternating_signs, slope_requirement
from isthmus.memorize.tilts import Tilts, least, on_ramp

REACHES = (0.1, 0.5, 0.9)  # how far a ramp may reach into the gaps beside its group
STEERING = 0.5  # what the walks' mean square counts against the largest weight


class Walks:
    """Where every unit of every chain stands, and the choice of the next ramp.

    Args:
        tilts: the lines of all groups.
        highest: the largest target of the sorted rows [N].
        lowest: the smallest target of the sorted rows [N].
        chain: groups in a chain.
    """

    def __init__(self, tilts: Tilts, highest: Tensor, lowest: Tensor, chain: int) -> None:
        self._tilts, self._highest, self._lowest, self._chain = tilts, highest, lowest, chain
        chains = -(-(len(tilts.bounds) - 1) // chain)
        self._eta = torch.zeros(chains, tilts.size, dtype=torch.float64)  # log |eta|
        self._peak = torch.full_like(self._eta, -math.inf)  # the largest log of the slope in M so far
        self._need = torch.full_like(self._eta, -math.inf)  # the least log M that has been enough so far

    def choose(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Step the walks with the sound candidate that leaves the smallest weights.

        Args:
            k: groups of different chains, the next ones of each [B].

        Returns:
            For every group the line, or -1 [B], and its ramp's ends [B, 2].
        """
        ends, alpha, place, sound = self._candidates(k)
        virtual, at = place < 0, place.clamp_min(0)
        requirement = slope_requirement(
            alpha, self._highest[at].masked_fill(virtual, 0.0), self._lowest[at].masked_fill(virtual, 0.0)
        )
        chains = k // self._chain
        start = self._eta[chains, None]
        beta = alpha * alternating_signs(2)[k % 2, None, None]
        eta = start + torch.log1p(-beta) - torch.log1p(beta)
        omega = torch.logaddexp(start.expand_as(eta), eta) - math.log(2)
        peak = torch.maximum(self._peak[chains, None], omega)
        need = torch.maximum(self._need[chains, None], requirement.log() - omega)
        cost = (peak + need).logsumexp(-1) + STEERING * eta.square().mean(-1)
        cost = cost.where(sound & torch.isfinite(cost), math.inf)
        best = least(cost, partial(self._tilts.off_ramp, k, ends))
        chosen = torch.arange(len(k)), best
        self._eta[chains], self._peak[chains], self._need[chains] = eta[chosen], peak[chosen], need[chosen]
        tilt = torch.div(best, ends.shape[2], rounding_mode="floor")
        return tilt, ends.flatten(1, 2)[chosen]

    def _candidates(self, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ramps to choose from, P for each of T lines.

        Returns:
            Their ends [B, T, P, 2]; and of C = T P the rows' values in traversal order and their places
            [B, C, n], and whether rows are apart and neighbors off [B, C].
        """
        tilts = self._tilts
        along = tilts.along(k)
        own, index = ascending(along.own)
        lowest, highest = tilts.extent(k, own)
        parts = torch.tensor(REACHES, dtype=torch.float64)
        ends = along.ends(lowest, highest, torch.cartesian_prod(parts, parts))
        shape = (*ends.shape[:3], tilts.size)
        place = (tilts.bounds[k, None, None] + index)[:, :, None].expand(shape)
        alpha, place = on_ramp(own[:, :, None].expand(shape), place, ends, (k % 2 == 1)[:, None, None])
        apart = (alpha.diff(dim=-1) > 0).all(-1) & (alpha[..., 0] > -1) & (alpha[..., -1] < 1)
        sound = along.clear(lowest, highest)[..., None] & apart
        return ends, alpha.flatten(1, 2), place.flatten(1, 2), sound.flatten(1, 2)
