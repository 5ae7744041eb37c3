"""Bounds against eigenvalues in 60 digits, where float64 alone would be wrong."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch

from isthmus.arithmetic import verified
from isthmus.arithmetic.verified import DOUBLE, NONE, Rounding, smallest_eigenvalue, spectral_norm
from isthmus.linalg.cholesky import cholesky, dense_rows

mpmath.mp.dps = 60


def _exact_eigenvalues(matrix: torch.Tensor) -> list[mpmath.mpf]:
    """Of a symmetric matrix as it stands in float64, ascending."""
    values = mpmath.eigsy(mpmath.matrix(matrix.tolist()), eigvals_only=True)
    return sorted(values)


def _bound(matrix: torch.Tensor, guess: float, error: float = 0.0) -> float:
    return smallest_eigenvalue(dense_rows(matrix), len(matrix), guess=guess, error=error)


def _with_eigenvalues(values: np.ndarray, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
    matrix = basis * values @ basis.T
    return torch.from_numpy((matrix + matrix.T) / 2)


@pytest.mark.parametrize("seed", range(25))
def test_below_the_smallest_eigenvalue_and_close_to_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 9))
    matrix = _with_eigenvalues(10 ** rng.uniform(-4, 2, size), seed)
    smallest = float(_exact_eigenvalues(matrix)[0])
    for wrong in (1.0, 0.9, 1.002, 1.02, 2.0):
        found = _bound(matrix, wrong * smallest)
        assert found <= smallest
        assert found >= (0.99 if wrong in {1.0, 1.002} else 0.3) * smallest


@pytest.mark.parametrize("seed", range(40))
def test_never_above_where_rounding_decides(seed: int) -> None:
    """Smallest eigenvalues of 1e-18 to 1e-13 of the largest, of either sign: most are not told from 0."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 9))
    values = rng.uniform(0.5, 1, size)
    values[0] = rng.choice([-1, 1, 1]) * 10 ** rng.uniform(-18, -13)
    matrix = _with_eigenvalues(values, seed)
    smallest = float(_exact_eigenvalues(matrix)[0])
    for guess in (smallest, abs(smallest), 1e-14, 1e-16, float(np.linalg.eigvalsh(matrix.numpy())[0])):
        assert _bound(matrix, guess) <= smallest


@pytest.mark.parametrize("size", [4, 6, 8, 10, 11, 12, 13, 14])
def test_hilbert_matrices(size: int) -> None:
    index = torch.arange(size, dtype=torch.float64)
    matrix = 1 / (index[:, None] + index + 1)
    smallest = float(_exact_eigenvalues(matrix)[0])
    found = _bound(matrix, smallest)
    assert found <= smallest
    if size <= 8:
        assert found >= 0.9 * smallest
    if size >= 12:  # 1e-16 of the largest: float64 cannot know, and does not say so
        assert found <= 0


def test_singular_matrices_of_integers_are_never_called_definite() -> None:
    """Gram matrices of too few vectors, exact in float64: with every guess that rounding might suggest."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        size, rank = int(rng.integers(3, 40)), int(rng.integers(1, 3))
        factor = rng.integers(-9, 10, size=(size, rank)).astype(float)
        matrix = torch.from_numpy(factor @ factor.T)
        for guess in (1e-18, 1e-15, 1e-13, 1e-11):
            assert not _bound(matrix, guess) > 0


def test_blocks_of_rows_add_up() -> None:
    """More rows than a block of the factor has, against another algorithm."""
    rng = np.random.default_rng(1)
    factor = rng.normal(size=(700, 900))
    matrix = torch.from_numpy(factor @ factor.T)
    smallest = np.linalg.svd(factor, compute_uv=False)[-1] ** 2
    found = _bound(matrix, smallest)
    assert 0.99 * smallest <= found <= smallest
    spoiled = matrix.clone()
    spoiled[650, 3] -= 30.0  # a change of the lower half alone, far from the diagonal's block
    spoiled[3, 650] -= 30.0
    least = np.linalg.eigvalsh(spoiled.numpy())[0]
    assert _bound(spoiled, smallest) <= least


def test_terms_that_rounding_loses_are_counted() -> None:
    """1 + t² + ... + t² is 1 in float64, term by term, and the last pivot positive; in truth it is not."""
    size, small = 200, math.sqrt(0.4) * 2.0**-26
    row = torch.full((size,), small, dtype=torch.float64)
    row[0] = 1.0
    matrix = torch.eye(size + 1, dtype=torch.float64)
    matrix[size, :size] = matrix[:size, size] = row
    matrix[size, size] = 1 + 1e-14
    squares = sum(Fraction(each) ** 2 for each in row.tolist())
    assert squares > Fraction(1 + 1e-14)  # so the determinant is negative
    for guess in (1e-16, 1e-15, 3e-15):
        assert _bound(matrix, guess) < 0


def test_products_are_taken_to_be_off_by_gamma() -> None:
    size, large = 400, 1e6
    matrix = large * torch.eye(size, dtype=torch.float64)
    assert 1 - _bound(matrix, 1.0) >= 0.004 + size * 2.0**-53 * size * large


def test_nothing_is_assumed_of_the_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A = I + M - 11^T / 2n with M 1 = 0: its smallest eigenvalue is 1 / 2, but what is factorized is M."""
    size = 512
    ones = torch.full((size, size), 1 / size, dtype=torch.float64)
    rest = 10 * (torch.eye(size, dtype=torch.float64) - ones)
    matrix = torch.eye(size, dtype=torch.float64) + rest - ones / 2
    assert torch.linalg.eigvalsh(matrix)[0] == pytest.approx(0.5)
    spoiled = dense_rows(rest + 1e-6 * torch.eye(size, dtype=torch.float64))
    monkeypatch.setattr(verified, "cholesky", lambda rows, size, shift: cholesky(spoiled, size))
    assert 0.4 < _bound(matrix, 1.0) <= 0.5


