"""The Jacobian of every sample, held whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from isthmus.jacobian.memory import MEMORY, room
from isthmus.jacobian.operator import jacobian_of


def per_sample_jacobian(
    model: nn.Module, x: Tensor, names: str | Sequence[str] | None = None, *, memory: int = MEMORY
) -> Tensor:
    """J of a model's outputs in chosen parameters, sample by sample, in evaluation mode.

    Args:
        model: any module that maps rows to one tensor [N, ...] of real outputs, each row by itself.
        x: the rows ``[N, *shape]``, on the model's device and in the dtype that it takes.
        names: of parameters, or of modules, for all within them. By default those that are trained, or all
            if none is. One with several names counts once.
        memory: bytes that J may take, with what its derivatives do.

    Returns:
        [N, K, P] in the model's dtype: parameters in the order of ``model.named_parameters()``, each
        flattened; outputs of several dimensions are flattened, too.

    Raises:
        InputError: there is no such name, the model does not take the rows, or the memory is too small.
        UnsupportedModel: a row's outputs change from call to call, or with the rows beside it.
    """
    jacobian = jacobian_of(model, x, names)
    shape = len(x), jacobian.outputs, jacobian.parameters
    dtype = jacobian.dtype
    block = room(memory, dtype.itemsize * jacobian.equations * jacobian.parameters, f"J of {shape}")
    found = x.new_empty(shape, dtype=dtype)
    for rows, blocks in jacobian.by_rows(memory=block):
        torch.cat(list(blocks.values()), 2, out=found[rows])
    return found
