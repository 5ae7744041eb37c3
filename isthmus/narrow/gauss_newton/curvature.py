"""The curvature of a loss in a model's outputs, and what makes least squares of any loss.

Let the loss be a sum over rows, with gradient g_i and second derivative H_i in the K outputs of row i. With
H_i = L_i L_i^T for its positive part and g_i = L_i z_i + u_i, L_i^T u_i = 0, it is to second order

    ℓ(F + δ) ≈ ℓ(F) + ½ Σ_i ‖L_i^T δ_i + z_i‖² - ½ Σ_i ‖z_i‖² + Σ_i u_i · δ_i.

For ½ Σ (f - y)², L = I and z = f - y. For the cross entropy H = diag(p) - p p^T is 0 along (1, ..., 1), and
so is g = p - e_y: u = 0. Only a loss with flat parts (Huber's, far out) has a slope u where it has no
curvature.

Source: Schraudolph 2002, the generalized Gauss-Newton matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from isthmus.errors import InputError

TRACE: Final = 1000  # roundings, as a part of the largest entry


@dataclass(frozen=True)
class Curvature:
    """H and g, row by row, float64.

    Attributes:
        root: L [n, K, r], where r is the largest rank of all rows.
        slope: z [n, r].
        flat: u [n, K], or None where it is a rounding.
    """

    root: Tensor
    slope: Tensor
    flat: Tensor | None

    @property
    def gradient(self) -> Tensor:
        """The gradient g [n, K]."""
        found = times(self.root, self.slope)
        return found if self.flat is None else found + self.flat


def curvature(gradient: Tensor, outputs: Tensor) -> Curvature:
    """Second derivatives of a loss in outputs.

    Args:
        gradient: g [n, ...] with its graph.
        outputs: F [n, ...], a leaf of that graph.

    Raises:
        InputError: the loss mixes rows, is not finite, or has no curvature.
    """
    rows = len(outputs)
    g = gradient.detach().reshape(rows, -1)
    hessian = _blocks(gradient, outputs)
    if not (g.isfinite().all() and hessian.isfinite().all()):
        raise InputError("the derivatives of the loss in the model's outputs are not finite.")
    values, vectors = torch.linalg.eigh(hessian.double())
    eps = torch.finfo(outputs.dtype).eps
    kept = values > len(values[0]) * eps * values[:, -1:]
    rank = int(kept.sum(1).max())
    if not rank:
        raise InputError(
            "the loss has no curvature in the model's outputs (its second derivatives are 0 or less), so "
            "Gauss-Newton has nothing to go by; begin with a loss that has, such as the squared one."
        )
    kept, vectors = kept[:, -rank:], vectors[..., -rank:]
    length = torch.where(kept, values[:, -rank:], 0.0).sqrt()
    root = vectors * length[:, None]
    slope = torch.where(kept, times(vectors.mT, g.double()) / length, 0.0)
    flat = g.double() - times(root, slope)
    rounding = torch.linalg.vector_norm(flat) <= eps**0.5 * torch.linalg.vector_norm(g.double())
    return Curvature(root, slope, None if rounding else flat)


def times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """A_i v_i [n, a] for A [n, a, b] and v [n, b]."""
    return (matrices @ vectors[..., None])[..., 0]


def _blocks(gradient: Tensor, outputs: Tensor) -> Tensor:
    """H_i [n, K, K], symmetric.

    Raises:
        InputError: rows depend on one another.
    """
    rows = len(outputs)

    def product(direction: Tensor) -> Tensor:
        """H v [n, K]."""
        if not gradient.requires_grad:
            return torch.zeros_like(direction)
        (found,) = torch.autograd.grad(
            gradient, outputs, direction.view_as(outputs), retain_graph=True, materialize_grads=True
        )
        return found.reshape(rows, -1)

    flat = outputs.detach().reshape(rows, -1)
    # What is done to some rows is to leave no trace in the others.
    generator = torch.Generator(flat.device).manual_seed(0)
    probe = torch.randn(flat.shape, generator=generator, dtype=flat.dtype, device=flat.device)
    touched = torch.rand(rows, generator=generator, device=flat.device) < 0.5
    image = product(torch.where(touched[:, None], probe, 0.0)).abs()
    if (image[~touched] > TRACE * torch.finfo(flat.dtype).eps * image.max()).any():
        raise InputError(
            "the loss mixes rows: its slope at one depends on the outputs at others. Gauss-Newton is for a "
            "sum or a mean over rows; of a root or a logarithm of one, take what is inside."
        )
    columns = []
    for k in range(flat.shape[1]):
        direction = torch.zeros_like(flat)
        direction[:, k] = 1
        columns.append(product(direction))
    hessian = torch.stack(columns, -1)
    return (hessian + hessian.mT) / 2
