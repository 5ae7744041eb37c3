"""Is there an exact fit near these weights? The Newton-Kantorovich test, for one hidden layer.

Let F be a network's errors on all rows as a function of weights, J its Jacobian at the weights W, r = -F(W),
and let the Jacobian at W + z differ from J by at most L ‖z‖. With β = 1 / σ_min(J) and η = ‖J^+ r‖,

    2 β L η <= 1    proves that F(W + z) = 0 for some ‖z‖ <= 2 η.

For let G(z) = z - J^+ F(W + z) on the ball of radius 2 η in the range of J^T. As J^+ J z = z there,

    G(z) = J^+ r - J^+ R,    R = F(W + z) - F(W) - J z,    ‖R‖ <= L ‖z‖² / 2,

and ‖G(z)‖ <= η + β L (2 η)² / 2 = η (1 + 2 β L η) <= 2 η. So G maps the ball into itself, and by Brouwer's
theorem has a fixed point. There J^+ F(W + z) = 0, and J^+ is injective.

For f(x) = Σ_j U_:j σ(w_j · x) + c, with hidden biases as a column of ones in X, and J in W alone, L is

    p = sup |σ''| max_j ‖U_:j‖ X_max ‖X‖_2,    X_max the largest norm of a row,

as ‖Σ_j U_:j a_j b_j‖ <= max_j ‖U_:j‖ ‖a‖ ‖b‖, for the a and b that two changes of W make of a row. If U and c
move, too, U may be larger by 2 η in p, and L is the norm of [[p, q], [q, 0]],

    (p + √(p² + 4 q²)) / 2,    q = sup |σ'| ‖X‖_2, times √2 for a paired head.

For any Δ at all, ‖J^+ r‖ <= ‖Δ‖ + β ‖r - J Δ‖. So a bound on η need not trust how Δ, about J^+ r, was found.

Two levels. *Rigorous*: weights, rows and targets are exactly the numbers that are stored. Units are enclosed
in balls (`arithmetic.balls`), and all that float64 rounds is bounded (`arithmetic.verified`), so that the
answer is a theorem about these numbers, given `ASSUMPTIONS`. *Floating*: the same formulas as float64
evaluates them.

Source: Kantorovich 1948, in its form for systems with more unknowns than equations; derived here.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from isthmus.arithmetic.verified import (
    ASSUMPTIONS,
    DOUBLE,
    LARGEST,
    NONE,
    UNDERFLOW,
    Rounding,
    smallest_eigenvalue,
    spectral_norm,
)
from isthmus.data.dataset import as_dataset, from_arrays
from isthmus.jacobian.shallow import Shallow
from isthmus.linalg.cholesky import NotPositiveDefinite, cholesky
from isthmus.linalg.lanczos import lanczos
from isthmus.narrow.one_layer import OneLayer, read
from isthmus.narrow.radius import CURVATURE
from isthmus.narrow.resolve import without_wrappers

# At least sup |σ'|
STEEPEST: Final[dict[type[nn.Module], float]] = {nn.Tanh: 1.0, nn.Sigmoid: 0.25, nn.SiLU: 1.1, nn.GELU: 1.13}
ENOUGH: Final = 1e-4  # error of an eigenvalue that is guessed, as a part of it
SMALLEST: Final = 2.0**-150  # of ‖J‖; its square's inverse has a square, too


@dataclass(frozen=True)
class Interpolation:
    """Whether an exact fit exists near a network's weights.

    If rigorous, ``exists`` is a proof, ``sigma_min`` a lower bound and all other figures upper bounds; else
    they are what float64 makes of them. A figure is None where the test ended without it.

    Attributes:
        exists: an exact fit lies within ``distance``; False only means that none is shown to exist.
        rigorous: every rounding error is accounted for.
        head: the output layer moves, too; else the exact fit has it as it is.
        sigma_min: σ_min(J).
        beta: β, its inverse.
        eta: η, the length of Newton's step.
        lipschitz: L.
        product: 2 β L η.
        distance: 2 η, in the Frobenius norm of all weights that move.
        residual: ‖r‖.
        row_norm: X_max.
        input_norm: ‖X‖_2.
        reason: why none is shown to exist; empty if one is.
    """

    exists: bool
    rigorous: bool
    head: bool
    sigma_min: float | None = None
    beta: float | None = None
    eta: float | None = None
    lipschitz: float | None = None
    product: float | None = None
    distance: float | None = None
    residual: float | None = None
    row_norm: float | None = None
    input_norm: float | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, and what a proof assumes of the machine."""
        return {**asdict(self), "assumes": ASSUMPTIONS if self.rigorous else ""}

    def __str__(self) -> str:
        if not self.exists:
            return f"No exact fit is shown to exist near these weights: {self.reason}."
        which = "weights" if self.head else "hidden weights, with the output layer as it is"
        level = "proven" if self.rigorous else "as floating-point arithmetic has it, not proven"
        return f"An exact fit exists within {self.distance:.2g} (Frobenius) of these {which}: {level}."


