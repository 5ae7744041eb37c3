"""Linear layers and convolutions whose second half of outputs is computed as a difference from the first.

With W = [A; B], one product with [A; B - A] gives y1 = A x and the difference, and y2 is their sum. Where
A = B, as at a mirrored initialization, y2 = y1 bit for bit: a product with zeros is zero in every kernel, for
every batch, dtype and device. A product with W itself does not have that property, for kernels treat the last
few columns of a matrix in another way than the first. Where A and B differ by little, what the paired head
subtracts is accurate relative to the difference itself. It costs what W would.

State dicts are those of the plain layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional


class MirroredLinear(nn.Linear):
    """A Linear layer with an even number of outputs, whose halves are computed as y1 and y1 + (B - A) x."""

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

PLAIN: Final = {mirrored: plain for plain, mirrored in MIRRORED.items()}


def _halves(apply: Callable[..., Tensor], weight: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    outputs = apply(_with_difference(weight), None if bias is None else _with_difference(bias))
    value, difference = outputs.chunk(2, axis)
    return torch.cat([value, value + difference], axis)


def _with_difference(tensor: Tensor) -> Tensor:
    """[A; B - A] of [A; B]."""
    first, second = tensor.chunk(2)
    return torch.cat([first, second - first])
