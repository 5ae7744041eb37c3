"""Gauss-Newton on the cross entropy, with products alone, until every row is right.

With p = softmax(f), g = p - onehot(y) and H = diag(p) - p p^T on every row, a step solves

    (J^T H J + λ τ I) Δ = -J^T g

by conjugate gradients, each of whose iterations takes one product with J and one with J^T, O(N d m); τ is the
mean of J^T H J's diagonal, by which the equations are also scaled. There is no matrix of N K x N K, and rows
that are right already hardly count, so fewer units do than for codes where classes have anything to do with
inputs.

Source: the generalized Gauss-Newton method (Schraudolph 2002), damped as Levenberg-Marquardt.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from isthmus.jacobian.shallow import Shallow, slopes
from isthmus.linalg.conjugate import conjugate_gradients
from isthmus.narrow.solver.levenberg import LEAST, MOST, TAKEN, Point, steered
from isthmus.narrow.solver.outcome import Outcome, Step

MARGIN: Final = 1.0  # least lead of a row's own logit
ACCURACY: Final = 0.1
PRODUCTS: Final = 200  # of one step


def fit_softmax(
    x: Tensor,
    label: Tensor,
    point: Point,
    activation: nn.Module,
    *,
    iterations: int,
    on_step: Callable[[Point], None] | None = None,
) -> Outcome:
    """Fit classes.

    Args:
        x: X [N, d], float64.
        label: class indices [N].
        point: where to begin, or to go on; U [K, m + 1] ends in the outputs' biases.
        activation: σ, smooth.
        iterations: at most, those in the point's history included.
        on_step: told every point.

    Returns:
        With losses relative to that of outputs that are all 0.
    """
    start = time.perf_counter() - (point.history[-1].seconds if point.history else 0.0)
    center, units, classes = point.weight, len(point.weight), len(point.outer)
    size = math.log(max(2, classes))

    def features(weight: Tensor) -> tuple[Tensor, Tensor]:
        before = x @ weight.T
        return before, torch.cat([activation(before), torch.ones_like(before[:, :1])], 1)

    def measured(logits: Tensor) -> tuple[float, bool]:
        own = logits.gather(1, label[:, None])
        lead = (own - logits).scatter(1, label[:, None], torch.inf)
        return float(functional.cross_entropy(logits, label)) / size, bool((lead >= MARGIN).all())

    before, value = features(point.weight)
    logits = value @ point.outer.T
    loss, done = measured(logits)

    def ended(failure: str | None) -> Outcome:
        return Outcome(point.weight, point.outer, center, loss, point.history, failure)

    while not done:
        if len(point.history) >= iterations:
            return ended(f"{iterations} iterations were not enough")
        jacobian = Shallow(x, slopes(activation, before), point.outer[:, :units], value)
        share = logits.softmax(1).T
        gradient = share - functional.one_hot(label, classes).T
        right = -_joined(*jacobian.pull(gradient.reshape(-1)))
        diagonal = _diagonal(jacobian, share)
        scale = float(diagonal.mean())
        damping = point.damping
        while True:
            shift = damping * scale

            def product(
                step: Tensor, jacobian: Shallow = jacobian, share: Tensor = share, shift: float = shift
            ) -> Tensor:
                moved = jacobian.push(*_split(step, jacobian)).reshape(share.shape)
                moved = share * moved - share * (share * moved).sum(0)
                return _joined(*jacobian.pull(moved.reshape(-1))) + shift * step

            inverse = 1 / (diagonal + shift)
            found = conjugate_gradients(
                product, right, precondition=inverse.mul, tolerance=ACCURACY, iterations=PRODUCTS
            )
            step = found.solution
            # What the quadratic model says the sum of losses falls by.
            predicted = float(right @ step - 0.5 * (step @ product(step) - shift * step @ step))
            weight, outer = (
                old + new
                for old, new in zip((point.weight, point.outer), _split(step, jacobian), strict=True)
            )
            before, value = features(weight)
            tried = value @ outer.T
            after, done = measured(tried)
            gain = (loss - after) * size * len(x) / predicted if predicted > 0 else -1.0
            if gain > TAKEN:
                break
            damping *= 4
            if damping > MOST:
                return ended("no step lowers the loss any more")
        loss, logits = after, tried
        damping = max(steered(damping, gain), LEAST)
        point = Point(
            weight, outer, damping, (*point.history, Step(loss, damping, 0, time.perf_counter() - start))
        )
        if on_step is not None:
            on_step(point)
    return ended(None)


def _joined(weight: Tensor, outer: Tensor | None) -> Tensor:
    assert outer is not None
    return torch.cat([weight.reshape(-1), outer.reshape(-1)])


def _split(step: Tensor, jacobian: Shallow) -> tuple[Tensor, Tensor]:
    """A flat step as Δ [m, d] and δ [K, m + 1]."""
    inner = jacobian.slope.shape[1] * jacobian.x.shape[1]
    return step[:inner].reshape(-1, jacobian.x.shape[1]), step[inner:].reshape(len(jacobian.outer), -1)


def _diagonal(jacobian: Shallow, share: Tensor) -> Tensor:
    """Of J^T H J, flat: u_j^T H_i u_j s_ij^2 x_ik^2 summed over rows for W, p (1 - p) f^2 for U."""
    assert jacobian.features is not None
    bent = share.T @ jacobian.outer.square() - (share.T @ jacobian.outer).square()
    inner = (bent * jacobian.slope.square()).T @ jacobian.x.square()
    return _joined(inner, (share * (1 - share)) @ jacobian.features.square())
