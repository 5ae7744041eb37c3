"""ReLU and leaky ReLU: rounded units against their definition, and fits where plain descent stalls."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import isthmus
from isthmus.narrow.solver.dual import Memory
from isthmus.narrow.solver.levenberg import Misfit, Point, levenberg_marquardt
from isthmus.narrow.solver.sharpen import AGAIN, SHARPNESS, Lifted, Rounded, Staged, sharpen
from tests.narrow.solver.problems import classes, regression, relative_loss

ACTIVATIONS = {"relu": (nn.ReLU(), 0.0), "leaky_relu": (nn.LeakyReLU(0.01), 0.01)}
MEMORY = Memory(1 << 30, 0)


@given(
    st.floats(-1e3, 1e3),
    st.sampled_from([0.0, 0.01, 0.3, 0.9]),
    st.floats(0.1, 100),
)
def test_a_rounded_unit_lies_above_the_kink_and_near_it(z: float, slope: float, sharpness: float) -> None:
    rounded = float(Rounded(slope, sharpness)(torch.tensor(z, dtype=torch.float64)))
    sharp = z if z > 0 else slope * z
    rounding = 1e-12 * (abs(z) + 1 / sharpness)
    assert -rounding <= rounded - sharp <= (1 - slope) / (2 * sharpness) + rounding


@given(st.floats(-50, 50), st.floats(0.5, 32))
def test_a_rounded_unit_has_a_slope_that_rows_feel(z: float, sharpness: float) -> None:
    """σ_β' = 1/2 + z / (2 (z^2 + β^-2)^(1/2)): by hand, and about (2 β z)^-2 far below 0."""
    at = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(Rounded(0.0, sharpness)(at), at)
    assert float(slope) == pytest.approx(0.5 + z / (2 * (z**2 + sharpness**-2) ** 0.5), abs=1e-12)
    if z * sharpness < -20:
        assert float(slope) == pytest.approx((2 * sharpness * z) ** -2, rel=0.01)


def test_a_lifted_unit_is_the_identity_for_its_rows_alone() -> None:
    before = torch.tensor([[-3.0, 2.0], [-1.0, -5.0]])
    lifted = torch.tensor([[True, False], [False, True]])
    assert Lifted(nn.ReLU(), lifted)(before).tolist() == [[-3.0, 2.0], [0.0, -5.0]]


def _problem(rows: int, inputs: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, Staged]:
    x, y = regression(rows, inputs, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    weight = 1.5 * inputs**-0.5 * torch.randn(width, inputs, generator=generator, dtype=torch.float64)
    outer = torch.full((1, width), 3.0, dtype=torch.float64)
    outer[:, 1::2] *= -1
    return x, y, Staged(weight, outer)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("seed", range(4))
def test_it_fits_where_plain_descent_stalls(activation: str, seed: int) -> None:
    """With a tenth more parameters than equations; the same start, the same iterations."""
    unit, slope = ACTIVATIONS[activation]
    x, y, start = _problem(200, 20, 11, seed)
    size = float(y.norm())

    def misfit(output: torch.Tensor) -> Misfit:
        return Misfit(y - output, None, float((y - output).norm()) <= 1e-10 * size)

    plain = levenberg_marquardt(
        x, Point(start.weight, start.outer), unit, misfit, size, memory=MEMORY, iterations=300
    )
    found = sharpen(x, start, unit, misfit, size, memory=MEMORY, iterations=300)
    assert plain.loss > 1e-4
    assert found.failure is None
    before = (x @ found.weight.T).numpy()
    output = ((before > 0) * before + slope * (before <= 0) * before) @ found.outer[0].numpy()
    assert ((y.numpy() - output) ** 2).sum() / float(y @ y) <= 1.01e-20
    assert found.loss == pytest.approx(((y.numpy() - output) ** 2).sum() / float(y @ y), rel=0.1)


def test_the_iterations_allowed_are_not_exceeded() -> None:
    x, y, start = _problem(100, 10, 6, 0)  # fewer parameters than equations: it cannot end well
    seen: list[Staged] = []

    def misfit(output: torch.Tensor) -> Misfit:
        return Misfit(y - output, None, False)

    for iterations in (1, 7, 65, 150, 400):
        seen.clear()
        found = sharpen(
            x,
            start,
            nn.ReLU(),
            misfit,
            float(y.norm()),
            memory=MEMORY,
            iterations=iterations,
            on_step=seen.append,
        )
        assert found.failure is not None
        assert len(found.history) == len(seen) <= iterations
        assert found.history == seen[-1].history
    assert len(found.history) > 300
    assert {point.stage for point in seen} == set(range(len(SHARPNESS)))
    assert seen[-1].rounds > 0
    assert all(point.stage >= AGAIN for point in seen if point.rounds)


def test_a_stage_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no stage 99"):
        Staged(torch.zeros(1, 1), torch.zeros(1, 1), stage=99)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_solve_fits_values_with_a_tenth_more_parameters_than_rows(activation: str) -> None:
    x, y = regression(300, 30, seed=3)
    solution = isthmus.solve((x, y), width=11, activation=activation)  # 341 of hidden and output weights
    assert relative_loss(solution.model, x, y, float(y.mean())) <= 1e-19
    kinds = [type(layer).__name__ for layer in solution.model]
    assert kinds == ["Linear", {"relu": "ReLU", "leaky_relu": "LeakyReLU"}[activation], "Linear"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_solve_fits_several_outputs(activation: str) -> None:
    x, y = regression(60, 10, 3, seed=4)
    solution = isthmus.solve((x, y), width=18, activation=activation)
    assert relative_loss(solution.model, x, y, y.mean(0).numpy()) <= 1e-19


@pytest.mark.parametrize("targets", ["codes", "dead-zone", "one-hot", "softmax"])
def test_solve_fits_classes(targets: str) -> None:
    data = classes(120, 12, 4, seed=5)
    width = 46 if targets == "one-hot" else 13
    solution = isthmus.solve(data, width=width, activation="relu", targets=targets)
    assert solution.certificate.wrong == 0


def test_it_repeats_bit_for_bit() -> None:
    data = regression(100, 10, seed=6)
    one, two = (isthmus.solve(data, width=10, activation="relu", seed=1) for _ in range(2))
    assert all(map(torch.equal, one.model.state_dict().values(), two.model.state_dict().values()))
