"""Fully connected networks, with one Linear layer at the end or a paired head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from isthmus.errors import InputError
from isthmus.nets.initial import drawn
from isthmus.nets.mirrored import MirroredLinear
from isthmus.nets.paired import PairedHead


def mlp(
    inputs: int,
    widths: Sequence[int],
    outputs: int,
    *,
    activation: type[nn.Module] = nn.Tanh,
    paired: bool = True,
    bias: bool = True,
    seed: int = 0,
) -> nn.Sequential:
    """A network ``layer1``, ``activation1``, ..., ``fc``; if paired, its last hidden layer begins mirrored.

    Args:
        inputs: d.
        widths: of the hidden layers; the last is even if the head is paired.
        outputs: K.
        activation: of every hidden layer.
        paired: with a paired head, so that the output begins as 0; else one Linear layer.
        bias: of the hidden layers. Of the head, only if there is more than one output: the paper's scalar
            network has none.
        seed: of the weights, drawn as LeCun does.

    Raises:
        InputError: there is no hidden layer, or a size is below 1.
        WidthError: the last width is odd and the head paired.

    Source: Zhang et al. 2021, equations (1) and (9), and Appendix G for more than one layer.
    """
    sizes = [inputs, *widths]
    if not widths or min([*sizes, outputs]) < 1:
        raise InputError(
            f"an mlp has one hidden layer or more, all sizes 1 or more, not {sizes} and {outputs}."
        )

    def build() -> nn.Sequential:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for index, (taken, given) in enumerate(pairwise(sizes), start=1):
            last = paired and index == len(widths)
            layers[f"layer{index}"] = (MirroredLinear if last else nn.Linear)(taken, given, bias)
            layers[f"activation{index}"] = activation()
        layers["fc"] = (PairedHead if paired else nn.Linear)(sizes[-1], outputs, outputs > 1)
        return nn.Sequential(layers)

    return drawn(build, seed)
