"""Where gates stand: regions around the cases, how far everything else keeps off, and how wide they open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.errors import InputError, PrecisionError
from isthmus.nets.patched import Gates
from isthmus.patch.shares import most_allowed

# Of the distance to the nearest row that must stay outside, where a gate ends at the latest. What slabs touch
# grows with their width; a ball's volume is small until it is wide.
SLAB_REACH, BALL_REACH = 0.25, 0.5
PLATEAU = 0.8  # of its half-width, up to which a gate is open all the way
SAFETY = 4  # times what rounding does to a distance, a plateau must be at least
NARROW = 2.0**10  # the same, where nothing is known of other inputs
WORKSPACE = 1 << 22  # distances held at a time


@dataclass(frozen=True)
class Regions:
    """G hyperplanes or balls.

    Attributes:
        gates: their tensors; how wide they open, and what they add, is set later.
        limit: the distance of the nearest row that must stay outside [G].
        rounding: how far from 0 the distance of a gate's own cases may be computed to be [G].
        owner: the gate of every case, or -1 [P].
    """

    gates: Gates
    limit: Tensor
    rounding: Tensor
    owner: Tensor

    @property
    def widest(self) -> Tensor:
        """The largest half-width of every gate [G]."""
        return torch.where(self.gates.curvature > 0, BALL_REACH, SLAB_REACH) * self.limit

    def members(self) -> Iterator[Tensor]:
        """Walk over the gates.

        Yields:
            The cases of every one, by index.
        """
        for gate in range(self.gates.gates):
            yield torch.nonzero(self.owner == gate).squeeze(1)


def least_distance(rows: Tensor) -> float:
    """What rounding does to distances between rows [N, d] at least, however small a case is itself."""
    return torch.finfo(torch.float64).eps * (float(rows.abs().max()) or 1.0)


def touching(regions: Regions, x: Tensor) -> Tensor:
    """The half-width above which a gate reaches rows [N, *shape]; +inf where none ever does [N]."""
    nearest = torch.empty(len(x), dtype=torch.float64)
    step = max(1, WORKSPACE // (regions.gates.gates + x[0].numel()))
    for start in range(0, len(x), step):
        distance = regions.gates.distance(x[start : start + step])
        reached = distance.masked_fill_(distance >= regions.widest, torch.inf)
        nearest[start : start + step] = reached.amin(1)
    return nearest


def half_widths(regions: Regions, asked: float | None, unknown: bool) -> Tensor:
    """How far from its plane or center every gate ends [G].

    Args:
        regions: where they stand.
        asked: at most this; as wide as the regions allow by default.
        unknown: nothing is known of other inputs: as narrow as rounding allows, if nothing else is asked for.

    Raises:
        PrecisionError: narrower than rounding allows.
    """
    width = regions.widest
    if asked is not None:
        width = width.clamp_max(asked)
    elif unknown:
        width = torch.minimum(width, NARROW * regions.rounding)
    least = SAFETY / PLATEAU * regions.rounding
    short = torch.nonzero(width < least).squeeze(1)
    if len(short):
        gate = int(short[0])
        raise PrecisionError(
            f"a half-width of {float(width[gate]):.1e} is rounded away; give {float(least.max()):.1e} or up."
            if asked is not None and bool((regions.widest >= least).all())
            else f"{int((regions.owner == gate).sum())} case(s) of one gate are nearer to other rows, "
            f"{float(regions.limit[gate]):.1e}, than float64 tells apart; leave out one or the other, "
            "rescale the inputs, or choose gates='ball'."
        )
    return width


def budgeted(regions: Regions, x: Tensor, max_touched: float) -> float:
    """The largest common half-width that touches no more of other inputs than is allowed, with confidence.

    Args:
        regions: where the gates stand.
        x: rows that may be touched [N, *shape].
        max_touched: the part of them that may be.

    Raises:
        InputError: too few rows to tell.
    """
    allowed = most_allowed(max_touched, len(x)) if len(x) else -1
    if allowed < 0:
        raise InputError(
            f"{len(x):,} reference rows cannot show that at most {max_touched:g} of all inputs are touched; "
            f"give about {3.7 / max_touched:,.0f} or more."
        )
    return float(touching(regions, x).sort().values[min(allowed, len(x) - 1)])


def open_to(gates: Gates, half_width: Tensor) -> None:
    """Let gates open as widely as given [G]."""
    curved, inner = gates.curvature > 0, PLATEAU * half_width
    gates.plateau = torch.where(curved, inner.square(), inner)
    gates.slope = 1 / (torch.where(curved, half_width.square(), half_width) - gates.plateau)
