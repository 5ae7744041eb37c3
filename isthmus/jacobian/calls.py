"""Calling a model with other tensors in the places of its own, and leaving it as it was."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from isthmus.errors import InputError


def stand_ins(model: nn.Module, point: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What to put in the model's places for a call at another point.

    A module that stands in the model twice is one place: `torch.func.functional_call`, left to find ties by
    itself, would swap its tensors twice, and put the stand-ins back instead of the model's own.

    Args:
        model: any module.
        point: parameters by any of their names.

    Returns:
        These, at all places where the model uses them, and copies of all buffers.
    """
    every = dict(model.named_parameters(remove_duplicate=False))
    stand_in = {id(every[name]): tensor for name, tensor in point.items()}
    stand_in |= {id(buffer): buffer.clone() for buffer in model.buffers()}
    return {
        f"{prefix}.{name}" if prefix else name: stand_in[id(tensor)]
        for prefix, module in model.named_modules()
        for name, tensor in chain(
            module.named_parameters(recurse=False, remove_duplicate=False),
            module.named_buffers(recurse=False, remove_duplicate=False),
        )
        if id(tensor) in stand_in
    }


def called(model: nn.Module, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """A model's outputs for a copy of the rows, which a first layer that works in place would change.

    Args:
        model: any module.
        tensors: `stand_ins`; the model may change these.
        x: rows [N, *shape].
    """
    return torch.func.functional_call(model, dict(tensors), (x.clone(),), tie_weights=False)


def outputs(model: nn.Module, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The same, checked: one tensor of real outputs for every row [N, ...].

    Raises:
        InputError: it is no such thing, or the model does not take these rows.
    """
    try:
        found = called(model, tensors, x)
    except RuntimeError as error:
        raise InputError(f"the model does not take inputs {list(x.shape[1:])}: {error}") from None
    if not isinstance(found, Tensor):
        raise InputError(f"the model gives a {type(found).__name__}, not one tensor of outputs.")
    if found.ndim == 0 or len(found) != len(x) or not found.is_floating_point():
        raise InputError(
            f"the model gives {found.dtype} of shape {list(found.shape)} for {len(x)} rows, not real "
            "outputs for each of them."
        )
    return found
