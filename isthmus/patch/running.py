"""Running a deployed model, of whatever kind, on many rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isthmus.errors import InputError
from isthmus.graph import device_of

CHUNK_VALUES = 1 << 20  # input values handed to the model at a time


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor, rows: int | None = None) -> Tensor:
    """A model's outputs on the processor [N, K], whatever device it runs on.

    Args:
        model: in evaluation mode.
        x: inputs in its dtype [N, *shape].
        rows: how many at a time; as many as fit by default.

    Raises:
        InputError: the model does not take these inputs, or gives no vector per row.
    """
    device = device_of(model)
    found = []
    for part in x.split(rows or max(1, CHUNK_VALUES // x[0].numel())):
        try:
            output = model(part.to(device, copy=True))  # its first layer may work in place
        except InputError:
            raise
        except Exception as error:  # whatever a model of the user's raises
            raise InputError(
                f"the model does not take inputs of shape {tuple(x.shape[1:])} "
                f"({type(error).__name__}: {error})."
            ) from error
        if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(part):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InputError(
                f"the model's outputs are {shape} for {len(part)} rows; only vectors, one per row, can be "
                "repaired."
            )
        if not output.is_floating_point():
            raise InputError(f"the model's outputs are {output.dtype}; only floats can be repaired.")
        found.append(output.cpu())
    return torch.cat(found)
