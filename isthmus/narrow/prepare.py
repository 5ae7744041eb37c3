"""A model and its optimizer made ready: names resolved, assumptions checked, blocks mirrored, head paired."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from isthmus import graph
from isthmus.constraints import Constraint, FloorAndRatio, Product
from isthmus.constraints.product import is_within
from isthmus.errors import InputError, UnsupportedModel
from isthmus.narrow.mirror import affine_tensors, is_mirrored, mirror, mirrored_halves, pair
from isthmus.nets.paired import PairedHead
from isthmus.sharded import is_sharded, whole

WRAPPERS: Final = {"accelerate", "lightning", "lightning_fabric", "pytorch_lightning"}  # of optimizers
CANCEL: Final = 64  # roundings by which halves may differ, as a part of the largest feature


@dataclass(frozen=True)
class Resolved:
    """What `attach` is about.

    Attributes:
        root: the model without its wrappers.
        wrapped: whether it had any.
        optimizer: without its wrappers.
        blocks: modules by name.
        head: the last layer's name.
    """

    root: nn.Module
    wrapped: bool
    optimizer: Optimizer
    blocks: dict[str, nn.Module]
    head: str | None

    def tensors(self, constraint: Constraint, *, norms: bool) -> dict[str, nn.Parameter]:
        """The parameters that a constraint is for, by name.

        Raises:
            InputError: there is no such module or parameter, or the optimizer has none of them.
        """
        if isinstance(constraint, Product):
            names: Iterable[str] = constraint.parts
        elif isinstance(constraint, FloorAndRatio):
            if self.head is None:
                raise InputError("FloorAndRatio is for output weights; say which layer has them, head=NAME.")
            names = [self.head]
        else:
            names = self.blocks
        named = {each: tensor for name in names for each, tensor in self._under(name, norms=norms).items()}
        trained = {id(parameter) for parameter in optimized(self.optimizer)}
        if not any(id(parameter) in trained for parameter in named.values()):
            raise InputError(
                f"the optimizer has none of the constrained parameters ({', '.join(named)}), so no step of "
                "it moves them; attach to the one that has them, made after the model was moved and wrapped."
            )
        return named

    def _under(self, name: str, *, norms: bool) -> dict[str, nn.Parameter]:
        """A parameter of this name, or a module's weights and biases; of the head, its weight alone."""
        parameters = dict(self.root.named_parameters(remove_duplicate=False))
        if name in parameters:
            return {name: parameters[name]}
        module = submodule(self.root, name)
        if name == self.head or isinstance(module, PairedHead):
            return {f"{name}.weight": module.get_parameter("weight")}
        prefix = f"{name}." if name else ""
        return {prefix + each: tensor for each, tensor in affine_tensors(module, norms=norms).items()}


def resolve(
    model: nn.Module, optimizer: Optimizer, blocks: str | Sequence[str], head: str | None
) -> Resolved:
    """Look through wrappers, and find modules by name.

    Raises:
        InputError: names that are not there or lie within one another, or an optimizer that is none.
        UnsupportedModel: parameters of a block that others use too, or that are flattened.
    """
    root, prefixes = _without_wrappers(model)
    names = [_stripped(name, prefixes) for name in ([blocks] if isinstance(blocks, str) else blocks)]
    if not names:
        raise InputError("name one block or more: the last hidden layer, or the modules of the last stage.")
    head = None if head is None else _stripped(head, prefixes)
    chosen = {name: submodule(root, name) for name in names}
    if "" in chosen:
        raise InputError("the whole model is no block: name the modules that come before its head.")
    for name in chosen if head is None else [*chosen, head]:
        for other in chosen:
            if name != other and is_within(name, other):
                raise InputError(f"{name} is within the block {other!r}; name modules beside one another.")
    _require_own(root, chosen)
    if head is not None:
        submodule(root, head)
    return Resolved(root, root is not model, unwrapped(optimizer), chosen, head)


def initialize(found: Resolved, *, mirrored: bool, paired: bool, seed: int | None) -> None:
    """Mirror the blocks and pair the head where that is not done yet, or anew with a seed.

    Nothing is changed unless all of it can be.

    Raises:
        UnsupportedModel: a layer that cannot be mirrored or paired, or is wrapped already.
        WidthError: an odd width.
        InputError: the optimizer has begun to train what would be initialized, or does not have it.
    """
    blocks = found.blocks.values()
    to_mirror = mirrored and (seed is not None or not is_mirrored(*blocks))
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
    if found.head is not None and old is not None and new is not None and new is not old:
        found.root.set_submodule(found.head, new)
        _exchange(found.optimizer, old, new)


