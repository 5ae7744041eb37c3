"""Linear algebra with bounds that hold whatever the rounding: smallest eigenvalues and norms.

Eigenvalues. L L^T is positive semidefinite for any real L. So for a symmetric A, any number s and any L,

    λ_min(A) >= s - ‖E‖_2,    E = A - s I - L L^T

Here L is the floating Cholesky factor of A - s I, with s a little below λ_min, so that E is no more than
rounding. Nothing is assumed of how L was found. E is computed, and its norm bounded by ‖E‖_F.

Rounding. A sum of k terms, each a product, is off by at most gamma_k times the sum of their sizes, with
gamma_k = k u / (1 - k u) and u = 2^-53, in every order, fused or not (Higham, Accuracy and Stability of
Numerical Algorithms, section 3.1). For entries of a product L L^T the sizes add up to at most ‖l_i‖ ‖l_k‖. As
a matrix that has rank one, so the product is off by gamma_k ‖L‖_F^2 in the spectral norm.

Scalars that bound other numbers are moved up or down by 2^-20 of themselves, which covers what up to 2^30
roundings do to a sum of terms of one sign. Underflow is covered by `UNDERFLOW` for numbers of at most
`LARGEST`.

Source: in the manner of Rump 2006, Verification of positive definiteness (BIT 46), which bounds E by what is
known of Cholesky's algorithm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from isthmus.linalg.cholesky import Cholesky, NotPositiveDefinite, cholesky, dense_rows

ASSUMPTIONS: Final = (
    "IEEE double precision, rounding to nearest, no flush-to-zero; products of matrices that add up the "
    "products of their entries, in any order, fused or not (not Strassen's, not emulated with fewer bits)"
)
LARGEST: Final = 2.0**200  # products of four such numbers, added up 2^30 times twice, do not overflow
UNDERFLOW: Final = 2.0**-400  # at least what underflow takes from a sum of products of four
BELOW: Final = (0.004, 0.04, 0.2, 0.6)  # how far below the guess a shift is tried, as a part of the guess


@dataclass(frozen=True)
class Rounding:
    """Bounds on rounding errors in an arithmetic with this unit roundoff.

    Attributes:
        unit: u; with 0 there are none, and every bound is the number itself.
    """

    unit: float

    def gamma(self, roundings: int) -> float:
        """What a term may lose in so many roundings, as a part of it."""
        return self.above(roundings * self.unit / (1 - roundings * self.unit))

    def above(self, computed: float | Tensor) -> float:
        """At least the exact value of a computed number >= 0."""
        return float(computed) * (1 + 2.0**33 * self.unit)

    def below(self, computed: float | Tensor) -> float:
        """At most that."""
        return float(computed) * (1 - 2.0**33 * self.unit)

    def root(self, squares: float | Tensor) -> float:
        """At least the square root of a computed sum of products >= 0."""
        return self.above(self.above(squares) + (UNDERFLOW if self.unit else 0.0)) ** 0.5

    def norm(self, entries: Tensor) -> float:
        """At least the Euclidean norm of a tensor."""
        return self.root(entries.square().sum())


DOUBLE: Final = Rounding(2.0**-53)
NONE: Final = Rounding(0.0)


def smallest_eigenvalue(rows: Callable[[slice], Tensor], size: int, *, guess: float, error: float) -> float:
    """A number that no eigenvalue of a symmetric matrix is below; -inf or NaN if none is found.

    Args:
        rows: gives rows a to b of a matrix in float64, columns 0 to b, as a new tensor [b - a, b].
        size: n.
        guess: about the smallest eigenvalue. The bound is some 0.4 % below it, and less the rounding, if no
            eigenvalue is below that.
        error: how far, in the spectral norm, the matrix that is meant may be from what `rows` gives.

    Returns:
        A bound for the matrix that is meant.
    """
    for part in BELOW:
        shift = guess - part * abs(guess)
        try:
            factor = cholesky(rows, size, shift=-shift)
        except NotPositiveDefinite:
            continue
        return shift - DOUBLE.above(error + _defect(rows, factor, shift))
    return -torch.inf


def spectral_norm(matrix: Tensor) -> float:
    """A number that ‖X‖_2 is not above, for X [n, d] in float64; the smaller of n and d decides its time."""
    thin = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    gram = thin.T @ thin
    largest = float(torch.linalg.eigvalsh(gram)[-1])
    error = DOUBLE.gamma(len(thin)) * DOUBLE.norm(thin) ** 2 + UNDERFLOW
    bound = smallest_eigenvalue(dense_rows(-gram), len(gram), guess=-largest, error=error)
    return min(DOUBLE.root(-bound), DOUBLE.norm(thin))


def _defect(rows: Callable[[slice], Tensor], factor: Cholesky, shift: float) -> float:
    """At least ‖A - s I - L L^T‖_2."""
    left, given, product = 0.0, 0.0, 0.0
    for block in factor.blocks:
        start, stop = block.shape[1] - len(block), block.shape[1]
        row = rows(slice(start, stop))
        given += _square(row, start)
        product += float(block.square().sum())
        row[:, start:].diagonal().sub_(shift)
        for before in factor.blocks:
            last = before.shape[1]
            if last > stop:
                break
            row[:, last - len(before) : last].addmm_(block[:, :last], before.T, alpha=-1)
        left += _square(row, start)
    terms = DOUBLE.above(DOUBLE.root(given) + abs(shift) + DOUBLE.root(product) ** 2)
    return DOUBLE.root(left) + DOUBLE.gamma(factor.size + 2) * terms + UNDERFLOW


def _square(row: Tensor, start: int) -> float:
    """What a block row, up to the diagonal, adds to ‖A‖_F^2 of a symmetric A."""
    return float(2 * row[:, :start].square().sum() + row[:, start:].square().sum())
