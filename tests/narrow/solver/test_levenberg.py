"""Levenberg-Marquardt: single steps against dense ones in the space of parameters, and whole runs."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isthmus
from isthmus.errors import NotCertified
from isthmus.narrow.solver import levenberg
from isthmus.narrow.solver.dual import Memory
from isthmus.narrow.solver.levenberg import Misfit, Point, levenberg_marquardt
from isthmus.narrow.solver.softmax import fit_softmax
from tests.narrow.solver.problems import classes, regression, relative_loss

PLENTY = Memory(1 << 40, 0)


def _start(inputs: int, width: int, outputs: int, seed: int = 0) -> Point:
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(width, inputs, generator=g, dtype=torch.float64)
    return Point(weight, torch.randn(outputs, width, generator=g, dtype=torch.float64))


def _outputs(x: np.ndarray, weight: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """All rows of the first output, then of the second."""
    return (np.tanh(x @ weight.T) @ outer.T).T.ravel()


def _jacobian(x: np.ndarray, weight: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """J [K N, m d + K m], entry by entry."""
    (n, d), (outputs, width) = x.shape, outer.shape
    value = np.tanh(x @ weight.T)
    jacobian = np.zeros((outputs, n, width * d + outputs * width))
    for k in range(outputs):
        for j in range(width):
            jacobian[k, :, j * d : (j + 1) * d] = (outer[k, j] * (1 - value[:, j] ** 2))[:, None] * x
        jacobian[k, :, width * d + k * width : width * d + (k + 1) * width] = value
    return jacobian.reshape(outputs * n, -1)


@dataclass(frozen=True)
class _Dense:
    """A step in the space of parameters, with the λ it took."""

    weight: np.ndarray
    outer: np.ndarray
    damping: float
    gain: float


def _dense_step(x: np.ndarray, y: np.ndarray, point: Point, hold: np.ndarray | None = None) -> _Dense:
    """Minimize Σ (r - J Δ)^2 / λ_i + τ |Δ|^2, with λ times 4 until it is worth taking."""
    weight, outer, damping = point.weight.numpy(), point.outer.numpy(), point.damping
    jacobian = _jacobian(x, weight, outer)
    residual = y.T.ravel() - _outputs(x, weight, outer)
    tau = np.square(jacobian).sum() / len(jacobian)
    while True:
        stiff = np.full(len(residual), damping) if hold is None else np.maximum(hold, damping)
        weighted = np.vstack([jacobian / np.sqrt(stiff)[:, None], math.sqrt(tau) * np.eye(jacobian.shape[1])])
        right = np.concatenate([residual / np.sqrt(stiff), np.zeros(jacobian.shape[1])])
        step = np.linalg.lstsq(weighted, right, rcond=None)[0]
        new = (
            weight + step[: weight.size].reshape(weight.shape),
            outer + step[weight.size :].reshape(outer.shape),
        )
        before, after = residual @ residual, np.square(y.T.ravel() - _outputs(x, *new)).sum()
        predicted = before - np.square(residual - jacobian @ step).sum()
        gain = (before - after) / predicted
        if predicted > 0 and gain > 1e-4:
            return _Dense(*new, damping, gain)
        damping *= 4


def _one_step(x: Tensor, y: Tensor, point: Point, hold: Tensor | None = None) -> Point:
    target, seen = y.T.reshape(-1), []

    def misfit(output: Tensor) -> Misfit:
        return Misfit(target - output, hold, done=False)

    done = len(point.history) + 1
    outcome = levenberg_marquardt(
        x,
        point,
        nn.Tanh(),
        misfit,
        float(y.norm()),
        memory=PLENTY,
        iterations=done,
        on_step=seen.append,
    )
    assert outcome.failure == f"{done} iterations were not enough"
    assert torch.equal(outcome.weight, seen[-1].weight)
    return seen[-1]


@pytest.mark.parametrize(
    ("width", "outputs", "damping"),
    [(2, 1, 1e-8), (2, 1, 1.0), (2, 3, 1e-8), (2, 3, 1e-3), (12, 1, 1e-3), (12, 1, 100.0), (12, 3, 1.0)],
)
def test_a_step_is_the_one_in_the_space_of_parameters(
    width: int, outputs: int, damping: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether there are fewer parameters than equations, or more; if it is asked for in full."""
    monkeypatch.setattr(levenberg, "INEXACT", 1e-9)
    x, y = regression(20, 3, outputs, seed=width)
    start = _start(3, width, outputs)
    start = Point(start.weight, start.outer, damping)
    expected = _dense_step(x.numpy(), y.numpy(), start)
    assert expected.damping == damping
    found = _one_step(x, y, start)
    size = max(np.abs(expected.weight - start.weight.numpy()).max(), 1e-3)
    np.testing.assert_allclose(found.weight, expected.weight, atol=1e-5 * size)
    np.testing.assert_allclose(found.outer, expected.outer, atol=1e-5 * size)
    residual = y.T.numpy().ravel() - _outputs(x.numpy(), expected.weight, expected.outer)
    assert found.history[-1].loss == pytest.approx((residual @ residual) / float(y.norm()) ** 2, rel=1e-5)
    gain = expected.gain
    factor = 0.1 if gain > 0.9 else 0.25 if gain > 0.6 else 3 if gain < 0.25 else 1
    assert found.damping == pytest.approx(expected.damping * factor)


