"""Mirrored initialization: exactly zero at the start, and what the theory says of the gradient there."""

import copy

import pytest
import torch
from torch import Tensor, nn

import isthmus
from isthmus.errors import UnsupportedModel, WidthError
from isthmus.narrow.mirror import is_mirrored
from isthmus.nets.cnn import cnn
from isthmus.nets.mirrored import MirroredConv2d, MirroredLinear
from isthmus.nets.mlp import mlp
from isthmus.nets.paired import PairedHead
from isthmus.nets.resnet import resnet18

BATCHES = (1, 2, 3, 8, 17)
IMAGES = [(16, 16), (9, 7)]


def _at_start(network: nn.Module, block: str, x: Tensor) -> None:
    isthmus.mirror(network.get_submodule(block))
    for training in (True, False):
        network.train(training)
        assert torch.equal(network(x), torch.zeros_like(network(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.LeakyReLU])
@pytest.mark.parametrize(("inputs", "width"), [(1, 2), (3, 6), (10, 34), (100, 18), (784, 100)])
def test_a_mirrored_mlp_is_exactly_zero(
    dtype: torch.dtype, activation: type[nn.Module], inputs: int, width: int
) -> None:
    network = mlp(inputs, [2 * width, width], 3, activation=activation).to(dtype)
    generator = torch.Generator().manual_seed(0)
    for rows in BATCHES:
        _at_start(network, "layer2", torch.randn(rows, inputs, generator=generator).to(dtype))


@pytest.mark.parametrize("size", IMAGES)
@pytest.mark.parametrize("width", [2, 10, 24])
def test_a_mirrored_cnn_is_exactly_zero(size: tuple[int, int], width: int) -> None:
    network = cnn(3, width, 10)
    for rows in BATCHES[1:]:
        x = torch.randn(rows, 3, *size, generator=torch.Generator().manual_seed(0))
        _at_start(network, "stage3", x)
        _at_start(network, "stage3", x.contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("width", [6, 64])
def test_a_mirrored_resnet_is_exactly_zero(width: int) -> None:
    network = resnet18(10, width=width, small_images=True)
    for rows in (2, 5):
        x = torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        _at_start(network, "layer4", x)
        _at_start(network, "layer4", x.contiguous(memory_format=torch.channels_last))


def test_the_output_at_the_start_is_the_bias_of_the_head() -> None:
    network = mlp(5, [8], 3)
    isthmus.mirror(network.layer1)
    with torch.no_grad():
        network.fc.bias.copy_(torch.tensor([1.0, -2.0, 3.0]))
    assert torch.equal(network(torch.randn(4, 5)), torch.tensor([[1.0, -2.0, 3.0]]).expand(4, 3))


def test_the_gradient_at_the_start_is_as_the_theory_says() -> None:
    """∂ℓ/∂v = 0, ∂ℓ/∂w_{j+h} = -∂ℓ/∂w_j, and nothing reaches the layers below."""
    network = mlp(5, [6, 8], 2).double()
    isthmus.mirror(network.layer2)
    x = torch.randn(20, 5, dtype=torch.float64)
    (network(x) - 1).square().sum().backward()
    assert torch.equal(network.fc.weight.grad, torch.zeros(2, 4, dtype=torch.float64))
    first, second = network.layer2.weight.grad.chunk(2)
    torch.testing.assert_close(first, -second, rtol=1e-12, atol=1e-12)
    assert first.abs().max() > 0
    assert network.layer1.weight.grad.abs().max() < 1e-14


def test_sigma_min_of_the_whole_jacobian_is_that_of_half_times_the_root_of_two() -> None:
    network = mlp(6, [8], 1, bias=False).double()
    isthmus.mirror(network.layer1)
    x = torch.randn(10, 6, dtype=torch.float64)

    def output(weight: Tensor, row: Tensor) -> Tensor:
        return torch.func.functional_call(network, {"layer1.weight": weight}, (row[None],))[0, 0]

    jacobian = torch.func.vmap(torch.func.grad(output), (None, 0))(network.layer1.weight, x)
    whole = torch.linalg.svdvals(jacobian.flatten(1))[-1]
    half = torch.linalg.svdvals(jacobian[:, :4].flatten(1))[-1]
    torch.testing.assert_close(whole, 2**0.5 * half)


def test_mirroring_copies_the_first_half_of_every_tensor_and_keeps_it() -> None:
    stage = resnet18(10, width=8).layer4
    for module in stage.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.weight.data.normal_()
    before = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    isthmus.mirror(stage)
    assert is_mirrored(stage)
    for name, tensor in stage.state_dict().items():
        if tensor.ndim:
            first, second = tensor.chunk(2)
            assert torch.equal(first, before[name].chunk(2)[0])
            assert torch.equal(first, second)


def test_a_mirrored_layer_computes_what_the_plain_one_does_and_has_its_state_dict() -> None:
    for plain, x in (
        (nn.Linear(5, 8), torch.randn(3, 5, dtype=torch.float64)),
        (nn.Conv1d(2, 8, 3, padding=1), torch.randn(3, 2, 9, dtype=torch.float64)),
        (
            nn.Conv2d(2, 8, 3, stride=2, padding=1, padding_mode="circular", dilation=2),
            torch.randn(3, 2, 9, 9, dtype=torch.float64),
        ),
        (nn.Conv3d(2, 8, 3, bias=False), torch.randn(3, 2, 5, 5, 5, dtype=torch.float64)),
    ):
        plain.double()
        layer = copy.deepcopy(plain)
        isthmus.mirror(layer)
        assert type(layer).__name__ == f"Mirrored{type(plain).__name__}"
        layer.load_state_dict(plain.state_dict())
        torch.testing.assert_close(layer(x), plain(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer(x[0]), plain(x[0]), rtol=1e-12, atol=1e-12)


def test_the_difference_of_halves_that_nearly_agree_is_accurate_relative_to_itself() -> None:
    layer = nn.Linear(50, 8)
    isthmus.mirror(layer)
    with torch.no_grad():
        layer.weight[4:] += 1e-6 * torch.randn(4, 50)
    x = torch.randn(30, 50)
    first, second = layer(x).chunk(2, 1)
    a, b = layer.weight.double().chunk(2)
    exact = x.double() @ (b - a).T
    # What is added is accurate; that it is rounded on being added to the first half, no layer can avoid.
    assert (second.double() - first.double() - exact).abs().max() <= 2**-24 * 1.01 * second.abs().max()


def test_folding_gives_plain_layers_and_the_same_function() -> None:
    network = resnet18(10, width=8, small_images=True).eval()
    isthmus.mirror(network.layer4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    folded = isthmus.fold(network)
    assert {type(module) for module in folded.modules()}.isdisjoint({MirroredConv2d, PairedHead})
    assert type(folded.fc) is nn.Linear
    assert isinstance(network.fc, PairedHead)
    assert isinstance(network.layer4[0].conv1, MirroredConv2d)
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(folded(x), network(x), rtol=1e-4, atol=1e-5)
    assert type(isthmus.fold(PairedHead(4, 2))) is nn.Linear


def test_a_seed_draws_lecuns_weights_and_none_keeps_those_that_are_there() -> None:
    layer = nn.Linear(400, 600)
    before = layer.weight.detach().clone()
    state = torch.get_rng_state()
    isthmus.mirror(layer)
    assert torch.equal(layer.weight[:300], before[:300])
    isthmus.mirror(layer, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert not layer.bias.any()
    assert abs(layer.weight.std().item() * 20 - 1) < 0.02
    again = nn.Linear(400, 600)
    isthmus.mirror(again, seed=3)
    assert torch.equal(again.weight, layer.weight)


def test_pairing_keeps_the_first_half_of_the_columns_and_begins_without_bias() -> None:
    head = nn.Linear(6, 4, dtype=torch.float64)
    paired = isthmus.pair(head)
    assert torch.equal(paired.weight, head.weight[:, :3])
    assert not paired.bias.any()
    assert paired.weight.dtype == torch.float64
    assert isthmus.pair(paired) is paired
    drawn = isthmus.pair(nn.Linear(4000, 40), seed=1)
    assert abs(drawn.weight.std().item() * 4000**0.5 - 1) < 0.02
    assert torch.equal(drawn.weight, isthmus.pair(nn.Linear(4000, 40), seed=1).weight)
    assert isthmus.pair(nn.Linear(6, 1, bias=False)).bias is None


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.1)), r"1 \(Dropout\).*put it before"),
        (nn.Conv2d(4, 8, 3, groups=2), "2 groups.*use groups = 1"),
        (nn.GLU(), "multiplies one half"),
        (nn.PixelShuffle(2), "moves channels"),
        (nn.GroupNorm(3, 12), "even number"),
        (nn.LayerNorm([4, 5]), "features alone"),
        (nn.LSTM(3, 4), "which axis of .*weight_hh_l0"),
        (nn.MultiheadAttention(4, 2), "in_proj_weight"),
        (_Scaled(), "which axis of scale"),
        (nn.LazyLinear(4), "no shape yet"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), "parametrized"),
        (nn.Linear(3, 4, device="meta"), "meta device"),
    ],
)
def test_what_cannot_be_mirrored_is_refused_with_the_reason(layer: nn.Module, says: str) -> None:
    with pytest.raises(UnsupportedModel, match=says):
        isthmus.mirror(layer)


