"""Linear pieces counted along a line, against networks evaluated in fractions and against Theorem 3.3."""

import json
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import isthmus
from isthmus import graph
from isthmus.arithmetic.exact import exact_forward
from isthmus.bounds import cells
from isthmus.bounds import pieces as module
from isthmus.bounds.pieces import EXACT_WORK, in_few_digits, linear_pieces
from isthmus.errors import InputError, UnsupportedModel
from isthmus.nets.patched import Gates, Patched
from isthmus.nets.residual import Residual

ACTIVATIONS = (
    nn.ReLU(),
    nn.LeakyReLU(0.25),
    nn.Hardtanh(),
    nn.Hardtanh(-0.5, 2.0),
    nn.ReLU6(),
    nn.LeakyReLU(1.0),
)
WEIGHTS = (0, 0, 0, 1, -1, 2, -2, 3, 0.5, -0.5, 0.375)  # few and simple, so that kinks coincide


def linear(random, fan_in, fan_out):
    layer = nn.Linear(fan_in, fan_out, bias=bool(random.random() < 0.9), dtype=torch.float64)
    for parameter in layer.parameters():
        parameter.data = torch.tensor(random.choice(WEIGHTS, tuple(parameter.shape)))
    return layer


def rational_network(seed, *, depth=4, width=6, residual=False):
    """A random network, hidden layers of any activations, and the line it is looked at along."""
    random = np.random.default_rng(seed)
    inputs = int(random.integers(1, 4))
    layers, fan_in = [], inputs
    for _ in range(random.integers(1, depth + 1)):
        fan_out = int(random.integers(1, width + 1))
        bent = ACTIVATIONS[random.integers(len(ACTIVATIONS))]
        if residual and random.random() < 0.7:
            layers.append(Residual(linear(random, fan_in, fan_out), bent, linear(random, fan_out, fan_in)))
        else:
            layers += [linear(random, fan_in, fan_out), bent]
            fan_in = fan_out
    layers.append(linear(random, fan_in, int(random.integers(1, 4))))
    start = random.integers(-3, 4, inputs) / 2
    return nn.Sequential(*layers), start, start + random.choice([-2, -1, 1, 0.5], inputs)


def in_fractions(module, x):
    """The outputs of a network at one input, in naive rational arithmetic."""
    match module:
        case nn.Linear():
            bias = [0] * module.out_features if module.bias is None else module.bias.tolist()
            return [
                sum((Fraction(w) * v for w, v in zip(row, x, strict=True)), Fraction(b))
                for row, b in zip(module.weight.tolist(), bias, strict=True)
            ]
        case nn.Hardtanh():
            return [min(max(v, Fraction(module.min_val)), Fraction(module.max_val)) for v in x]
        case nn.ReLU():
            return [max(v, Fraction(0)) for v in x]
        case nn.LeakyReLU():
            return [v if v >= 0 else Fraction(module.negative_slope) * v for v in x]
        case Residual():
            inner = x
            for layer in module.children():
                inner = in_fractions(layer, inner)
            return [a + b for a, b in zip(x, inner, strict=True)]
        case nn.Sequential():
            for layer in module:
                x = in_fractions(layer, x)
            return x
    raise NotImplementedError


def along(model, start, stop, t):
    """The outputs at the place t of the line, a fraction."""
    ends = zip(map(Fraction, start.tolist()), map(Fraction, stop.tolist()), strict=True)
    return in_fractions(model, [a + t * (b - a) for a, b in ends])


def samples(breakpoints):
    """Places on every piece, several on each."""
    if not len(breakpoints):
        return [Fraction(n, 3) for n in range(-30, 31, 4)]
    outside = [Fraction(1, 7), Fraction(5, 3), Fraction(40)]
    places = [breakpoints[0] - far for far in outside] + [breakpoints[-1] + far for far in outside]
    parts = [Fraction(n, 11) for n in (0, 1, 4, 6, 10)]
    return (
        places + [a + part * (b - a) for a, b in pairwise(breakpoints) for part in parts] + [breakpoints[-1]]
    )


def counts_are_within_the_bounds(seeds):
    attained = 0
    for seed in seeds:
        model, start, stop = rational_network(seed)
        pieces = linear_pieces(model, start, stop, exact=True)
        assert max(pieces.per_output) <= pieces.count <= pieces.by_layer, seed
        assert max(pieces.per_output) <= pieces.by_unit, seed
        depth = sum(isinstance(layer, nn.Linear) for layer in model) - 1
        attained += depth == 1 and pieces.count == pieces.by_layer > 1
    return attained


