"""Extreme eigenvalues against NumPy's, and the bound against all of them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from isthmus.linalg.lanczos import lanczos


def _with_eigenvalues(values: list[float] | np.ndarray, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((len(values), len(values))))
    matrix = (basis * np.asarray(values)) @ basis.T
    return torch.from_numpy((matrix + matrix.T) / 2)


@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize(
    "values",
    [
        np.linspace(-3, 2, 60),
        np.geomspace(1e-6, 1, 60),
        -np.geomspace(1e-3, 1, 60),
        np.repeat([1.0, 2.0, 5.0], 20),
        np.concatenate([np.linspace(0, 1, 59), [1 + 1e-7]]),
        np.concatenate([np.zeros(59), [4.0]]),
        np.zeros(60),
        np.full(60, -2.5),
    ],
)
def test_both_ends_of_many_spectra(values: np.ndarray, which: str) -> None:
    matrix = _with_eigenvalues(values)
    found = lanczos(lambda x: matrix @ x, len(values), which)
    expected = values.max() if which == "largest" else values.min()
    size = np.abs(values).max()
    assert found.value == pytest.approx(expected, abs=1e-10 * abs(expected) + 1e-14 * size)
    assert found.bound <= 1e-10 * abs(expected) + 1e-14 * size
    assert found.vector.norm() == pytest.approx(1)
    residual = matrix @ found.vector - found.value * found.vector
    assert residual.norm().item() == pytest.approx(found.bound, abs=1e-15 * size)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_smallest_sizes(size: int) -> None:
    matrix = torch.diag(torch.arange(1.0, size + 1, dtype=torch.float64))
    assert lanczos(lambda x: matrix @ x, size).value == pytest.approx(size)
    assert lanczos(lambda x: matrix @ x, size, "smallest").value == pytest.approx(1)


@pytest.mark.parametrize("most", [1, 3, 8, 20])
@pytest.mark.parametrize("seed", range(4))
def test_the_bound_holds_long_before_convergence(most: int, seed: int) -> None:
    values = np.linspace(0, 1, 200)
    matrix = _with_eigenvalues(values)
    found = lanczos(lambda x: matrix @ x, 200, seed=seed, most=most)
    assert found.products == most + 1
    assert np.abs(values - found.value).min() <= found.bound
    assert found.value <= 1
    assert found.bound > 1e-6


def test_the_first_vector_is_drawn_from_the_seed_alone() -> None:
    matrix = _with_eigenvalues(np.linspace(0, 1, 50))
    before = torch.get_rng_state()
    runs = [lanczos(lambda x: matrix @ x, 50, seed=seed, most=5).value for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert torch.equal(before, torch.get_rng_state())


def test_the_basis_stays_orthogonal_on_a_wide_spectrum() -> None:
    """Without reorthogonalization, copies of the largest eigenvalue appear, and the smallest is never met."""
    values = np.concatenate([np.geomspace(1, 1e-3, 99), [1e8]])
    matrix = _with_eigenvalues(values)
    found = lanczos(lambda x: matrix @ x, 100, "smallest", tolerance=0.0)
    assert found.products <= 101
    assert found.value == pytest.approx(1e-3, abs=1e-6)


def test_single_precision() -> None:
    matrix = _with_eigenvalues(np.linspace(0, 1, 80)).float()
    found = lanczos(lambda x: matrix @ x, 80, dtype=torch.float32)
    assert found.vector.dtype == torch.float32
    assert found.value == pytest.approx(1, abs=1e-6)
