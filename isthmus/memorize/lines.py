"""Lines: rows sorted along a random direction and cut into groups of consecutive ones.

Yun, Sra and Jadbabaie (arXiv 1810.07770, proof of Theorem 3.1) project on a vector u along which all rows
are distinct; almost every u will do. Next to u a *pencil* of other directions is drawn, towards which the
line can be tilted for one group at a time: the order of rows inside a group is free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from isthmus.arithmetic.grid import SIGNIFICAND, value_grid
from isthmus.data.dataset import Dataset
from isthmus.errors import PrecisionError

FEWEST_BITS, MOST_BITS = 24, 40  # of a weight on a grid: fewer crowd the rows, more gain nothing


@dataclass(frozen=True)
class Line:
    """The rows sorted along a random direction, with a pencil of other directions.

    Attributes:
        direction: u [d]; zero on constant columns.
        order: the rows by ascending position [N].
        position: t = x u, ascending [N].
        pencil: other directions [d, R].
        offsets: the rows' centered positions along the pencil, in sorted order; standard deviation 1 [N, R].
        bits: how many a weight may have so that float64 sums it exactly against every row; 0 if too few.
        dtype: of the network, to which ramps are rounded before rows are placed on them.
    """

    direction: Tensor
    order: Tensor
    position: Tensor
    pencil: Tensor
    offsets: Tensor
    bits: int
    dtype: torch.dtype

    def alone(self) -> Line:
        """The same line without a pencil."""
        return replace(self, pencil=self.pencil[:, :0], offsets=self.offsets[:, :0])


def draw_line(
    data: Dataset,
    directions: int,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float64,
) -> Line:
    """Project the rows on a random direction and a pencil of others, in O(N d R + N log N).

    Args:
        data: distinct rows.
        directions: R, the size of the pencil; ignored where the rows vary in one column only.
        generator: source of the directions.
        dtype: of the network.

    Returns:
        The sorted line.

    Raises:
        PrecisionError: a column spans more than float64 holds.
    """
    # Columns count by their range: by standard deviation, rare values would throw a few rows far off.
    scale = column_scale(data)
    varying = scale > 0
    size = 1 + directions * (int(varying.sum()) > 1)
    bundle = torch.randn(data.inputs, size, generator=generator, dtype=torch.float64) * scale[:, None]
    projected = project(data, bundle)
    position, order = ascending(projected[:, 0])
    offsets = projected[:, 1:].index_select(0, order)
    offsets -= offsets.mean(0)
    deviation = torch.linalg.vector_norm(offsets, dim=0) / math.sqrt(data.rows)
    deviation.clamp_min_(torch.finfo(torch.float64).tiny)
    offsets /= deviation
    return Line(bundle[:, 0], order, position, bundle[:, 1:] / deviation, offsets, exact_bits(data), dtype)


def project(data: Dataset, directions: Tensor) -> Tensor:
    """The rows' positions along directions [d, R]: x u [N, R]."""
    projected = torch.empty(data.rows, directions.shape[1], dtype=torch.float64)
    for rows, x in data.chunks():
        torch.matmul(x, directions, out=projected[rows])
    return projected


def ascending(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values sorted along the last dimension and their places before, by NumPy: several times as fast."""
    place = torch.from_numpy(np.argsort(values.numpy(), axis=-1))
    return values.gather(-1, place), place


def column_reach(data: Dataset) -> Tensor:
    """How far every column's values go from the first row's [d]; 0 if the column is constant.

    Raises:
        PrecisionError: a column spans more than float64 holds.
    """
    origin = data.flat[0].double()
    reach = torch.zeros_like(origin)
    for _, x in data.chunks():
        reach = torch.maximum(reach, torch.maximum(x.amax(0) - origin, origin - x.amin(0)))
    if not torch.isfinite(reach).all():
        column = int(torch.nonzero(~torch.isfinite(reach))[0])
        raise PrecisionError(
            f"{data.source}: input column {column + 1} spans more than float64 holds; rescale it."
        )
    return reach


def column_scale(data: Dataset) -> Tensor:
    """1 / `column_reach` [d]; 0 where a column is constant, or varies by less than a normal number.

    Raises:
        PrecisionError: a column spans more than float64 holds.
    """
    reach = column_reach(data)
    varying = reach >= torch.finfo(torch.float64).smallest_normal
    return torch.where(varying, 1 / reach.where(varying, 1.0), 0.0)


def exact_bits(data: Dataset) -> int:
    """How many bits a weight may have so that float64 sums it exactly against every row; 0 if too few.

    Integers and other short fractions leave room: 8-bit images of 784 pixels 33 bits, say. The bias is
    allowed as much as all products together.
    """
    finest, largest, bits = 0.0, 0.0, math.inf  # the bias is no multiple of more than the weights' step
    for _, x in data.chunks(4096):
        if data.x.is_floating_point():
            finest = min(finest, float(value_grid(x)))
        largest = max(largest, float(x.abs().sum(1).max()))
        bits = SIGNIFICAND - 2 - (math.frexp(largest)[1] - finest)
        if bits < FEWEST_BITS:
            return 0
    return min(MOST_BITS, int(bits))


def cut_groups(position: Tensor, groups: int, size: int) -> Tensor:
    """Cut sorted positions into groups of at most ``size`` rows, each in the widest gap near its even place.

    Every cut has a window around k N / G, as wide as groups of 1 to ``size`` rows allow whatever the other
    cuts do; there is one place for each when G n = N.

    Args:
        position: ascending [N].
        groups: G <= N, with G * ``size`` >= N.
        size: n, the most rows a group may have.

    Returns:
        The first row of every group, and N at the end [G + 1].
    """
    rows = len(position)
    if groups == 1:
        return torch.tensor([0, rows])
    freedom = min(size * groups - rows, rows - groups)  # 2 G times a cut's reach to either side
    k = torch.arange(1, groups)
    highest = (2 * k * rows + freedom) // (2 * groups)
    highest = torch.maximum(highest, k * rows // groups)  # the even place, where the window holds no integer
    lowest = torch.minimum(-((freedom - 2 * k * rows) // (2 * groups)), highest)
    places = torch.minimum(
        lowest[:, None] + torch.arange(int((highest - lowest).max()) + 1), highest[:, None]
    )
    gaps = position[places] - position[places - 1]
    cuts = places.gather(1, gaps.argmax(1, keepdim=True)).squeeze(1)
    return torch.cat([torch.tensor([0]), cuts, torch.tensor([rows])])
