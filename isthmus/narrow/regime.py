"""The regime in any loop: a paired network from a mirrored start, projected after every optimizer step.

    handle = isthmus.attach(model, optimizer, blocks=["layer4"], head="fc", constraint=isthmus.Ball(10.0))

The model and the optimizer stay what they are. Hooks of the optimizer do the work, so `torch.compile`,
gradient scaling and accumulation, distributed training and schedulers work as ever. With SGD this is
projected gradient descent (Algorithm 2); an optimizer that scales coordinates, as Adam does, is not projected
in its own metric, and its moments are not projected either.

Source: Zhang et al. 2021, Algorithm 2 and problem (10).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, NoReturn, Self
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from isthmus.certificate import model_digest
from isthmus.constraints import Ball, Constraint, restored
from isthmus.constraints.constraint import norm_of_difference, number
from isthmus.constraints.product import is_within
from isthmus.errors import InputError, ModelFileError
from isthmus.narrow.initialize import initialize, require_cancelling
from isthmus.narrow.resolve import resolve
from isthmus.sharded import local, placed, whole

FORMAT = "isthmus-regime"

_ATTACHED: WeakKeyDictionary[Optimizer, WeakSet[Regime]] = WeakKeyDictionary()


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    blocks: str | Sequence[str],
    head: str | None = None,
    constraint: Constraint | None = None,
    mirrored: bool = True,
    paired: bool = True,
    norms: bool = False,
    decay: float = 0.0,
    seed: int | None = None,
    example: Tensor | tuple[Any, ...] | None = None,
) -> Regime:
    """Put a model in the narrow regime, for as long as this optimizer trains it.

    Blocks are mirrored and the head is paired, if they are not yet; the weights are then the center of the
    constraint, into which they are projected after every step. Where the model is wrapped
    (DistributedDataParallel, fully_shard, torch.compile), `mirror` and `pair` it before; attach after the
    optimizer exists, and before any step or loading of checkpoints.

    Args:
        model: any module; wrappers are looked through.
        optimizer: any; it has the blocks' parameters. If the head is paired here, its new weight takes the
            old one's place in the optimizer.
        blocks: names of the modules that end in the head: the last hidden layer, or the last stage.
        head: name of the last Linear layer; None leaves the head out.
        constraint: a set for the blocks' weights and biases, or, if it is a `FloorAndRatio`, for the head's
            weight; a `Product` names what its parts are for. None is a ball of infinite radius.
        mirrored: False leaves the blocks as they were drawn.
        paired: False leaves the head one Linear layer, which begins as [V, -V] if blocks are mirrored.
        norms: constrain scales and shifts of the blocks' normalization layers too.
        decay: decoupled weight decay of the blocks towards the center, a factor of the learning rate, as
            AdamW has it towards 0.
        seed: draw blocks and head anew as Algorithm 1 does (LeCun); None keeps how they are initialized.
        example: an input of the model, or a tuple of its inputs, on which the halves are to cancel. Where
            they do not, nothing is attached, but blocks and head are initialized.

    Returns:
        A handle: `remove` it, or save its `state_dict` with those of model and optimizer.

    Raises:
        UnsupportedModel: a layer that cannot be mirrored, wrapped models that are not yet, or halves that do
            not cancel.
        WidthError: an odd width.
        PrecisionError: a ball too small for the dtype of the weights.
        InputError: names that are not there, an optimizer without the parameters or one that has begun to
            train them.
    """
    chosen = Ball(math.inf) if constraint is None else constraint
    if not isinstance(chosen, Constraint):
        raise InputError(f"a constraint is a set such as isthmus.Ball(10.0), not {constraint!r}.")
    decay = number(decay, "the decay")
    if not (math.isfinite(decay) and decay >= 0):
        raise InputError(f"decay is a number from 0 on, not {decay}.")
    if decay and not all("lr" in group for group in optimizer.param_groups):
        raise InputError(
            f"decay is a factor of the learning rate, and {type(optimizer).__name__} has none; leave it out."
        )
    if torch.is_inference_mode_enabled():
        raise InputError(
            "nothing that is made in torch.inference_mode() can be trained; attach outside of it."
        )
    found = resolve(model, optimizer, blocks, head)
    named = found.tensors(chosen, norms=norms)
    chosen.at(named)  # refused, if at all, before anything is changed
    others = [other for other in _ATTACHED.get(found.optimizer, ()) if other.shares(named)]
    initialize(found, mirrored=mirrored, paired=paired, seed=seed)
    if example is not None:
        require_cancelling(found, example)
    named = found.tensors(chosen, norms=norms)
    anchored = chosen.at(named)
    for other in others:
        other.remove()
    regime = Regime(found.root, found.optimizer, named, anchored, decay, found.head)
    regime.project()
    return regime


class Regime:
    """A constraint that follows an optimizer; `attach` makes one.

    A deep copy of (model, optimizer, regime) together is attached likewise; a copy of the model or of the
    optimizer alone is free of it. It is saved by its `state_dict`, not by pickle.

    Attributes:
        constraint: with its center, by parameter name; `isthmus.kkt` takes it.
        decay: towards the center.
    """

    constraint: Constraint
    decay: float

    def __init__(
        self,
        root: nn.Module,
        optimizer: Optimizer,
        tensors: dict[str, nn.Parameter],
        constraint: Constraint,
        decay: float,
        head: str | None,
    ) -> None:
        self.constraint, self.decay = constraint, decay
        self._root, self._optimizer, self._tensors, self._head = root, optimizer, tensors, head
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        _ATTACHED.setdefault(optimizer, WeakSet()).add(self)

    @property
    def digest(self) -> str:
        """SHA-256 of the center: of the initialization."""
        arrays = {}
        for name, tensor in self.constraint.center.items():
            # NumPy has no bfloat16.
            array = whole(tensor).cpu().contiguous()
            arrays[name] = (array.view(torch.int16) if array.dtype == torch.bfloat16 else array).numpy()
        return model_digest([], arrays)

    @torch.no_grad()
    def moved(self, name: str = "") -> float:
        """How far the constrained weights are from the center, in the norm of all of them.

        Args:
            name: of a parameter or a module; those of the whole model by default.

        Raises:
            InputError: there is no constrained parameter of this name, or in such a module.
        """
        chosen = {each: tensor for each, tensor in self._tensors.items() if is_within(each, name)}
        if not chosen:
            raise InputError(f"nothing in {name!r} is constrained; {', '.join(self._tensors)} are.")
        return norm_of_difference(chosen, self.constraint.center).item()

    @torch.no_grad()
    def project(self) -> None:
        """Project now, as after every step of the optimizer."""
        self._follow()
        self.constraint.project_(self._tensors)

    def shares(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether one of the tensors is constrained here."""
        own = set(map(id, self._tensors.values()))
        return any(id(tensor) in own for tensor in tensors.values())

    def remove(self) -> None:
        """Detach from the optimizer; model and optimizer stay as they are."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        _ATTACHED[self._optimizer].discard(self)

    def state_dict(self) -> dict[str, Any]:
        """The constraint, its center and a digest, as tensors and plain data, which `torch.load` reads."""
        return {
            "format": FORMAT,
            "constraint": self.constraint.to_dict(),
            "decay": self.decay,
            "digest": self.digest,
            "center": {name: tensor.clone() for name, tensor in self.constraint.center.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved constraint and its center, and project into it.

        Load the model and the optimizer first.

        Args:
            state: what `state_dict` gave, with whole tensors or sharded ones.

        Raises:
            ModelFileError: it is no such state, is damaged, or is of a model with other tensors.
        """
        constraint, decay, center, digest = _read(state, self._tensors)
        try:
            anchored = constraint.at(center)
        except InputError as error:
            raise ModelFileError(f"the state of the regime does not fit this model: {error}") from None
        before, self.constraint = self.constraint, anchored
        if self.digest != digest:
            self.constraint = before
            raise ModelFileError("the regime's state is damaged: its center is not what its digest says.")
        self.decay = decay
        self.project()

    @torch.no_grad()
    def _before_step(self, *_: Any) -> None:
        if self.decay:
            rates: dict[int, float | Tensor] = {}
            for group in self._optimizer.param_groups:
                rates |= dict.fromkeys(map(id, group["params"]), group["lr"])
            for name, tensor in self._tensors.items():
                if name != f"{self._head}.weight" and id(tensor) in rates and tensor.grad is not None:
                    own, center = local(tensor.detach()), local(self.constraint.center[name])
                    weight = rates[id(tensor)] * self.decay
                    if isinstance(weight, Tensor):
                        own.lerp_(center, weight.clamp(max=1).to(own))
                    else:
                        own.lerp_(center, min(weight, 1.0))

    def _after_step(self, *_: Any) -> None:
        if not isinstance(self._optimizer, torch.optim.LBFGS):
            self.project()
            return
        before = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}
        self.project()
        if any(not torch.equal(tensor, before[name]) for name, tensor in self._tensors.items()):
            # It takes its last step for what moved the weights, and would learn a false curvature of that.
            for state in self._optimizer.state.values():
                state["n_iter"] = 0

    def _follow(self) -> None:
        """Take the center to where the parameters are now.

        Raises:
            InputError: they are of another dtype now.
        """
        center = self.constraint.center
        for name, tensor in self._tensors.items():
            if tensor.dtype != center[name].dtype:
                raise InputError(
                    f"{name} was {center[name].dtype} when the regime was attached, and is {tensor.dtype} "
                    "now; convert the model first, and attach anew."
                )
        if any(center[name].device != tensor.device for name, tensor in self._tensors.items()):
            moved = {name: center[name].to(tensor.device) for name, tensor in self._tensors.items()}
            self.constraint = self.constraint.at(moved)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        root, optimizer = deepcopy(self._root, memo), deepcopy(self._optimizer, memo)
        tensors, constraint = deepcopy(self._tensors, memo), deepcopy(self.constraint, memo)
        copied = type(self)(root, optimizer, tensors, constraint, self.decay, self._head)
        if not self._hooks:
            copied.remove()
        memo[id(self)] = copied
        return copied

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Regime is not pickled: save its state_dict(), and attach anew before loading it.")

    def __repr__(self) -> str:
        place = "attached to" if self._hooks else "detached from"
        return f"Regime({self.constraint}, {place} {type(self._optimizer).__name__})"


