"""Inputs in coordinates that training likes, and weights taken back to the inputs as they are stored.

With the mean μ, the covariance V Λ V^T and its largest eigenvalue λ_1, rows become

    z = [(x - μ) P, 1],  P = V (Λ + ρ λ_1)^(-1/2) g,  without the eigenvalues below CUT λ_1,

scaled by g so that they have the squared norm d + 1 on average. It is the same class of functions, for (w, c)
· z = (P w) · x + c - (P w) · μ. The ridge ρ keeps the directions of least variance from being blown up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from isthmus.data.dataset import Dataset

RIDGE: Final = 1e-3  # ρ
CUT: Final = 1e-6


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
    shift = x.mean(0)
    x = x - shift
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    largest = values[-1].clamp(min=torch.finfo(x.dtype).tiny)
    kept = values > CUT * largest
    basis = vectors[:, kept] * (values[kept] + RIDGE * largest).rsqrt()
    rows = x @ basis
    scale = (rows.shape[1] / rows.square().sum(1).mean().clamp(min=torch.finfo(x.dtype).tiny)).sqrt()
    return Coordinates(_with_ones(rows.mul_(scale)), shift, basis * scale, bias=True)


def as_stored(data: Dataset, device: torch.device, *, bias: bool) -> Coordinates:
    """The rows as they are, with a column of ones for a bias."""
    x = data.flat.to(device, torch.float64)
    rows = _with_ones(x) if bias else x
    return Coordinates(rows, torch.zeros_like(x[0]), None, bias)


def _with_ones(rows: Tensor) -> Tensor:
    return torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
