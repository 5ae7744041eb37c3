"""The preconditioner against its own matrix, written down, and against what it is for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isthmus.jacobian.shallow import Shallow, linearize
from isthmus.linalg.conjugate import conjugate_gradients
from isthmus.narrow.solver.leading import leading


def _jacobian(rows: int, inputs: int, units: int, outputs: int, seed: int, *, signs: bool = True) -> Shallow:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator, dtype=torch.float64)
    weight = 1.5 * inputs**-0.5 * torch.randn(units, inputs, generator=generator, dtype=torch.float64)
    outer = 3 * torch.randn(outputs, units, generator=generator, dtype=torch.float64)
    return linearize(x, weight, outer if signs else outer.abs(), nn.Tanh())


def _dense(jacobian: Shallow, shift: Tensor) -> np.ndarray:
    """Z Z^T + T with q from the singular value decomposition of M."""
    x, slope, outer = (t.numpy() for t in (jacobian.x, jacobian.slope, jacobian.outer))
    m = np.concatenate([slope * own for own in outer])
    left, values, _ = np.linalg.svd(m, full_matrices=False)
    z = (left[:, :1] * values[0]) * np.tile(x, (len(outer), 1))
    gram = jacobian.gram_rows(slice(0, jacobian.equations)).tril()
    mean = float(gram.diagonal().mean()) - np.square(z).sum(1).mean()
    return z @ z.T + np.diag(np.broadcast_to(shift.numpy() + mean, len(z)))


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("each", [False, True])
def test_it_is_the_inverse_of_the_leading_part(outputs: int, each: bool) -> None:
    jacobian = _jacobian(40, 6, 5, outputs, seed=outputs)
    shift = torch.tensor(0.7, dtype=torch.float64)
    if each:
        shift = torch.linspace(0.1, 5, jacobian.equations, dtype=torch.float64)
    solve = leading(jacobian, shift)
    assert solve is not None
    right = torch.randn(jacobian.equations, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = np.linalg.solve(_dense(jacobian, shift), right.numpy())
    np.testing.assert_allclose(solve(right).numpy(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("outputs", [1, 2])
def test_it_saves_most_iterations_of_one_output(outputs: int) -> None:
    jacobian = _jacobian(800, 20, 60, outputs, seed=3)
    if outputs == 1:  # where Levenberg-Marquardt begins
        jacobian = replace(jacobian, outer=3 * jacobian.outer.sign())
    diagonal = jacobian.gram_diagonal()
    shift = 1e-3 * diagonal.mean()
    solve = leading(jacobian, shift)
    assert solve is not None
    right = torch.randn(jacobian.equations, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    taken = [
        conjugate_gradients(
            lambda a: jacobian.gram_product(a) + shift * a,
            right,
            precondition=precondition,
            tolerance=0.1,
            iterations=2000,
        ).iterations
        for precondition in (solve, (diagonal + shift).reciprocal().mul)
    ]
    assert taken[0] <= (0.5 if outputs == 1 else 1.0) * taken[1]


def test_float32_takes_what_float64_does() -> None:
    jacobian = _jacobian(60, 8, 5, 1, seed=4)
    shift = torch.tensor(0.1, dtype=torch.float64)
    double, single = leading(jacobian, shift), leading(jacobian.to(torch.float32), shift.float())
    assert double is not None
    assert single is not None
    right = torch.randn(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(single(right.float()).double(), double(right), rtol=1e-3, atol=1e-4)


def test_inputs_as_many_as_equations_are_left_to_a_factor() -> None:
    for inputs, serves in ((29, True), (30, False), (400, False)):
        jacobian = _jacobian(30, inputs, 3, 1, seed=6)
        assert (leading(jacobian, torch.tensor(1.0, dtype=torch.float64)) is not None) is serves


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e30])
def test_numbers_beyond_float32_are_declined(value: float) -> None:
    jacobian = _jacobian(30, 4, 3, 1, seed=5).to(torch.float32)
    shift = torch.tensor(1.0)
    broken = Shallow(jacobian.x * value, jacobian.slope, jacobian.outer, jacobian.features)
    assert leading(broken, shift) is None
