"""Whitened coordinates: the same functions, exactly, whatever the columns are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import isthmus
from isthmus.errors import PrecisionError
from isthmus.narrow.solver.whiten import Coordinates, as_stored, whitened

CPU = torch.device("cpu")


def _whitened(x: Tensor) -> Coordinates:
    return whitened(isthmus.from_arrays(x, torch.zeros(len(x)), task="regression"), CPU)


def _gap(coordinates: Coordinates, x: Tensor, seed: int = 0) -> float:
    """How far pre-activations on rows as stored are from those on Z, relative to what is summed up."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, coordinates.rows.shape[1], generator=g, dtype=torch.float64)
    raw, bias = coordinates.fold(weight)
    assert raw.isfinite().all()
    assert bias is None or bias.isfinite().all()
    rows = x.reshape(len(x), -1).numpy().astype(np.longdouble)
    found = rows @ raw.numpy().astype(np.longdouble).T
    size = np.abs(rows) @ np.abs(raw.numpy()).T
    if bias is not None:
        found, size = found + bias.numpy(), size + np.abs(bias.numpy())
    inside = coordinates.rows.numpy() @ weight.numpy().T
    return float((np.abs(found - inside) / (size + np.abs(inside) + 1e-300)).max())


@given(
    rows=st.integers(1, 30),
    inputs=st.integers(1, 12),
    seed=st.integers(0, 2**20),
    units=st.lists(st.integers(-30, 30), min_size=12, max_size=12),
)
@settings(max_examples=60)
def test_weights_folded_back_give_the_same_on_rows_as_stored(
    rows: int, inputs: int, seed: int, units: list[int]
) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=g, dtype=torch.float64)
    x *= 10.0 ** torch.tensor(units[:inputs], dtype=torch.float64)
    coordinates = _whitened(x)
    assert coordinates.rows.isfinite().all()
    assert _gap(coordinates, x) <= 1e-12


def test_whitened_rows_are_centered_uncorrelated_and_of_squared_norm_p() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=g, dtype=torch.float64)
    x = x @ torch.randn(4, 4, generator=g, dtype=torch.float64) + 5
    z = _whitened(x).rows.numpy()
    assert z.shape == (200, 5)
    np.testing.assert_array_equal(z[:, -1], 1)
    np.testing.assert_allclose(z[:, :-1].mean(0), 0, atol=1e-12)
    covariance = z[:, :-1].T @ z[:, :-1] / 200
    np.testing.assert_allclose(covariance - np.diag(covariance.diagonal()), 0, atol=1e-12)
    np.testing.assert_allclose(covariance.diagonal(), 1, atol=0.3)  # the ridge damps the least of them
    np.testing.assert_allclose(np.square(z).sum(1).mean(), 5, rtol=1e-12)


def test_the_units_of_columns_do_not_matter() -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(20, 4, generator=g, dtype=torch.float64)
    units = torch.tensor([1.0, 2.0**-20, 2.0**30, 2.0**-7], dtype=torch.float64)
    plain, scaled = _whitened(x).rows, _whitened(x * units).rows
    torch.testing.assert_close(scaled.abs(), plain.abs(), rtol=1e-9, atol=1e-9)


def test_constant_columns_are_without_weight() -> None:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(30, 5, generator=g, dtype=torch.float64)
    x[:, 1], x[:, 3] = 7.0, 0.0
    coordinates = _whitened(x)
    assert coordinates.rows.shape == (30, 4)
    raw, _ = coordinates.fold(torch.randn(3, 4, generator=g, dtype=torch.float64))
    assert torch.equal(raw[:, [1, 3]], torch.zeros(3, 2, dtype=torch.float64))
    assert raw[:, [0, 2, 4]].abs().min() > 0


def test_directions_in_which_rows_do_not_differ_are_dropped() -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(50, 3, generator=g, dtype=torch.float64)
    x = x @ torch.randn(3, 10, generator=g, dtype=torch.float64)
    coordinates = _whitened(x)
    assert coordinates.rows.shape == (50, 4)
    assert _gap(coordinates, x) <= 1e-12


