"""The largest and the smallest singular value of a matrix J [E, P], computed in float64 in three ways.

    gram    J J^T = L L^T by Cholesky; Lanczos on J J^T and on its inverse    σ_min to eps cond(J)^2
    qr      J^T = Q R; Lanczos on R^T R, which is J J^T, and on its inverse   eps cond(J)
    dense   all singular values of R                                          eps cond(J)

The first is for E <= P; for the others a matrix with E > P is turned over. Where R is singular, so far as
rounding can tell, all its singular values are computed, so that those that are not 0 can be counted.

Where entries of J come with an error of epsilon, that of σ_min is epsilon cond(J) at least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from isthmus.linalg.cholesky import BLOCK, cholesky
from isthmus.linalg.lanczos import Eigenpair, Operator, lanczos

Method = Literal["dense", "gram", "qr"]

EPSILON: Final = torch.finfo(torch.float64).eps
ONE_BLOCK: Final = 2048  # rows of a factor that is faster in one piece


@dataclass(frozen=True)
class Singular:
    """Singular values of a matrix, k = min(E, P) in all.

    Attributes:
        method: by which they were computed.
        largest: σ_1.
        smallest: σ_k.
        error: relative error of σ_k, estimated, and no less than that of σ_1; infinite if σ_k is 0.
        epsilon: relative error of the matrix's entries.
        values: all of them, descending, if they were computed.
    """

    method: Method
    largest: float
    smallest: float
    error: float
    epsilon: float
    values: tuple[float, ...] | None = None


def by_gram(
    rows: Callable[[slice], Tensor],
    product: Operator,
    size: int,
    *,
    epsilon: float,
    seed: int,
    device: torch.device,
) -> Singular:
    """Extreme singular values from J J^T.

    Args:
        rows: of J J^T, as `cholesky` takes them, after the last product.
        product: a to J J^T a.
        size: E.
        epsilon: relative error of J's entries.
        seed: of Lanczos.
        device: of the vectors.

    Raises:
        NotPositiveDefinite: J J^T is singular so far as float64 can tell.
    """
    largest = lanczos(product, size, seed=seed, device=device)
    factor = cholesky(rows, size, block=size if size <= ONE_BLOCK else BLOCK)
    inverse = lanczos(factor.solve, size, seed=seed, device=device)
    condition = math.sqrt(largest.value * inverse.value)
    error = max(EPSILON * condition**2, epsilon * condition) + _left(largest, inverse)
    return Singular("gram", math.sqrt(largest.value), 1 / math.sqrt(inverse.value), error, epsilon)


def by_qr(root: Tensor, *, tolerance: float, epsilon: float, seed: int) -> Singular:
    """Extreme singular values of the triangle R [k, k].

    Args:
        root: R.
        tolerance: if the smallest is at most this part of the largest, all are computed.
        epsilon: relative error of J's entries.
        seed: of Lanczos.
    """

    def product(a: Tensor) -> Tensor:
        return root.T @ (root @ a)

    def solve(a: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(root.T, a[:, None], upper=False)
        return torch.linalg.solve_triangular(root, half, upper=True)[:, 0]

    pivots = root.diagonal().abs()  # none is less than σ_k, or more than σ_1
    if float(pivots.min()) <= tolerance * float(pivots.max()):
        return dense(root, epsilon=epsilon)
    largest = lanczos(product, len(root), seed=seed, device=root.device)
    inverse = lanczos(solve, len(root), seed=seed, device=root.device)
    condition = math.sqrt(largest.value * inverse.value)
    if condition * tolerance >= 1:
        return dense(root, epsilon=epsilon)
    error = epsilon * condition + _left(largest, inverse)
    return Singular("qr", math.sqrt(largest.value), 1 / math.sqrt(inverse.value), error, epsilon)


def dense(root: Tensor, *, epsilon: float) -> Singular:
    """All singular values of R [k, k]; epsilon is the relative error of J's entries."""
    values = torch.linalg.svdvals(root)
    largest, smallest = float(values[0]), float(values[-1])
    error = epsilon * largest / smallest if smallest else math.inf
    return Singular("dense", largest, smallest, error, epsilon, tuple(values.tolist()))


def stacked(parts: Iterable[Tensor]) -> Tensor:
    """R [min(E, Σ c), E] with R^T R that of matrices [c, E] on top of one another, taken one at a time."""
    root: Tensor | None = None
    for part in parts:
        root = torch.linalg.qr(part if root is None else torch.cat([root, part]), mode="r").R
    assert root is not None
    return root


def square(root: Tensor) -> Tensor:
    """A triangle [k, k] with the singular values of R [k, E]."""
    return root if len(root) == root.shape[1] else torch.linalg.qr(root.T, mode="r").R


def _left(*pairs: Eigenpair) -> float:
    """What Lanczos may have left, relative to the roots of eigenvalues."""
    return max(pair.bound / (2 * pair.value) for pair in pairs)