def test_refused_blocks_are_left_as_they_were() -> None:
    block = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
    before = block[0].weight.detach().clone()
    with pytest.raises(UnsupportedModel):
        isthmus.mirror(block, seed=1)
    assert torch.equal(block[0].weight, before)
    assert type(block[0]) is nn.Linear


def test_odd_widths_are_refused_by_number() -> None:
    with pytest.raises(WidthError, match=r"m = 7, so no two halves; make it 8"):
        isthmus.mirror(nn.Sequential(nn.Linear(4, 7)))
    with pytest.raises(WidthError, match="m = 7"):
        isthmus.pair(nn.Linear(7, 3))


def test_only_a_linear_layer_is_paired() -> None:
    with pytest.raises(
        UnsupportedModel, match="a Conv2d cannot be paired: the head is the last Linear layer"
    ):
        isthmus.pair(nn.Conv2d(4, 4, 1))


def test_normalization_and_slopes_pass_mirrored_outputs_on() -> None:
    for norm in (
        nn.GroupNorm(2, 8),
        nn.GroupNorm(1, 8),
        nn.LayerNorm(8),
        nn.BatchNorm1d(8),
        nn.PReLU(8),
        nn.PReLU(),
    ):
        block = nn.Sequential(nn.Linear(5, 8), norm)
        with torch.no_grad():
            for parameter in norm.parameters():
                parameter.normal_()
        isthmus.mirror(block)
        first, second = block(torch.randn(6, 5)).chunk(2, 1)
        assert torch.equal(first, second), norm


def test_mirrored_linear_layers_keep_who_they_are() -> None:
    layer = nn.Linear(3, 4)
    same = layer
    isthmus.mirror(layer)
    assert same is layer
    assert isinstance(layer, MirroredLinear)
    assert isinstance(layer, nn.Linear)
