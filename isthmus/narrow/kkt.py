"""How near a point is to satisfying the Karush-Kuhn-Tucker conditions of the constrained problem (10).

For min ℓ(θ) over θ in C, with gradient g and the normal cone N(θ), the nearest multiplier is n = P_N(-g), and

    stationarity        ‖g + n‖
    primal feasibility  ‖θ - P_C(θ)‖
    complementarity     max <n, z - θ> over z in C, which is 0 where every constraint that pulls is met with
    equality

while n is a combination of outer normals with multipliers >= 0 by its construction (dual feasibility). For
convex C all four hold if and only if the natural residual ‖θ - P_C(θ - g)‖ is 0.

Source: Zhang et al. 2021, problem (10) and Theorem 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from isthmus import graph
from isthmus.constraints import Constraint
from isthmus.constraints.constraint import norm, norm_of_difference
from isthmus.data import Dataset, from_arrays
from isthmus.data.dataset import as_dataset
from isthmus.errors import InputError
from isthmus.jacobian.calls import called, stand_ins
from isthmus.jacobian.repeatable import require_repeatable
from isthmus.narrow.radius import Radius, global_radius
from isthmus.narrow.regime import Regime
from isthmus.narrow.resolve import without_wrappers

Loss = Callable[[Tensor, Tensor], Tensor]  # outputs [n, K] and targets to the sum over rows

BATCH = 1024  # rows of one forward and backward pass


@dataclass(frozen=True)
class Kkt:
    """Residuals of the KKT conditions at a model's weights.

    Attributes:
        rows: of the data.
        loss: ℓ, a sum over rows.
        gradient: the norm of its gradient in all trained parameters.
        stationarity: what the nearest multipliers leave of the gradient.
        primal: how far the weights are from the set.
        complementarity: how much the multipliers' constraints are missed by, times them.
        natural: the norm of the step from the weights to the projection of a gradient step.
        multiplier: the norm of the nearest element of the normal cone; 0 inside the set.
        radius: below which every KKT point has loss 0, as far as that is known.
    """

    rows: int
    loss: float
    gradient: float
    stationarity: float
    primal: float
    complementarity: float
    natural: float
    multiplier: float
    radius: Radius

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self)


@torch.inference_mode(False)
@torch.enable_grad()
def kkt(model: nn.Module, data: Any, constraint: Constraint | Regime, *, loss: Loss | None = None) -> Kkt:
    """KKT residuals of the constrained training problem at a model's weights.

    Args:
        model: in the state that is asked about; evaluated in evaluation mode and its own dtype.
        data: a Dataset, or a pair (x, y), in which floating-point targets are values and integers are
            classes.
        constraint: with its center, by parameter name: a handle, or its `constraint`.
        loss: of outputs and targets, summed over rows. By default ½ Σ (y - f)² for values, as the paper has
            it, and the cross entropy for classes.

    Raises:
        InputError: the constraint has no center, or one with names that are not the model's; or the model
            does not take the data.
    """
    model, _ = without_wrappers(model)
    data = _dataset(data)
    constraint = constraint.constraint if isinstance(constraint, Regime) else constraint
    if not isinstance(constraint, Constraint):
        raise InputError(f"give kkt the handle that attach returned, or its constraint, not {constraint!r}.")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = constraint.center.keys()
    if missing := sorted(names - parameters.keys()):
        raise InputError(
            f"the constraint is for {', '.join(missing)}, which the model does not have; give it the "
            "constraint that was attached to this model."
        )
    with graph.evaluating(model):
        require_repeatable(model, next(_batches(model, data))[0])
    default = _squared if data.task == "regression" else _cross_entropy
    value, gradients = _gradient(model, data, default if loss is None else loss, names)
    point = {name: parameters[name].detach() for name in names}
    slope = {name: gradients.pop(name) for name in names}
    free = norm(gradients).item() if gradients else 0.0

    normal = constraint.normal(point, {name: -gradient for name, gradient in slope.items()})
    pull = norm(normal).item()
    stepped = constraint.project({name: point[name] - slope[name] for name in names})
    return Kkt(
        rows=data.rows,
        loss=value,
        gradient=_joined(norm(slope), free),
        stationarity=_joined(norm({name: slope[name] + normal[name] for name in names}), free),
        primal=constraint.distance(point),
        complementarity=_complementarity(constraint, point, normal, pull),
        natural=_joined(norm_of_difference(point, stepped), free),
        multiplier=pull,
        radius=global_radius(model, data, constraint)
        if loss is None and data.task == "regression"
        else Radius.unknown("it is known for the squared loss of one output"),
    )


def _dataset(data: Any) -> Dataset:
    """A data set itself, or a pair as one, whose floating-point targets are values, however few there are."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        return as_dataset(data)
    target = data[1] if isinstance(data[1], Tensor) else torch.as_tensor(np.asarray(data[1]))
    return from_arrays(*data, task="regression" if target.is_floating_point() else "classification")