def test_counts_are_within_the_bounds_and_attained_at_depth_one():
    assert counts_are_within_the_bounds(range(1000)) > 0


@pytest.mark.long
def test_counts_of_many_networks_are_within_the_bounds():
    assert counts_are_within_the_bounds(range(1000, 20_000)) > 0


@pytest.mark.parametrize("residual", [False, True])
def test_pieces_are_the_network_in_fractions(residual):
    for seed in range(60):
        model, start, stop = rational_network(seed, depth=3, width=4, residual=residual)
        pieces = linear_pieces(model, start, stop, exact=True)
        assert (pieces.by_unit is None) == any(isinstance(layer, Residual) for layer in model)
        assert pieces.count <= pieces.by_layer
        places = samples(pieces.breakpoints)
        found = pieces.at(places)
        for t, values in zip(places, found.tolist(), strict=True):
            assert values == along(model, start, stop, t), (seed, t)


@pytest.mark.parametrize("residual", [False, True])
def test_at_every_breakpoint_the_network_bends(residual):
    for seed in range(60):
        model, start, stop = rational_network(seed, depth=3, width=4, residual=residual)
        pieces = linear_pieces(model, start, stop, exact=True)
        gaps = np.diff(pieces.breakpoints) if pieces.count > 2 else [Fraction(1)]
        step = min(gaps) / 2
        bends = np.zeros(len(pieces.per_output), dtype=int)
        for t in pieces.breakpoints:
            left, middle, right = (along(model, start, stop, t + side * step) for side in (-1, 0, 1))
            bent = [a + c != 2 * b for a, b, c in zip(left, middle, right, strict=True)]
            assert any(bent), (seed, t)
            bends += bent
        assert tuple(1 + bends) == pieces.per_output


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Hardtanh()])
def test_counts_are_those_on_a_grid_that_holds_every_kink(activation):
    # Slopes of the second layer are at most 3, so in steps of 1/6 every kink is on the grid; here in sixths.
    t = np.arange(-360, 361)
    random = np.random.default_rng(0)
    bounds = (0, 10**9) if isinstance(activation, nn.ReLU) else (-6, 6)
    for _ in range(100):
        w1, b1 = random.choice([-1, 1], 3), random.integers(-4, 5, 3)
        w2, b2 = random.choice([-1, 0, 1], (2, 3)), random.integers(-4, 5, 2)
        w3 = random.choice([-2, -1, 1], (2, 2))
        hidden = np.clip(np.outer(t, w1) + 6 * b1, *bounds)
        hidden = np.clip(hidden @ w2.T + 6 * b2, *bounds)
        bends = np.diff(hidden @ w3.T, n=2, axis=0) != 0
        first, second, last = nn.Linear(1, 3), nn.Linear(3, 2), nn.Linear(2, 2, bias=False)
        for layer, weight, bias in ((first, w1[:, None], b1), (second, w2, b2)):
            layer.weight.data, layer.bias.data = torch.tensor(weight).double(), torch.tensor(bias).double()
        last.weight.data = torch.tensor(w3).double()
        model = nn.Sequential(first, activation, second, activation, last)
        for exact in (True, False):
            pieces = linear_pieces(model, [0.0], [1.0], exact=exact)
            assert pieces.count == 1 + bends.any(1).sum()
            assert pieces.per_output == tuple(1 + bends.sum(0))


def gaussian_network(seed, widths, activation):
    random = torch.Generator().manual_seed(seed)
    layers = []
    for fan_in, fan_out in pairwise(widths):
        layer = nn.Linear(fan_in, fan_out, dtype=torch.float64)
        layer.weight.data = torch.randn(fan_out, fan_in, generator=random, dtype=torch.float64) / fan_in**0.5
        layer.bias.data = torch.randn(fan_out, generator=random, dtype=torch.float64)
        layers += [layer, activation]
    ends = torch.randn(2, widths[0], generator=random, dtype=torch.float64)
    return nn.Sequential(*layers[:-1]), *ends


