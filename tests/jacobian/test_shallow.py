"""The structured Jacobian of one hidden layer against the dense one of automatic differentiation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from isthmus.jacobian.shallow import Shallow, linearize

SIGMAS = {"tanh": nn.Tanh(), "sigmoid": nn.Sigmoid(), "leaky": nn.LeakyReLU(0.1)}


def _dense(x: Tensor, weight: Tensor, outer: Tensor, sigma: nn.Module, *, head: bool) -> Tensor:
    """J [K N, m d + K m], outputs first, by `torch.func.jacrev` of a network written down here."""

    def outputs(weight: Tensor, outer: Tensor) -> Tensor:
        return torch.stack([sum(u * sigma(x @ w) for u, w in zip(row, weight, strict=True)) for row in outer])

    parts = torch.func.jacrev(outputs, argnums=(0, 1) if head else (0,))(weight, outer)
    return torch.cat([part.reshape(len(outer) * len(x), -1) for part in parts], 1)


def _case(
    seed: int, n: int, d: int, m: int, k: int, sigma: nn.Module, *, head: bool
) -> tuple[Shallow, Tensor, torch.Generator]:
    g = torch.Generator().manual_seed(seed)
    x, weight, outer = (
        torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((n, d), (m, d), (k, m))
    )
    jacobian = linearize(x, weight, outer, sigma, head=head)
    return jacobian, _dense(x, weight, outer, sigma, head=head), g


def _close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max() + 1))


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_all_products(outputs: int, sigma: str, head: bool) -> None:
    jacobian, dense, g = _case(outputs, 7, 3, 4, outputs, SIGMAS[sigma], head=head)
    size = 7 * outputs
    assert jacobian.equations == size
    gram = dense @ dense.T
    _close(jacobian.gram_diagonal(), gram.diagonal())
    a = torch.randn(size, generator=g, dtype=torch.float64)
    _close(jacobian.gram_product(a), gram @ a)
    weight, outer = jacobian.pull(a)
    assert (outer is None) is not head
    parts = [weight.reshape(-1)] + ([] if outer is None else [outer.reshape(-1)])
    _close(torch.cat(parts), dense.T @ a)
    step = torch.randn(dense.shape[1], generator=g, dtype=torch.float64)
    inner = step[: 4 * 3].reshape(4, 3)
    _close(jacobian.push(inner, step[4 * 3 :].reshape(outputs, 4) if head else None), dense @ step)
    _close(jacobian.push(inner), dense[:, : 4 * 3] @ step[: 4 * 3])


@given(
    seed=st.integers(0, 2**20),
    n=st.integers(1, 6),
    d=st.integers(1, 4),
    m=st.integers(1, 4),
    k=st.integers(1, 3),
    head=st.booleans(),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
)
@settings(max_examples=60)
def test_rows_of_the_gram_matrix_from_any_column_on(
    seed: int, n: int, d: int, m: int, k: int, head: bool, cut: tuple[float, float, float]
) -> None:
    jacobian, dense, _ = _case(seed, n, d, m, k, nn.Tanh(), head=head)
    gram = dense @ dense.T
    stop = 1 + int(cut[0] * (n * k - 1))
    begin = min(stop - 1, int(cut[1] * stop))
    start = min(begin, int(cut[2] * (begin + 1)))
    found = jacobian.gram_rows(slice(begin, stop), start)
    assert found.shape == (stop - begin, stop - start)
    _close(found, gram[begin:stop, start:stop])


def test_the_default_is_all_columns_up_to_the_diagonal() -> None:
    jacobian, dense, _ = _case(0, 5, 2, 3, 2, nn.Tanh(), head=True)
    _close(jacobian.gram_rows(slice(4, 7)), (dense @ dense.T)[4:7, :7])


def test_a_paired_head_has_the_differences_of_its_halves() -> None:
    """For Σ v_j (σ(a_j · x) - σ(b_j · x)) the slopes are those of all units, and F is the difference."""
    g = torch.Generator().manual_seed(4)
    x, a, b = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((6, 3), (2, 3), (2, 3)))
    v = torch.randn(2, generator=g, dtype=torch.float64)

    def outputs(a: Tensor, b: Tensor, v: Tensor) -> Tensor:
        return (torch.tanh(x @ a.T) - torch.tanh(x @ b.T)) @ v

    parts = torch.func.jacrev(outputs, argnums=(0, 1, 2))(a, b, v)
    dense = torch.cat([part.reshape(6, -1) for part in parts], 1)
    whole = linearize(x, torch.cat([a, b]), torch.cat([v, -v])[None], nn.Tanh(), head=False)
    jacobian = Shallow(x, whole.slope, whole.outer, torch.tanh(x @ a.T) - torch.tanh(x @ b.T))
    _close(jacobian.gram_rows(slice(0, 6)), dense @ dense.T)
    _close(jacobian.gram_diagonal(), (dense @ dense.T).diagonal())


def test_another_dtype_has_the_same_products_but_for_rounding() -> None:
    jacobian, dense, g = _case(5, 8, 3, 4, 2, nn.Tanh(), head=True)
    single = jacobian.to(torch.float32)
    a = torch.randn(16, generator=g, dtype=torch.float64)
    found = single.gram_product(a.float())
    assert found.dtype == torch.float32
    expected = dense @ dense.T @ a
    assert 1e-9 < float((found.double() - expected).norm() / expected.norm()) < 1e-5
    assert jacobian.x.dtype == torch.float64


def test_no_gradient_is_asked_of_the_caller() -> None:
    with torch.no_grad():
        jacobian, dense, _ = _case(6, 4, 2, 3, 1, nn.Tanh(), head=True)
    assert not jacobian.slope.requires_grad
    _close(jacobian.gram_rows(slice(0, 4)), dense @ dense.T)
