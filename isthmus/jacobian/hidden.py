"""The end of a Sequential, Linear, activation and head, seen as a network of one hidden layer.

What comes before the hidden layer makes the rows X, and is taken as it is. Biases are columns of ones, in X
and beside the features. Parameters that J is not in have no columns.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import chain
from typing import Final

import torch
from torch import Tensor, nn

from isthmus import graph
from isthmus.jacobian.calls import outputs, stand_ins
from isthmus.jacobian.shallow import Shallow, slopes
from isthmus.nets.mirrored import MirroredLinear
from isthmus.nets.paired import PairedHead

BATCH: Final = 1024  # rows of a pass through what comes before

# Activations that work entry by entry and have no parameters.
ENTRYWISE: Final = {
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.ReLU,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
}


@torch.no_grad()
def read_shallow(model: nn.Module, x: Tensor, names: Collection[str]) -> Shallow | None:
    """J in parameters of the last hidden layer and the head, by its structure, in float64.

    Args:
        model: any module; understood are nested Sequentials that end in Linear, an activation that works
            entry by entry, and Linear or a paired head.
        x: rows as it takes them [N, *shape].
        names: of the parameters that J is in.

    Returns:
        None where the model is not understood, or others of its parameters are among these.
    """
    layers = _layers(model)
    if len(layers) < 3:
        return None
    *before, hidden, activation, head = layers
    if (
        type(hidden) not in {nn.Linear, MirroredLinear}
        or type(activation) not in ENTRYWISE
        or getattr(activation, "inplace", False)
        or type(head) not in {nn.Linear, PairedHead}
    ):
        return None
    assert isinstance(hidden, nn.Linear)
    assert isinstance(head, nn.Linear | PairedHead)
    trunk = nn.Sequential(*before)
    chosen = {id(model.get_parameter(name)) for name in names}
    own = [id(tensor) for tensor in chain(hidden.parameters(), head.parameters())]
    if not chosen <= set(own) or chosen & {id(tensor) for tensor in trunk.parameters()}:
        return None
    with graph.evaluating(model):
        x = torch.cat([outputs(trunk, stand_ins(trunk, {}), part) for part in x.split(BATCH)]).double()
    if x.ndim != 2 or len(set(own)) < len(own):
        return None

    outer, reached = head.weight.detach().double(), x @ hidden.weight.detach().double().T
    if hidden.bias is not None:
        reached += hidden.bias.detach().double()
    features = activation(reached)
    if isinstance(head, PairedHead):
        first, second = features.chunk(2, 1)
        outer, features = torch.cat([outer, -outer], 1), first - second
    in_hidden = [id(hidden.weight) in chosen, id(hidden.bias) in chosen]
    in_head = [id(head.weight) in chosen, id(head.bias) in chosen]
    return Shallow(
        _columns(x, *in_hidden),
        slopes(activation, reached),
        outer,
        _columns(features, *in_head) if any(in_head) else None,
    )


def _layers(model: nn.Module) -> list[nn.Module]:
    """Those of nested Sequentials, each in its place."""
    if type(model) is not nn.Sequential:
        return [model]
    return [layer for part in model for layer in _layers(part)]


def _columns(values: Tensor, weight: bool, bias: bool) -> Tensor:
    """What the weights multiply, if J is in them, and a one for the bias, likewise."""
    return torch.cat([values[:, : values.shape[1] * weight], values.new_ones(len(values), int(bias))], 1)