@pytest.mark.parametrize("activation", ACTIVATIONS[:4])
@pytest.mark.parametrize("widths", [(5, 40, 3), (3, 12, 12, 2), (4, 8, 8, 8, 8, 1)])
def test_float64_counts_the_same_on_gaussian_networks(activation, widths):
    for seed in range(5):
        model, start, stop = gaussian_network(seed, widths, activation)
        exact, floats = (linear_pieces(model, start, stop, exact=choice) for choice in (True, False))
        assert (exact.exact, floats.exact) == (True, False)
        assert floats.per_output == exact.per_output
        assert floats.count == exact.count
        np.testing.assert_allclose(floats.breakpoints, exact.breakpoints.astype(float), rtol=1e-6, atol=1e-9)
        t = np.linspace(-2, 3, 101)
        np.testing.assert_allclose(floats.at(t), exact.at(t).astype(float), rtol=1e-9, atol=1e-9)
        x = start + torch.from_numpy(t)[:, None] * (stop - start)
        np.testing.assert_allclose(floats.at(t), model(x).detach(), rtol=1e-9, atol=1e-9)


def test_float64_takes_kinks_that_coincide_for_one():
    # All units bend where 0.1 t = 0.3, each with a different rounding of that place.
    multiples = torch.arange(1, 31, dtype=torch.float64)
    first, second = nn.Linear(1, 30, dtype=torch.float64), nn.Linear(30, 1, dtype=torch.float64)
    with torch.no_grad():
        first.weight.copy_(0.1 * multiples[:, None])
        first.bias.copy_(-0.3 * multiples)
    model = nn.Sequential(first, nn.ReLU(), second)
    assert linear_pieces(model, [0.0], [1.0], exact=False).count == 2
    assert linear_pieces(model, [0.0], [1.0], exact=True).count > 2  # their roundings do differ


def test_float64_takes_slopes_that_differ_by_rounding_for_one():
    first, second = nn.Linear(1, 4, dtype=torch.float64), nn.Linear(4, 1, dtype=torch.float64)
    with torch.no_grad():
        first.weight.fill_(1.0)
        first.bias.copy_(torch.tensor([0.0, -1.0, -1.0, -1.0]))
        second.weight.copy_(torch.tensor([[0.01, 0.1, 0.2, -0.3]], dtype=torch.float64))
    model = nn.Sequential(first, nn.ReLU(), second)
    assert linear_pieces(model, [0.0], [1.0], exact=False).breakpoints.tolist() == [0.0]
    assert linear_pieces(model, [0.0], [1.0], exact=True).breakpoints.tolist() == [0, 1]


@pytest.mark.parametrize("activation", ["hardtanh", "relu", "leaky_relu"])
def test_a_network_that_fits_the_zigzag_has_the_pieces_it_needs(activation):
    data = isthmus.load("zigzag:n=40")
    found = isthmus.memorize(data, method="three-layer", activation=activation, level="measured")
    pieces = isthmus.linear_pieces(found.model, data.x[0], data.x[-1])
    assert pieces.exact
    assert data.rows - 1 <= pieces.count <= pieces.by_layer <= pieces.by_unit
    rows = pieces.at([Fraction(row, data.rows - 1) for row in range(data.rows)])
    assert rows.tolist() == exact_forward(graph.stages(found.model), data.x).fractions().tolist()
    assert np.abs((rows - data.y.numpy()).astype(float)).max() <= 1e-6


def test_kinks_on_cell_boundaries_and_units_that_stay_at_a_kink():
    def network(w1, b1, activation, w2):
        first, second = nn.Linear(1, len(w1)), nn.Linear(len(w1), 1)
        with torch.no_grad():
            first.weight.copy_(torch.tensor(w1)[:, None])
            first.bias.copy_(torch.tensor(b1))
            second.weight.copy_(torch.tensor(w2)[None])
            second.bias.zero_()
        return nn.Sequential(first, activation, second)

    for exact in (True, False):
        # Three kinks at 0, and one unit that is 0 everywhere.
        pieces = linear_pieces(
            network([1.0, -1.0, 2.0, 0.0], [0.0] * 4, nn.ReLU(), [1.0, 1.0, 1.0, 5.0]),
            [0.0],
            [1.0],
            exact=exact,
        )
        assert pieces.breakpoints.tolist() == [0]
        assert pieces.slopes.tolist() == [[-1], [3]]
        # relu(t) - relu(-t) is t: a kink of every unit, but none of the output.
        pieces = linear_pieces(
            network([1.0, -1.0], [0.0] * 2, nn.ReLU(), [1.0, -1.0]), [0.0], [1.0], exact=exact
        )
        assert pieces.count == 1
        assert pieces.at(-3).tolist() == [-3]
        # A unit that stays at either end of hard-tanh.
        pieces = linear_pieces(
            network([0.0, 0.0], [1.0, -1.0], nn.Hardtanh(), [2.0, 1.0]), [0.0], [1.0], exact=exact
        )
        assert (pieces.count, pieces.at([7, 8]).tolist()) == (1, [[1], [1]])


