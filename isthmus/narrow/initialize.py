"""Blocks mirrored and the head paired, in a model that an optimizer has; and a look at what comes of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer

from isthmus import graph
from isthmus.errors import InputError, UnsupportedModel
from isthmus.narrow.mirror import is_mirrored, mirror, mirrored_halves, pair
from isthmus.narrow.resolve import Resolved, optimized, submodule
from isthmus.nets.fold import replaced
from isthmus.nets.mirrored import PLAIN
from isthmus.sharded import is_sharded, whole

CANCEL: Final = 64  # roundings by which halves may differ, as a part of the largest feature


def initialize(found: Resolved, *, mirrored: bool, paired: bool, seed: int | None) -> None:
    """Mirror the blocks and pair the head where that is not done yet, or anew with a seed.

    Nothing is changed unless all of it can be.

    Raises:
        UnsupportedModel: a layer that cannot be mirrored or paired, or is wrapped already.
        WidthError: an odd width.
        InputError: blocks that have been trained since they were mirrored, or an optimizer that has begun to
            train what would be initialized, or does not have it.
    """
    blocks = found.blocks.values()
    to_mirror = mirrored and (seed is not None or not is_mirrored(*blocks))
    if to_mirror and seed is None and any(type(m) in PLAIN for block in blocks for m in block.modules()):
        raise InputError(
            f"the blocks ({', '.join(found.blocks)}) were mirrored once and are not now, so they have been "
            "trained: mirroring them would undo that. Attach before loading a checkpoint; or attach with "
            "mirrored=False, around the weights as they are, or with a seed, to draw them anew."
        )
    changed = [halves.tensor for block in blocks for halves in mirrored_halves(block)] if to_mirror else []
    old = new = None if found.head is None else submodule(found.root, found.head)
    if old is not None and paired:
        new = pair(old, seed=seed)
    elif old is not None and mirrored:
        new = _opposed(old, seed)
    if old is not None and new is not old:
        changed += old.parameters()
        _require_optimized(found, old)
    if changed:
        _require_whole(found, changed)
        _require_untrained(found.optimizer, changed)

    if to_mirror:
        mirror(*blocks, seed=seed)
    if old is not None and new is not None and new is not old:
        replaced(found.root, old, new)
        _exchange(found.optimizer, old, new)


@torch.no_grad()
def require_cancelling(found: Resolved, example: Any) -> None:
    """Run the model on an example in evaluation mode, and see that the head gets [g, g].

    Args:
        found: the model, initialized.
        example: its input, or a tuple of its inputs.

    Raises:
        InputError: there is no head to look at, or the model does not take the example.
        UnsupportedModel: the halves differ by more than some roundings, or would in training, by dropout.
    """
    if found.head is None:
        raise InputError(
            "an example is to see halves cancel in the head; say which layer that is, head=NAME."
        )
    given: list[Tensor] = []
    since: list[str] = []  # dropout since the last block
    hooks = [
        submodule(found.root, found.head).register_forward_pre_hook(lambda _, args: given.append(args[0]))
    ]
    hooks += [block.register_forward_hook(lambda *_: since.clear()) for block in found.blocks.values()]
    for name, module in found.root.named_modules():
        if isinstance(module, _DropoutNd) and module.p:
            hooks.append(
                module.register_forward_hook(lambda *_, name=name: None if given else since.append(name))
            )
    try:
        with graph.evaluating(found.root):
            found.root(*(example if isinstance(example, tuple) else (example,)))
    except (RuntimeError, TypeError) as error:
        raise InputError(f"the model does not take the example: {error}") from None
    finally:
        for hook in hooks:
            hook.remove()
    if since:
        raise UnsupportedModel(
            f"{since[0]} drops other units in each half, on the way from the blocks to the head, so in "
            "training mode the output is not 0 at initialization; put dropout before the blocks."
        )
    for features in given:
        first, second = features.chunk(2, -1)
        difference = float((first - second).abs().max())
        most = CANCEL * torch.finfo(features.dtype).eps * float(features.abs().max())
        if not difference <= most:
            raise UnsupportedModel(
                f"the head {found.head} gets halves that differ by up to {difference:.2g} on the example, so "
                "the output is not 0 at initialization: something between the blocks "
                f"({', '.join(found.blocks)}) and the head treats them differently, or a block before the "
                "last is missing from the list."
            )


def _require_whole(found: Resolved, tensors: Iterable[Tensor]) -> None:
    if found.wrapped or any(map(is_sharded, tensors)):
        blocks = ", ".join(f"model.{name}" for name in found.blocks)
        paired = f"; model.{found.head} = isthmus.pair(model.{found.head})" if found.head else ""
        raise UnsupportedModel(
            f"the model is wrapped already, but not yet initialized: isthmus.mirror({blocks}){paired}, and "
            "only then wrap it and make its optimizer."
        )


def _require_untrained(optimizer: Optimizer, tensors: Iterable[Tensor]) -> None:
    # Some begin with a state, which counts no steps then.
    stepped = {id(tensor) for tensor, state in optimizer.state.items() if state and state.get("step", 1) > 0}
    if stepped & set(map(id, tensors)) or (stepped and isinstance(optimizer, torch.optim.LBFGS)):
        raise InputError(
            f"this {type(optimizer).__name__} has begun to train the parameters that would be initialized; "
            "attach before the first step, and load checkpoints after."
        )


def _require_optimized(found: Resolved, head: nn.Module) -> None:
    """The optimizer can take the paired head's parameters in exchange.

    Raises:
        InputError: it has not those of the head.
    """
    trained = set(map(id, optimized(found.optimizer)))
    for name, parameter in head.named_parameters():
        if parameter.requires_grad and id(parameter) not in trained:
            raise InputError(
                f"the optimizer does not have {found.head}.{name}, so it cannot be exchanged for the paired "
                f"head's; pair first, model.{found.head} = isthmus.pair(model.{found.head}), and then make "
                "the optimizers."
            )


def _exchange(optimizer: Optimizer, head: nn.Module, replacement: nn.Module) -> None:
    """Put the new head's parameters where the optimizer has the old one's, with the state they begin with."""
    for name, old in head.named_parameters():
        new = replacement.get_parameter(name)
        for group in optimizer.param_groups:
            group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
        if (state := optimizer.state.pop(old, None)) is not None:
            place = tuple(map(slice, new.shape))
            optimizer.state[new] = {
                key: value[place].clone() if isinstance(value, Tensor) and value.shape == old.shape else value
                for key, value in state.items()
            }


@torch.no_grad()
def _opposed(head: nn.Module, seed: int | None) -> nn.Linear:
    """The Linear layer [V, -V] without a bias: itself, if that is what it is, and not to be drawn anew.

    Raises:
        UnsupportedModel: it is no Linear layer.
    """
    if not isinstance(head, nn.Linear):
        raise UnsupportedModel(
            f"without paired=True the head is a Linear layer, not a {type(head).__name__}."
        )
    first, second = whole(head.weight).chunk(2, 1)
    opposed = torch.equal(first, -second) and (head.bias is None or not bool(whole(head.bias.any())))
    return head if opposed and seed is None else pair(head, seed=seed).folded()