def test_the_error_of_the_rows_is_subtracted() -> None:
    """The matrix that is meant may be anywhere within the error."""
    rng = np.random.default_rng(2)
    for seed in range(20):
        matrix = _with_eigenvalues(10 ** rng.uniform(-1, 1, 6), seed)
        values, vectors = np.linalg.eigh(matrix.numpy())
        error = 0.3 * values[0]
        meant = matrix - error * torch.from_numpy(np.outer(vectors[:, 0], vectors[:, 0]))
        found = _bound(matrix, values[0], error)
        assert found <= float(_exact_eigenvalues(meant)[0])
        assert found >= 0.65 * values[0]


def test_indefinite_matrices_have_negative_bounds() -> None:
    matrix = _with_eigenvalues(np.array([-3.0, -1.0, 2.0, 5.0]), 0)
    found = _bound(matrix, -3.0)
    assert -3.05 <= found <= -3.0 + 1e-12
    assert _bound(matrix, 1.0) == -math.inf  # a guess that is far too large finds nothing


def test_numbers_that_are_not_finite_prove_nothing() -> None:
    for bad in (math.nan, math.inf):
        matrix = torch.eye(3, dtype=torch.float64)
        matrix[2, 0] = matrix[0, 2] = bad
        assert not _bound(matrix, 0.5) > 0
    assert not _bound(torch.eye(3, dtype=torch.float64), math.nan) > 0
    assert not _bound(1e200 * torch.eye(3, dtype=torch.float64), 1e200) > 1e200


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 3), (3, 5), (40, 7), (7, 40), (6, 6)])
def test_norms_are_not_above_the_bound_and_close_to_it(rows: int, columns: int) -> None:
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        matrix[:, 0] += 3 * seed
        exact = mpmath.matrix(matrix.tolist())
        gram = exact * exact.T if rows <= columns else exact.T * exact
        largest = mpmath.sqrt(max(mpmath.eigsy(gram, eigvals_only=True)))
        found = spectral_norm(matrix)
        assert largest <= found <= 1.003 * largest


def test_norms_of_special_matrices() -> None:
    ones = torch.ones(300, 4, dtype=torch.float64)
    assert math.sqrt(1200) <= spectral_norm(ones) <= 1.003 * math.sqrt(1200)
    assert 0 <= spectral_norm(torch.zeros(3, 2, dtype=torch.float64)) < 1e-50
    assert 1e-5 <= spectral_norm(torch.full((1, 1), 1e-5, dtype=torch.float64)) <= 1.003e-5
    identity = 7 * torch.eye(50, dtype=torch.float64)
    assert 7 <= spectral_norm(identity) <= 7.03


def test_gamma_is_not_below_what_its_formula_says() -> None:
    unit = Fraction(1, 2**53)
    for roundings in (1, 3, 1000, 123457, 2**30):
        exact = roundings * unit / (1 - roundings * unit)
        assert exact <= Fraction(DOUBLE.gamma(roundings)) <= exact * Fraction(100001, 100000)
    assert NONE.gamma(1000) == 0
    assert DOUBLE.below(1.0) == 1 - 2.0**-20 < NONE.above(1.0) == 1 < DOUBLE.above(1.0) == 1 + 2.0**-20


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e-20, 1.0, 1e20])
def test_norms_of_vectors_are_not_rounded_down(size: float) -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        vector = size * rng.normal(size=37)
        squares = sum(Fraction(float(each)) ** 2 for each in vector)
        assert Fraction(DOUBLE.norm(torch.from_numpy(vector))) ** 2 >= squares
    assert Rounding(0.0).norm(torch.tensor([3.0, 4.0], dtype=torch.float64)) == 5.0