def test_the_bounds_take_each_layer_with_its_own_activation():
    model = nn.Sequential(
        *(nn.Linear(2, 3), nn.ReLU()),
        *(nn.Linear(3, 4), nn.Hardtanh()),
        *(nn.Linear(4, 5), nn.LeakyReLU(1.0)),
        nn.Linear(5, 1),
    )
    pieces = linear_pieces(model, [0.0, 0.0], [1.0, 2.0])
    assert pieces.by_layer == (3 + 1) * (2 * 4 + 1)
    assert pieces.by_unit == 5 * (4 * (3 * (3 * 1 + 1) - 1) + 1 - 1) + 1


def test_bounds_of_hard_tanh_as_the_dtype_holds_them():
    model = nn.Sequential(nn.Linear(1, 3), nn.Hardtanh(1.0, 1.00001), nn.Linear(3, 1))
    assert linear_pieces(model, [0.0], [1.0]).by_layer == 7
    pieces = linear_pieces(model.half(), [0.0], [1.0])  # a constant
    assert (pieces.count, pieces.by_layer, pieces.by_unit) == (1, 1, 1)


def test_any_shape_that_flattens_and_any_dtype():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Hardtanh(), nn.Linear(4, 2)).eval()
    start, stop = torch.zeros(2, 3, dtype=torch.uint8), torch.full((2, 3), 255, dtype=torch.uint8)
    counts = {
        linear_pieces(cast, a, b).count
        for cast in (model, graph.cast(model, torch.float64))
        for a, b in ((start, stop), (start.numpy(), stop.double()), (start.reshape(1, 6), stop.tolist()))
    }
    assert len(counts) == 1
    half = graph.cast(model, torch.float16)
    t = Fraction(1, 3)
    assert linear_pieces(half, start, stop, exact=True).at(t).tolist() == along(
        nn.Sequential(*half[1:]), start.reshape(-1).double(), stop.reshape(-1).double(), t
    )


def test_a_network_without_kinks_is_one_piece():
    pieces = linear_pieces(nn.Linear(2, 2), [0.0, 0.0], [1.0, 0.0])
    assert (pieces.count, pieces.by_unit, pieces.by_layer, len(pieces.breakpoints)) == (1, 1, 1, 0)


def test_exact_where_it_is_cheap():
    narrow = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))
    width = int(EXACT_WORK**0.5)
    wide = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, 1)).double()
    assert linear_pieces(narrow, [0.0], [1.0]).exact
    assert not linear_pieces(wide, [0.0], [1.0]).exact
    # Not what the widths allow, 5^40 pieces, but the few that there are.
    deep = nn.Sequential(*(module for _ in range(40) for module in (nn.Linear(4, 4), nn.ReLU())))
    assert linear_pieces(deep, [0.0] * 4, [1.0] * 4).exact


@pytest.mark.parametrize("residual", [False, True])
def test_one_layer_that_needs_too_much_is_enough(monkeypatch, residual):
    def layers():
        return nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)

    torch.manual_seed(0)
    model = nn.Sequential(*([Residual(*layers())] * 3 if residual else [*layers(), nn.ReLU(), *layers()]))
    found = linear_pieces(model, [0.0] * 6, [1.0] * 6)
    assert found.exact
    monkeypatch.setattr(module, "EXACT_WORK", 2 * found.count * 36 - 1)
    rounded = linear_pieces(model, [0.0] * 6, [1.0] * 6)
    assert not rounded.exact
    assert rounded.count == found.count