def _gradient(
    model: nn.Module, data: Dataset, loss: Loss, constrained: Collection[str]
) -> tuple[float, dict[str, Tensor]]:
    """The loss, and by name its gradient in the constrained parameters and all others that are trained.

    Raises:
        InputError: the loss is no finite number, or the model does not take the data.
    """
    # A parameter with several names goes by the one that is constrained.
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    every = dict(model.named_parameters(remove_duplicate=False))
    names |= {id(every[name]): name for name in constrained}
    trained = {
        name: every[name].detach().requires_grad_()
        for name in names.values()
        if every[name].requires_grad or name in constrained
    }
    total = 0.0
    gradients = {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
    with graph.evaluating(model):
        for x, y in _batches(model, data):
            value = loss(_outputs(model, trained, x, data.outputs), y)
            if not isinstance(value, Tensor) or value.ndim:
                raise InputError(
                    "a loss is a function of outputs and targets that gives their sum, one number."
                )
            if not value.isfinite():
                raise InputError(f"the loss is {value.item()} at these weights.")
            found = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
            total += value.item()
            for name, gradient in zip(trained, found, strict=True):
                if gradient is not None:
                    gradients[name] += gradient
    return total, gradients


def _batches(model: nn.Module, data: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
    device, dtype = graph.device_of(model), graph.dtype_of(model)
    for start in range(0, data.rows, BATCH):
        y = data.y[start : start + BATCH].to(device)
        yield data.x[start : start + BATCH].to(device, dtype), y.to(dtype) if y.is_floating_point() else y


def _outputs(model: nn.Module, trained: Mapping[str, Tensor], x: Tensor, outputs: int) -> Tensor:
    try:
        found = called(model, stand_ins(model, trained), x)
    except RuntimeError as error:
        raise InputError(f"the model does not take inputs {list(x.shape[1:])}: {error}") from None
    if not isinstance(found, Tensor):
        raise InputError(f"the model gives a {type(found).__name__}, not one tensor of outputs.")
    if outputs == 1 and found.shape == (len(x),):
        found = found[:, None]
    if found.shape != (len(x), outputs):
        raise InputError(
            f"the model gives outputs {list(found.shape[1:])}, but the data has {outputs} targets."
        )
    return found


def _complementarity(
    constraint: Constraint, point: Mapping[str, Tensor], normal: Mapping[str, Tensor], pull: float
) -> float:
    """<n, z - θ> for the z in C that lies farthest along n: the projection of a point far out."""
    if not pull:
        return 0.0
    far = (1 + norm_of_difference(point, constraint.center).item()) / pull
    farthest = constraint.project({name: point[name] + far * normal[name] for name in point})
    return float(sum((normal[name] * (farthest[name] - point[name])).sum().double() for name in point))


def _squared(output: Tensor, target: Tensor) -> Tensor:
    return (target.reshape(output.shape) - output).square().sum() / 2


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target, reduction="sum")


def _joined(constrained: Tensor, free: float) -> float:
    return math.hypot(constrained.item(), free)
