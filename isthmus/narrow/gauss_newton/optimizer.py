"""Gauss-Newton with Levenberg-Marquardt damping, as an optimizer for small networks of any depth.

    optimizer = isthmus.GaussNewton(model)
    for _ in range(50):
        optimizer.step(closure)

A step goes to the minimum of the loss with the model linear in its parameters, the loss quadratic in the
outputs, and a damping λ (`isthmus.narrow.gauss_newton.normal_equations`). How far that holds, the gain ratio
says:

    ρ = (decrease of the loss) / (decrease of its quadratic model)

A step is taken if ρ > 1e-4; then λ becomes λ / 10 if ρ > 0.9, λ / 4 if ρ > 0.6, and 3 λ if ρ < 0.25. If it
is not taken, the next try is with 4 λ. λ is in units of the mean diagonal of the Gram matrix, so that it
means the same whatever the loss is multiplied by. Where the loss can be 0, λ vanishes on the way, and the
last steps square the error.

Source: Levenberg 1944 and Marquardt 1963.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from isthmus.errors import InputError
from isthmus.jacobian.samples import bytes_of_a_row, linearize, require_independent
from isthmus.linalg.cholesky import NotPositiveDefinite
from isthmus.narrow.gauss_newton.closure import Called, Closure, call, gradient
from isthmus.narrow.gauss_newton.curvature import curvature
from isthmus.narrow.gauss_newton.normal_equations import NormalEquations, normal_equations
from isthmus.narrow.resolve import optimized, without_wrappers
from isthmus.sharded import is_sharded

MEMORY: Final = 2 << 30
LEAST_GAIN: Final = 1e-4  # ρ of a step that is taken
RAISE: Final = 4.0  # of λ where it is not
LEAST_DAMPING: Final = torch.finfo(torch.float64).eps  # below, it is lost in rounding


class GaussNewton(Optimizer):
    """Levenberg-Marquardt steps for a sum or mean over rows of a loss, twice differentiable in outputs.

    `step` takes the closure that `torch.optim.LBFGS` takes. It calls the model once, with all rows, and
    returns the loss, which nothing but the model's outputs enters. It is called again at other weights, so a
    batch is chosen outside of it. Squares and cross entropies are the best losses.

    A step never ends at a higher loss than it began with: where none of its tries lowers the loss, parameters
    stay as they are, bit for bit. (A projection after the step, as `isthmus.attach` has it, may raise it.)
    Gradients that parameters hold are neither used nor changed. There is no learning rate, and no state but
    the damping, which is in `param_groups`, and so in `state_dict`.

    Args:
        model: whose parameters that require gradients are trained. Its samples do not depend on one another,
            nor on random numbers: BatchNorm and dropout are in evaluation mode.
        damping: λ to begin with.
        tries: steps that are tried within one `step`, at most.
        memory: bytes for the Gram matrix, its factor and parts of the Jacobian: with P parameters, n rows and
            K outputs, more than ``12 min(P, n K)^2``. What the closure takes comes on top.

    Raises:
        InputError: an option that is out of range.
    """

    def __init__(
        self, model: nn.Module, *, damping: float = 1.0, tries: int = 10, memory: int = MEMORY
    ) -> None:
        if not (0 < damping < float("inf") and tries >= 1 and memory > 0):
            raise InputError(f"damping={damping}, tries={tries} and memory={memory} are to be positive.")
        self._model, _ = without_wrappers(model)
        self._row_bytes: dict[tuple[Any, ...], int] = {}
        super().__init__(self._model.parameters(), {"damping": damping, "tries": tries, "memory": memory})

    @property
    def damping(self) -> float:
        """λ now."""
        return self.param_groups[0]["damping"]

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # pyrefly: ignore[bad-override]
        """Lower the loss by one step.

        Args:
            closure: calls the model once and returns the loss; ``loss.backward()`` in it has no effect.

        Returns:
            The loss before the step.

        Raises:
            InputError: there is no closure, or it does something else; or the memory is too small.
            UnsupportedModel: samples depend on one another, or outputs on random numbers.
        """
        if closure is None:
            raise InputError("GaussNewton needs losses at several weights: call step(closure), as for LBFGS.")
        parameters = self._trained()
        begun = call(self._model, closure)
        if not begun.loss.isfinite():
            raise InputError(f"the loss is {begun.value} before the step.")
        slope = gradient(begun, parameters)
        if slope.any():
            self._descend(closure, begun, self._equations(begun, slope, parameters), parameters)
        return begun.loss.detach()

    def _trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are moved, by name.

        Raises:
            InputError: there is none, or one that cannot be moved here.
        """
        if torch.is_inference_mode_enabled():
            raise InputError("nothing is trained in torch.inference_mode(); call step outside of it.")
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            raise InputError("GaussNewton is for one process: others have rows of which it would not know.")
        require_independent(self._model)
        own = {id(tensor) for tensor in optimized(self)}
        found = {name: each for name, each in self._model.named_parameters() if id(each) in own}
        if len(found) < len(own):
            raise InputError(
                "the optimizer has parameters that the model does not have, or no longer; make it anew, when "
                "the model is complete."
            )
        found = {name: each for name, each in found.items() if each.requires_grad}
        if not found:
            raise InputError("no parameter of the model requires a gradient.")
        if any(is_sharded(each) or not each.is_floating_point() for each in found.values()):
            raise InputError("GaussNewton is for parameters that are whole and real.")
        return found

    def _equations(
        self, begun: Called, slope: Tensor, parameters: Mapping[str, nn.Parameter]
    ) -> NormalEquations:
        bent = curvature(slope, begun.outputs)
        linearized = linearize(self._model, parameters, begun.inputs)
        called = begun.outputs.detach().reshape(linearized.outputs.shape)
        kind = (linearized.size, called.shape[1], called.dtype, *(each.shape[1:] for each in begun.inputs))
        if kind not in self._row_bytes:
            self._row_bytes[kind] = bytes_of_a_row(linearized, called)
        return normal_equations(
            linearized, bent, row_bytes=self._row_bytes[kind], memory=self.param_groups[0]["memory"]
        )

    def _descend(
        self,
        closure: Closure,
        begun: Called,
        equations: NormalEquations,
        parameters: Mapping[str, nn.Parameter],
    ) -> None:
        """Try steps with more and more damping until one is taken."""
        group, before, loss = self.param_groups[0], equations.linearized.parameters, begun.value
        rounding = torch.finfo(begun.loss.dtype).eps * abs(loss)
        for _ in range(group["tries"]):
            shift = group["damping"] * equations.scale
            try:
                move = equations.step(shift)
            except NotPositiveDefinite:
                group["damping"] *= RAISE
                continue
            predicted = float(shift * move @ move - equations.gradient @ move) / 2
            if not predicted > rounding:
                return
            moves, taken = equations.linearized.by_name(move), False
            try:
                for name, tensor in parameters.items():
                    tensor.copy_(before[name] + moves[name])
                gain = (loss - self._value(closure, begun)) / predicted
                taken = gain > LEAST_GAIN
            finally:
                if not taken:
                    for name, tensor in parameters.items():
                        tensor.copy_(before[name])
            group["damping"] = _adapted(group["damping"], gain)
            if taken:
                return

    def _value(self, closure: Closure, begun: Called) -> float:
        """The loss where the parameters are now.

        Raises:
            InputError: the closure gives the model other rows than before.
        """
        called = call(self._model, closure)
        if len(called.inputs) != len(begun.inputs) or not all(map(torch.equal, called.inputs, begun.inputs)):
            raise InputError(
                "the closure gave the model other inputs when it was called again within the step; choose a "
                "batch before the step, outside of the closure."
            )
        return called.value

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_model": self._model, "_row_bytes": self._row_bytes}


def _adapted(damping: float, gain: float) -> float:
    """λ after a step of this gain ratio; NaN is no gain."""
    if gain > 0.9:
        return max(damping / 10, LEAST_DAMPING)
    if gain > 0.6:
        return max(damping / 4, LEAST_DAMPING)
    if gain >= 0.25:
        return damping
    return damping * (3 if gain > LEAST_GAIN else RAISE)