@pytest.mark.parametrize("damping", [0.1, 1.0, 100.0])
def test_early_steps_take_products_alone_and_leave_a_tenth(
    damping: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levenberg, "PLAIN", 1)
    x, y = regression(40, 5, 1, seed=2)
    start = _start(5, 8, 1)
    found = _one_step(x, y, Point(start.weight, start.outer, damping))
    assert found.history[-1].factorizations == 0
    assert found.base is None
    jacobian = _jacobian(x.numpy(), start.weight.numpy(), start.outer.numpy())
    residual = y.T.numpy().ravel() - _outputs(x.numpy(), start.weight.numpy(), start.outer.numpy())
    step = np.concatenate([
        (found.weight - start.weight).numpy().ravel(),
        (found.outer - start.outer).numpy().ravel(),
    ])
    tau = np.square(jacobian).sum() / len(jacobian)
    a = np.linalg.lstsq(jacobian.T, step, rcond=None)[0]  # the step is J^T a
    assert np.abs(jacobian.T @ a - step).max() <= 1e-5 * np.abs(step).max()
    left = residual - jacobian @ step - damping * tau * a
    assert np.linalg.norm(left) <= 0.101 * np.linalg.norm(residual)


@pytest.mark.parametrize(("width", "damping"), [(4, 1e-8), (12, 1e-3)])
def test_a_step_that_is_not_worth_taking_is_tried_with_four_times_the_damping(
    width: int, damping: float
) -> None:
    """With the first factorization as preconditioner: of its normal equations a tenth may be left."""
    x, y = regression(20, 3, 3, seed=0)
    start = _start(3, width, 3)
    start = Point(start.weight, start.outer, damping)
    expected, found = _dense_step(x.numpy(), y.numpy(), start), _one_step(x, y, start)
    assert expected.damping > damping
    jacobian = _jacobian(x.numpy(), start.weight.numpy(), start.outer.numpy())
    residual = y.T.numpy().ravel() - _outputs(x.numpy(), start.weight.numpy(), start.outer.numpy())
    assert found.history[-1].loss * float(y.square().sum()) < residual @ residual
    step = np.concatenate([
        (found.weight - start.weight).numpy().ravel(),
        (found.outer - start.outer).numpy().ravel(),
    ])
    tau = np.square(jacobian).sum() / len(jacobian)
    left = [
        np.linalg.norm(jacobian.T @ (residual - jacobian @ step) - damping * 4**k * tau * step)
        for k in range(20)
    ]
    limit = 0.1 * np.linalg.norm(jacobian, 2) * np.linalg.norm(residual)
    assert min(left[1:]) <= limit
    factor = found.damping / (damping * 4 ** np.arange(1, 20))[:, None]
    assert np.isclose(factor, [0.1, 0.25, 1, 3]).any()


