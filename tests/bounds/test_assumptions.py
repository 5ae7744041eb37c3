"""Assumptions on data made to meet or to break them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isthmus.bounds import assumptions
from isthmus.bounds.assumptions import affine_rank, distinct_rows, general_position, unit_norm
from isthmus.bounds.converse import fails, pieces_by_unit
from isthmus.bounds.theorems import HARDTANH_GATE, smallest_gates
from isthmus.data.dataset import Shape, from_arrays


def dataset(x, y=None):
    return from_arrays(np.asarray(x), np.arange(len(x)) % 2 if y is None else y)


def position(x):
    data = dataset(x)
    return general_position(data, affine_rank(data))


def gaussian(rows, inputs, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, inputs))


@pytest.mark.parametrize(
    ("y", "met", "reason"),
    [
        ([0, 1, 0], True, "1 repeated rows merged"),
        ([0, 1, 1], False, "2 rows repeat an input with another target, first row 1"),
    ],
)
def test_distinct_rows(y, met, reason):
    found = distinct_rows(dataset([[1, 2], [3, 4], [1, 2]], y))
    assert (found.met, found.reason) == (met, reason)


@pytest.mark.parametrize(
    ("x", "met", "reason"),
    [
        (gaussian(20, 3), None, "passes the necessary tests"),
        (gaussian(3, 20), True, "3 rows span 2 dimensions"),
        (gaussian(4, 3), True, "4 rows span 3 dimensions"),
        ([[0, 0, 0], [1, 1, 1], [2, 2, 2]], False, "3 rows span 1 dimensions"),
        ([[1], [2], [5]], True, "distinct numbers"),
        (np.c_[gaussian(20, 3), np.full(20, 0.1)], False, "1 of 4 columns are constant"),
        (gaussian(20, 2) @ gaussian(2, 3), False, "the rows span only 2 of 3 dimensions"),
        (np.c_[gaussian(20, 2), [7] * 4 + [*range(16)]], False, "more than 3 rows share a value in column 3"),
        ([[0, 0], [0, 1], [1, 0], [1, 1]], True, "no three rows lie on a line"),
        ([[0.1, 0.1], [0.2, 0.2], [5, 0], [0.7, 0.7]], False, "some three rows lie on a line"),
        (gaussian(301, 2), None, "passes the necessary tests"),
    ],
)
def test_general_position(x, met, reason):
    found = position(x)
    assert (found.met, found.reason) == (met, reason)


def test_collinear_rows_show_why_few_rows_must_be_independent():
    rows = inputs = 100
    assert fails(pieces_by_unit((smallest_gates(rows, inputs, 2, HARDTANH_GATE),), 3), rows)
    assert position(np.outer(np.arange(rows), np.ones(inputs))).met is False


@given(st.integers(2, 30), st.integers(1, 30), st.integers(1, 8), st.integers(0, 9))
def test_affine_rank_from_both_sides(rows, inputs, inner, seed):
    x = gaussian(rows, inner, seed) @ gaussian(inner, inputs, seed + 100) + 1000.0
    assert affine_rank(dataset(x)) == np.linalg.matrix_rank(x - x.mean(axis=0), tol=1e-6 * rows)


@pytest.mark.parametrize("scale", [1e-100, 1.0, 1e100])
def test_affine_rank_does_not_depend_on_units(scale):
    assert affine_rank(dataset(gaussian(50, 4) * [1, scale, 1e-6, 1e9])) == 4


def test_affine_rank_of_one_row_is_zero():
    assert affine_rank(dataset([[1.0, 2.0]])) == 0


def test_blocks_of_columns_change_nothing(monkeypatch):
    wide, tall = gaussian(5, 40), np.c_[gaussian(30, 3), [7] * 5 + [*range(25)]]
    before = position(wide), position(tall)
    monkeypatch.setattr(assumptions, "BLOCK_VALUES", 1)
    assert (position(wide), position(tall)) == before
    assert before[1].reason.endswith("column 4")


def test_unit_norm():
    x = gaussian(10, 3)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert unit_norm(dataset(x)).met
    assert unit_norm(dataset(x.astype(np.float32))).met
    assert unit_norm(dataset(2 * x)).met is False


def test_digits():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    data = from_arrays(digits.data, digits.target)
    assert affine_rank(data) == 61
    assert general_position(data, 61).reason == "3 of 64 columns are constant"


def test_without_rows_only_sizes_are_known():
    found = {a.name: a.met for a in assumptions.without_rows(Shape(100, 5, 10, "classification"))}
    assert found["general position"] is found["distinct rows"] is found["unit norm"] is None
    assert found["two classes"] is found["inputs >= classes"] is False


def test_integers_of_any_width_and_images_are_read():
    images = torch.arange(5 * 3 * 2, dtype=torch.uint8).reshape(5, 3, 2) ** 2
    assert affine_rank(dataset(images)) == np.linalg.matrix_rank(
        images.reshape(5, 6).double().numpy() - images.reshape(5, 6).double().numpy().mean(axis=0)
    )
