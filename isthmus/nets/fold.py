"""A paired network as a plain one, which needs nothing but PyTorch."""

from __future__ import annotations

from copy import deepcopy

from torch import nn

from isthmus.nets.mirrored import MIRRORED
from isthmus.nets.paired import PairedHead

PLAIN = {mirrored: plain for plain, mirrored in MIRRORED.items()}


def fold(model: nn.Module) -> nn.Module:
    """A copy in which mirrored layers are plain ones, and every paired head is one Linear layer with [V, -V].

    It is the same function, but for rounding: `PairedHead.folding_bits` says of how many bits.

    Args:
        model: any module; what is in it of other classes is copied as it is.
    """
    copied = deepcopy(model)
    for name, module in [*copied.named_modules()]:
        if (plain := PLAIN.get(type(module))) is not None:
            module.__class__ = plain
        elif isinstance(module, PairedHead):
            if not name:
                return module.folded()
            copied.set_submodule(name, module.folded())
    return copied