@pytest.mark.parametrize(("seed", "damping"), [(1, 1e-3), (4, 0.1), (3, 0.1)])
def test_equations_that_are_held_more_stiffly_count_less(seed: int, damping: float) -> None:
    x, y = regression(15, 3, 1, seed=seed)
    start = _start(3, 4, 1)
    start = Point(start.weight, start.outer, damping)
    hold = torch.where(torch.arange(15) % 3 == 0, 0.3, 0.0).double()
    found, expected = _one_step(x, y, start, hold), _dense_step(x.numpy(), y.numpy(), start, hold.numpy())
    assert expected.damping == damping
    np.testing.assert_allclose(found.weight, expected.weight, rtol=1e-7, atol=1e-8)
    plain = _dense_step(x.numpy(), y.numpy(), start)
    assert np.abs(plain.weight - expected.weight).max() > 1e-3


def test_every_step_lowers_the_loss_and_is_reported() -> None:
    x, y = regression(60, 5, seed=4)
    told: list[tuple[str, float]] = []
    solution = isthmus.solve((x, y), width=11, method="lm", on_progress=lambda *seen: told.append(seen))
    losses = [step.loss for step in solution.history]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == solution.loss <= 1e-20
    assert [step.seconds for step in solution.history] == sorted(step.seconds for step in solution.history)
    assert 1 <= solution.history[-1].factorizations
    assert all(0 <= part <= 1 for _, part in told)
    assert sum("relative loss" in message for message, _ in told) == len(losses)


@pytest.mark.parametrize(("rows", "inputs", "width"), [(100, 10, 10), (120, 20, 6), (60, 5, 11)])
@pytest.mark.parametrize("bias", [True, False])
def test_far_below_the_theorems_width(rows: int, inputs: int, width: int, bias: bool) -> None:
    x, y = regression(rows, inputs, seed=rows)
    if not bias:
        width = math.ceil(1.15 * rows / (inputs + 1))
    assert width < 2 * rows / (inputs + 1)
    solution = isthmus.solve((x, y), width=width, bias=bias)
    assert solution.recipe["plan"]["method"] == "lm"
    assert relative_loss(solution.model, x, y, float(y.mean()) if bias else 0.0) <= 1e-19
    assert solution.certificate.wrong == 0
    assert solution.constraint is None


def test_several_outputs_and_no_mirror() -> None:
    x, y = regression(40, 6, 3, seed=5)
    solution = isthmus.solve((x, y), width=17)
    assert relative_loss(solution.model, x, y, y.mean(0).numpy()) <= 1e-19
    first = solution.model[0].weight
    assert not torch.equal(first[:8], first[8:16])


@pytest.mark.parametrize("activation", ["sigmoid", "leaky_relu", "relu"])
def test_other_activations_at_ample_width(activation: str) -> None:
    x, y = regression(40, 6, seed=6)
    solution = isthmus.solve((x, y), width=24, method="lm", activation=activation)
    assert relative_loss(solution.model, x, y, float(y.mean())) <= 1e-19
    noted = any("not smooth" in note for note in solution.certificate.notes)
    assert noted is (activation != "sigmoid")


def test_fewer_parameters_than_equations_are_tried_and_noted() -> None:
    solution = isthmus.solve(regression(60, 4, seed=7), width=3, raise_on_failure=False)
    assert solution.status.name == "NOT_CONVERGED"
    assert solution.certificate.wrong > 0
    assert solution.reason
    note = next(note for note in solution.certificate.notes if "equations" in note)
    assert "18 parameters" in note
    assert "60 equations" in note
    with pytest.raises(NotCertified, match="3 units by lm do not fit every row"):
        isthmus.solve(regression(60, 4, seed=7), width=3)


