"""What fits decides how the equations are solved, and not what comes out."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import isthmus
from isthmus.errors import InputError
from isthmus.jacobian.shallow import Shallow, linearize
from isthmus.linalg.cholesky import BLOCK, NotPositiveDefinite, packed_bytes
from isthmus.narrow.solver import dual
from isthmus.narrow.solver.dual import Memory, invert
from tests.narrow.solver.problems import regression, relative_loss

ROWS = 600
NONE = torch.zeros((), dtype=torch.float64)


@pytest.fixture
def routes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The routes that are taken, in order."""
    taken: list[str] = []
    route = Memory.route

    def noted(memory: Memory, equations: int) -> str:
        taken.append(route(memory, equations))
        return taken[-1]

    monkeypatch.setattr(Memory, "route", noted)
    return taken


OPTIONS = [{"width": 36, "method": "chord"}, {"width": 20, "method": "lm"}]


@pytest.mark.parametrize("options", OPTIONS, ids=["chord", "lm"])
def test_less_memory_takes_float32_and_then_blocks(
    options: dict[str, Any], routes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dual, "DOUBLE_BELOW", ROWS)
    x, y = regression(ROWS, 40, seed=1)
    isthmus.solve((x, y), **options)
    assert set(routes) == {"float64"}
    taken = ROWS * (12 * 41 + 8 * 8 * (options["width"] + 1))
    for limit, expected in (
        (taken + packed_bytes(ROWS, torch.float64), "float64"),
        (taken + packed_bytes(ROWS, torch.float64) - 1, "float32"),
        (taken + packed_bytes(ROWS, torch.float32), "float32"),
        (taken + packed_bytes(ROWS, torch.float32) - 1, "blocks"),
    ):
        routes.clear()
        solution = isthmus.solve((x, y), memory=limit, **options)
        assert set(routes) == {expected}
        assert relative_loss(solution.model, x, y, float(y.mean())) <= 1e-19
        assert solution.certificate.wrong == 0


def test_chord_gives_the_same_weights_by_every_route() -> None:
    x, y = regression(ROWS, 40, seed=2)
    taken = ROWS * (12 * 41 + 8 * 8 * 41)
    factors = (1 << 40, packed_bytes(ROWS, torch.float32), packed_bytes(ROWS, torch.float32) - 1)
    weights = [
        isthmus.solve((x, y), width=40, method="chord", memory=taken + factor).model[0].weight
        for factor in factors
    ]
    for weight in weights[1:]:
        torch.testing.assert_close(weight, weights[0], rtol=0, atol=1e-3 * float(weights[0].abs().max()))


def test_what_is_too_small_is_refused_with_both_numbers() -> None:
    data = regression(ROWS, 40, seed=1)
    with pytest.raises(InputError, match=r"a memory of 0\.954 MiB is too small: .* take \d[\d.,]* MiB"):
        isthmus.solve(data, width=36, method="chord", memory=1_000_000)
    for memory in (0, -5, 1.5, "1G", True):
        with pytest.raises(InputError, match="memory is a whole number"):
            isthmus.solve(data, memory=memory)


