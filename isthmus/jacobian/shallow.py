"""The Jacobian of a network of one hidden layer, by its structure: it is never written out.

For f_k(x) = Σ_j U_kj σ(w_j · x) on rows x_i of X [N, d], with F = σ(X W^T) and S = σ'(X W^T), and equations
(k, i) in the order of outputs first,

    J J^T     = (X X^T) ∘ (S diag(U_k ∘ U_l) S^T) + [k = l] F F^T   in the block of outputs k and l
    J^T a     = rows Σ_k U_kj (S_:j ∘ a_k)^T X for w_j,  a_k^T F for U_k
    J (Δ, δ)  = Σ_j U_kj S_:j ∘ (X Δ_j) + F δ_k

where the terms with F belong to the output weights. Hidden biases are a column of ones in X.

Source: Zhang et al. 2021, equations (1) and (9), and the Khatri-Rao form of their Jacobian.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Shallow:
    """J at one point, with what is computed once for all its products.

    Attributes:
        x: X [N, d].
        slope: S [N, m].
        outer: U [K, m].
        features: F [N, m], or for a paired head the difference of its halves; None if J is in W alone.
    """

    x: Tensor
    slope: Tensor
    outer: Tensor
    features: Tensor | None

    @property
    def equations(self) -> int:
        """N K, the rows of J."""
        return len(self.x) * len(self.outer)

    def to(self, dtype: torch.dtype) -> Shallow:
        """The same in another dtype."""
        features = None if self.features is None else self.features.to(dtype)
        return replace(
            self,
            x=self.x.to(dtype),
            slope=self.slope.to(dtype),
            outer=self.outer.to(dtype),
            features=features,
        )

    def pull(self, a: Tensor) -> tuple[Tensor, Tensor | None]:
        """J^T a for a [N K]: the parts for W [m, d] and U [K, m]."""
        a = a.reshape(len(self.outer), -1)
        weight = (self.slope * (a.T @ self.outer)).T @ self.x
        return weight, None if self.features is None else a @ self.features

    def push(self, weight: Tensor, outer: Tensor | None = None) -> Tensor:
        """J (Δ, δ) [N K] for Δ [m, d], and δ [K, m] if J is in U too."""
        moved = self.outer @ (self.slope * (weight @ self.x.T).T).T  # X W^T would take twice as long
        if self.features is not None and outer is not None:
            moved = moved + outer @ self.features.T
        return moved.reshape(-1)

    def gram_product(self, a: Tensor) -> Tensor:
        """``J J^T a`` for a [N K], in O(N d m)."""
        return self.push(*self.pull(a))

    def gram_rows(self, block: slice, start: int = 0) -> Tensor:
        """Rows of J J^T, columns from ``start`` up to the diagonal, in O(rows columns (d + m))."""
        n = len(self.x)
        equations = torch.arange(block.start, block.stop, device=self.x.device)
        output, row = equations // n, equations % n
        x, slope = self.x[row], self.slope[row] * self.outer[output]
        gram = x.new_empty(len(equations), block.stop - start)
        for k in range(start // n, (block.stop - 1) // n + 1):
            first, last = max(start, k * n), min(block.stop, (k + 1) * n)
            columns = slice(first - k * n, last - k * n)
            part = gram[:, first - start : last - start]
            torch.mm(x, self.x[columns].T, out=part)
            part.mul_(slope @ (self.slope[columns] * self.outer[k]).T)
            if self.features is not None and (same := output == k).any():
                part.add_(torch.where(same[:, None], self.features[row], 0) @ self.features[columns].T)
        return gram

    def gram_diagonal(self) -> Tensor:
        """The diagonal of J J^T [N K]."""
        own = self.x.square().sum(1) * (self.outer.square() @ self.slope.square().T)
        return (own if self.features is None else own + self.features.square().sum(1)).reshape(-1)


def linearize(
    x: Tensor, weight: Tensor, outer: Tensor, activation: nn.Module, *, head: bool = True
) -> Shallow:
    """J of Σ_j U_:j σ(w_j · x).

    Args:
        x: X [N, d].
        weight: W [m, d].
        outer: U [K, m].
        activation: σ, entry by entry.
        head: whether J is in U, too.
    """
    before = x @ weight.T
    slope = slopes(activation, before)
    return Shallow(x, slope, outer, activation(before) if head else None)


def slopes(activation: nn.Module, before: Tensor) -> Tensor:
    """σ' at pre-activations of any shape."""
    with torch.enable_grad():
        z = before.detach().requires_grad_()
        return torch.autograd.grad(activation(z).sum(), z)[0]
