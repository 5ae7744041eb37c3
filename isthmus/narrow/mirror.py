"""Mirrored initialization and the paired head (Zhang et al. 2021, Algorithm 1, (9), Appendix H.1).

A layer is mirrored if the second half of its outputs has the weights of the first. Whatever goes in, [g, g]
comes out, and passes through activations, pooling, normalization and shortcuts that are mirrored likewise; a
paired head subtracts the halves. So the network is b at initialization, on every input (to a rounding, where
an activation's kernel computes the last numbers of a buffer by another routine; those of tanh and ReLU do
not):

    mirror(model.layer4)
    model.fc = pair(model.fc)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from isthmus.errors import InputError, UnsupportedModel, WidthError
from isthmus.nets.initial import draw
from isthmus.nets.mirrored import MIRRORED
from isthmus.nets.paired import PairedHead
from isthmus.sharded import is_sharded, whole

AFFINE: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS: Final = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
MIXING: Final = {
    "GLU": "it multiplies one half with the other; use another activation",
    "ChannelShuffle": "it moves channels from one half to the other; leave it out, or put it before",
    "PixelShuffle": "it moves channels from one half to the other; leave it out, or put it before",
    "PixelUnshuffle": "it moves channels from one half to the other; leave it out, or put it before",
    "RReLU": "it draws a slope for each half; use LeakyReLU",
}


class Halves(NamedTuple):
    """A tensor of a mirrored layer, cut along the output axis; if it is sharded, the halves are copies."""

    tensor: Tensor
    first: Tensor
    second: Tensor


@torch.no_grad()
def mirror(*layers: nn.Module, seed: int | None = None) -> None:
    """Copy the first half of every layer's outputs onto the second half, in place.

    Linear layers and convolutions become `isthmus.nets.mirrored` ones, of the same state dict, which compute
    halves that are equal bit for bit from weights that are; `isthmus.fold` makes plain ones of them again.

    Args:
        layers: modules, with all within them: Linear, Conv1d to Conv3d, BatchNorm with its running
            statistics, GroupNorm, LayerNorm, RMSNorm, PReLU, and what has neither parameters nor buffers.
        seed: draw the weights of Linear and convolutions anew from N(0, 1/fan_in) first, with biases 0
            (LeCun); None keeps the first halves as they are.

    Raises:
        UnsupportedModel: a layer that cannot be mirrored; the message says why, and what to use.
        WidthError: an odd number of outputs.
        InputError: no layer, or something else.

    Source: Zhang et al. 2021, Algorithm 1, and Appendix H.1 for BatchNorm and shortcuts.
    """
    if not layers or not all(isinstance(layer, nn.Module) for layer in layers):
        kinds = ", ".join(type(layer).__name__ for layer in layers) or "none"
        raise InputError(
            f"mirror is for one module or more, as in mirror(model.layer1, model.layer2), not {kinds}."
        )
    found = [halves for layer in layers for halves in mirrored_halves(layer)]
    for halves in found:
        if is_sharded(halves.tensor):
            raise UnsupportedModel("the layers are sharded: mirror them before fully_shard.")
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for layer in layers:
            for module in layer.modules():
                if isinstance(module, AFFINE):
                    draw(module.weight, generator, 1 / module.weight[0].numel())
                    if module.bias is not None:
                        module.bias.zero_()
    for halves in found:
        halves.second.copy_(halves.first)
    for layer in layers:
        for module in layer.modules():
            # As torch's own parametrizations and fully_shard do: the module stays the one that others know.
            module.__class__ = MIRRORED.get(type(module), type(module))


@torch.no_grad()
def pair(head: nn.Module, *, seed: int | None = None) -> PairedHead:
    """Make a paired head of a Linear layer: V is the first half of its columns, b is 0.

    Args:
        head: a Linear layer [K, m], m even, or a paired head, which is returned as it is.
        seed: draw V from N(0, 1/m) instead; None keeps what is there.

    Raises:
        UnsupportedModel: the head is no Linear layer, or is sharded.
        WidthError: m is odd.

    Source: Zhang et al. 2021, equation (9) and Algorithm 1.
    """
    if isinstance(head, PairedHead) and seed is None:
        return head
    if not isinstance(head, nn.Linear | PairedHead):
        raise UnsupportedModel(
            f"a {type(head).__name__} cannot be paired: the head is the last Linear layer; name that one."
        )
    _require_plain(head, "the head")
    if any(map(is_sharded, head.parameters())):
        raise UnsupportedModel("the head is sharded: pair it before fully_shard.")
    # Without storage no random weights are drawn.
    paired = PairedHead(head.in_features, head.out_features, head.bias is not None, device="meta")
    paired.weight = nn.Parameter(head.weight[:, : head.in_features // 2].clone(), head.weight.requires_grad)
    if head.bias is not None:
        paired.bias = nn.Parameter(torch.zeros_like(head.bias), head.bias.requires_grad)
    if seed is not None:
        draw(paired.weight, torch.Generator().manual_seed(seed), 1 / paired.in_features)
    return paired.train(head.training)


@torch.no_grad()
def is_mirrored(*layers: nn.Module) -> bool:
    """Whether both halves of every layer's outputs have the same weights, bit for bit.

    Raises:
        UnsupportedModel: a layer that cannot be mirrored.
        WidthError: an odd number of outputs.
    """
    return all(
        torch.equal(halves.first, halves.second) for layer in layers for halves in mirrored_halves(layer)
    )


def mirrored_halves(layer: nn.Module) -> Iterator[Halves]:
    """Walk over a layer's tensors that have the output axis.

    Yields:
        Every one, cut into halves.

    Raises:
        UnsupportedModel: a layer that cannot be mirrored.
        WidthError: an odd number of outputs.
    """
    for name, module in layer.named_modules():
        called = f"{name or 'the layer'} ({type(module).__name__})"
        _require_plain(module, called)
        _require_mirrorable(module, called)
        own = (*module._parameters.values(), *module._buffers.values())
        for tensor in own:
            if tensor is None or not tensor.ndim or (isinstance(module, nn.PReLU) and len(tensor) == 1):
                continue  # a counter of batches, and one slope for all
            if len(tensor) % 2:
                raise WidthError(
                    f"{called} has an odd number of outputs, m = {len(tensor)}, so no two halves; "
                    f"make it {len(tensor) + 1}."
                )
            yield Halves(tensor, *whole(tensor).chunk(2))


def _require_mirrorable(module: nn.Module, called: str) -> None:
    kind = type(module).__name__
    if isinstance(module, _DropoutNd) and module.p:
        raise UnsupportedModel(
            f"{called} cannot be mirrored: it drops other units in each half; put it before, or set p = 0."
        )
    if kind in MIXING:
        raise UnsupportedModel(f"{called} cannot be mirrored: {MIXING[kind]}.")
    if getattr(module, "groups", 1) != 1:
        raise UnsupportedModel(
            f"{called} cannot be mirrored: with {module.groups} groups its halves see different channels; "
            "use groups = 1."
        )
    if isinstance(module, nn.GroupNorm) and module.num_groups % 2 and module.num_groups != 1:
        raise UnsupportedModel(
            f"{called} cannot be mirrored: one of its {module.num_groups} groups lies across both halves; "
            "use an even number."
        )
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) != 1:
        raise UnsupportedModel(
            f"{called} cannot be mirrored: it has weights for every place, not only for outputs; normalize "
            "over the features alone."
        )
    names = {
        name for name, tensor in [*module._parameters.items(), *module._buffers.items()] if tensor is not None
    }
    known = {"weight", "bias"} if isinstance(module, (*AFFINE, *NORMS, nn.PReLU)) else set()
    if isinstance(module, _BatchNorm):
        known |= {"running_mean", "running_var", "num_batches_tracked"}
    if names - known:
        raise UnsupportedModel(
            f"{called} cannot be mirrored: which axis of {', '.join(sorted(names - known))} is that of its "
            "outputs is not known; mirrored are Linear, Conv1d to Conv3d, BatchNorm, GroupNorm, LayerNorm, "
            "RMSNorm and PReLU."
        )


def _require_plain(module: nn.Module, called: str) -> None:
    """Its tensors have values, and are what is trained.

    Raises:
        UnsupportedModel: they are not.
    """
    if any(is_lazy(tensor) for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
        raise UnsupportedModel(f"{called} has no shape yet: run one batch through the model first.")
    if hasattr(module, "parametrizations"):
        raise UnsupportedModel(
            f"{called} has a parametrized weight, which is computed from others; remove the parametrization."
        )
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.is_meta:
            raise UnsupportedModel(f"{called} is on the meta device and has no values: initialize it first.")


def constrained_tensors(layer: nn.Module, *, norms: bool = False) -> dict[str, nn.Parameter]:
    """All parameters of a layer but for scales and shifts of normalization, by name within it.

    Args:
        layer: with all within it.
        norms: normalization layers' as well.

    Raises:
        UnsupportedModel: a weight is computed from others, so that a constraint on these says little of it.
        InputError: there are none.
    """
    found = {}
    for name, module in layer.named_modules():
        if hasattr(module, "parametrizations"):
            _require_plain(module, f"{name or 'the layer'} ({type(module).__name__})")
        if norms or not isinstance(module, NORMS):
            for each, parameter in module.named_parameters(recurse=False):
                found[f"{name}.{each}" if name else each] = parameter
    if not found:
        raise InputError(f"there are no weights in this {type(layer).__name__}, so nothing to constrain.")
    return found
