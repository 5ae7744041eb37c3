"""A paired network as a plain one, which needs nothing but PyTorch."""

from __future__ import annotations

from copy import deepcopy

from torch import nn

from isthmus.errors import InputError
from isthmus.nets.mirrored import PLAIN
from isthmus.nets.paired import PairedHead


def fold(model: nn.Module) -> nn.Module:
    """A copy in which mirrored layers are plain ones, and every paired head is one Linear layer with [V, -V].

    It is the same function, but for rounding: `PairedHead.folding_bits` says of how many bits.

    Args:
        model: any module; what is in it of other classes is copied as it is.

    Raises:
        InputError: it is no module.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"expected a torch.nn.Module, found {type(model).__name__}.")
    copied = deepcopy(model)
    for module in [*copied.modules()]:
        if (plain := PLAIN.get(type(module))) is not None:
            module.__class__ = plain
        elif isinstance(module, PairedHead):
            if module is copied:
                return module.folded()
            replaced(copied, module, module.folded())
    return copied


def replaced(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in another one's place, under every name that it has in the root."""
    for name, module in [*root.named_modules(remove_duplicate=False)]:
        if module is old:
            root.set_submodule(name, new)