@torch.inference_mode(False)
@torch.no_grad()
def newton_kantorovich(
    model: nn.Module, data: Any, *, head: bool = False, rigorous: bool = True
) -> Interpolation:
    """Test whether an exact fit of values exists near a model's weights.

    With N rows and K outputs it holds N² K² / 2 numbers in float64, and takes the time of a Cholesky
    factorization of that size; some five times that if rigorous.

    Args:
        model: a Sequential of Linear, a smooth activation, and Linear or a paired head, perhaps after
            Flatten. Weights of any dtype are taken as exact.
        data: a Dataset whose targets are values, or a pair (x, y) of inputs and values. Taken as exact.
        head: the output layer may move, too. That adds parameters, of which there must be N K at least.
        rigorous: prove it, with python-flint.

    Raises:
        InputError: the data does not have the model's inputs and outputs.
        MissingExtra: it is to be rigorous, and python-flint is not installed.
    """
    model, _ = without_wrappers(model)
    pair = isinstance(data, tuple | list) and len(data) == 2
    data = from_arrays(*data, task="regression") if pair else as_dataset(data)
    answer = Interpolation(False, rigorous, head)
    if data.task == "classification":
        return replace(answer, reason="the targets are classes, and an exact fit is one of values")
    network = read(model)
    if isinstance(network, str):
        return replace(answer, reason=network)
    x, y = network.rows(data)
    tensors = (x, y, network.weight, network.outer, network.offset)
    if not all(float(each.abs().max()) <= LARGEST for each in tensors):
        return replace(answer, reason=f"a weight or a value is beyond {LARGEST:.0e}, or no number")
    equations, parameters = y.numel(), network.parameters(head)
    if equations > parameters:
        return replace(
            answer, reason=f"{equations} equations are too many for {parameters} weights that move"
        )
    rounding = DOUBLE if rigorous else NONE
    point = _linearized(network, x, y, head=head, rounding=rounding)
    try:
        return _tested(answer, network, point, rounding)
    except NotPositiveDefinite as error:
        dependent = f"float64 cannot tell the first {error.pivot + 1} rows of J from dependent ones"
        return replace(answer, reason=dependent)


@dataclass(frozen=True)
class _Point:
    """J and r [N K], and how far they may be from the true ones, in the Frobenius and the Euclidean norm."""

    jacobian: Shallow
    residual: Tensor
    jacobian_error: float
    residual_error: float


def _linearized(network: OneLayer, x: Tensor, y: Tensor, *, head: bool, rounding: Rounding) -> _Point:
    at = network.enclosed(x, y) if rounding is DOUBLE else network.evaluated(x, y)
    jacobian = Shallow(x, at.slope.value, network.outer, None)
    # J is linear in slopes and features, so that errors of these make an error that looks like J.
    error = Shallow(x, at.slope.error, network.outer, None)
    if head:
        weighed = network.weighed(at.feature, rounding.unit)
        jacobian, error = replace(jacobian, features=weighed.value), replace(error, features=weighed.error)
    residual = at.residual.value.T.reshape(-1)
    return _Point(jacobian, residual, _frobenius(error, rounding), rounding.norm(at.residual.error))