@pytest.mark.parametrize("inputs", [30, 200])
def test_more_inputs_than_rows_leave_one_direction_less_than_rows(inputs: int) -> None:
    g = torch.Generator().manual_seed(4)
    x = torch.randn(20, inputs, generator=g, dtype=torch.float64)
    coordinates = _whitened(x)
    assert coordinates.rows.shape == (20, 20)
    assert np.linalg.matrix_rank(coordinates.rows.numpy()) == 20
    assert _gap(coordinates, x) <= 1e-12


def test_wide_rows_take_no_matrix_of_columns_by_columns() -> None:
    """40,000 columns: their covariance would take 13 GB."""
    x = torch.randn(5, 40_000, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert _whitened(x).rows.shape == (5, 5)


@pytest.mark.parametrize(
    "x", [torch.ones(1, 3), torch.full((6, 2), 4.5), torch.zeros(3, 2), torch.zeros(1, 1)]
)
def test_rows_that_do_not_differ_leave_the_column_of_ones(x: Tensor) -> None:
    coordinates = _whitened(x.double())
    assert torch.equal(coordinates.rows, torch.ones(len(x), 1, dtype=torch.float64))
    raw, bias = coordinates.fold(torch.tensor([[2.0], [-3.0]], dtype=torch.float64))
    assert torch.equal(raw, torch.zeros(2, x.shape[1], dtype=torch.float64))
    assert bias is not None
    assert bias.tolist() == [2, -3]


def test_images_of_bytes_keep_their_values_and_their_shape() -> None:
    g = torch.Generator().manual_seed(6)
    x = torch.randint(0, 256, (12, 5, 6), generator=g, dtype=torch.uint8)
    coordinates = _whitened(x)
    assert coordinates.rows.shape == (12, 12)
    assert _gap(coordinates, x) <= 1e-12


@pytest.mark.parametrize("offset", [1e6, 1e9, 1e12])
def test_a_huge_offset_costs_only_what_float64_loses_of_the_inputs(offset: float) -> None:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    near, far = _whitened(x).rows, _whitened(x + offset).rows
    torch.testing.assert_close(far.abs(), near.abs(), rtol=0, atol=1e-14 * offset)


@pytest.mark.parametrize("power", range(-320, 310, 15))
@pytest.mark.parametrize("bias", [True, False, None])
def test_any_scale_works_or_is_refused(power: int, bias: bool | None) -> None:
    """Nothing in between: where coordinates come back, they are those of the rows at scale 1."""
    x = torch.rand(9, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64) - 0.5
    scaled = torch.from_numpy(x.numpy() * np.float64(f"1e{power}"))
    data = isthmus.from_arrays(scaled, torch.zeros(9), task="regression")
    try:
        found = whitened(data, CPU) if bias is None else as_stored(data, CPU, bias=bias)
    except PrecisionError:
        assert abs(power) > 90
        return
    assert found.rows.isfinite().all()
    if bias is None:
        torch.testing.assert_close(found.rows.abs(), _whitened(x).rows.abs(), rtol=1e-8, atol=1e-8)
    assert _gap(found, scaled) <= 1e-12


def test_rows_as_stored_are_the_rows() -> None:
    x = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    data = isthmus.from_arrays(x, torch.zeros(4), task="regression")
    plain, biased = as_stored(data, CPU, bias=False), as_stored(data, CPU, bias=True)
    assert torch.equal(plain.rows, x.reshape(4, 6))
    assert torch.equal(biased.rows, torch.cat([x.reshape(4, 6), torch.ones(4, 1)], 1))
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(plain.fold(weight[:, :6])[0], weight[:, :6])
    assert plain.fold(weight[:, :6])[1] is None
    raw, bias = biased.fold(weight)
    assert torch.equal(raw, weight[:, :6])
    assert bias is not None
    assert torch.equal(bias, weight[:, 6])
