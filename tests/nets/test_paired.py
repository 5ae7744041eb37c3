"""`PairedHead` against NumPy and fractions, as a stage of a graph, and along a line."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import isthmus
from isthmus import graph
from isthmus.arithmetic.exact import exact_forward
from isthmus.bounds.pieces import linear_pieces
from isthmus.errors import UnsupportedModel, WidthError
from isthmus.graph import LAYERS, Clip, Dense, Paired, Sum
from isthmus.nets.paired import PairedHead
from isthmus.nets.patched import Patched
from isthmus.nets.residual import Residual

WORDS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16}


def drawn(
    seed: int, m: int, outputs: int, *, bias: bool = True, dtype: torch.dtype = torch.float64
) -> PairedHead:
    """A head with all tensors from one generator."""
    random = torch.Generator().manual_seed(seed)
    head = PairedHead(m, outputs, bias, dtype=dtype).requires_grad_(False)
    for parameter in head.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=random))
    return head


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(WORDS[tensor.dtype])


def in_fractions(module: nn.Module, x: list[Fraction]) -> list[Fraction]:
    """The outputs at one input, in naive rational arithmetic, with the difference first."""
    match module:
        case Residual():
            return [a + b for a, b in zip(x, in_fractions(nn.Sequential(*module), x), strict=True)]
        case nn.Sequential():
            for layer in module:
                x = in_fractions(layer, x)
            return x
        case nn.ReLU():
            return [max(value, Fraction(0)) for value in x]
        case nn.Linear() | PairedHead():
            if isinstance(module, PairedHead):
                half = len(x) // 2
                x = [a - b for a, b in zip(x[:half], x[half:], strict=True)]
            offsets = [0.0] * len(module.weight) if module.bias is None else module.bias.tolist()
            return [
                sum((Fraction(w) * v for w, v in zip(row, x, strict=True)), Fraction(offset))
                for row, offset in zip(module.weight.tolist(), offsets, strict=True)
            ]
    raise NotImplementedError(type(module).__name__)


# The layer itself.


@given(
    leading=st.lists(st.integers(0, 3), max_size=3),
    half=st.integers(1, 5),
    outputs=st.integers(1, 4),
    bias=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_it_is_the_formula_on_any_leading_dimensions(
    leading: list[int], half: int, outputs: int, bias: bool, seed: int
):
    random = np.random.default_rng(seed)  # integers, whose sums are exact
    v, b = random.integers(-99, 99, (outputs, half)), random.integers(-99, 99, outputs)
    g1, g2 = random.integers(-99, 99, (2, *leading, half))
    head = PairedHead(2 * half, outputs, bias).requires_grad_(False)
    head.weight.copy_(torch.from_numpy(v))
    if head.bias is not None:
        head.bias.copy_(torch.from_numpy(b))
    found = head(torch.from_numpy(np.concatenate([g1, g2], -1)).float())
    assert found.shape == (*leading, outputs)
    assert np.array_equal(found.numpy(), (g1 - g2) @ v.T + (b if bias else 0))


def test_it_is_the_formula_on_real_numbers():
    head = drawn(0, 14, 3)
    x = torch.randn(5, 2, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = (x.numpy()[..., :7] - x.numpy()[..., 7:]) @ head.weight.numpy().T + head.bias.numpy()
    np.testing.assert_allclose(head(x).numpy(), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("m", [7, 1, 0, -2])
def test_an_odd_width_is_refused_and_named(m: int):
    with pytest.raises(WidthError, match=rf"even number of features, m >= 2, not m = {m}\.$"):
        PairedHead(m, 3)


@pytest.mark.parametrize("features", [1, 2, 3, 5, 6, 7, 8])
def test_another_number_of_features_is_refused_not_broadcast(features: int):
    # Of three, parts of two and one would still subtract.
    with pytest.raises((RuntimeError, ValueError)):
        PairedHead(4, 2)(torch.ones(5, features))


def test_without_a_bias():
    head = PairedHead(6, 2, bias=False)
    assert head.bias is None
    assert list(head.state_dict()) == ["weight"]
    assert "bias=False" in repr(head)
    assert not head(torch.ones(3, 6)).any()


def test_what_it_holds():
    head = isthmus.PairedHead(6, 2)
    assert type(head) is PairedHead
    assert {name: tuple(tensor.shape) for name, tensor in head.named_parameters()} == {
        "weight": (2, 3),
        "bias": (2,),
    }
    assert all(parameter.requires_grad for parameter in head.parameters())
    assert repr(head) == "PairedHead(in_features=6, out_features=2, bias=True)"
    other = PairedHead(6, 2)
    other.load_state_dict(head.state_dict())
    x = torch.randn(4, 6)
    assert torch.equal(other(x), head(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtype_and_device_are_those_asked_for(dtype: torch.dtype):
    head = PairedHead(6, 2, dtype=dtype)
    assert [parameter.dtype for parameter in head.parameters()] == [dtype, dtype]
    assert head(torch.ones(3, 6, dtype=dtype)).dtype == dtype
    with torch.device("meta"):
        within = PairedHead(6, 2, dtype=dtype)
    for placed in (PairedHead(6, 2, device="meta", dtype=dtype), within):
        assert all(parameter.is_meta and parameter.dtype == dtype for parameter in placed.parameters())


@pytest.mark.parametrize("m", [2, 400])
def test_weights_are_drawn_with_variance_one_over_m(m: int):
    torch.manual_seed(0)
    head = PairedHead(m, 400_000 // m)
    before = head.weight.detach().clone()
    nn.init.ones_(head.bias)
    head.reset_parameters()
    weight = head.weight.detach().double() * m**0.5
    count = weight.numel()
    assert not torch.equal(head.weight, before)
    assert not head.bias.any()
    # Five standard errors each; a uniform distribution has 58 % within one standard deviation.
    assert abs(float(weight.mean())) < 5 * count**-0.5
    assert abs(float(weight.std()) - 1) < 5 * (2 * count) ** -0.5
    within = float((weight.abs() <= 1).double().mean())
    assert abs(within - math.erf(0.5**0.5)) < 5 * (0.25 / count) ** 0.5
    assert float(weight.abs().amax()) > 3.5


@pytest.mark.parametrize("dtype", WORDS, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 17])
@pytest.mark.parametrize(("m", "outputs"), [(2, 1), (66, 5), (1024, 1), (1024, 10)])
def test_equal_halves_give_the_bias_bit_for_bit(rows: int, m: int, outputs: int, dtype: torch.dtype):
    head = drawn(rows, m, outputs, dtype=dtype)
    random = torch.Generator().manual_seed(m)
    half = (torch.randn(rows, m // 2, generator=random) * 100).to(dtype)
    found = head(torch.cat([half, half], 1))
    assert torch.equal(bits(found), bits(head.bias.expand(rows, outputs)))
    assert torch.equal(bits(head(torch.cat([half[0], half[0]]))), bits(head.bias))  # without a batch
    assert not drawn(rows, m, outputs, bias=False, dtype=dtype)(torch.cat([half, half], 1)).any()


def test_equal_halves_pass_back_opposite_gradients_and_leave_the_weight_alone():
    head = PairedHead(8, 3)
    half = torch.randn(5, 4)
    x = torch.cat([half, half], 1).requires_grad_()
    (head(x) * torch.randn(5, 3)).sum().backward()
    first, second = x.grad.chunk(2, 1)
    assert first.any()
    assert torch.equal(first, -second)
    assert not head.weight.grad.any()


# One Linear of it.


def gamma(roundings: int, dtype: torch.dtype) -> Fraction:
    """What a term may lose in so many roundings, as a part of it."""
    unit = Fraction(torch.finfo(dtype).eps) / 2
    return roundings * unit / (1 - roundings * unit)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_folding_differs_by_no_more_than_both_may_round(bias: bool, dtype: torch.dtype):
    different = 0
    for seed in range(30):
        half = 1 + seed % 9
        head = drawn(seed, 2 * half, 3, bias=bias, dtype=dtype)
        random = torch.Generator().manual_seed(seed)
        first = torch.randn(3, half, generator=random).to(dtype)
        second = first * (1 + 10.0 ** -(seed % 5) * torch.randn(3, half, generator=random).to(dtype))
        x = torch.cat([first, second], 1)
        folded = head.folded()
        assert torch.equal(folded.weight, torch.cat([head.weight, -head.weight], 1))
        own, other = head(x), folded(x)
        different += int((own != other).sum())
        offsets = head.bias.tolist() if bias else [0.0] * 3
        for row, one, two in zip(x.tolist(), own.tolist(), other.tolist(), strict=True):
            g = [Fraction(value) for value in row]
            exact = in_fractions(head, g)
            assert in_fractions(folded, g) == exact
            for k, weights in enumerate(head.weight.tolist()):
                pairs = [(abs(Fraction(w)), *pair) for w, *pair in zip(weights, g, g[half:], strict=False)]
                size = sum(w * abs(a - b) for w, a, b in pairs) + abs(Fraction(offsets[k]))
                large = sum(w * (abs(a) + abs(b)) for w, a, b in pairs) + abs(Fraction(offsets[k]))
                # One for the product, one for the difference, and one for every sum.
                assert abs(Fraction(one[k]) - exact[k]) <= gamma(half + 2, dtype) * size
                assert abs(Fraction(two[k]) - exact[k]) <= gamma(2 * half + 1, dtype) * large
    assert different > 0


@pytest.mark.parametrize("dtype", WORDS, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_folding_draws_no_numbers_and_shares_no_memory(bias: bool, dtype: torch.dtype):
    head = PairedHead(6, 2, bias, dtype=dtype)
    before = torch.get_rng_state()
    linear = head.folded()
    assert torch.equal(torch.get_rng_state(), before)
    assert type(linear) is nn.Linear
    assert (linear.in_features, linear.out_features, linear.weight.dtype) == (6, 2, dtype)
    assert (linear.bias is None) == (not bias)
    held = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    with torch.no_grad():
        for parameter in linear.parameters():
            assert not parameter.is_meta
            parameter.fill_(7.0)
    assert all(torch.equal(held[name], tensor) for name, tensor in head.state_dict().items())


def bits_by_hand(head: PairedHead, x: Tensor) -> np.ndarray:
    v, g = head.weight.double().abs().numpy(), x.double().numpy()
    first, second = g[..., : v.shape[1]], g[..., v.shape[1] :]
    return np.log2(((abs(first) + abs(second)) @ v.T) / (abs(first - second) @ v.T))


def nearly_equal_halves(seed: int, rows: int, half: int, power: int, dtype: torch.dtype) -> Tensor:
    """Features whose halves differ by about 2^-power of themselves."""
    random = torch.Generator().manual_seed(seed)
    first, other = torch.randn(2, rows, half, generator=random, dtype=torch.float64)
    return torch.cat([first, first + 2.0**-power * other], 1).to(dtype)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("power", [0, 5, 15])
def test_folding_bits_are_their_formula(power: int, dtype: torch.dtype, error: float):
    head = drawn(power, 24, 3, dtype=dtype)
    x = nearly_equal_halves(1, 10, 12, power, dtype)
    found = head.folding_bits(x)
    assert found.shape == (10, 3)
    np.testing.assert_allclose(found.numpy(), bits_by_hand(head, x), rtol=error, atol=error)
    assert torch.equal(head.folding_bits(x.reshape(2, 5, 24)), found.reshape(2, 5, 3))
    assert not found.requires_grad


def test_folding_costs_nothing_where_one_half_is_off_and_everything_where_halves_are_equal():
    head = drawn(0, 8, 3)
    x = torch.tensor([[1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 3.0, 0.1], [1.0, 2.0, 0.0, 3.0, 1.0, 2.0, 0.0, 3.0]])
    assert head.folding_bits(x.double()).tolist() == [[0.0] * 3, [math.inf] * 3]


def test_folding_bits_are_a_number_where_all_features_are_0():
    # Halves of ReLUs that are all off are equal, too.
    assert not drawn(0, 8, 3).folding_bits(torch.zeros(2, 8, dtype=torch.float64)).isnan().any()


def test_the_error_of_the_folded_layer_grows_as_folding_bits_say():
    head = drawn(0, 64, 4, bias=False, dtype=torch.float32)
    unit = torch.finfo(torch.float32).eps / 2
    lost, kept, cost = [], [], []
    for power in range(0, 20, 4):
        x = nearly_equal_halves(power, 500, 32, power, torch.float32)
        first, second = x.double().chunk(2, 1)
        exact = (first - second) @ head.weight.double().T  # right to 2^-29 of a float32's last place
        size = (first - second).abs() @ head.weight.double().abs().T
        for errors, layer in ((lost, head.folded().requires_grad_(False)), (kept, head)):
            found = layer(x)
            errors.append(float(((found.double() - exact) / size / unit).square().mean().sqrt()))
        cost.append(float(torch.exp2(head.folding_bits(x)).square().mean().sqrt()))
    assert cost == sorted(cost)
    assert cost[-1] > 2**16 * cost[0] / 4
    ratios = np.array(lost) / cost
    assert ratios.max() < 3 * ratios.min()
    assert (ratios > 0.05).all()
    assert (ratios < 65).all()  # what 64 products may lose
    assert max(kept) < 3 * min(kept) < 3  # the head itself stays within its last places


# In a graph.


def small(*, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), PairedHead(8, 2, bias))


def test_it_is_a_stage_of_its_own():
    model = small()
    *_, stage = graph.stages(model)
    assert [type(each) for each in graph.stages(model)] == [Dense, Clip, Paired]
    assert stage.weight is model[2].weight
    assert stage.bias is model[2].bias
    assert stage.inputs == 8
    assert graph.stages(small(bias=False))[-1].bias is None
    assert graph.stages(PairedHead(4, 2))[0].inputs == 4


@pytest.mark.parametrize("bias", [True, False])
def test_its_description_is_json_and_rebuilds_it(bias: bool):
    model = small(bias=bias)
    described = json.loads(json.dumps(graph.describe(model), allow_nan=False))[-1]
    assert described == {
        "name": "2",
        "type": "PairedHead",
        "in_features": 8,
        "out_features": 2,
        "bias": bias,
    }
    del described["name"]
    rebuilt = LAYERS[described.pop("type")].module(**described)
    rebuilt.load_state_dict(model[2].state_dict())
    x = torch.randn(5, 8)
    assert type(rebuilt) is PairedHead
    assert torch.equal(rebuilt(x), model[2](x))
    assert graph.architecture(PairedHead(4, 2)) == [
        {"name": "", "type": "PairedHead", "in_features": 4, "out_features": 2, "bias": True}
    ]


def test_widths_count_it_as_one_layer():
    assert graph.widths(graph.stages(small())) == (8,)
    assert graph.widths(graph.stages(PairedHead(4, 2))) == ()
    middle = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), PairedHead(8, 5), nn.ReLU(), nn.Linear(5, 2))
    assert graph.widths(graph.stages(middle)) == (8, 5)
    block = nn.Sequential(nn.Linear(3, 6), Residual(nn.Linear(6, 4), nn.ReLU(), PairedHead(4, 6)))
    assert graph.widths(graph.stages(block)) == (4,)


def test_the_widest_layer_may_be_it():
    assert graph.widest(graph.stages(small())) == 8
    assert graph.widest(graph.stages(nn.Sequential(nn.Linear(3, 4), PairedHead(4, 9)))) == 9


def test_it_fits_where_a_linear_layer_of_its_sizes_does():
    for block in (Residual(PairedHead(6, 6)), Residual(nn.Linear(6, 4), PairedHead(4, 6))):
        [stage] = graph.stages(block)
        assert isinstance(stage.branches[1][-1], Paired)
    [stage] = graph.stages(Patched(nn.Sequential(nn.Linear(3, 4), PairedHead(4, 2)), []))
    assert isinstance(stage.branches[0][-1], Paired)
    with pytest.raises(UnsupportedModel, match="but this makes 3 values of 6"):
        graph.stages(Residual(PairedHead(6, 3)))


def test_a_subclass_is_refused_by_name():
    impostor = type("PairedHead", (PairedHead,), {})
    with pytest.raises(UnsupportedModel, match="the module PairedHead is not understood"):
        graph.stages(impostor(4, 2))


def test_folding_replaces_it_everywhere_and_nothing_else():
    inner = Residual(nn.Linear(6, 4), Residual(PairedHead(4, 4, bias=False)), PairedHead(4, 6))
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), inner, PairedHead(6, 2)).double().requires_grad_(False)
    before = graph.stages(model)
    first, clip, block, last = graph.folded(before)
    assert first is before[0]
    assert clip is before[1]
    assert isinstance(last, Dense)
    assert torch.equal(last.weight, model[3].folded().weight)
    assert last.bias is model[3].bias
    nothing, within = block.branches
    assert nothing == ()
    assert [type(stage) for stage in within] == [Dense, Sum, Dense]
    [deep] = within[1].branches[1]
    assert isinstance(deep, Dense)
    assert deep.bias is None
    x = torch.randn(3, 3, dtype=torch.float64)
    wanted = [in_fractions(model, list(map(Fraction, row))) for row in x.tolist()]
    for stages in (before, [first, clip, block, last]):
        assert exact_forward(stages, x).fractions().tolist() == wanted
    assert [type(stage) for stage in before] == [Dense, Clip, Sum, Paired]  # what was given stays as it is


floats = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9).map(float)


@given(
    numbers=st.lists(floats, min_size=18, max_size=18),
    half=st.integers(1, 2),
    bias=st.booleans(),
)
def test_exact_arithmetic_is_that_of_fractions(numbers: list[float], half: int, bias: bool):
    weight, offset, x = (torch.from_numpy(part) for part in np.split(np.array(numbers), [4, 6]))
    model = nn.Sequential(nn.ReLU(), PairedHead(2 * half, 2, bias).double()).requires_grad_(False)
    model[1].weight.copy_(weight[: 2 * half].reshape(2, half))
    if bias:
        model[1].bias.copy_(offset)
    x = x[: 6 * half].reshape(3, 2 * half)
    wanted = [in_fractions(model, list(map(Fraction, row))) for row in x.tolist()]
    assert exact_forward(graph.stages(model), x).fractions().tolist() == wanted


# Along a line.


def rational_network(seed: int) -> nn.Sequential:
    """A random ReLU network of few simple numbers with a head, and some with one more inside."""
    random = np.random.default_rng(seed)
    width, half = (int(n) for n in random.integers(1, 5, 2))
    middle = [
        [nn.Linear(width, 2 * half)],
        [nn.Linear(width, 4), nn.ReLU(), PairedHead(4, 2 * half)],
        [Residual(nn.Linear(width, 4), nn.ReLU(), PairedHead(4, width)), nn.Linear(width, 2 * half)],
    ][seed % 3]
    layers = [nn.Linear(2, width), nn.ReLU(), *middle, nn.ReLU(), PairedHead(2 * half, 2, bool(seed % 2))]
    model = nn.Sequential(*layers).double().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.tensor(random.choice([0, 1, -1, 2, -2, 3, 0.5, -0.375], parameter.shape)))
    return model


def folded(module: nn.Module) -> nn.Module:
    """The module with a Linear for every head."""
    if isinstance(module, PairedHead):
        return module.folded()
    if isinstance(module, nn.Sequential):
        return type(module)(*map(folded, module))
    return module


@settings(max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_linear_pieces_are_those_of_the_folded_network(seed: int):
    model, start, stop = rational_network(seed), [-1.5, 2.0], [1.0, 0.5]
    assert not any(isinstance(layer, PairedHead) for layer in folded(model).modules())
    for exact in (True, False):
        one, other = (linear_pieces(each, start, stop, exact=exact) for each in (model, folded(model)))
        assert one.to_dict() == other.to_dict()
        assert one.exact == exact
    pieces = linear_pieces(model, start, stop)
    assert pieces.exact
    ends = zip(map(Fraction, start), map(Fraction, stop), strict=True)
    line = [(a, b - a) for a, b in ends]
    for t in [Fraction(n, 7) for n in range(-40, 41, 16)] + pieces.breakpoints.tolist():
        assert pieces.at(t).tolist() == in_fractions(model, [a + t * step for a, step in line])