def _frobenius(jacobian: Shallow, rounding: Rounding) -> float:
    return rounding.root(jacobian.gram_diagonal().sum())


def _tested(answer: Interpolation, network: OneLayer, point: _Point, rounding: Rounding) -> Interpolation:
    """The theorem's figures, and what they say.

    Raises:
        NotPositiveDefinite: J J^T is singular in float64.
    """
    jacobian, x = point.jacobian, point.jacobian.x
    size = _frobenius(jacobian, rounding)
    if size < SMALLEST:
        return replace(answer, reason=f"‖J‖ is only {size:.0e}")
    guess, step, left = _newton(jacobian, point.residual)
    # An entry i, k of J J^T is off by at most gamma ‖J_i‖ ‖J_k‖. Even floating point does not see below that.
    error = DOUBLE.gamma(_roundings(jacobian)) * size**2 + UNDERFLOW
    if answer.rigorous:
        least = smallest_eigenvalue(jacobian.gram_rows, jacobian.equations, guess=guess, error=error)
        input_norm = spectral_norm(x)
    else:
        least = guess - error
        input_norm = float(torch.linalg.matrix_norm(x, ord=2))
    row_norm = rounding.root(x.square().sum(1).max())
    residual = rounding.norm(point.residual) + point.residual_error
    answer = replace(answer, residual=residual, row_norm=row_norm, input_norm=input_norm)

    sigma_min = rounding.below(math.sqrt(max(least, 0.0))) - point.jacobian_error
    if not sigma_min > 0:
        return replace(answer, sigma_min=0.0, reason="σ_min(J) is too small to be told from rounding errors")
    beta = rounding.above(1 / sigma_min)
    length = rounding.norm(step)
    wrong = rounding.gamma(_roundings(jacobian)) * size + point.jacobian_error  # in J Δ, as a part of ‖Δ‖
    missed = rounding.norm(left) + point.residual_error + wrong * length
    eta = rounding.above(min(length + beta * missed, beta * residual))
    outer = rounding.root(network.outer.square().sum(0).max()) + (2 * eta if answer.head else 0.0)
    p = CURVATURE[network.activation] * outer * row_norm * input_norm
    q = STEEPEST[network.activation] * input_norm * math.sqrt(1 + network.paired) if answer.head else 0.0
    lipschitz = rounding.above((p + math.hypot(p, 2 * q)) / 2)
    product = rounding.above(2 * beta * lipschitz * eta)
    exists = product <= 1
    return replace(
        answer,
        exists=exists,
        sigma_min=sigma_min,
        beta=beta,
        eta=eta,
        lipschitz=lipschitz,
        product=product,
        distance=2 * eta,
        reason="" if exists else f"2 β L η is {product:.3g}, and the test says nothing above 1",
    )


def _newton(jacobian: Shallow, residual: Tensor) -> tuple[float, Tensor, Tensor]:
    """About σ_min(J)², Δ, about J^+ r, as a vector, and r - J Δ [N K].

    Raises:
        NotPositiveDefinite: J J^T is singular in float64.
    """
    factor = cholesky(jacobian.gram_rows, jacobian.equations)
    moved = jacobian.pull(factor.solve(residual))
    step = torch.cat([part.flatten() for part in moved if part is not None])
    inverse = lanczos(factor.solve, len(residual), tolerance=ENOUGH, device=residual.device)
    return 1 / inverse.value, step, residual - jacobian.push(*moved)


def _roundings(jacobian: Shallow) -> int:
    """More than any product of numbers goes through in the sums of `Shallow`."""
    features = 0 if jacobian.features is None else jacobian.features.shape[1]
    return jacobian.x.shape[1] + jacobian.slope.shape[1] + features + 16
