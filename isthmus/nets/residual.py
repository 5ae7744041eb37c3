"""Residual blocks: a sequence of layers beside the identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from isthmus._types import Activation
from isthmus.nets.sequential import Affine, feed_forward, finished


class Residual(nn.Sequential):
    """x -> x + f(x), where f is the sequence.

    With f = Linear(U, b), an activation, Linear(V, c), this is one layer of a residual network,
    h^l = h^(l-1) + V^l s(U^l h^(l-1) + b^l) + c^l.

    Source: Yun, Sra, Jadbabaie 2019, Theorem 4.1.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Apply to inputs [N, *shape]; f keeps the shape, and its first layer does not work in place."""
        return input + super().forward(input)


class ResidualBlock(NamedTuple):
    """The affine maps of x -> x + V s(U x + b) + c: U [m, d] and b [m], V [d, m] and c [d]."""

    inner: Affine
    outer: Affine


def residual_network(
    blocks: Sequence[ResidualBlock],
    last: Sequence[Affine],
    activation: Activation,
    dtype: torch.dtype,
    *,
    flatten: bool = False,
) -> nn.Sequential:
    """Residual blocks with a feed-forward network behind them, in evaluation mode.

    Args:
        blocks: in order.
        last: the affine maps behind them; the activation stands between any two.
        activation: of all hidden layers.
        dtype: of the parameters.
        flatten: put a Flatten first, for inputs [N, *shape].
    """
    layers: list[nn.Module] = [nn.Flatten()] * flatten
    layers += [Residual(*feed_forward(block, activation, dtype)) for block in blocks]
    return finished([*layers, *feed_forward(last, activation, dtype)])
