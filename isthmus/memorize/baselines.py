"""Baselines: an affine map, and one hidden ReLU layer of N - 1 units that joins the rows by straight lines.

The second is the network of Zhang, Bengio, Hardt, Recht and Vinyals 2017 (Theorem 1, N hidden units) with one
unit fewer; `broken_line` is also what a ReLU first layer with two knots per gap is made of (`knots`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from isthmus.data.dataset import Dataset
from isthmus.memorize.lines import Line
from isthmus.nets.sequential import Affine


def affine_map(data: Dataset, targets: Tensor) -> list[Affine]:
    """The affine map of least squares; exact if the targets are affine in the inputs, as when N <= d + 1.

    Args:
        data: distinct rows.
        targets: [N, K].
    """
    x = data.flat.double()
    center = (x / len(x)).sum(0)  # divided first, so that no sum overflows
    mean = (targets / len(x)).sum(0)
    weight = torch.linalg.lstsq(x - center, targets - mean, driver="gelsd").solution.T
    return [Affine(weight, mean - weight @ center)]


def interpolant(line: Line, targets: Tensor, leak: float) -> list[Affine]:
    """One hidden layer of N - 1 ReLU-like units that joins the sorted rows by straight lines.

    Args:
        line: the rows sorted.
        targets: [N, K].
        leak: slope of the activation below 0; 0 for ReLU.
    """
    knots, values = line.position, targets[line.order]
    if len(knots) == 1:  # a constant
        knots, values = torch.cat([knots, knots + 1]), values.expand(2, -1)
    return broken_line(line.direction, knots, values, leak)


def broken_line(direction: Tensor, knots: Tensor, values: Tensor, leak: float) -> list[Affine]:
    """Two affine maps around ReLU-like units: the function of t = x u that joins given points by lines.

    One unit is on for all t that matter and carries the piece in the middle; every inner knot has one unit,
    which is off towards the middle, so that few large terms meet in a sum.

    Args:
        direction: u [d].
        knots: P >= 2 ascending positions t; the first and last piece go on beyond them.
        values: at the knots [P, K].
        leak: slope of the activation below 0; 0 for ReLU.

    Returns:
        Maps of widths d -> P - 1 -> K.
    """
    slopes = values.diff(dim=0) / knots.diff()[:, None]
    inner = knots[1:-1]
    middle = len(slopes) // 2  # the piece between knots `middle` and `middle` + 1
    away = torch.where(torch.arange(len(inner)) < middle, -1.0, 1.0).double()
    bend = slopes.diff(dim=0) / (1 - leak)  # what a unit adds to the slope, with its leak taken out below
    always = slopes[middle] - leak * (away[:, None] * bend).sum(0)
    start = knots[0] - (knots[-1] - knots[0])
    constant = (
        values[middle]
        - slopes[middle] * knots[middle]
        + leak * ((away * inner)[:, None] * bend).sum(0)
        + always * start
    )
    sign = torch.cat([torch.ones(1, dtype=torch.float64), away])
    first = Affine(sign[:, None] * direction, -sign * torch.cat([start[None], inner]))
    return [first, Affine(torch.cat([always[None], bend]).T.contiguous(), constant)]
