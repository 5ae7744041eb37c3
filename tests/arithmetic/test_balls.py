"""Enclosures against the same functions in 80 digits."""

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isthmus.arithmetic import balls
from isthmus.arithmetic.balls import ACTIVATIONS, Enclosed, evaluate

mpmath.mp.dps = 80
ULP = 2.0**-52
NUMERICAL = mpmath.mpf(10) ** -290  # error of numerical differentiation here


def _sigmoid(z: mpmath.mpf) -> mpmath.mpf:
    return 1 / (1 + mpmath.exp(-z))


EXACT = {
    nn.Tanh: mpmath.tanh,
    nn.Sigmoid: _sigmoid,
    nn.SiLU: lambda z: z * _sigmoid(z),
    nn.GELU: lambda z: z * mpmath.ncdf(z),
}


def _column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def _holds(found: Enclosed, exact: list[mpmath.mpf], relative: float) -> None:
    for value, error, true in zip(found.value.flatten(), found.error.flatten(), exact, strict=True):
        assert abs(mpmath.mpf(value.item()) - true) <= mpmath.mpf(error.item()) + NUMERICAL
        assert error <= relative * abs(value) + 1e-300


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_and_slopes(activation: type[nn.Module]) -> None:
    rng = np.random.default_rng(0)
    points = [0.0, 5e-324, -1e-200, 1e-9, -1.278, 40.0, -40.0, 300.0, -300.0, 709.0, -745.2]
    points += rng.normal(scale=3, size=60).tolist()
    found = evaluate(_column(points), *map(_column, ([1.0], [1.0], [0.0], [0.0] * len(points))), activation)
    function = EXACT[activation]
    _holds(found.feature, [function(mpmath.mpf(z)) for z in points], ULP)
    with mpmath.workdps(400):
        _holds(
            found.slope, [mpmath.diff(function, mpmath.mpf(z), h=mpmath.mpf(10) ** -150) for z in points], ULP
        )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_far_out_there_are_still_bounds(activation: type[nn.Module]) -> None:
    points = [1e5, -1e5, 1e100, -1e100]
    found = evaluate(_column(points), *map(_column, ([1.0], [1.0], [0.0], [0.0] * 4)), activation)
    for which in (found.feature, found.slope):
        assert torch.isfinite(which.value).all()
        assert (which.error <= ULP * which.value.abs() + 1e-300).all()
    assert found.slope.value[1] == found.slope.value[3] == 0


def test_residuals_keep_their_digits_where_targets_cancel() -> None:
    """Targets that are the outputs rounded to float64: what is left is far below an ulp of the terms."""
    rng = np.random.default_rng(1)
    n, d, m, k = 5, 3, 4, 2
    x, weight, outer, offset = (
        torch.from_numpy(rng.normal(size=size)) for size in ((n, d), (m, d), (k, m), (k,))
    )
    outer *= 1e6

    def exact(row: int, output: int) -> mpmath.mpf:
        total = mpmath.mpf(offset[output].item())
        for j in range(m):
            before = sum(mpmath.mpf(x[row, i].item()) * weight[j, i].item() for i in range(d))
            total += outer[output, j].item() * mpmath.tanh(before)
        return total

    outputs = [[exact(row, output) for output in range(k)] for row in range(n)]
    y = torch.tensor([[float(value) for value in row] for row in outputs], dtype=torch.float64)
    found = evaluate(x, weight, outer, offset, y, nn.Tanh)
    left = [
        mpmath.mpf(y[row, output].item()) - outputs[row][output] for row in range(n) for output in range(k)
    ]
    _holds(found.residual, left, 1e-12)
    assert found.residual.value.abs().max() > 0
    assert found.residual.error.max() < 1e-25


def test_rows_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, outer, offset, y = (
        torch.randn(size, generator=generator, dtype=torch.float64)
        for size in ((11, 3), (4, 3), (2, 4), (2,), (11, 2))
    )
    whole = evaluate(x, weight, outer, offset, y, nn.Tanh)
    monkeypatch.setattr(balls, "AT_A_TIME", 13)
    parts = evaluate(x, weight, outer, offset, y, nn.Tanh)
    assert whole.residual.value.shape == (11, 2)
    for one, other in zip(vars(whole).values(), vars(parts).values(), strict=True):
        assert torch.equal(one.value, other.value)