def unwrapped(optimizer: Any) -> Optimizer:
    """The optimizer within those of Lightning and accelerate.

    Raises:
        InputError: there is no torch.optim.Optimizer.
    """
    while any(kind.__module__.split(".")[0] in WRAPPERS for kind in type(optimizer).__mro__):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"expected a torch.optim.Optimizer, found {type(optimizer).__name__}.")
    return optimizer


def optimized(optimizer: Optimizer) -> Iterator[Tensor]:
    """Walk over the parameters of an optimizer.

    Yields:
        Every one, in order.
    """
    for group in optimizer.param_groups:
        yield from group["params"]


def submodule(root: nn.Module, name: str) -> nn.Module:
    """The module of this name; the root itself is "".

    Raises:
        InputError: there is none.
    """
    try:
        return root.get_submodule(name)
    except AttributeError:
        names = [each for each, _ in root.named_modules() if each]
        near = get_close_matches(name, names, n=3) or [each for each in names if "." not in each]
        raise InputError(f"the model has no module {name!r}; is it one of {', '.join(near)}?") from None


@torch.no_grad()
def require_cancelling(found: Resolved, example: Tensor) -> None:
    """Run the model on an example, and see that the head gets [g, g].

    Raises:
        InputError: there is no head to look at.
        UnsupportedModel: the halves differ by more than some roundings.
    """
    if found.head is None:
        raise InputError(
            "an example is to see halves cancel in the head; say which layer that is, head=NAME."
        )
    given: list[Tensor] = []
    hook = submodule(found.root, found.head).register_forward_pre_hook(lambda _, args: given.append(args[0]))
    try:
        with graph.evaluating(found.root):
            found.root(example)
    finally:
        hook.remove()
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


def _without_wrappers(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The model within torch.compile, DistributedDataParallel, DataParallel and Fabric, and their names."""
    prefixes = []
    while True:
        if hasattr(model, "_orig_mod"):
            attribute = "_orig_mod"
        elif (
            isinstance(model, DistributedDataParallel | DataParallel)
            or type(model).__name__ == "_FabricModule"
        ):
            attribute = "module"
        else:
            return model, prefixes
        model = getattr(model, attribute)
        prefixes.append(f"{attribute}.")


def _stripped(name: str, prefixes: Sequence[str]) -> str:
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    return name


def _require_own(root: nn.Module, blocks: dict[str, nn.Module]) -> None:
    """What is in the blocks is in them alone.

    Raises:
        UnsupportedModel: another module has one of their parameters, or they are flattened.
    """
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in root.modules()):
        raise UnsupportedModel(
            "FullyShardedDataParallel flattens parameters; use fully_shard, which keeps them."
        )
    inside = {id(module) for block in blocks.values() for module in block.modules()}
    own = {
        id(tensor): name
        for block, module in blocks.items()
        for name, tensor in module.named_parameters(block)
    }
    for name, module in root.named_modules():
        if id(module) not in inside:
            for each, tensor in module.named_parameters(recurse=False):
                if id(tensor) in own:
                    raise UnsupportedModel(
                        f"{own[id(tensor)]} is tied to {name}.{each}, which is outside the blocks, so that "
                        "mirroring or projecting the one changes the other; give it a weight of its own."
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
    ids = {id(tensor) for tensor in tensors}
    held = {id(tensor) for tensor, state in optimizer.state.items() if state}
    if ids & held or (held and isinstance(optimizer, torch.optim.LBFGS)):
        raise InputError(
            f"this {type(optimizer).__name__} has begun to train the parameters that would be initialized; "
            "attach before the first step, and load checkpoints after."
        )


def _require_optimized(found: Resolved, head: nn.Module) -> None:
    """The optimizer can take the paired head's parameters in exchange.

    Raises:
        InputError: it has not those of the head.
    """
    trained = {id(parameter) for parameter in optimized(found.optimizer)}
    for name, parameter in head.named_parameters():
        if parameter.requires_grad and id(parameter) not in trained:
            raise InputError(
                f"the optimizer does not have {found.head}.{name}, so it cannot be exchanged for the paired "
                f"head's; pair first, model.{found.head} = isthmus.pair(model.{found.head}), and then make "
                "the optimizers."
            )


def _exchange(optimizer: Optimizer, head: nn.Module, replacement: nn.Module) -> None:
    """Put the new head's parameters where the optimizer has the old one's."""
    new = {id(parameter): replacement.get_parameter(name) for name, parameter in head.named_parameters()}
    for group in optimizer.param_groups:
        group["params"] = [new.get(id(parameter), parameter) for parameter in group["params"]]


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
