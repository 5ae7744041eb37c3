"""The largest part of J J^T, of the rank of the inputs, as a preconditioner that needs no factor of size N K.

With M the matrix of entries U_kj S_ij, one row per equation (k, i) and one column per unit j, the part of
J J^T in the hidden weights is

    Σ_j diag(M_:j) (1 ⊗ X) (1 ⊗ X)^T diag(M_:j).

Slopes of one sign make M nearly of rank 1. For its best such approximation q w^T, |w| = 1, the sum is

    Z Z^T,    Z = diag(q) (1 ⊗ X)    [N K, p],

which has the largest eigenvalues, N / p times what is left or more; and what is left is spread evenly. So

    P = Z Z^T + T,    T = Λ + the mean of what is left,

is nearly J J^T + Λ where Λ is not small. Its inverse is one of size p, and Z is never written down.

Source: isthmus' own; Woodbury 1950 for the inverse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from isthmus.jacobian.shallow import Shallow

ROWS: Final = 4096  # taken at a time


def leading(jacobian: Shallow, shift: Tensor) -> Callable[[Tensor], Tensor] | None:
    """What takes r [N K] to P^-1 r; None where P is singular in float64, or no smaller than J J^T.

    Args:
        jacobian: J, of any dtype, in which the result works.
        shift: Λ, one number [] or one per equation [N K].
    """
    x, slope, outer = jacobian.x, jacobian.slope, jacobian.outer
    if x.shape[1] >= jacobian.equations:
        return None
    among_units = ((slope.T @ slope) * (outer.T @ outer)).double()  # M^T M
    if not among_units.isfinite().all():
        return None
    weight = torch.linalg.eigh(among_units).eigenvectors[:, -1].to(x.dtype)
    q = (outer * weight) @ slope.T  # [K, N]
    left = jacobian.gram_diagonal().mean() - (q.square().sum(0) @ x.square().sum(1)) / q.numel()
    inverse = 1 / (shift + left.clamp(min=0)).expand(q.numel()).reshape(q.shape)  # T^-1
    weights = (q.square() * inverse).sum(0)[:, None]
    inner = torch.eye(x.shape[1], dtype=torch.float64, device=x.device)  # I + Z^T T^-1 Z
    for rows, own in zip(x.split(ROWS), weights.split(ROWS), strict=True):
        inner += rows.T @ (own * rows)
    factor, failed = torch.linalg.cholesky_ex(inner)
    if failed or not factor.isfinite().all():
        return None
    middle = torch.cholesky_inverse(factor).to(x.dtype)

    def solve(right: Tensor) -> Tensor:
        scaled = right.reshape(q.shape) * inverse
        found = x @ (middle @ ((q * scaled).sum(0) @ x))
        return (scaled - inverse * q * found).reshape(-1)

    return solve
