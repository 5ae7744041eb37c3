"""Inputs in coordinates that training likes, and weights taken back to the inputs as they are stored.

Columns are centered and divided by their ranges. With the covariance V Λ V^T of that, and its largest
eigenvalue λ_1, rows become

    z = [(x - μ) P, 1],    P = D V (Λ + ρ λ_1)^(-1/2) g,    D the reciprocal ranges,

without the eigenvalues below CUT λ_1, and scaled by g so that rows have the squared norm p on average. It is
the same class of functions, for (w, c) · z = (P w) · x + c - (P w) · μ. The ridge ρ keeps the directions of
least variance from being blown up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from isthmus.data.dataset import Dataset
from isthmus.errors import PrecisionError

RIDGE: Final = 1e-3  # ρ
CUT: Final = 1e-8
SMALLEST, LARGEST = 1e-100, 1e100  # of the largest input


@dataclass(frozen=True)
class Coordinates:
    """Rows in new coordinates, and the way back.

    Attributes:
        rows: Z [N, p], float64.
        shift: μ [d].
        basis: P [d, q]; q = p without a column of ones.
        bias: whether Z ends in a column of ones.
    """

    rows: Tensor
    shift: Tensor
    basis: Tensor | None
    bias: bool

    def fold(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights [m, p] on Z as weights [m, d] and biases [m] on the rows as they are stored."""
        inner, bias = (weight[:, :-1], weight[:, -1]) if self.bias else (weight, None)
        if self.basis is None:
            return inner.clone(), None if bias is None else bias.clone()
        raw = inner @ self.basis.T
        return raw, None if bias is None else bias - raw @ self.shift


def whitened(data: Dataset, device: torch.device) -> Coordinates:
    """Center, whiten and append a column of ones."""
    x = data.flat.to(device, torch.float64)
    low, high = x.amin(0), x.amax(0)
    _require_moderate(data, torch.stack([low, high]))
    shift = x.mean(0)
    reach = high - low
    stretch = torch.where(reach > 0, 1 / reach, 0.0)  # a constant column has no weight
    x = (x - shift) * stretch
    n, d = x.shape
    if n < d:  # the same eigenvalues, of the smaller matrix
        values, vectors = torch.linalg.eigh(x @ x.T / n)
        kept = values > CUT * values[-1]
        vectors = x.T @ (vectors[:, kept] / (n * values[kept]).sqrt())
    else:
        values, vectors = torch.linalg.eigh(x.T @ x / n)
        kept = values > CUT * values[-1]
        vectors = vectors[:, kept]
    basis = vectors * (values[kept] + RIDGE * values[-1]).rsqrt()
    rows = x @ basis
    size = rows.square().sum(1).mean().sqrt()
    scale = len(basis.T) ** 0.5 / size.where(size > 0, 1.0)
    return Coordinates(_with_ones(rows.mul_(scale)), shift, stretch[:, None] * basis * scale, bias=True)


def as_stored(data: Dataset, device: torch.device, *, bias: bool) -> Coordinates:
    """The rows as they are, with a column of ones for a bias."""
    x = data.flat.to(device, torch.float64)
    _require_moderate(data, x)
    rows = _with_ones(x) if bias else x
    return Coordinates(rows, torch.zeros_like(x[0]), None, bias)


def _with_ones(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_ones(len(rows), 1)], 1)


def _require_moderate(data: Dataset, x: Tensor) -> None:
    """Refuse inputs whose products would leave float64.

    Raises:
        PrecisionError: says how large they are.
    """
    largest = float(x.abs().max())
    if largest and not SMALLEST <= largest <= LARGEST:
        raise PrecisionError(
            f"{data.source}: inputs reach {largest:.1e}, and their products would leave float64; "
            "rescale the columns."
        )
