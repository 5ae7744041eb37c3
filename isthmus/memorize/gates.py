"""Corollary 4.2: one hidden layer of gates, each open on a slab around rows of one class.

Through any m <= d rows in general position there is a hyperplane u x = b that meets no other row. With the
margin mu = min |u x - b| over the rows outside, a *gate* is 1 on the hyperplane and 0 from mu on:

    step pair  [H(k (z + mu / 2)) - H(k (z - mu / 2))] / 2, z = u x - b         2 hard-tanh units
    trapezoid  r(q + 2) - r(q + 1) - r(q - 1) + r(q - 2), q = 3 z / mu          4 ReLU units (the paper's)
    hat        r(q + 1) - 2 r(q) + r(q - 1), q = z / (0.9 mu)                   3 ReLU units

Every row opens exactly one gate, of its own class. One class needs none: its output is 1 minus all others.
`slabs` finds the hyperplanes, also where rows are not in general position.

Source: Yun, Sra and Jadbabaie 2019 (arXiv 1810.07770), Corollary 4.2; hats and the class without gates are
additions.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor

from isthmus._types import Progress
from isthmus.bounds.theorems import HARDTANH_GATE, HAT_GATE, RELU_GATE
from isthmus.data.dataset import Dataset
from isthmus.memorize.slabs import Slabs, all_rows, find_slabs
from isthmus.nets.sequential import Affine

Gate = Literal["step pair", "trapezoid", "hat"]
GATE_UNITS: Final[dict[Gate, int]] = {"step pair": HARDTANH_GATE, "trapezoid": RELU_GATE, "hat": HAT_GATE}

STEEPNESS = 16  # k mu: each of a pair of steps takes an eighth of the margin
HAT_REACH = 0.9  # of the margin, where a hat ends


def memorize_labels(
    data: Dataset,
    most: int,
    gate: Gate,
    leak: float,
    dtype: torch.dtype,
    generator: torch.Generator,
    *,
    spare: bool = True,
    on_progress: Progress | None = None,
) -> list[Affine]:
    """The network of Corollary 4.2: one hidden layer of gates, outputs one-hot.

    Args:
        data: distinct rows with class labels.
        most: m, the most rows per gate, see `find_slabs`.
        gate: which units a gate is made of.
        leak: slope of the activation below 0, for the two that are made of ReLU-like units.
        dtype: of the network, in whose rounding the margins must hold.
        generator: source of the directions.
        spare: leave out the gates of the class that has most; the paper's network has them all.
        on_progress: told what is done and which part of it.

    Returns:
        Two affine maps, of widths d -> units -> K.

    Raises:
        PrecisionError: two rows of different classes are closer than this dtype tells apart.
    """
    if (data.y == data.y[0]).all():
        slabs = all_rows(data, int(data.y[0]))
    else:
        # Steps are clipped on all rows, so that their errors vanish; those of ReLU gates add up.
        slabs = find_slabs(data, class_pools(data), most, gate != "step pair", dtype, generator, on_progress)
    spared = int(torch.bincount(slabs.pool, minlength=data.outputs).argmax()) if spare else None
    return gate_layers(slabs, data.outputs, gate, leak, spared)


def class_pools(data: Dataset) -> list[Tensor]:
    """The rows of every class, by index."""
    return [torch.nonzero(data.y == label).squeeze(1) for label in range(data.outputs)]


def gate_layers(slabs: Slabs, classes: int, gate: Gate, leak: float, spared: int | None) -> list[Affine]:
    """The gates of all slabs as two affine maps, d -> units -> K.

    Args:
        slabs: G of them.
        classes: K.
        gate: which units a gate is made of.
        leak: slope of the activation below 0, for ReLU-like units.
        spared: the class whose gates are left out, if any.
    """
    if spared is not None:
        slabs = slabs.where(slabs.pool != spared)
    scale, shift, coefficient = gate_profile(slabs.margin, gate, leak)
    weight = (scale[:, None] * slabs.normal).repeat_interleave(len(coefficient), 0)
    bias = (shift - (scale * slabs.center)[:, None]).flatten()
    opens = torch.zeros(classes, len(slabs.pool), dtype=torch.float64)
    opens[slabs.pool, torch.arange(len(slabs.pool))] = 1.0
    constant = torch.zeros(classes, dtype=torch.float64)
    if spared is not None:
        opens[spared], constant[spared] = -1.0, 1.0
    return [Affine(weight, bias), Affine((opens[:, :, None] * coefficient).flatten(1), constant)]


def gate_profile(margin: Tensor, gate: Gate, leak: float) -> tuple[Tensor, Tensor, Tensor]:
    """A gate's units as functions of z: scale [G], shifts [G, units], and output weights [units]."""
    number = torch.ones_like(margin)[:, None]
    match gate:
        case "step pair":
            # A power of two, so that a normal which the dtype holds stays one.
            scale = torch.exp2((STEEPNESS / margin).log2().ceil())
            half = scale * margin / 2
            return scale, torch.stack([half, -half], -1), number.new_tensor([0.5, -0.5])
        case "trapezoid":
            weights = number.new_tensor([1, -1, -1, 1]) / (1 - leak)
            return 3 / margin, number * number.new_tensor([2, 1, -1, -2]), weights
        case "hat":
            weights = number.new_tensor([1, -2, 1]) / (1 - leak)
            return 1 / (HAT_REACH * margin), number * number.new_tensor([1, 0, -1]), weights
