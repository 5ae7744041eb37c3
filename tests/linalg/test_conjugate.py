"""Conjugate gradients against NumPy, with preconditioners that are good, rounded, or change all the time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isthmus.linalg.conjugate import conjugate_gradients


def _system(size: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A matrix with eigenvalues from 1 to ``spread``, and a right side."""
    random = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(random.standard_normal((size, size)))
    matrix = (basis * np.geomspace(1, spread, size)) @ basis.T
    return (matrix + matrix.T) / 2, random.standard_normal(size)


def _same(r: Tensor) -> Tensor:
    return r.clone()


@given(size=st.integers(1, 30), spread=st.floats(1, 1e4), seed=st.integers(0, 2**20))
@settings(max_examples=40)
def test_it_solves_what_numpy_solves(size: int, spread: float, seed: int) -> None:
    matrix, right = _system(size, spread, seed)
    operator, b = torch.from_numpy(matrix), torch.from_numpy(right)
    found = conjugate_gradients(
        lambda x: operator @ x, b, precondition=_same, tolerance=1e-10, iterations=50 * size
    )
    assert found.residual <= 1e-10
    true = np.linalg.norm(right - matrix @ found.solution.numpy()) / np.linalg.norm(right)
    assert true <= 1e-9
    np.testing.assert_allclose(
        found.solution, np.linalg.solve(matrix, right), atol=1e-9 * spread * np.linalg.norm(right)
    )


def test_as_many_iterations_as_there_are_distinct_eigenvalues() -> None:
    operator = torch.diag(torch.tensor([1.0, 1, 1, 5, 5, 5, 9, 9], dtype=torch.float64))
    found = conjugate_gradients(
        lambda x: operator @ x,
        torch.arange(1.0, 9, dtype=torch.float64),
        precondition=_same,
        tolerance=1e-12,
        iterations=100,
    )
    assert found.iterations == 3


@pytest.mark.parametrize("preconditioner", ["exact", "float32", "changing"])
def test_preconditioners_that_are_inexact_still_help(preconditioner: str) -> None:
    matrix, right = _system(120, 1e8)
    operator, b = torch.from_numpy(matrix), torch.from_numpy(right)
    single = torch.linalg.inv(operator).float()
    lower = torch.linalg.cholesky(operator)
    calls = 0

    def precondition(r: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        match preconditioner:
            case "exact":
                return torch.linalg.solve(operator, r)
            case "float32":
                return (single @ r.float()).double()
            case _:
                noise = torch.randn(120, generator=torch.Generator().manual_seed(calls), dtype=torch.float64)
                half = torch.linalg.solve_triangular(lower, r[:, None], upper=False)[:, 0]
                half *= 1 + 0.05 * noise
                return torch.linalg.solve_triangular(lower.T, half[:, None], upper=True)[:, 0]

    found = conjugate_gradients(
        lambda x: operator @ x, b, precondition=precondition, tolerance=1e-8, iterations=120
    )
    assert found.iterations <= {"exact": 2, "float32": 20, "changing": 20}[preconditioner]
    true = np.linalg.norm(right - matrix @ found.solution.numpy()) / np.linalg.norm(right)
    assert true <= 1e-7
    bare = conjugate_gradients(lambda x: operator @ x, b, precondition=_same, tolerance=1e-8, iterations=120)
    assert bare.residual > 1e-3


def test_nothing_to_solve_takes_no_product() -> None:
    def never(_: Tensor) -> Tensor:
        raise AssertionError

    found = conjugate_gradients(
        never, torch.zeros(4, dtype=torch.float64), precondition=never, tolerance=1e-8, iterations=9
    )
    assert found.iterations == 0
    assert torch.equal(found.solution, torch.zeros(4, dtype=torch.float64))


def test_it_stops_after_the_iterations_allowed_with_the_residual_it_has() -> None:
    matrix, right = _system(50, 1e6)
    operator, b = torch.from_numpy(matrix), torch.from_numpy(right)
    found = conjugate_gradients(lambda x: operator @ x, b, precondition=_same, tolerance=0.0, iterations=7)
    assert found.iterations == 7
    true = torch.linalg.vector_norm(b - operator @ found.solution) / torch.linalg.vector_norm(b)
    assert found.residual == pytest.approx(float(true), rel=1e-6)


def test_a_direction_of_negative_curvature_ends_it() -> None:
    operator = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    found = conjugate_gradients(
        lambda x: operator @ x,
        torch.tensor([1.0, 2.0], dtype=torch.float64),
        precondition=_same,
        tolerance=1e-8,
        iterations=10,
    )
    assert found.residual > 1e-8
    assert found.solution.isfinite().all()


def test_the_right_side_is_left_alone() -> None:
    matrix, right = _system(10, 100)
    operator, b = torch.from_numpy(matrix), torch.from_numpy(right)
    before = b.clone()
    conjugate_gradients(lambda x: operator @ x, b, precondition=_same, tolerance=1e-8, iterations=50)
    assert torch.equal(b, before)
