"""Initial weights, the same for a seed on every device, that leave torch's own random state alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from isthmus.nets.mirrored import MirroredConv2d, MirroredLinear
from isthmus.nets.paired import PairedHead

Network = TypeVar("Network", bound=nn.Module)


def drawn(build: Callable[[], Network], seed: int) -> Network:
    """Build a network and draw its weights.

    Linear layers are drawn from N(0, 1/fan_in) with biases 0 (LeCun), convolutions from N(0, 2/fan_out) (He,
    as ResNets are), V of a paired head for m features from N(0, 1/m); norms begin as the identity. The second
    half of a mirrored layer is its first.

    Args:
        build: makes the network; its random weights are not used.
        seed: of the weights.
    """
    with torch.device("meta"):
        network = build()
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            match module:
                case nn.Linear():
                    draw(module.weight, generator, 1 / module.in_features)
                case PairedHead():
                    draw(module.weight, generator, 1 / module.in_features)
                case nn.Conv2d():
                    draw(module.weight, generator, 2 / (module.out_channels * module.kernel_size[0] ** 2))
                case nn.BatchNorm2d():
                    module.reset_parameters()
            if isinstance(module, nn.Linear | PairedHead | nn.Conv2d) and module.bias is not None:
                module.bias.zero_()
            if isinstance(module, MirroredLinear | MirroredConv2d):
                first, second = module.weight.chunk(2)
                second.copy_(first)
    return network


def draw(weight: Tensor, generator: torch.Generator, variance: float) -> None:
    """Fill a tensor of any dtype from N(0, variance), with numbers drawn in float64."""
    weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * variance**0.5)
