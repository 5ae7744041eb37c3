"""Gram matrices against J J^T with J from plain autograd."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from isthmus.errors import InputError
from isthmus.jacobian import gram as module
from isthmus.jacobian.gram import gram, layer_grams
from isthmus.nets.mlp import mlp
from tests.jacobian.networks import CASES, jacobian, randn, randomized


class _Largest(TorchDispatchMode):
    """The most bytes of a tensor that is made."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple | list) else (found,):
            if isinstance(each, Tensor):
                self.bytes = max(self.bytes, each.untyped_storage().nbytes())
        return found


@pytest.mark.parametrize(
    ("case", "left"), [("own parameter", 1), *((case, left) for case in CASES for left in (1 << 30, 20_000))]
)
def test_equations_are_ordered_by_rows(case: str, left: int) -> None:
    model, x = CASES[case]()
    own = jacobian(model, x).flatten(0, 1)
    expected = own @ own.T
    found = gram(model, x, memory=expected.nbytes + left)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13 * float(expected.abs().max()))
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("case", CASES)
def test_layers_add_up_to_the_whole(case: str) -> None:
    model, x = CASES[case]()
    layers = layer_grams(model, x)
    for layer, found in layers.items():
        names = [name for name, _ in model.named_parameters() if name.rpartition(".")[0] == layer]
        own = jacobian(model, x, names).flatten(0, 1)
        torch.testing.assert_close(found, own @ own.T, rtol=0, atol=1e-13 * float(found.abs().max()))
    whole = gram(model, x)
    torch.testing.assert_close(
        sum(layers.values()), whole, rtol=0, atol=1e-13 * float(whole.abs().max()), check_dtype=True
    )


def test_nothing_of_the_size_of_j_is_held() -> None:
    model, x = randomized(mlp(5, [20, 20], 1, paired=False)), randn(50, 5)
    own = jacobian(model, x).flatten(0, 1)
    limit = own.nbytes // 5
    with _Largest() as largest:
        found = gram(model, x, memory=8 * 50**2 + limit)
    assert found.nbytes < limit
    assert largest.bytes <= limit
    torch.testing.assert_close(found, own @ own.T, rtol=0, atol=1e-13 * float(found.abs().max()))
    with _Largest() as largest:
        gram(model, x)
    assert largest.bytes > own.nbytes // 2  # so it would have been seen


def test_many_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are added to at a time."""
    monkeypatch.setattr(module, "ROWS", 4)
    model, x = CASES["residual block"]()
    own = jacobian(model, x).flatten(0, 1)
    found = gram(model, x)
    torch.testing.assert_close(found, own @ own.T, rtol=0, atol=1e-13 * float(found.abs().max()))
    assert torch.equal(found, found.T)


def test_a_float32_model_has_a_float64_gram() -> None:
    model, x = CASES["mlp"]()
    own = jacobian(model.float(), x.float()).flatten(0, 1).double()
    found = gram(model, x.float())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, own @ own.T, rtol=1e-5, atol=1e-6)


def test_the_matrix_itself_must_fit() -> None:
    model, x = CASES["mlp"]()
    with pytest.raises(InputError, match="the Gram matrix takes"):
        gram(model, x, memory=1000)
    with pytest.raises(InputError, match="4 Gram matrices take"):
        layer_grams(model, x, memory=8 * 18**2)
