"""Networks as alternating affine maps and one activation, made of PyTorch's own layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from isthmus._types import Activation

LEAK = 0.01  # s-, the slope of leaky ReLU below 0; s+ is 1


class Affine(NamedTuple):
    """x -> W x + b: weight [out, in], bias [out]."""

    weight: Tensor
    bias: Tensor


def sequential(
    affine: Sequence[Affine],
    activation: Activation,
    dtype: torch.dtype = torch.float64,
    *,
    flatten: bool = False,
) -> nn.Sequential:
    """A plain feed-forward network in evaluation mode.

    Args:
        affine: the affine maps in order; the activation stands between any two.
        activation: of all hidden layers.
        dtype: of the parameters.
        flatten: put a Flatten first, for inputs [N, *shape].
    """
    return finished([nn.Flatten()] * flatten + feed_forward(affine, activation, dtype))


def feed_forward(affine: Sequence[Affine], activation: Activation, dtype: torch.dtype) -> list[nn.Module]:
    """Linear layers with these affine maps, and the activation between any two."""
    layers: list[nn.Module] = []
    for index, (weight, bias) in enumerate(affine):
        if index:
            layers.append(_activation(activation))
        linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=dtype, device="meta").to_empty(
            device="cpu"
        )
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        layers.append(linear)
    return layers


def finished(layers: Sequence[nn.Module]) -> nn.Sequential:
    """The layers as one network in evaluation mode, whose parameters stay as they are."""
    return nn.Sequential(*layers).eval().requires_grad_(False)


def _activation(name: Activation) -> nn.Module:
    match name:
        case "hardtanh":
            return nn.Hardtanh()
        case "relu":
            return nn.ReLU()
        case "leaky_relu":
            return nn.LeakyReLU(LEAK)
