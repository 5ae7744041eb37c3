"""Extreme eigenvalues of a symmetric operator, by Lanczos with full reorthogonalization.

In an orthonormal basis V of the Krylov space of a random vector, the operator A is tridiagonal, A V = V T +
β v e^T. An eigenpair T s = θ s gives z = V s with

    ‖A z - θ z‖ = β |s_last|,

and a symmetric A has an eigenvalue within that distance of θ. As θ = z^T A z is never beyond the extreme
eigenvalues, the search for one of them ends where the distance is small. That none lies farther out is sure
but for the choice of the first vector, which would have to be orthogonal to its eigenvectors.

Source: Lanczos 1950; Parlett 1980, The Symmetric Eigenvalue Problem, chapters 11 to 13.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]

TOLERANCE = 1e-10  # of the bound, as a part of the eigenvalue
MOST = 1000  # vectors of the basis


@dataclass(frozen=True)
class Eigenpair:
    """What Lanczos found.

    Attributes:
        value: θ.
        vector: z [n], of norm 1.
        bound: ``‖A z - θ z‖`` by a product of its own: A, so far as its product is exact, has an eigenvalue
            no farther from θ.
        products: with A, in all.
    """

    value: float
    vector: Tensor
    bound: float
    products: int


def lanczos(
    product: Operator,
    size: int,
    which: Literal["largest", "smallest"] = "largest",
    *,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    most: int = MOST,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Eigenpair:
    """The largest or the smallest eigenvalue of a symmetric operator, counted with its sign.

    Args:
        product: x to A x, both [n].
        size: n.
        which: of the two. Where A is positive and can be solved, the largest of its inverse takes far fewer
            products than the smallest of A.
        seed: of the first vector.
        tolerance: stop where the bound is this part of ``|θ|``, or as small as rounding lets it be.
        most: vectors of the basis, n numbers each; where they do not suffice, the bound is larger.
        dtype: of vectors.
        device: likewise.
    """
    epsilon = torch.finfo(dtype).eps
    end = -1 if which == "largest" else 0
    vector = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    vector = (vector / torch.linalg.vector_norm(vector)).to(device, dtype)
    basis = vector.new_empty(0, size)
    diagonal: list[float] = []
    beside: list[float] = []
    look = 1
    while True:
        if len(diagonal) == len(basis):
            basis = torch.cat([basis, basis.new_empty(16 + len(basis) // 2, size)])
        basis[len(diagonal)] = vector
        image = product(vector)
        diagonal.append(float(vector @ image))
        known = basis[: len(diagonal)]
        for _ in range(2):  # once leaves the rounding errors of a vector that may be far longer
            image = image - known.T @ (known @ image)
        rest = float(torch.linalg.vector_norm(image))
        last = len(known) == min(most, size) or rest <= epsilon * max(map(abs, diagonal))
        if last or len(known) == look:
            values, vectors = _eigen(diagonal, beside)
            reached = rest * abs(float(vectors[-1, end]))
            if last or reached <= max(
                tolerance * abs(float(values[end])), epsilon * float(values.abs().max())
            ):
                break
            look += 1 + look // 5
        beside.append(rest)
        vector = image / rest
    vector = vectors[:, end].to(known) @ known
    vector /= torch.linalg.vector_norm(vector)
    image = product(vector)
    value = float(vector @ image)
    bound = float(torch.linalg.vector_norm(image - value * vector))
    return Eigenpair(value, vector, bound, len(known) + 1)


def _eigen(diagonal: list[float], beside: list[float]) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of a tridiagonal matrix."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if beside:
        matrix += torch.diag(torch.tensor(beside, dtype=torch.float64), -1)  # eigh reads the lower half
    return torch.linalg.eigh(matrix)
