"""The rounding bound against rational arithmetic: many networks, kinds of numbers and orders of summation."""

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from torch import nn

from isthmus import graph
from isthmus.arithmetic.exact import dyadic, exact_forward
from isthmus.arithmetic.rounding import ULPS, running_bound
from isthmus.graph import Clip, Dense, Leaky, Smooth, Sum
from tests.arithmetic.evaluations import (
    ACTIVATIONS,
    DTYPES,
    KINDS,
    NETWORKS,
    ORDERS,
    backwards,
    bounds_of,
    dense,
    evaluate,
    integers,
    large,
    subnormal,
    within_the_bound,
)


def network(rng, kind, dtype):
    """A random network [d, ..., K] and inputs [3, d]; kinds of numbers may differ between layers."""
    info = torch.finfo(dtype)

    def numbers(shape):
        chosen = kind if rng.random() < 0.7 else KINDS[rng.integers(5)]
        return torch.from_numpy(np.asarray(chosen(rng, shape, info), dtype=float)).to(dtype)

    widths = rng.integers(1, 13, rng.integers(2, 6))
    activation = ACTIVATIONS[rng.integers(len(ACTIVATIONS))]
    model = nn.Sequential()
    for before, after in itertools.pairwise(widths.tolist()):
        linear = nn.Linear(before, after, bias=bool(rng.random() < 0.7), dtype=dtype)
        for parameter in linear.parameters():
            parameter.data = numbers(tuple(parameter.shape))
        model.extend([linear, activation()])
    return model[:-1].requires_grad_(False), numbers((3, widths[0]))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_evaluation_is_within_the_bound(kind, dtype):
    rng = np.random.default_rng([KINDS.index(kind), DTYPES.index(dtype)])
    finite, zero = [], []
    for _ in range(NETWORKS):
        model, x = network(rng, kind, dtype)
        known, bound = within_the_bound(model, x, rng)
        finite.append(known.mean())
        zero.append((bound == 0).double().mean())
    # All this means something only where bounds are finite, and most of them not 0.
    assert np.mean(finite) > (0.3 if kind in {large, subnormal} else 0.99)
    assert np.mean(zero) < 0.5
    assert kind is not integers or np.mean(zero) > 0.2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bound_is_of_the_size_of_rounding(dtype):
    torch.manual_seed(0)
    layers = [nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 3)]
    model = nn.Sequential(*layers).to(dtype).requires_grad_(False)
    stages = graph.stages(model)
    x = torch.rand(20, 50, dtype=dtype)
    value, bound = running_bound(stages, x)
    unit = torch.finfo(dtype).eps / 2
    size = math.prod(float(stage.weight.abs().sum(1).amax()) for stage in stages if isinstance(stage, Dense))
    errors = abs(exact_forward(stages, x).fractions() - dyadic(value).fractions())
    assert 0 < errors.max()
    assert (errors <= bound.numpy()).all()
    assert float(bound.max()) < 3 * 51 * unit * size


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_overflows_in_another_order_has_no_finite_bound(dtype):
    near = 0.75 * torch.finfo(dtype).max
    x = [[1.0, 1.0, 1.0], [1.0, -1.0, 1.0], [0.125, 0.125, 0.125]]
    bound = bounds_of([dense([[near, near, -near]], dtype=dtype)], x, dtype)
    assert torch.isfinite(bound).squeeze(1).tolist() == [False, False, True]


def test_exact_sums_that_overflow_have_no_finite_bound():
    bound = bounds_of(
        [dense([[2.0**127, 2.0**127, -(2.0**127)]], dtype=torch.float32)], [[1.0, 1.0, 1.0]], torch.float32
    )
    assert bound.tolist() == [[math.inf]]


@pytest.mark.parametrize(
    "stage",
    [
        Clip(-1.0, 1.0),
        Leaky(0.5),
        Smooth("tanh"),
        Smooth("sigmoid"),
        dense([[0.0, 1.0]]),
        dense([[1.0, -1.0]]),
        Sum(((), (Clip(-1.0, 1.0),))),
        Sum(((), (Clip(0.0, 0.0),))),
    ],
    ids=lambda stage: type(stage).__name__,
)
def test_an_overflow_stays_unknown_through_every_stage(stage):
    infinite = dense([[1.7e308, 1.7e308], [1.7e308, 1.7e308]])
    undefined = dense([[1.0, -1.0], [1.0, -1.0]])
    for before in ([infinite], [infinite, undefined]):
        assert torch.isinf(bounds_of([*before, stage], [[1.0, 1.0]])).all()


