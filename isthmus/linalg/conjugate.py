"""Conjugate gradients with a preconditioner that may be rounded, or change from step to step.

Source: Golub and Ye 1999 (SIAM J. Sci. Comput. 21), inexact preconditioning: directions are made conjugate
with the change of the residual, so that a preconditioner in lower precision does no harm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Found:
    """Where conjugate gradients ended.

    Attributes:
        solution: x [n].
        residual: ``|b - A x| / |b|``, as it was updated along the way.
        iterations: products with A.
    """

    solution: Tensor
    residual: float
    iterations: int


def conjugate_gradients(
    product: Operator,
    right: Tensor,
    *,
    precondition: Operator,
    tolerance: float,
    iterations: int,
) -> Found:
    """Solve A x = b for a positive definite A.

    Args:
        product: x to A x.
        right: b [n].
        precondition: r to nearly A^-1 r.
        tolerance: stop where ``|b - A x| <= tolerance |b|``.
        iterations: stop after as many.
    """
    size = float(torch.linalg.vector_norm(right))
    solution, residual = torch.zeros_like(right), right.clone()
    if size == 0:
        return Found(solution, 0.0, 0)
    direction = precondition(residual)
    energy = residual @ direction
    reached, taken = 1.0, 0
    while reached > tolerance and taken < iterations and energy > 0:
        image = product(direction)
        taken += 1
        curvature = direction @ image
        if not curvature > 0:
            break
        step = energy / curvature
        solution += step * direction
        before, residual = residual, residual - step * image
        reached = float(torch.linalg.vector_norm(residual)) / size
        if reached <= tolerance:
            break
        preconditioned = precondition(residual)
        change = preconditioned @ (residual - before)
        direction = preconditioned + change / energy * direction
        energy = residual @ preconditioned
    return Found(solution, reached, taken)
