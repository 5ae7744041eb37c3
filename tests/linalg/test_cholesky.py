"""The packed factor against NumPy's and SciPy's."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isthmus.linalg.cholesky import NotPositiveDefinite, cholesky, dense_rows, packed_bytes


def _definite(size: int, seed: int = 0) -> np.ndarray:
    half = np.random.default_rng(seed).standard_normal((size, size))
    return half @ half.T + size * np.eye(size)


@given(
    size=st.integers(1, 40), block=st.integers(1, 45), rights=st.integers(0, 3), seed=st.integers(0, 2**20)
)
@settings(max_examples=60)
def test_any_size_in_any_block(size: int, block: int, rights: int, seed: int) -> None:
    matrix = _definite(size, seed)
    shape = (size,) if rights == 0 else (size, rights)
    right = np.random.default_rng(seed + 1).standard_normal(shape)
    factor = cholesky(dense_rows(torch.from_numpy(matrix)), size, block=block)
    assert factor.size == size
    np.testing.assert_allclose(factor.pivots, np.linalg.cholesky(matrix).diagonal(), rtol=1e-12)
    found = factor.solve(torch.from_numpy(right))
    assert found.shape == shape
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right), rtol=1e-10, atol=1e-14)


def test_the_factor_is_the_lower_one_row_by_row() -> None:
    matrix = _definite(11)
    factor = cholesky(dense_rows(torch.from_numpy(matrix)), 11, block=4)
    assert [tuple(block.shape) for block in factor.blocks] == [(4, 4), (4, 8), (3, 11)]
    whole = np.zeros((11, 11))
    for block, start in zip(factor.blocks, (0, 4, 8), strict=True):
        whole[start : start + len(block), : block.shape[1]] = block
    np.testing.assert_allclose(np.tril(whole), np.linalg.cholesky(matrix), rtol=1e-12, atol=1e-14)


def test_the_default_block_where_the_size_is_no_multiple_of_it() -> None:
    matrix, right = _definite(300), np.random.default_rng(1).standard_normal((300, 2))
    found = cholesky(dense_rows(torch.from_numpy(matrix)), 300).solve(torch.from_numpy(right))
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("block", [3, 8, 100])
def test_shifts_one_number_or_one_per_row(block: int) -> None:
    matrix, right = _definite(20), np.ones(20)
    shifts = np.random.default_rng(2).uniform(0, 50, 20)
    for shift, diagonal in ((0.7, 0.7 * np.ones(20)), (torch.from_numpy(shifts), shifts)):
        factor = cholesky(dense_rows(torch.from_numpy(matrix)), 20, shift=shift, block=block)
        expected = np.linalg.solve(matrix + np.diag(diagonal), right)
        np.testing.assert_allclose(factor.solve(torch.from_numpy(right)), expected, rtol=1e-11)


def test_neither_the_matrix_nor_the_right_side_is_changed() -> None:
    matrix, right = torch.from_numpy(_definite(9)), torch.ones(9, 2, dtype=torch.float64)
    before = matrix.clone(), right.clone()
    cholesky(dense_rows(matrix), 9, shift=1.0, block=4).solve(right)
    assert torch.equal(matrix, before[0])
    assert torch.equal(right, before[1])


def test_a_float32_factor_solves_in_the_dtype_of_the_right_side() -> None:
    matrix, right = _definite(50), np.random.default_rng(3).standard_normal(50)
    factor = cholesky(dense_rows(torch.from_numpy(matrix).float()), 50, block=16)
    assert {block.dtype for block in factor.blocks} == {torch.float32}
    found = factor.solve(torch.from_numpy(right))
    assert found.dtype == torch.float64
    exact = np.linalg.solve(matrix, right)
    error = np.linalg.norm(found.numpy() - exact) / np.linalg.norm(exact)
    assert 1e-9 < error < 1e-5


@pytest.mark.parametrize("block", [1, 4, 7, 30])
@pytest.mark.parametrize("first", [0, 3, 7, 19])
def test_the_pivot_is_the_first_leading_minor_that_is_not_positive(block: int, first: int) -> None:
    matrix = _definite(20)
    matrix[first, first] = (
        0.5 * matrix[first, :first] @ np.linalg.solve(matrix[:first, :first], matrix[:first, first])
        if first
        else -1.0
    )
    minors = [scipy.linalg.det(matrix[:k, :k]) for k in range(1, 21)]
    assert next(k for k, minor in enumerate(minors) if minor <= 0) == first
    with pytest.raises(NotPositiveDefinite, match=f"row {first} ") as raised:
        cholesky(dense_rows(torch.from_numpy(matrix)), 20, block=block)
    assert raised.value.pivot == first


def test_a_row_that_repeats_another_is_found() -> None:
    rows = torch.eye(6, dtype=torch.float64)
    rows[4] = rows[1]
    with pytest.raises(NotPositiveDefinite) as raised:
        cholesky(dense_rows(rows @ rows.T), 6, block=2)
    assert raised.value.pivot == 4


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_what_is_not_finite_is_not_positive_definite(bad: float) -> None:
    matrix = _definite(10)
    matrix[6, 6] = bad
    with pytest.raises(NotPositiveDefinite):
        cholesky(dense_rows(torch.from_numpy(matrix)), 10, block=4)


def _asked(matrix: Tensor, log: list[tuple[int, int]]) -> Callable[[slice], Tensor]:
    def rows(block: slice) -> Tensor:
        log.append((block.start, block.stop))
        return matrix[block, : block.stop].clone()

    return rows


def test_every_block_row_is_asked_for_once_and_in_order() -> None:
    log: list[tuple[int, int]] = []
    told: list[float] = []
    matrix = torch.from_numpy(_definite(10))
    cholesky(_asked(matrix, log), 10, block=4, on_progress=lambda _, part: told.append(part))
    assert log == [(0, 4), (4, 8), (8, 10)]
    assert told == sorted(told)
    assert told[-1] == 1.0


@pytest.mark.parametrize(("size", "block"), [(1, 4), (5, 4), (60, 4), (5, 256), (300, 256), (700, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bytes_stated_are_enough_for_the_factor_and_one_block_row(
    size: int, block: int, dtype: torch.dtype
) -> None:
    factor = cholesky(dense_rows(torch.eye(size, dtype=dtype)), size, block=block)
    held = sum(part.numel() * part.element_size() for part in factor.blocks)
    assert held + size * min(block, size) * dtype.itemsize <= packed_bytes(size, dtype, block)
    assert packed_bytes(size, dtype, block) <= held + 4 * (size + block) * min(block, size) * dtype.itemsize