def test_products_of_subnormal_numbers_round_relatively():
    # The products are near 1, where rounding is far above the smallest number; 2^-1074 loses no less.
    x = torch.tensor([[3.0, 7.0, 5.0]], dtype=torch.float64) * 2.0**-1074
    stages = [Dense(torch.tensor([[1 / 3, 1 / 7, -1 / 3]], dtype=torch.float64) * 2.0**1023, None)]
    bound = running_bound(stages, x)[1]
    exact = exact_forward(stages, x).fractions()
    others = [evaluate(stages, x, order) for order in ORDERS]
    assert max(abs(Fraction(output.item()) - exact.item()) for output in others) > 0
    assert all(abs(Fraction(output.item()) - exact.item()) <= Fraction(bound.item()) for output in others)


def test_more_terms_than_the_format_can_count_have_no_bound():
    dtype = torch.bfloat16  # 8 bits
    assert torch.isfinite(bounds_of([dense([[0.3] * 126], dtype=dtype)], [[0.7] * 126], dtype)).all()
    assert torch.isinf(bounds_of([dense([[0.3] * 400], dtype=dtype)], [[0.7] * 400], dtype)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_unit_that_stays_clipped_passes_no_error_on(dtype):
    first = dense([[0.1, 0.7]], [0.3], dtype)
    last = dense([[3.0]], [1.0], dtype)
    x = [[0.5, 0.9], [30.1, 9.3], [-30.1, -9.3]]
    assert (bounds_of([first], x, dtype) > 0).all()
    assert (bounds_of([first, Clip(-1.0, 1.0), last], x, dtype) > 0).squeeze(1).tolist() == [
        True,
        False,
        False,
    ]
    assert (bounds_of([first, Clip(0.0, math.inf), last], x, dtype) > 0).squeeze(1).tolist() == [
        True,
        True,
        False,
    ]
    assert running_bound([first, Clip(-1.0, 1.0), last], torch.tensor(x, dtype=dtype))[0][1:].tolist() == [
        [4.0],
        [-2.0],
    ]


def test_a_unit_that_may_leave_the_clipped_part_passes_its_error_on():
    first = dense([[0.1, 0.2]])
    limit = 0.1 + 0.2  # 0.30000000000000004, and 0.3 in exact arithmetic or nearly so
    error = bounds_of([first], [[1.0, 1.0]]).item()
    for high, expected in (
        (limit, error),
        (limit - error, error),
        (limit - 2 * error, 0.0),
        (limit - 3 * error, 0.0),
    ):
        assert bounds_of([first, Clip(0.0, high)], [[1.0, 1.0]]).item() == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_leaky_unit_rounds_where_it_may_be_negative(dtype):
    info = torch.finfo(dtype)
    slope = torch.tensor(0.3, dtype=dtype).item()
    # Exact inputs: nothing to bound at 3, half a unit in the last place at -7/3, half the smallest number.
    x = torch.tensor([[3.0], [-7 / 3], [-3.0 * info.smallest_normal * info.eps]], dtype=dtype)
    value, bound = running_bound([Leaky(slope)], x)
    errors = abs(exact_forward([Leaky(slope)], x).fractions() - dyadic(value).fractions())
    assert (errors > 0).ravel().tolist() == [False, True, True]
    assert bound[0] == 0
    assert (errors <= bound.numpy()).all()
    assert bound[1] < 0.6 * info.eps
    # 0.1 + 0.2 - 0.3 may be either side of 0.
    sums = dense([[0.1, 0.2, -0.3]], dtype=dtype)
    ones = [[1.0, 1.0, 1.0]]
    assert bounds_of([sums, Leaky(slope)], ones, dtype) > bounds_of([sums], ones, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_constants_are_those_of_the_dtype(dtype):
    model = nn.Sequential(nn.Linear(1, 1, bias=False, dtype=dtype), nn.Hardtanh(-0.1, 0.3)).requires_grad_(
        False
    )
    model[0].weight.fill_(1.0)
    stages = graph.stages(model)
    x = torch.tensor([[5.0], [-5.0]], dtype=dtype)
    value, bound = running_bound(stages, x)
    assert bound.tolist() == [[0.0], [0.0]]
    assert torch.equal(value, model(x))
    assert exact_forward(stages, x).fractions().tolist() == value.double().numpy().tolist()


def test_non_finite_weights_have_no_finite_bound():
    for number in (math.inf, math.nan):
        assert torch.isinf(bounds_of([dense([[number, 1.0]])], [[1.0, 1.0], [0.0, 1.0]])).all()


def test_a_unit_with_no_weights_but_0_is_its_bias():
    first = dense([[0.1, 0.2]])
    last = dense([[0.0], [0.1]], [0.3, 0.3])
    assert (bounds_of([first, last], [[1.0, 1.0]]) > 0).tolist() == [[False, True]]
    # 0 times infinity is not 0.
    huge = dense([[1.7e308, 1.7e308]])
    assert torch.isinf(bounds_of([huge, last], [[1.0, 1.0]])).all()


def smooth_points(dtype):
    rng = np.random.default_rng(0)
    info = torch.finfo(dtype)
    size = 1000
    signs = rng.choice([-1.0, 1.0], size)
    points = [
        rng.uniform(-3, 3, size),
        rng.uniform(-30, 30, size),
        rng.uniform(-1, 1, size) * 1.1 * math.log(info.max),
        signs * np.exp(rng.uniform(math.log(info.smallest_normal * info.eps), math.log(info.max), size)),
        np.array([0.0, info.smallest_normal, info.max, -info.max]),
    ]
    return torch.from_numpy(np.concatenate(points)).to(dtype)


EXACT = {"tanh": mpmath.tanh, "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x))}


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function", EXACT)
def test_tanh_and_sigmoid_are_as_right_as_assumed(function, dtype):
    info = torch.finfo(dtype)
    x = smooth_points(dtype)
    vectorised, bound = running_bound([Smooth(function)], x)
    one_by_one = torch.stack([getattr(torch, function)(point) for point in x])
    plain = np.tanh(x.numpy()) if function == "tanh" else 1 / (1 + np.exp(-x.numpy()))
    evaluations = zip(vectorised.tolist(), one_by_one.tolist(), plain.tolist(), strict=True)
    with mpmath.workdps(40):
        for point, allowed, values in zip(x.tolist(), bound.tolist(), evaluations, strict=True):
            exact = EXACT[function](mpmath.mpf(point))
            ulp = mpmath.ldexp(info.eps, mpmath.frexp(exact)[1] - 1)
            worst = max(abs(value - exact) for value in values)
            assert worst <= max(ULPS * ulp, info.smallest_normal)
            assert worst <= allowed


def evaluate_smooth(stages, x, rng):
    """The network in NumPy, tanh and sigmoid wrong by nearly as much as they may be."""
    value = x.numpy()
    for stage in stages:
        if isinstance(stage, Smooth):
            value = np.tanh(value) if stage.function == "tanh" else 1 / (1 + np.exp(-value))
            worst = (ULPS - 1) * torch.finfo(x.dtype).eps
            value *= 1 + value.dtype.type(worst) * rng.choice([-1, 1], value.shape).astype(value.dtype)
        else:
            value = evaluate([stage], torch.from_numpy(value), backwards)
    return value


def evaluate_precisely(stages, x):
    value = mpmath.matrix(x.tolist())
    for stage in stages:
        if isinstance(stage, Dense):
            value = value * mpmath.matrix(stage.weight.tolist()).T + mpmath.ones(
                value.rows, 1
            ) * mpmath.matrix([stage.bias.tolist()])
        else:
            value = value.apply(EXACT[stage.function])
    return value.tolist()


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid])
def test_smooth_networks_stay_within_the_bound(activation, dtype):
    rng = np.random.default_rng(0)
    for seed in range(25):
        torch.manual_seed(seed)
        layers = [nn.Linear(4, 5), activation(), nn.Linear(5, 5), activation(), nn.Linear(5, 2), activation()]
        model = nn.Sequential(*layers[: 5 + seed % 2]).to(dtype).requires_grad_(False)
        scale = 10.0 ** (seed % 4 - 2)
        for parameter in model.parameters():
            parameter *= scale
        stages = graph.stages(model)
        x = 10 * torch.randn(2, 4, dtype=dtype)
        value, bound = running_bound(stages, x)
        with mpmath.workdps(60):
            exact = np.array(evaluate_precisely(stages, x), dtype=object)
            for outputs in (value, model(x), torch.from_numpy(evaluate_smooth(stages, x, rng))):
                errors = abs(outputs.double().numpy().astype(object) - exact)
                assert (errors <= bound.numpy().astype(object)).all()
        assert 0 < float(bound.max())
        assert scale > 1 or float(bound.max()) < 1e-4
