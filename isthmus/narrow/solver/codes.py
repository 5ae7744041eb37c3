"""Classes as numbers: one output and N equations, where one-hot targets would take N K.

Class k of K has the code c_k = k - (K - 1) / 2, and logits 2 c_k h - c_k^2 are largest for the code nearest
to h, because they are h^2 - (h - c_k)^2 without what they have in common. So a row is right if h is within a
half of its code; beyond the outermost codes, however far.

Rows are inequalities then, and fewer parameters do. With a dead zone, only what a row is off by more than τ
pulls at it; rows well inside the zone are held where they are by more damping.

Source: isthmus' own; targets as in Zhang et al. 2021, Theorem 1, with one output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from isthmus.narrow.solver.levenberg import Misfit

ZONE: Final = 0.35  # τ
INNER: Final = 0.6  # part of the zone in which a row is held
HOLD: Final = 0.3  # λ with which it is
EDGE: Final = 0.05  # out of the zone by this much is well within a half of the code
NEAR: Final = 0.25  # rows within this of their codes are right whatever rounding does to h


def codes(classes: int) -> Tensor:
    """c_k [K], float64."""
    return torch.arange(classes, dtype=torch.float64) - (classes - 1) / 2


def decoder(classes: int) -> nn.Linear:
    """H to the logits 2 c_k h - c_k^2, float64."""
    code = codes(classes)
    linear = nn.Linear(1, classes, device="meta")
    linear.weight = nn.Parameter(2 * code[:, None], requires_grad=False)
    linear.bias = nn.Parameter(-code.square(), requires_grad=False)
    return linear


def near(code: Tensor, unit: float) -> Callable[[Tensor], Misfit]:
    """Pull every row to its code, until all are within NEAR.

    Args:
        code: of every row [N], shifted and scaled as its network's output is.
        unit: from one code to the next.
    """

    def misfit(output: Tensor) -> Misfit:
        residual = code - output
        return Misfit(residual, None, bool((residual.abs() <= NEAR * unit).all()))

    return misfit


def within_zone(code: Tensor, unit: float) -> Callable[[Tensor], Misfit]:
    """Pull only rows that are out of the dead zone, until none are.

    Args:
        code: of every row [N], shifted and scaled as its network's output is.
        unit: from one code to the next.
    """
    lowest, highest = code == code.min(), code == code.max()

    def misfit(output: Tensor) -> Misfit:
        error = code - output
        error = error.masked_fill((lowest & (error > 0)) | (highest & (error < 0)), 0.0)
        over = (error.abs() - ZONE * unit).clamp(min=0)
        hold = torch.where(error.abs() < INNER * ZONE * unit, HOLD, 0.0)
        return Misfit(error.sign() * over, hold, bool((over <= EDGE * unit).all()))

    return misfit
