"""Linear layers and convolutions whose second half of outputs is computed as a difference from the first.

With W = [A; B], the outputs are y1 = A x and y2 = y1 + (B - A) x. Where A = B, as at a mirrored
initialization, y2 = y1 bit for bit: a product with zeros is zero in every kernel, for every batch, dtype and
device. One product with W does not have that property, for kernels treat the last few columns of a matrix in
another way than the first. Where A and B differ by little, what the paired head subtracts is accurate
relative to the difference itself.

State dicts are those of the plain layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional


class MirroredLinear(nn.Linear):
    """A Linear layer with an even number of outputs, computed as y1 and y1 + (B - A) x."""

    def forward(self, input: Tensor) -> Tensor:
        """Inputs [..., d] to outputs [..., m]."""
        return _halves(
            lambda weight, bias: functional.linear(input, weight, bias), self.weight, self.bias, -1
        )


class MirroredConv1d(nn.Conv1d):
    """Likewise a convolution."""

    def forward(self, input: Tensor) -> Tensor:
        """Inputs [..., d, L] to outputs [..., m, L']."""
        return _halves(lambda *ab: self._conv_forward(input, *ab), self.weight, self.bias, -2)


class MirroredConv2d(nn.Conv2d):
    """Likewise a convolution."""

    def forward(self, input: Tensor) -> Tensor:
        """Inputs [..., d, H, W] to outputs [..., m, H', W']."""
        return _halves(lambda *ab: self._conv_forward(input, *ab), self.weight, self.bias, -3)


class MirroredConv3d(nn.Conv3d):
    """Likewise a convolution."""

    def forward(self, input: Tensor) -> Tensor:
        """Inputs [..., d, D, H, W] to outputs [..., m, D', H', W']."""
        return _halves(lambda *ab: self._conv_forward(input, *ab), self.weight, self.bias, -4)


MIRRORED: Final[dict[type[nn.Module], type[nn.Module]]] = {
    nn.Linear: MirroredLinear,
    nn.Conv1d: MirroredConv1d,
    nn.Conv2d: MirroredConv2d,
    nn.Conv3d: MirroredConv3d,
}


def _halves(apply: Callable[..., Tensor], weight: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    first, second = weight.chunk(2)
    own, other = (None, None) if bias is None else bias.chunk(2)
    value = apply(first, own)
    difference = apply(second - first, None if own is None or other is None else other - own)
    return torch.cat([value, value + difference], axis)
