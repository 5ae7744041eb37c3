"""Networks to train: sizes known from elsewhere, names that others use, weights that repeat."""

import pytest
import torch
from torch import nn

from isthmus.errors import InputError, WidthError
from isthmus.nets.cnn import cnn
from isthmus.nets.mirrored import MirroredLinear
from isthmus.nets.mlp import mlp
from isthmus.nets.paired import PairedHead
from isthmus.nets.resnet import resnet18


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_resnet18_is_torchvisions_in_size_and_names() -> None:
    model = resnet18(paired=False)
    assert _count(model) == 11_689_512
    names = list(model.state_dict())
    assert len(names) == 122
    assert names[:2] == ["conv1.weight", "bn1.weight"]
    assert {"layer4.0.downsample.0.weight", "layer4.1.bn2.num_batches_tracked", "fc.bias"} <= set(names)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 1000)


def test_the_last_stage_is_as_wide_as_asked_for() -> None:
    """8.39 million parameters at 512, 96.7 % fewer at 64."""
    wide, narrow = (_count(resnet18(10, width=width).layer4) for width in (512, 64))
    assert wide == 8_393_728
    assert narrow == 275_072
    assert round(100 * (1 - narrow / wide), 1) == 96.7
    model = resnet18(10, width=6, small_images=True)
    assert model.fc.weight.shape == (10, 3)
    assert model.layer4(torch.zeros(1, 256, 8, 8)).shape == (1, 6, 4, 4)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_convolutions_are_drawn_as_torchvision_draws_them() -> None:
    weight = resnet18(10).layer4[1].conv1.weight.detach()
    assert abs(weight.std().item() / (2 / (512 * 9)) ** 0.5 - 1) < 0.01


@pytest.mark.parametrize("bias", [True, False])
def test_an_mlp_has_lecuns_weights_and_no_more(bias: bool) -> None:
    model = mlp(300, [200, 100], 1, activation=nn.ReLU, bias=bias, seed=5)
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, MirroredLinear, nn.ReLU, PairedHead]
    assert torch.equal(*model.layer2.weight.chunk(2))
    assert model.layer1.weight.shape == (200, 300)
    assert abs(model.layer1.weight.std().item() * 300**0.5 - 1) < 0.02
    assert abs(model.layer2.weight.std().item() * 200**0.5 - 1) < 0.02
    assert model.fc.bias is None
    assert (model.layer1.bias is not None) == bias
    assert _count(mlp(4, [6], 3)) == 4 * 6 + 6 + 3 * 3 + 3
    assert type(mlp(4, [5], 3, paired=False).fc) is nn.Linear


@pytest.mark.parametrize(
    "build",
    [
        lambda seed: mlp(4, [6], 2, seed=seed),
        lambda seed: cnn(1, 8, 3, seed=seed),
        lambda seed: resnet18(2, width=4, seed=seed),
    ],
)
def test_a_seed_repeats_bit_for_bit_and_leaves_torchs_own_state_alone(build) -> None:
    state = torch.get_rng_state()
    first, again, other = build(3), build(3), build(4)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert any(not torch.equal(value, other.state_dict()[name]) for name, value in first.state_dict().items())


def test_sizes_that_cannot_be_are_refused() -> None:
    for build in (
        lambda: mlp(4, [7], 2),
        lambda: cnn(1, 7, 2),
        lambda: resnet18(10, width=7),
    ):
        with pytest.raises(WidthError, match="m = 7"):
            build()
    with pytest.raises(InputError, match="one hidden layer or more"):
        mlp(4, [], 2)
    with pytest.raises(InputError, match="1 or more"):
        mlp(4, [0], 2)


def test_a_cnn_takes_images_of_any_size() -> None:
    model = cnn(1, 8, 10)
    for size in ((28, 28), (5, 9)):
        assert model(torch.zeros(2, 1, *size)).shape == (2, 10)
