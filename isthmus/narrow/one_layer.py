"""A network of one hidden layer, read from a model: f(x) = U σ(W x) + c, with hidden biases in W.

Its weights are taken as exact numbers, in float64. On rows it is evaluated in float64, or enclosed in balls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from isthmus.arithmetic.balls import ACTIVATIONS, Enclosed, Evaluated, evaluate
from isthmus.data.dataset import Dataset
from isthmus.errors import InputError
from isthmus.jacobian.shallow import slopes
from isthmus.nets.mirrored import MirroredLinear
from isthmus.nets.paired import PairedHead

HIDDEN: Final = {nn.Linear, MirroredLinear}
HEADS: Final = {nn.Linear, PairedHead}


@dataclass(frozen=True)
class OneLayer:
    """The network.

    Attributes:
        weight: W [m, d], or [m, d + 1] with the hidden biases as the last column.
        outer: U [K, m]; of a paired head [V, -V].
        offset: c [K]; zeros, if there is none.
        activation: σ, by its class.
        biased: whether there are hidden biases.
        offsets: whether c is a parameter.
        paired: whether the head is.
        flattens: whether it takes rows of more than one dimension.
    """

    weight: Tensor
    outer: Tensor
    offset: Tensor
    activation: type[nn.Module]
    biased: bool
    offsets: bool
    paired: bool
    flattens: bool

    def parameters(self, head: bool) -> int:
        """How many numbers there are in W, and in the output layer with ``head``."""
        outer = self.outer.numel() // (2 if self.paired else 1) + self.offsets * len(self.outer)
        return self.weight.numel() + head * outer

    def rows(self, data: Dataset) -> tuple[Tensor, Tensor]:
        """Inputs [N, d] as W takes them, and targets [N, K].

        Raises:
            InputError: they do not fit the network.
        """
        inputs, outputs = self.weight.shape[1] - self.biased, len(self.outer)
        if data.inputs != inputs or (data.x.ndim > 2 and not self.flattens):
            raise InputError(
                f"the model does not take inputs {list(data.x.shape[1:])}, but {inputs} in a row."
            )
        if data.outputs != outputs:
            raise InputError(f"the model gives {outputs} outputs, but the data has {data.outputs} targets.")
        x = data.flat.to(self.weight)
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1) if self.biased else x
        return x, data.y.to(self.weight)

    def evaluated(self, x: Tensor, y: Tensor) -> Evaluated:
        """What float64 makes of rows and targets, with errors of 0."""
        before, activation = x @ self.weight.T, self.activation()
        feature = activation(before)
        residual = y - (feature @ self.outer.T + self.offset)
        found = feature, slopes(activation, before), residual
        return Evaluated(*(Enclosed(each, torch.zeros_like(each)) for each in found))

    def enclosed(self, x: Tensor, y: Tensor) -> Evaluated:
        """What is true of rows and targets, with bounds on the errors."""
        weight, outer, offset = (each.cpu() for each in (self.weight, self.outer, self.offset))
        found = evaluate(x.cpu(), weight, outer, offset, y.cpu(), self.activation)
        return Evaluated(*(each.to(x.device) for each in (found.feature, found.slope, found.residual)))

    def weighed(self, feature: Enclosed, unit: float) -> Enclosed:
        """What the output layer's parameters weigh [N, p], from σ [N, m], with a difference rounded by u."""
        value, error = feature.value, feature.error
        if self.paired:
            (first, second), errors = value.chunk(2, 1), error.chunk(2, 1)
            value = first - second
            error = sum(errors, unit * value.abs())
        if self.offsets:
            value = torch.cat([value, torch.ones_like(value[:, :1])], 1)
            error = torch.cat([error, torch.zeros_like(error[:, :1])], 1)
        return Enclosed(value, error)


def read(model: nn.Module) -> OneLayer | str:
    """The network that a model is, or why it is none of one hidden layer."""
    modules = [module for _, module in model.named_modules(remove_duplicate=False)]
    leaves = [module for module in modules if type(module) not in {nn.Sequential, nn.Identity}]
    flatten = leaves.pop(0) if leaves and isinstance(leaves[0], nn.Flatten) else None
    if flatten is not None and (flatten.start_dim, flatten.end_dim) != (1, -1):
        return "Flatten is understood from dimension 1 to the last only"
    if len(leaves) != 3 or type(leaves[0]) not in HIDDEN or type(leaves[2]) not in HEADS:
        return "the model is not Linear, activation and then Linear or a paired head"
    hidden, activation, head = leaves
    assert isinstance(hidden, nn.Linear)
    assert isinstance(head, nn.Linear | PairedHead)
    if type(activation) not in ACTIVATIONS or getattr(activation, "approximate", "none") != "none":
        return f"{activation} has no bounded second derivative that is known here"
    if hidden.weight is head.weight:
        return "the hidden and the output layer have one weight in common"
    weight, outer = hidden.weight.detach().double(), head.weight.detach().double()
    if hidden.bias is not None:
        weight = torch.cat([weight, hidden.bias.detach().double()[:, None]], 1)
    paired = isinstance(head, PairedHead)
    return OneLayer(
        weight=weight,
        outer=torch.cat([outer, -outer], 1) if paired else outer,
        offset=outer.new_zeros(len(outer)) if head.bias is None else head.bias.detach().double(),
        activation=type(activation),
        biased=hidden.bias is not None,
        offsets=head.bias is not None,
        paired=paired,
        flattens=flatten is not None,
    )
