"""The paired output layer: f(x) = V (g1 - g2) + b on features [g1, g2] (Zhang et al. 2021, equation (9)).

The outer weights are [V, -V], and stay so in training. The halves are subtracted first and weighed then, so
that features with equal halves give exactly b, which one Linear layer with [V, -V] need not do: it rounds V
g1 and V g2 along the way.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from isthmus.errors import WidthError


class PairedHead(nn.Module):
    """V (g1 - g2) + b for features [..., m] whose first half is g1.

    Args:
        in_features: m, even; V is ``weight`` [out_features, m / 2].
        out_features: K.
        bias: with b, which starts as 0.
        device: of the tensors.
        dtype: likewise.

    Raises:
        WidthError: m is odd.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if in_features < 2 or in_features % 2:
            raise WidthError(
                f"a paired head takes an even number of features, m >= 2, not m = {in_features}."
            )
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features // 2, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw V from N(0, 1/m), as the paper's Algorithm 1 does; b is 0."""
        nn.init.normal_(self.weight, std=self.in_features**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features [..., m] to outputs [..., K]."""
        first, second = self._halves(features)
        return functional.linear(first - second, self.weight, self.bias)

    def _halves(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Both [..., m / 2]; features of another number do not fit, and are not broadcast."""
        first, second = features.unflatten(-1, (2, self.in_features // 2)).unbind(-2)
        return first, second

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """One Linear layer with the weight [V, -V] and the same bias: the same function, but for rounding."""
        # Without storage no random weights are drawn.
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight = nn.Parameter(torch.cat([self.weight, -self.weight], 1), self.weight.requires_grad)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.clone(), self.bias.requires_grad)
        return linear.train(self.training)

    @torch.no_grad()
    def folding_bits(self, features: Tensor) -> Tensor:
        """How many bits of V (g1 - g2) folding may cost.

        That is log2 of ``Σ |V| (|g1| + |g2|) / Σ |V| |g1 - g2|``.

        Args:
            features: [..., m].

        Returns:
            [..., K]; infinite where the halves are equal, and 0 where they are 0.
        """
        first, second = self._halves(features)
        size = self.weight.abs()
        folded = functional.linear(first.abs() + second.abs(), size)
        bits = torch.log2(folded / functional.linear((first - second).abs(), size))
        return bits.masked_fill(folded == 0, 0.0)

    def extra_repr(self) -> str:
        """What stands between the parentheses."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )
