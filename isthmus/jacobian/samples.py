"""The Jacobian of any module's outputs in its parameters, sample by sample, by automatic differentiation.

Near parameters θ the outputs of n samples are F(θ + s) ≈ F(θ) + J s. Products with J and J^T are one pass
over all samples. Rows of J are pulled back from every sample on its own, so that as few of them as one likes
are held at once. All is in the model's dtype and on its device; parameters are one vector, in their order.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._python_dispatch import TorchDispatchMode

from isthmus.errors import UnsupportedModel
from isthmus.jacobian.calls import stand_ins

Named = Mapping[str, Tensor]


@dataclass(frozen=True)
class Linearized:
    """A model near its parameters.

    Attributes:
        model: its output is one tensor, and no sample depends on another.
        parameters: θ by name; copies, so that the model may move on.
        inputs: what it is called with, each [n, ...].
        outputs: F(θ) [n, K].
        pullback: from a cotangent [n, K] to θ, by name.
    """

    model: nn.Module
    parameters: Named
    inputs: tuple[Tensor, ...]
    outputs: Tensor
    pullback: Callable[[Tensor], tuple[Named]]

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(tensor.numel() for tensor in self.parameters.values())

    def pull(self, cotangent: Tensor) -> Tensor:
        """J^T u [P] for u [n, K]."""
        (found,) = self.pullback(cotangent.to(self.outputs.dtype))
        return torch.cat([found[name].flatten() for name in self.parameters])

    def push(self, tangent: Tensor) -> Tensor:
        """J s [n, K] for s [P]."""
        moves = self.by_name(tangent)
        return jvp(lambda at: outputs(self.model, at, self.inputs), (self.parameters,), (moves,))[1]

    def by_name(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector [P] as tensors like the parameters."""
        parts = vector.split([tensor.numel() for tensor in self.parameters.values()])
        pairs = zip(self.parameters.items(), parts, strict=True)
        return {name: part.view_as(tensor).to(tensor.dtype) for (name, tensor), part in pairs}

    def rows(self, root: Tensor, part: slice) -> Tensor:
        """L_i^T J_i [samples, r, P] for the matrices L_i [K, r] of some samples.

        Args:
            root: L [n, K, r], of all samples.
            part: which of them.
        """

        def of_one(own: Tensor, *inputs: Tensor) -> Tensor:
            alone = tuple(each[None] for each in inputs)
            pullback: Any = vjp(lambda at: outputs(self.model, at, alone)[0], self.parameters)[1]
            (found,) = vmap(pullback)(own.T)
            return torch.cat([found[name].flatten(1) for name in self.parameters], 1)

        own = root[part].to(self.outputs.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # of one kernel under vmap
            return vmap(of_one)(own, *(each[part] for each in self.inputs))


@torch.no_grad()
def linearize(model: nn.Module, parameters: Named, inputs: tuple[Tensor, ...]) -> Linearized:
    """A model near parameters of it; others, and buffers, are as they are in the model.

    Args:
        model: as for `Linearized`.
        parameters: by name, those that J is in.
        inputs: each [n, ...].
    """
    own = {name: tensor.detach().clone() for name, tensor in parameters.items()}
    found: Any = vjp(lambda at: outputs(model, at, inputs), own)
    return Linearized(model, own, inputs, *found)


def outputs(model: nn.Module, parameters: Named, inputs: tuple[Tensor, ...]) -> Tensor:
    """F [n, K] at other parameters than the model's; a model may work in place on rows or on buffers."""
    copies = tuple(each.clone() for each in inputs)
    found = functional_call(model, stand_ins(model, parameters), copies, tie_weights=False)
    return found.reshape(len(inputs[0]), -1)


def require_independent(model: nn.Module) -> None:
    """Raises what is known to make samples depend on one another, or outputs on the call.

    Raises:
        UnsupportedModel: statistics of the batch, or running ones in training mode; or dropout.
    """
    for name, module in model.named_modules():
        what = None
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            what = "takes statistics of the batch, so that samples depend on one another"
        elif isinstance(module, _NormBase) and module.training and module.running_mean is not None:
            what = "changes its running statistics with every call"
        elif module.training and (
            isinstance(module, nn.RReLU)
            or (isinstance(module, _DropoutNd) and module.p)
            or (isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout)
        ):
            what = "draws random numbers, so that outputs change from call to call"
        if what is not None:
            raise UnsupportedModel(
                f"{name or 'the model'} ({type(module).__name__}) {what}; put it, or all of the model, in "
                "evaluation mode with eval(), or leave it out."
            )


@torch.no_grad()
def bytes_of_a_row(linearized: Linearized, called: Tensor) -> int:
    """What all of one sample's J takes at most, with all that is made on the way; measured.

    Args:
        linearized: of which the last sample is tried.
        called: F [n, K], as the model gave it when it was called with all samples.

    Raises:
        UnsupportedModel: the sample alone has another output, or cannot be differentiated.
    """
    model, n, K = linearized.model, *called.shape
    root = torch.eye(K, dtype=called.dtype, device=called.device).expand(n, K, K)
    last = slice(n - 1, n)  # of a sequence that is taken for samples, the last depends on those before
    try:
        with _Made((root, *linearized.inputs, *linearized.parameters.values())) as made:
            rows = linearized.rows(root, last)
        alone = outputs(model, linearized.parameters, tuple(each[last] for each in linearized.inputs))
    except RuntimeError as error:
        raise UnsupportedModel(
            f"torch.func does not differentiate {type(model).__name__} sample by sample: {error}"
        ) from error
    size = torch.cat([tensor.flatten().abs() for tensor in linearized.parameters.values()])
    scale = called.abs().max() + (rows[0].abs() @ size).max()
    difference = (alone[0] - called[-1]).abs().max()
    if not difference <= torch.finfo(called.dtype).eps ** 0.5 * scale:
        raise UnsupportedModel(
            f"{type(model).__name__} gives the last of {n} samples another output when it comes alone (by "
            f"{float(difference):.2g}), so samples have no Jacobians of their own. Does it use statistics of "
            "the batch or random numbers, or are samples not along the first dimension?"
        )
    return made.bytes


class _Made(TorchDispatchMode):
    """Adds up the memory of all tensors that are made besides those given, as if none was freed."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self._given = {tensor.untyped_storage().data_ptr() for tensor in given}
        self._storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    @property
    def bytes(self) -> int:
        return sum(each.nbytes() for address, each in self._storages.items() if address not in self._given)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple | list) else (found,):
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                self._storages[storage.data_ptr()] = storage
        return found
