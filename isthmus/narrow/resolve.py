"""What `attach` was given, looked up: the model in its wrappers, modules and parameters by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from isthmus.constraints import Constraint, FloorAndRatio, Product
from isthmus.constraints.product import is_within
from isthmus.errors import InputError, UnsupportedModel
from isthmus.narrow.mirror import constrained_tensors
from isthmus.nets.paired import PairedHead

WRAPPERS: Final = {"accelerate", "lightning", "lightning_fabric", "pytorch_lightning"}  # of optimizers


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
        """The parameters that a constraint is for, by name; each once.

        Raises:
            InputError: there is no such module or parameter, or the optimizer does not train all of them.
            UnsupportedModel: a weight is computed from others.
        """
        if isinstance(constraint, Product):
            parts: Mapping[str, Constraint] = constraint.parts
        elif isinstance(constraint, FloorAndRatio):
            if self.head is None:
                raise InputError("FloorAndRatio is for output weights; say which layer has them, head=NAME.")
            parts = {self.head: constraint}
        else:
            parts = dict.fromkeys(self.blocks, constraint)
        named: dict[str, nn.Parameter] = {}
        for name, part in parts.items():
            outputs = name == self.head or isinstance(part, FloorAndRatio)
            for each, tensor in self._under(name, outputs=outputs, norms=norms).items():
                if all(tensor is not other for other in named.values()):
                    named[each] = tensor
        self._require_trained(named)
        return named

    def _under(self, name: str, *, outputs: bool, norms: bool) -> dict[str, nn.Parameter]:
        """A parameter of this name, or those of a module; of output weights, the weight alone."""
        parameters = dict(self.root.named_parameters(remove_duplicate=False))
        if name in parameters:
            return {name: parameters[name]}
        module = submodule(self.root, name)
        if (outputs or isinstance(module, PairedHead)) and isinstance(module, nn.Linear | PairedHead):
            return {f"{name}.weight": parameters[f"{name}.weight"]}
        prefix = f"{name}." if name else ""
        return {prefix + each: tensor for each, tensor in constrained_tensors(module, norms=norms).items()}

    def _require_trained(self, named: Mapping[str, nn.Parameter]) -> None:
        trained = set(map(id, optimized(self.optimizer)))
        missing = [n for n, tensor in named.items() if tensor.requires_grad and id(tensor) not in trained]
        if missing:
            raise InputError(
                f"the optimizer does not have {', '.join(missing)}, so no step of it moves them into "
                "the constraint; attach to the optimizer that has, made after the model was moved and "
                "wrapped, and if there are several, to each with a Product of what it trains."
            )


def resolve(
    model: nn.Module, optimizer: Optimizer, blocks: str | Sequence[str], head: str | None
) -> Resolved:
    """Look through wrappers, and find modules by name.

    Raises:
        InputError: names that are not there or lie within one another, or an optimizer that is none.
        UnsupportedModel: parameters of blocks or head that others use too, or that are flattened.
    """
    root, prefixes = without_wrappers(model)
    names = [_stripped(name, prefixes) for name in _names(blocks, "blocks")]
    if not names:
        raise InputError("name one block or more: the last hidden layer, or the modules of the last stage.")
    if head is not None:
        (name,) = _names(head, "head")
        head = _stripped(name, prefixes)
    chosen = {name: submodule(root, name) for name in names}
    if "" in chosen:
        raise InputError("the whole model is no block: name the modules that come before its head.")
    every = chosen if head is None else {**chosen, head: submodule(root, head)}
    for name in every:
        for other in chosen:
            if name != other and is_within(name, other):
                raise InputError(f"{name} is within the block {other!r}; name modules beside one another.")
    _require_own(root, every)
    return Resolved(root, root is not model, unwrapped(optimizer), chosen, head)


def without_wrappers(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The model within torch.compile, DistributedDataParallel, DataParallel and Fabric, and their prefixes.

    Raises:
        InputError: it is no module.
    """
    prefixes = []
    while True:
        if not isinstance(model, nn.Module):
            raise InputError(f"expected a torch.nn.Module, found {type(model).__name__}.")
        parallel = isinstance(model, DistributedDataParallel | DataParallel)
        if hasattr(model, "_orig_mod"):
            attribute = "_orig_mod"
        elif parallel or type(model).__name__ == "_FabricModule":
            attribute = "module"
        else:
            return model, prefixes
        model = getattr(model, attribute)
        prefixes.append(f"{attribute}.")


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


def _names(given: Any, option: str) -> list[str]:
    names: list[Any] = [given] if isinstance(given, str) or not isinstance(given, Sequence) else list(given)
    for name in names:
        if not isinstance(name, str):
            raise InputError(
                f"{option} is for names of modules, as model.named_modules() gives them, not for a "
                f"{type(name).__name__}."
            )
    return names


def _stripped(name: str, prefixes: Sequence[str]) -> str:
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    return name


def _require_own(root: nn.Module, chosen: Mapping[str, nn.Module]) -> None:
    """What is in the blocks and in the head is in them alone.

    Raises:
        UnsupportedModel: another module has one of their parameters, or they are flattened.
    """
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in root.modules()):
        raise UnsupportedModel(
            "FullyShardedDataParallel flattens parameters; use fully_shard, which keeps them."
        )
    inside = {id(module) for each in chosen.values() for module in each.modules()}
    own = {
        id(tensor): name for each, module in chosen.items() for name, tensor in module.named_parameters(each)
    }
    for name, module in root.named_modules():
        if id(module) not in inside:
            for each, tensor in module.named_parameters(recurse=False):
                if id(tensor) in own:
                    raise UnsupportedModel(
                        f"{own[id(tensor)]} is tied to {name}.{each}, which is neither in a block nor the "
                        "head, so that what is done to one changes the other; give it a weight of its own."
                    )