def test_fewer_parameters_than_equations_may_do_for_targets_that_are_not_generic() -> None:
    x, _ = regression(60, 4, seed=8)
    y = torch.tanh(x @ torch.tensor([0.5, -0.3, 0.2, 0.1], dtype=torch.float64)) + 3
    solution = isthmus.solve((x, y), width=2)
    assert relative_loss(solution.model, x, y, float(y.mean())) <= 1e-19


@pytest.mark.parametrize("options", [{}, {"targets": "softmax"}, {"targets": "dead-zone"}])
def test_seeds_repeat_bit_for_bit(options: dict) -> None:
    data = classes(60, 5, 3, seed=9) if options else regression(60, 5, seed=9)
    runs = [
        isthmus.solve(data, width=16, method="lm", seed=seed, raise_on_failure=False, **options)
        for seed in (5, 5, 6)
    ]
    states = [torch.cat([p.flatten() for p in run.model.parameters()]) for run in runs]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert [step.loss for step in runs[0].history] == [step.loss for step in runs[1].history]


def test_the_iterations_allowed_are_not_exceeded() -> None:
    solution = isthmus.solve(
        regression(60, 4, seed=10), width=12, method="lm", iterations=4, raise_on_failure=False
    )
    assert len(solution.history) == 4
    assert solution.reason == "4 iterations were not enough"


def test_units_that_are_all_off_end_it() -> None:
    """With relu and one unit there are starts at which the Jacobian is 0."""
    x, y = regression(3, 3, seed=11)
    for seed in range(12):
        for bias in (True, False):
            solution = isthmus.solve(
                (x, y), width=1, activation="relu", seed=seed, bias=bias, raise_on_failure=False
            )
            assert solution.status.name == ("NOT_CONVERGED" if solution.certificate.wrong else "SOLVED")


@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_a_step_on_the_cross_entropy_solves_the_dense_system(damping: float) -> None:
    """(J^T H J + λ τ I) Δ = -J^T (p - onehot), to the tenth that conjugate gradients are asked for."""
    x, label = classes(20, 3, 4, seed=12)
    start = _start(3, 5, 4)
    outer = torch.cat([start.outer, torch.zeros(4, 1, dtype=torch.float64)], 1)
    start = Point(start.weight, outer, damping)
    seen: list[Point] = []
    fit_softmax(x, label, start, nn.Tanh(), iterations=1, on_step=seen.append)

    def logits(weight: Tensor, outer: Tensor) -> Tensor:
        return torch.tanh(x @ weight.T) @ outer[:, :-1].T + outer[:, -1]

    def flat(parts: tuple[Tensor, Tensor]) -> Tensor:
        return torch.cat([part.reshape(*part.shape[:-2], -1) for part in parts], -1)

    jacobian = flat(torch.func.jacrev(logits, argnums=(0, 1))(start.weight, outer))
    share = torch.softmax(logits(start.weight, outer), 1)
    curvature = torch.diag_embed(share) - share[:, :, None] * share[:, None, :]
    matrix = torch.einsum("ika,ikl,ilb->ab", jacobian, curvature, jacobian)
    right = -torch.einsum("ika,ik->a", jacobian, share - nn.functional.one_hot(label, 4))
    step = flat((seen[0].weight - start.weight, seen[0].outer - outer))
    tau = matrix.diagonal().mean()
    left = [
        float((right - matrix @ step - damping * 4**k * tau * step).norm() / right.norm()) for k in range(8)
    ]
    assert min(left) <= 0.1
    loss = nn.functional.cross_entropy(logits(seen[0].weight, seen[0].outer), label) / math.log(4)
    assert seen[0].history[-1].loss == pytest.approx(float(loss), rel=1e-12)
