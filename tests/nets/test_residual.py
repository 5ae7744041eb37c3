"""`Residual` against the paper's recursion multiplied out by hand."""

import torch
from torch import nn

from isthmus.nets.residual import Residual


def test_a_network_of_theorem_4_1():
    generator = torch.Generator().manual_seed(0)
    model, expected = nn.Sequential(), torch.randn(7, 4, generator=generator, dtype=torch.float64)
    x = expected
    for hidden in (3, 1, 5):
        u, v = nn.Linear(4, hidden), nn.Linear(hidden, 4)
        block = Residual(u, nn.Hardtanh(), v).double()
        model.append(block)
        for parameter in block.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        expected = expected + (expected @ u.weight.T + u.bias).clamp(-1, 1) @ v.weight.T + v.bias
    torch.testing.assert_close(model(x), expected)


def test_it_is_a_sequence_with_names():
    block = Residual(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    assert list(block.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert [type(layer) for layer in block] == [nn.Linear, nn.ReLU, nn.Linear]


def test_blocks_within_blocks():
    x = torch.tensor([[-1.0, 2.0]])
    assert Residual(Residual(nn.ReLU()))(x).tolist() == [[-2.0, 6.0]]  # x + (x + max(x, 0))


def test_its_input_is_left_alone():
    x = torch.tensor([[-1.0, 2.0]])
    Residual(nn.Identity())(x)
    assert x.tolist() == [[-1.0, 2.0]]
