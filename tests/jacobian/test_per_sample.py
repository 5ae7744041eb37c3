"""Per-sample Jacobians and their products against plain autograd, one output at a time."""

import pytest
import torch
from torch import Tensor, nn

from isthmus.errors import InputError
from isthmus.jacobian import jacobian_of, per_sample_jacobian
from isthmus.jacobian.gram import gram
from isthmus.nets.mlp import mlp
from tests.jacobian.networks import CASES, Autoencoder, Block, jacobian, randn, randomized


def _close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13 * float(expected.abs().max()))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("memory", [1 << 30, 1])
def test_rows_are_those_of_autograd(case: str, memory: int) -> None:
    model, x = CASES[case]()
    expected = jacobian(model, x)
    _close(per_sample_jacobian(model, x, memory=expected.nbytes + memory), expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("memory", [1 << 30, 1])
def test_products_are_those_with_the_matrix(case: str, memory: int) -> None:
    model, x = CASES[case]()
    expected = jacobian(model, x)
    found = jacobian_of(model, x)
    d, a = randn(expected.shape[2], seed=2), randn(*expected.shape[:2], seed=3)
    _close(found.push(d, memory=memory), expected @ d)
    _close(found.pull(a, memory=memory), torch.einsum("nkp,nk->p", expected, a))
    _close(found.pull(a.flatten(), memory=memory), torch.einsum("nkp,nk->p", expected, a))


def test_finite_differences_agree() -> None:
    model, x = CASES["residual block"]()
    model.eval()
    found = per_sample_jacobian(model, x, "block.bn1.weight")
    weight, step = model.get_parameter("block.bn1.weight"), 1e-6
    with torch.no_grad():
        for index in range(len(weight)):
            sides = []
            for sign in (1, -1):
                weight[index] += sign * step
                sides.append(model(x))
                weight[index] -= sign * step
            torch.testing.assert_close(
                (sides[0] - sides[1]) / (2 * step), found[..., index], rtol=1e-7, atol=1e-8
            )


@pytest.mark.parametrize("case", ["residual block", "deciding", "in place", "attention", "shared"])
def test_the_model_is_left_as_it_was(case: str) -> None:
    model, x = CASES[case]()
    model.train()
    next(model.modules()).training = False
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = [*model.parameters(), *model.buffers()]
    rows, random = x.clone(), torch.get_rng_state()
    fast = torch.backends.mha.get_fastpath_enabled()
    per_sample_jacobian(model, x)
    gram(model, x)
    found = jacobian_of(model, x)
    found.push(randn(found.parameters))
    found.pull(randn(found.equations))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert all(a is b for a, b in zip(tensors, [*model.parameters(), *model.buffers()], strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(rows, x)
    assert torch.equal(random, torch.get_rng_state())
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_parameters_are_chosen_by_their_names_and_those_of_modules() -> None:
    model, x = randomized(Block()), randn(3, 2, 5, 5)
    names = ["block.conv1.weight", "block.bn2.weight", "block.bn2.bias", "fc.weight"]
    expected = jacobian(model, x, names)
    # In the model's order, whatever the order in which they are asked for.
    _close(per_sample_jacobian(model, x, ["fc.weight", "block.bn2", "block.conv1", "block.conv1"]), expected)
    _close(per_sample_jacobian(model, x, "fc"), jacobian(model, x, ["fc.weight", "fc.bias"]))
    model.block.requires_grad_(False)
    _close(per_sample_jacobian(model, x), jacobian(model, x, ["fc.weight", "fc.bias"]))
    model.requires_grad_(False)
    assert per_sample_jacobian(model, x).shape[2] == sum(p.numel() for p in model.parameters())


def test_a_tied_parameter_counts_once_under_any_of_its_names() -> None:
    model, x = randomized(Autoencoder()), randn(4, 4)
    expected = jacobian(model, x, ["first.weight"])
    for names in ("first.weight", "second.weight", "second", ["second.weight", "first.weight"]):
        _close(per_sample_jacobian(model, x, names), expected)
    assert list(jacobian_of(model, x, ["second.weight", "first.weight"]).point) == ["first.weight"]
    assert list(jacobian_of(model, x, "second.weight").point) == ["second.weight"]


def test_wrong_questions_are_answered_with_what_to_do() -> None:
    model, x = mlp(3, [4], 2).double(), randn(5, 3)
    for names, says in (
        ("layer3", "no parameters under the name 'layer3'; is it one of layer1"),
        ("layer", "no parameters under the name"),
        (["fc.weights"], r"is it one of fc\.weight"),
        ([model.fc.weight], "not a Parameter"),
    ):
        with pytest.raises(InputError, match=says):
            per_sample_jacobian(model, x, names)
    for inputs, says in (
        (randn(5, 4), r"does not take inputs \[4\]"),
        (randn(0, 3), "no rows"),
    ):
        with pytest.raises(InputError, match=says):
            per_sample_jacobian(model, inputs)
    with pytest.raises(InputError, match="memory of"):
        per_sample_jacobian(model, x, memory=1000)
    with pytest.raises(InputError, match="no parameters"):
        per_sample_jacobian(nn.Sequential(nn.Tanh()), x)

    class Odd(nn.Linear):
        answer: object = None

        def forward(self, x: Tensor) -> object:
            return (super().forward(x),) if self.answer is tuple else super().forward(x).sum()

    odd = Odd(3, 2).double()
    with pytest.raises(InputError, match=r"shape \[\] for 5 rows"):
        per_sample_jacobian(odd, x)
    odd.answer = tuple
    with pytest.raises(InputError, match="gives a tuple"):
        per_sample_jacobian(odd, x)


def test_the_dtype_is_the_models() -> None:
    model, x = CASES["mlp"]()
    expected = jacobian(model, x)
    found = per_sample_jacobian(model.float(), x.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_it_works_within_inference_mode() -> None:
    model, x = CASES["mlp"]()
    expected = jacobian(model, x)
    with torch.inference_mode():
        _close(per_sample_jacobian(model, x), expected)
        found = jacobian_of(model, x)
        _close(found.push(torch.ones(found.parameters, dtype=torch.float64)), expected.sum(2))
