"""Tensors of which every process holds a part (DTensor, as `fully_shard` makes them) beside ordinary ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is a DTensor; asked without importing torch.distributed."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every process; an ordinary one as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, sharing its memory; an ordinary one as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, known to every process, cut as another one is."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements)