def _read(
    state: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[Constraint, float, dict[str, Tensor], str]:
    """Constraint, decay, center and digest of a saved state, the center as the tensors are placed.

    Raises:
        ModelFileError: it is no such state, or of other tensors.
    """
    if not isinstance(state, Mapping) or state.get("format") != FORMAT:
        raise ModelFileError("this is not the state of a regime; load what its state_dict() gave.")
    try:
        constraint, center = restored(state["constraint"]), dict(state["center"])
        decay, digest = float(state["decay"]), str(state["digest"])
    except InputError as error:
        raise ModelFileError(f"the state of the regime is damaged: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(f"this is not the state of a regime, or it is damaged: {error!r}.") from None
    for name, tensor in tensors.items():
        saved = center.get(name)
        if not isinstance(saved, Tensor) or (saved.shape, saved.dtype) != (tensor.shape, tensor.dtype):
            found = f"{saved.dtype} {list(saved.shape)}" if isinstance(saved, Tensor) else "missing"
            raise ModelFileError(
                f"the state is of another model: {name} is {found} there, and {tensor.dtype} "
                f"{list(tensor.shape)} here."
            )
        center[name] = placed(whole(saved).to(tensor.device), tensor)
    if not (math.isfinite(decay) and decay >= 0):
        raise ModelFileError(f"the state of the regime is damaged: its decay is {decay}.")
    if extra := center.keys() - tensors.keys():
        raise ModelFileError(
            f"the state is of another model: {', '.join(sorted(extra))} is not constrained here."
        )
    return constraint, decay, center, digest
