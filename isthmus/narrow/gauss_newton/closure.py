"""A training step's closure, taken as what it is in mathematics: a model's outputs, and a loss of them.

    def closure():
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        return loss

While it runs, the model's outputs are cut off from its parameters, so that the loss is a function of the
outputs alone, and can be differentiated in them as often as one likes; `backward` does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from isthmus.errors import InputError

Closure = Callable[[], Tensor]


@dataclass(frozen=True)
class Called:
    """What a closure did.

    Attributes:
        inputs: of the model, each [n, ...]; copies.
        outputs: of the model [n, ...], a leaf.
        loss: one number, with the graph that leads to the outputs.
    """

    inputs: tuple[Tensor, ...]
    outputs: Tensor
    loss: Tensor

    @property
    def value(self) -> float:
        """The loss."""
        return self.loss.item()


def call(model: nn.Module, closure: Closure) -> Called:
    """Run a closure and look on.

    Args:
        model: which it calls once, by position, with tensors of n rows, for one tensor of n rows.
        closure: as for `torch.optim.LBFGS`; whether it calls `backward` is all the same.

    Raises:
        InputError: it does something else.
    """
    found: list[tuple[tuple[Tensor, ...], Tensor]] = []

    def cut(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Tensor:
        _require_rows(inputs, named, output)
        leaf = output.detach().requires_grad_()
        found.append((tuple(each.detach().clone() for each in inputs), leaf))
        return leaf.clone()  # which the closure may overwrite

    hook = model.register_forward_hook(cut, with_kwargs=True)
    try:
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"), _WithoutBackward():
            loss = closure()
    finally:
        hook.remove()
    if len(found) != 1:
        raise InputError(
            f"the closure called the model {len(found)} times, and is to call it once, with all rows; is the "
            f"{type(model).__name__} that the optimizer was made with the one that the closure calls?"
        )
    ((inputs, outputs),) = found
    if outputs.grad is not None:
        raise InputError(
            "the closure is to call loss.backward(), if anything, not torch.autograd.backward(loss)."
        )
    if not isinstance(loss, Tensor) or loss.ndim:
        raise InputError(f"the closure is to return the loss, a tensor of one number, not {loss!r}.")
    if not loss.requires_grad:
        raise InputError(
            "the loss that the closure returned has no gradient in the model's outputs; return it as it was "
            "computed, not detached, and compute it outside of torch.no_grad()."
        )
    return Called(inputs, outputs, loss)


def gradient(called: Called, parameters: Mapping[str, Tensor]) -> Tensor:
    """The gradient g [n, ...] of the loss in the outputs, with its graph.

    Raises:
        InputError: the loss depends on something besides the outputs, or not on them.
    """
    wanted = [called.outputs, *parameters.values()]
    found, *direct = torch.autograd.grad(called.loss, wanted, create_graph=True, allow_unused=True)
    for name, each in zip(parameters, direct, strict=True):
        if each is not None:
            raise InputError(
                f"the loss has a term in {name} that is not of the model's outputs, such as a weight decay; "
                "Gauss-Newton is for a loss of the outputs alone."
            )
    if found is None:
        raise InputError("the loss does not depend on the model's outputs.")
    return found


def _require_rows(inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
    """Raises what is wrong with a call of the model.

    Raises:
        InputError: gradients are off or digits, or inputs and output are not tensors of as many rows.
    """
    if not torch.is_grad_enabled():
        raise InputError("the closure calls the model in torch.no_grad(); call it outside of that.")
    if named or not inputs or not all(isinstance(each, Tensor) and each.ndim for each in inputs):
        raise InputError("the closure is to call the model with tensors, by position: model(x).")
    rows = len(inputs[0])
    if not isinstance(output, Tensor) or not output.is_floating_point():
        raise InputError(f"the model is to give one tensor of real numbers, not {type(output).__name__}.")
    if torch.is_autocast_enabled(output.device.type):
        raise InputError("Gauss-Newton needs all digits: call the model outside of torch.autocast.")
    if not rows or any(len(each) != rows for each in inputs) or not output.ndim or len(output) != rows:
        shapes = ", ".join(str(list(each.shape)) for each in (*inputs, output))
        raise InputError(f"inputs and output of the model are to have as many rows, and are {shapes}.")


class _WithoutBackward(TorchFunctionMode):
    """Makes `Tensor.backward` do nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return None if func is Tensor.backward else func(*args, **(kwargs or {}))
