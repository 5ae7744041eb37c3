"""Real targets from gates: one hidden layer of 2 ceil(N / d) hard-tanh units, or 4 ceil(N / d) ReLUs.

On the hyperplane u x = b through d rows there is an affine l with l(x) = y on each of them. With z = u x - b,

    [H(a z + beta l(x)) - H(a z)] / beta

is l where z = 0 and beta |l| <= 1, and 0 wherever a |z| >= 1 + beta |l|. So beta is 1 / (2 max |y|), and a
the least that leaves all other rows out. Twins (`twins`) make it the four ReLUs of Bubeck et al. K outputs
share the unit H(a z).

Source: Bubeck, Eldan, Lee and Mikulincer (NeurIPS 2020); hard-tanh units, the choice of a and the shared unit
are additions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isthmus._types import Progress
from isthmus.data.dataset import Dataset
from isthmus.memorize.lines import column_scale
from isthmus.memorize.slabs import Slabs, affine_hull, all_rows, find_slabs
from isthmus.nets.sequential import Affine

LIFT = 0.5  # of a unit's range is used by a slab's targets
INDEPENDENT = 1e-12  # of the pivots' sum, up to which a pivot says that rows are dependent
SAFETY = 1.2  # a, over what leaves all other rows out


def gate_units(outputs: int) -> int:
    """Hard-tanh units of one gate."""
    return outputs + 1


def memorize_values_on_gates(
    data: Dataset,
    targets: Tensor,
    most: int,
    dtype: torch.dtype,
    generator: torch.Generator,
    *,
    adding: bool,
    on_progress: Progress | None = None,
) -> list[Affine]:
    """The hard-tanh network with one hidden layer that takes the given values on all rows.

    Args:
        data: distinct rows.
        targets: y [N, K].
        most: m, the most rows per gate, see `find_slabs`.
        dtype: of the network, in whose rounding the margins must hold.
        generator: source of the directions.
        adding: whether the rounding errors of all gates add up, as those of twins do.
        on_progress: told what is done and which part of it.

    Returns:
        Two affine maps, of widths d -> (K + 1) gates -> K.

    Raises:
        PrecisionError: two rows are closer than this dtype tells apart.
    """
    if len(affine_hull(data)[1]) == data.rows - 1:  # one affine function takes all values
        slabs = all_rows(data, 0)
    else:
        everyone = torch.arange(data.rows)
        slabs = find_slabs(data, [everyone], most, adding, dtype, generator, on_progress)
    center = targets.amin(0) / 2 + targets.amax(0) / 2
    lifted = targets - center
    slope, offset = _affine_on_slabs(data, slabs, lifted)
    beta = LIFT / lifted[slabs.rows].abs().amax(1).clamp_min(
        torch.finfo(torch.float64).smallest_normal
    )  # [G, K]
    steep = _steepness(data, slabs, beta[..., None] * slope, beta * offset)

    normal, bias = steep[:, None] * slabs.normal, -steep * slabs.center
    weight = torch.cat([normal[:, None] + beta[..., None] * slope, normal[:, None]], 1)  # [G, K + 1, d]
    shift = torch.cat([bias[:, None] + beta * offset, bias[:, None]], 1)
    gates, outputs = beta.shape
    read = torch.zeros(outputs, gates, outputs + 1, dtype=torch.float64)
    read.diagonal(dim1=0, dim2=2).copy_(1 / beta)
    read[..., -1] = -(1 / beta).T
    return [Affine(weight.flatten(0, 1), shift.flatten()), Affine(read.flatten(1), center)]


def _affine_on_slabs(data: Dataset, slabs: Slabs, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The least affine l(x) = v x + c that take the targets on every slab's rows: v [G, K, d], c [G, K].

    Args:
        data: distinct rows.
        slabs: G of them.
        targets: [N, K].
    """
    scale = column_scale(data)
    slope = torch.empty(len(slabs.pool), targets.shape[1], data.inputs, dtype=torch.float64)
    offset = torch.empty(slope.shape[:2], dtype=torch.float64)
    for k, rows in enumerate(slabs.rows):
        own = rows.unique()
        x, y = data.flat[own].double(), targets[own]
        slope[k] = scale * _least_solution((x[1:] - x[0]) * scale, y[1:] - y[0]).T
        offset[k] = y[0] - slope[k] @ x[0]
    return slope, offset


def _least_solution(rows: Tensor, values: Tensor) -> Tensor:
    """The least w [p, K] with rows w = values, for rows [m, p] that are independent, or the nearest to it."""
    q, r = torch.linalg.qr(rows.T)
    pivots = r.diagonal().abs()
    if len(rows) <= rows.shape[1] and (pivots > INDEPENDENT * pivots.sum()).all():
        return q @ torch.linalg.solve_triangular(r.T, values, upper=False)
    return torch.linalg.lstsq(rows, values, driver="gelsd").solution


def _steepness(data: Dataset, slabs: Slabs, slope: Tensor, offset: Tensor) -> Tensor:
    """The least a with a |z| >= 1 + |beta l(x)| on all rows outside a slab, and some more [G].

    Args:
        data: distinct rows.
        slabs: G of them.
        slope: of beta l [G, K, d].
        offset: of beta l [G, K].
    """
    steep = torch.zeros(len(slabs.pool), dtype=torch.float64)
    owner = torch.empty(data.rows, dtype=torch.int64)
    owner[slabs.rows] = torch.arange(len(steep))[:, None]
    for rows, x in data.chunks():
        for k in range(len(steep)):
            reach = 1 + (x @ slope[k].T + offset[k]).abs().amax(1)
            distance = (x @ slabs.normal[k] - slabs.center[k]).abs()
            needed = (reach / distance).masked_fill(owner[rows] == k, 0.0)
            steep[k] = torch.maximum(steep[k], needed.amax())
    return SAFETY * steep
