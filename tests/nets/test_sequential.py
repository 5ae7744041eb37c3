"""`sequential` against the affine maps multiplied out by hand."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from isthmus.nets.sequential import LEAK, Affine, sequential

BY_HAND = {
    "hardtanh": lambda t: t.clamp(-1, 1),
    "relu": lambda t: t.clamp_min(0),
    "leaky_relu": lambda t: torch.where(t < 0, LEAK * t, t),
}


def random_affine(generator, *sizes):
    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [Affine(draw(below, above), draw(below)) for above, below in pairwise(sizes)]


@pytest.mark.parametrize("activation", BY_HAND)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sizes", [(3, 2), (4, 5, 2), (2, 3, 1, 4)])
def test_layers_in_order_with_the_activation_between(activation, dtype, sizes):
    generator = torch.Generator().manual_seed(0)
    affine = random_affine(generator, *sizes)
    model = sequential(affine, activation, dtype)
    x = torch.randn(7, sizes[0], generator=generator, dtype=torch.float64).to(dtype)
    value = x
    for index, (weight, bias) in enumerate(affine):
        value = BY_HAND[activation](value) if index else value
        value = value @ weight.to(dtype).T + bias.to(dtype)
    torch.testing.assert_close(model(x), value)
    assert [layer.out_features for layer in model if isinstance(layer, nn.Linear)] == list(sizes[1:])
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_flatten_takes_images():
    affine = random_affine(torch.Generator().manual_seed(0), 6, 4, 2)
    x = torch.arange(12, dtype=torch.float64).reshape(2, 1, 2, 3)
    flat = sequential(affine, "relu")(x.flatten(1))
    assert torch.equal(sequential(affine, "relu", flatten=True)(x), flat)


def test_parameters_are_copies():
    affine = random_affine(torch.Generator().manual_seed(0), 2, 2)
    model = sequential(affine, "relu")
    affine[0].weight.zero_()
    assert model[0].weight.abs().min() > 0
