"""Gram matrices J J^T of the Jacobian: the empirical neural tangent kernel.

Equations are ordered by rows: all K outputs of row 0, then those of row 1. The columns of J are those of its
layers beside one another, so the Gram matrix is the sum of the layers' own. It is added up from blocks of
columns, in float64 whatever the model's dtype, for it holds squares of singular values.

Source: Jacot, Gabriel, Hongler 2018 (Neural Tangent Kernel); here at a finite width and the present weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from isthmus.jacobian.memory import MEMORY, room
from isthmus.jacobian.operator import Jacobian, jacobian_of
from isthmus.jacobian.parameters import layer_of

ROWS = 512  # of a Gram matrix that are added to at a time


def gram(
    model: nn.Module, x: Tensor, names: str | Sequence[str] | None = None, *, memory: int = MEMORY
) -> Tensor:
    """J J^T for the outputs of a model on some rows, in evaluation mode.

    Args:
        model: any module that maps rows to one tensor [N, ...] of real outputs, each row by itself.
        x: the rows ``[N, *shape]``, on the model's device and in the dtype that it takes.
        names: of parameters, or of modules, for all within them. By default those that are trained, or all
            if none is.
        memory: bytes that may be taken in all; J is made in blocks that fit.

    Returns:
        [N K, N K] in float64: entry (i K + k, j K + l) belongs to output k of row i and output l of row j.

    Raises:
        InputError: there is no such name, the model does not take the rows, or the memory is too small.
        UnsupportedModel: a row's outputs change from call to call, or with the rows beside it.
    """
    jacobian = jacobian_of(model, x, names)
    block = room(memory, 8 * jacobian.equations**2, "the Gram matrix")
    return symmetric(summed((columns for _, columns in jacobian.by_columns(memory=block)), jacobian))


def layer_grams(
    model: nn.Module, x: Tensor, names: str | Sequence[str] | None = None, *, memory: int = MEMORY
) -> dict[str, Tensor]:
    """J J^T in the parameters of each layer; the sum is that of `gram`, whose arguments these are.

    Returns:
        By the name of the module that owns the parameters; "" is the model itself.

    Raises:
        InputError: there is no such name, the model does not take the rows, or the memory is too small.
        UnsupportedModel: a row's outputs change from call to call, or with the rows beside it.
    """
    jacobian = jacobian_of(model, x, names)
    layers = len(jacobian.layers)
    block = room(memory, 8 * layers * jacobian.equations**2, f"{layers} Gram matrices")
    return {
        layer: symmetric(summed(columns, jacobian)) for layer, columns in by_layer(jacobian, memory=block)
    }


def by_layer(jacobian: Jacobian, *, memory: int) -> Iterator[tuple[str, Iterator[Tensor]]]:
    """J in blocks of columns, layer after layer.

    Yields:
        A layer's name, and its columns [N K, c] in blocks, to be taken before the next layer.
    """
    for layer, found in groupby(jacobian.by_columns(memory=memory), lambda each: layer_of(each[0])):
        yield layer, (columns for _, columns in found)


def summed(blocks: Iterable[Tensor], jacobian: Jacobian) -> Tensor:
    """The lower half of ``Σ B B^T`` over blocks [N K, c], with anything above the diagonal."""
    size = jacobian.equations
    total = jacobian.x.new_zeros(size, size, dtype=torch.float64)
    for block in blocks:
        for start in range(0, size, ROWS):
            rows = slice(start, start + ROWS)
            total[rows, : rows.stop].addmm_(block[rows], block[: rows.stop].T)
    return total


def symmetric(lower: Tensor) -> Tensor:
    """The symmetric matrix with this lower half, in its place."""
    for start in range(0, len(lower), ROWS):
        rows = slice(start, start + ROWS)
        own = lower[rows, rows]
        own.copy_(own.tril() + own.tril(-1).T)
        lower[:start, rows] = lower[rows, :start].T
    return lower