@pytest.mark.parametrize("equations", [1, 40, 255, 256, 257, 600, 2000, 2001, 5000])
def test_what_the_refusal_says_is_enough_is_enough(equations: int) -> None:
    with pytest.raises(InputError):
        Memory(1000, 1000).route(equations)
    least = 1000 + packed_bytes(BLOCK, torch.float32) * -(-equations // BLOCK)
    assert Memory(least, 1000).route(equations) in {"float64", "float32", "blocks"}


@pytest.mark.parametrize("equations", [300, 600, 1500, 2500])
def test_each_route_stays_below_the_limit(equations: int) -> None:
    """Counted for the factors as they are made: every block row, and the rows beside it."""
    for limit in range(
        0, 3 * packed_bytes(equations, torch.float64), packed_bytes(equations, torch.float32) // 7
    ):
        memory = Memory(limit, 0)
        try:
            route = memory.route(equations)
        except InputError:
            continue
        if route == "blocks":
            step = memory.block(equations)
            sizes = [min(step, equations - start) for start in range(0, equations, step)]
            held = sum(
                4 * (min(begin + BLOCK, size) - begin) * min(begin + BLOCK, size)
                for size in sizes
                for begin in range(0, size, BLOCK)
            )
            assert held <= limit
        else:
            assert packed_bytes(equations, torch.float64 if route == "float64" else torch.float32) <= limit
        assert memory.stated(equations) <= limit


def _jacobian(rows: int, repeated: float = 1.0) -> tuple[Shallow, np.ndarray]:
    """J, and J J^T of the dense J; the last third of the rows is the first, but for a part of it."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 6, generator=g, dtype=torch.float64)
    third = rows // 3
    x[-third:] = x[:third] + repeated * x[-third:]
    weight = torch.randn(rows // 3, 6, generator=g, dtype=torch.float64)
    jacobian = linearize(x, weight, torch.ones(1, rows // 3, dtype=torch.float64), nn.Tanh(), head=False)
    slope = 1 - torch.tanh(x @ weight.T) ** 2
    dense = (slope[:, :, None] * x[:, None, :]).reshape(rows, -1).numpy()
    return jacobian, dense @ dense.T


@pytest.mark.parametrize("shift", [torch.tensor(0.3), torch.linspace(0.1, 2, 90)])
@pytest.mark.parametrize("route", ["float64", "float32", "blocks"])
def test_every_route_solves_the_system(
    route: str, shift: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dual, "DOUBLE_BELOW", 0 if route != "float64" else 2000)
    monkeypatch.setattr(Memory, "route", lambda memory, equations: route)
    monkeypatch.setattr(Memory, "block", lambda memory, equations: 25)
    jacobian, gram = _jacobian(90)
    right = torch.randn(90, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    shift = shift.double()
    inverse = invert(jacobian, shift, Memory(1 << 40, 0))
    assert inverse.exact is (route == "float64")
    matrix = gram + np.diag(np.broadcast_to(shift.numpy(), 90))
    found = inverse(right, 1e-9)
    left = np.linalg.norm(right.numpy() - matrix @ found.numpy()) / np.linalg.norm(right.numpy())
    assert left <= 2e-9
    np.testing.assert_allclose(inverse.product(right), matrix @ right.numpy(), rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("shift", [0.0, 1e-3])
@pytest.mark.parametrize("repeated", [1e-4, 1e-2])
def test_where_float32_cannot_factorize_the_system_is_solved_all_the_same(
    repeated: float, shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs of rows that differ by less than float32 tells apart, and right sides that do not."""
    monkeypatch.setattr(dual, "DOUBLE_BELOW", 0)
    jacobian, matrix = _jacobian(60, repeated)
    inverse = invert(jacobian, NONE + shift, Memory(1 << 40, 0))
    right = torch.randn(60, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = inverse(right, 0.05).numpy()
    left = right.numpy() - matrix @ found - shift * found
    assert np.linalg.norm(left) <= 0.06 * np.linalg.norm(right.numpy())


@pytest.mark.parametrize("why", ["no lift makes it definite", "it is slow"])
def test_float64_takes_over_where_float32_does_not_serve(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dual, "DOUBLE_BELOW", 0)
    if why == "it is slow":
        monkeypatch.setattr(dual, "LEAST_ITERATIONS", 0)
        monkeypatch.setattr(dual, "INEXACT", 0.0)
    else:
        monkeypatch.setattr(dual, "LIFT", (1e-30,))
    jacobian, matrix = _jacobian(60, 1e-4)
    inverse = invert(jacobian, NONE, Memory(1 << 40, 0))
    assert inverse.exact
    right = torch.randn(60, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    left = right.numpy() - matrix @ inverse(right, 0.05).numpy()
    assert np.linalg.norm(left) <= 1e-5 * np.linalg.norm(right.numpy())


def test_where_only_float32_fits_the_diagonal_is_lifted_for_the_preconditioner() -> None:
    jacobian, matrix = _jacobian(60, 1e-5)
    memory = Memory(packed_bytes(60, torch.float32), 0)
    assert memory.route(60) == "float32"
    inverse = invert(jacobian, NONE + 1e-3, memory)
    assert not inverse.exact
    right = torch.randn(60, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = inverse(right, 1e-6).numpy()
    left = right.numpy() - matrix @ found - 1e-3 * found
    assert np.linalg.norm(left) <= 2e-6 * np.linalg.norm(right.numpy())


def test_what_is_singular_in_float64_is_said_to_be() -> None:
    jacobian, _ = _jacobian(40, 0.0)
    with pytest.raises(NotPositiveDefinite) as raised:
        invert(jacobian, NONE, Memory(1 << 40, 0))
    assert raised.value.pivot >= 40 - 13


def test_by_default_most_of_the_free_memory_may_be_taken() -> None:
    assert 1 << 20 < dual.available(torch.device("cpu")) < 1 << 50
