"""Proposition 3.2: class labels, one number per class, and a third hidden layer that reads it off.

Class c of K has the code rho_c = -1 + (2 c + 1) / K. The network of Theorem 3.1 fits f = rho_c on every row,
and a decoder turns f into one-hot outputs. Between two codes lies a threshold, and a hard-tanh ramp over
half the distance, H(2 K (f - theta_q)): where |f - rho_c| < 1 / (2 K) all of them are exactly -1 or 1, and so
the outputs are exactly 0 or 1, whatever the rounding errors of f. The largest output is right while
|f - rho_c| < 1 / K.

Source: Yun, Sra and Jadbabaie 2019 (arXiv 1810.07770), Proposition 3.2; the thermometer decoder and the
nearest-code readout are additions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from isthmus.nets.sequential import Affine

Decoder = Literal["gates", "thermometer", "nearest"]


def codes(classes: int) -> Tensor:
    """rho_c, the number that stands for class c [K]."""
    return -1 + (2 * torch.arange(classes, dtype=torch.float64) + 1) / classes


def decode(network: Sequence[Affine], classes: int, decoder: Decoder) -> list[Affine]:
    """Read class outputs off a network with the scalar output f.

    - ``gates``, the paper's: every class has a trapezoid of two units, 1 where f is near its code;
    - ``thermometer``: one unit per threshold, a class is the difference of its two neighbors;
    - ``nearest``: no units, outputs affine in f, of which the nearest code's is the largest.

    Args:
        network: affine maps of which the last has one output.
        classes: K.
        decoder: which of the three.

    Returns:
        Affine maps of which the last has K outputs.
    """
    *hidden, (weight, bias) = network
    rho = codes(classes)
    if decoder == "nearest":
        # argmin (f - rho)^2 = argmax 2 rho f - rho^2, scaled so that a neighbor's lead is 1 at the code.
        scale = classes**2 / 4
        return [*hidden, Affine(scale * 2 * rho[:, None] * weight, scale * (2 * rho * bias - rho**2))]
    steepness = 2 * classes
    # Code c lies between the edges c and c + 1.
    edges = -1 + 2 * torch.arange(classes + 1, dtype=torch.float64) / classes
    most = max(2, classes)  # a single class has a threshold too, above its code
    thresholds = edges[1:most] if decoder == "thermometer" else torch.cat([edges[:-1], edges[1:]])
    third = Affine(steepness * weight.expand(len(thresholds), -1), steepness * (bias - thresholds))
    if decoder == "gates":
        half = torch.eye(classes, dtype=torch.float64) / 2
        return [
            *hidden,
            third,
            Affine(torch.cat([half, -half], 1), torch.zeros(classes, dtype=torch.float64)),
        ]
    # (a_(c-1) - a_c) / 2, a_(-1) = 1, a_(K-1) = -1
    steps = torch.zeros(classes, most + 1, dtype=torch.float64)
    steps.diagonal().fill_(0.5)
    steps.diagonal(1).fill_(-0.5)
    return [*hidden, third, Affine(steps[:, 1:-1].contiguous(), steps[:, 0] - steps[:, -1])]
