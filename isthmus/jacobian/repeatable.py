"""Is a model a function of one row? Asked twice, in whatever company, a row must have the same outputs.

The derivative of what changes from one call to the next means nothing. The module to blame is the first one
to finish, and so the innermost, that gave different outputs for equal inputs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from isthmus import graph
from isthmus.errors import UnsupportedModel
from isthmus.jacobian.calls import outputs, stand_ins

BATCH = 1024  # rows of one pass
ROUNDING = 100  # times eps: differences that a kernel's order of summation makes

# Of one call of one module: its name and how often it was called before; what it got; what it gave.
Call = tuple[tuple[str, int], list[Any], list[Any]]


@torch.no_grad()
def require_repeatable(model: nn.Module, x: Tensor) -> None:
    """Refuse a model whose outputs change between two calls in evaluation mode.

    The model's buffers and all random generators are left as they were.

    Args:
        model: asked in evaluation mode, twice for every row.
        x: rows as it takes them [N, *shape].

    Raises:
        UnsupportedModel: an output differs by more than rounding; the message names the module to blame.
        InputError: the model does not take these rows, or gives no tensor.
    """
    with graph.evaluating(model):
        for rows in x.split(BATCH):
            with _undisturbed(model) as buffers:
                first, second = (outputs(model, buffers, rows) for _ in range(2))
            if not _same(first, second):
                raise UnsupportedModel(
                    "the model gives different outputs for the same rows from one call to the next, in "
                    f"evaluation mode, too: {_blamed(model, rows)}. Take out what is random or counts calls; "
                    "nn.Dropout knows when it is evaluated, F.dropout must be told training=self.training."
                )


@torch.no_grad()
def require_separate(model: nn.Module, x: Tensor) -> None:
    """Refuse a model that gives a row other outputs beside another row than beside its like.

    Args:
        model: asked in evaluation mode.
        x: rows as it takes them [N, *shape].

    Raises:
        UnsupportedModel: it does.
    """
    with graph.evaluating(model), _undisturbed(model) as buffers:
        alone, beside = (outputs(model, buffers, torch.stack([x[0], other])) for other in (x[0], x[-1]))
    if not _same(alone[0], beside[0]):
        raise UnsupportedModel(
            "what the model gives for a row depends on the rows beside it, in evaluation mode, too, so that "
            "rows have no Jacobians of their own; normalize with running statistics (track_running_stats="
            "True) or within a row (LayerNorm, GroupNorm)."
        )


def _same(first: Tensor, second: Tensor) -> bool:
    largest = float(first.nan_to_num(0.0, 0.0, 0.0).abs().max()) if first.numel() else 0.0
    rounding = ROUNDING * torch.finfo(first.dtype).eps * largest
    return first.shape == second.shape and torch.allclose(
        first, second, rtol=0, atol=rounding, equal_nan=True
    )


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Put all random generators back afterwards.

    Yields:
        Copies of the buffers, for calls that may change them.
    """
    device = graph.device_of(model)
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002, models may draw from it
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield stand_ins(model, {})
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


def _blamed(model: nn.Module, x: Tensor) -> str:
    """The module to blame, in words."""
    with _undisturbed(model) as buffers:
        first, second = (_calls(model, buffers, x) for _ in range(2))
    again = {place: (given, got) for place, given, got in second}
    for place, given, got in first:
        if place in again and again[place][0] == given and again[place][1] != got:
            name, _ = place
            kind = type(model.get_submodule(name)).__name__
            where = f"the module {name!r}, a {kind}," if name else f"the model itself, a {kind},"
            return f"{where} gives different outputs for equal inputs"
    return "no module by itself"


def _calls(model: nn.Module, buffers: dict[str, Tensor], x: Tensor) -> list[Call]:
    """Every call of a module in one pass, in the order in which they end."""
    found: list[Call] = []
    pending: list[list[Any]] = []
    times: dict[str, int] = {}

    def begin(_: nn.Module, args: Any, kwargs: Any) -> None:
        pending.append(_prints((args, kwargs)))  # before the module works in place

    def end(name: str, output: Any) -> None:
        count = times[name] = times.get(name, 0) + 1
        found.append(((name, count), pending.pop(), _prints(output)))

    hooks = []
    try:
        for name, module in model.named_modules():
            hooks.append(module.register_forward_pre_hook(begin, with_kwargs=True))
            hooks.append(module.register_forward_hook(lambda _, args, output, name=name: end(name, output)))
        outputs(model, buffers, x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _prints(values: Any) -> list[Any]:
    """What tells values apart: of tensors their bytes, hashed."""
    return [
        hash(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        if isinstance(leaf, Tensor)
        else repr(leaf)
        for leaf in tree_leaves(values)
    ]