def test_more_than_memory_holds_is_refused(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 50), nn.ReLU(), nn.Linear(50, 1))
    monkeypatch.setattr(cells, "MOST_NUMBERS", 2 * 51 * 50)
    for exact in (None, True, False):
        assert linear_pieces(model, [0.0], [1.0], exact=exact).count == 51
    monkeypatch.setattr(cells, "MOST_NUMBERS", 2 * 51 * 50 - 1)
    for exact in (None, True, False):
        with pytest.raises(InputError, match="51 pieces of 50 units at once"):
            linear_pieces(model, [0.0], [1.0], exact=exact)


def test_result_as_json_and_text():
    model, start, stop = rational_network(3)
    for exact in (True, False):
        pieces = linear_pieces(model, start, stop, exact=exact)
        found = json.loads(json.dumps(pieces.to_dict(), allow_nan=False))
        assert (
            found["count"]
            == len(found["slopes"])
            == len(found["intercepts"])
            == len(found["breakpoints"]) + 1
        )
        assert {"per_output", "by_unit", "by_layer", "exact"} <= set(found)
        assert str(pieces.count) in repr(pieces)
        assert "sharper bound" in str(pieces)


def test_long_bounds_are_rounded_up():
    assert in_few_digits(1_234_567) == "1,234,567"
    for bound in (10**12, 10**12 + 1, 7**800):
        power = in_few_digits(bound).removeprefix("10^")
        assert 10 ** (int(power) - 1) <= bound <= 10 ** int(power)


LINE = [0.0, 0.0], [1.0, 1.0]


@pytest.mark.parametrize(
    ("start", "stop", "words"),
    [
        ([1.0, 2.0], [1.0, 2.0], "same point"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 4.0], "takes 2 values where it is given 3"),
        ([1.0, 2.0, 3.0], [1.0, 2.0], "start has 3 values, but stop has 2"),
        ([1.0, float("nan")], [1.0, 2.0], "finite"),
        ([1.0, float("inf")], [1.0, 2.0], "finite"),
        (["a", "b"], [1.0, 2.0], "arrays of numbers"),
        ([1.0, 1j], [1.0, 2.0], "real"),
    ],
)
def test_lines_that_are_refused(start, stop, words):
    with pytest.raises(InputError, match=words):
        linear_pieces(nn.Linear(2, 1), start, stop)


def test_models_that_are_refused():
    with pytest.raises(InputError, match="found str"):
        linear_pieces("model", *LINE)
    with pytest.raises(UnsupportedModel, match="no linear pieces"):
        linear_pieces(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), *LINE)
    with pytest.raises(UnsupportedModel, match="no linear pieces"):
        linear_pieces(nn.Sequential(Residual(nn.Linear(2, 2), nn.Sigmoid())), *LINE)
    gates = Patched(nn.Linear(2, 2), [Gates(2, 1, 2)])
    with pytest.raises(UnsupportedModel, match="gates beside a model have no linear pieces"):
        linear_pieces(nn.Sequential(Residual(gates, nn.ReLU())), *LINE)
    with pytest.raises(UnsupportedModel, match="gates beside a model are not counted"):
        cells.cells_along(graph.stages(gates), torch.eye(2), exact=True)
    with pytest.raises(UnsupportedModel, match="BatchNorm1d"):
        linear_pieces(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), *LINE)
    with pytest.raises(InputError, match="takes 4 values where it is given 3"):
        linear_pieces(nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 1)), *LINE)
    broken = nn.Linear(2, 1)
    broken.weight.data[0, 0] = float("nan")
    for exact in (True, False):
        with pytest.raises(InputError, match="not finite"):
            linear_pieces(broken, *LINE, exact=exact)


def test_what_overflows_is_counted_exactly_or_refused():
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(2)))
    for layer in model:
        layer.weight.data.fill_(1e300)
    with pytest.raises(InputError, match="exact=True"):
        linear_pieces(model, [0.0], [1.0], exact=False)
    pieces = linear_pieces(model, [0.0], [1.0])
    assert pieces.at(1).tolist() == [Fraction(1e300) ** 2]
    with pytest.raises(InputError, match="beyond float64's range"):
        pieces.to_dict()
    model = nn.Sequential(nn.Linear(1, 1, dtype=torch.float64), nn.ReLU())
    with torch.no_grad():  # a kink at 1e310
        model[0].weight.fill_(1e-310)
        model[0].bias.fill_(-1.0)
    with pytest.raises(InputError, match="exact=True"):
        linear_pieces(model, [0.0], [1.0], exact=False)
    assert linear_pieces(model, [0.0], [1.0]).count == 2
