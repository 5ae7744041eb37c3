"""The rounding bound against rational arithmetic: many networks, kinds of numbers and orders of summation.

Every evaluator below is one that the bound must cover; none of them shares code with it.
"""

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
from isthmus.graph import Clip, Dense, Leaky, Skip, Smooth
from isthmus.nets.residual import Residual

DTYPES = [torch.float64, torch.float32]
ALL_DTYPES = [*DTYPES, torch.float16]
NETWORKS = 100  # for every kind of numbers and dtype


# Kinds of numbers: a generator, a shape and the dtype's finfo to an array.


def normal(rng, shape, info):
    return rng.normal(size=shape)


def decades(rng, shape, info):
    return rng.normal(size=shape) * 10.0 ** rng.uniform(-9, 9, shape)


def integers(rng, shape, info):
    return rng.integers(-9, 10, shape)


def sparse(rng, shape, info):
    return rng.normal(size=shape) * rng.integers(0, 2, shape)


def cancelling(rng, shape, info):
    """Pairs of nearly opposite numbers, exactly opposite or a few units apart, in any order."""
    values = rng.normal(size=shape)
    half = values.shape[-1] // 2
    values[..., half : 2 * half] = -values[..., :half] * (1 + info.eps * rng.integers(-2, 3, half))
    return rng.permuted(values, axis=-1)


def small(rng, shape, info):
    """Around the square root of the smallest numbers: products underflow, wholly or in part."""
    return rng.normal(size=shape) * info.smallest_normal ** rng.uniform(0.3, 0.6, shape)


def subnormal(rng, shape, info):
    """All subnormal, or all so large that products with subnormal numbers are not."""
    tiny = rng.integers(-99, 100, shape) * info.smallest_normal * info.eps
    return tiny if rng.random() < 0.5 else rng.normal(size=shape) * info.max**0.98


def large(rng, shape, info):
    """Products near the largest number: some sums overflow, some only in some orders."""
    return rng.uniform(-1, 1, shape) * info.max**0.5


KINDS = [normal, decades, integers, sparse, cancelling, small, subnormal, large]
ACTIVATIONS = [
    nn.Hardtanh,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    lambda: nn.LeakyReLU(0.25),
    lambda: nn.Hardtanh(-0.1, 0.3),  # neither is a float32 number
    nn.Identity,
]


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


def residual_network(rng, kind, dtype):
    """A random network of residual blocks, some within others, and inputs [3, d]."""
    info = torch.finfo(dtype)

    def numbers(shape):
        chosen = kind if rng.random() < 0.7 else KINDS[rng.integers(5)]
        values = torch.from_numpy(np.asarray(chosen(rng, shape, info), dtype=float))
        return values.clamp(-info.max, info.max).to(dtype)  # float16 has not the range of all kinds

    def linear(before, after):
        module = nn.Linear(before, after, bias=bool(rng.random() < 0.7), dtype=dtype)
        for parameter in module.parameters():
            parameter.data = numbers(tuple(parameter.shape))
        return module

    def block(width, depth):
        activation = ACTIVATIONS[rng.integers(len(ACTIVATIONS))]()
        if rng.random() < 0.15:
            return Residual(activation)
        hidden = int(rng.integers(1, 7))
        inner = [linear(width, hidden), activation, linear(hidden, width)]
        if depth and rng.random() < 0.4:
            place = int(rng.integers(2, 4))
            inner.insert(place, block(hidden if place == 2 else width, depth - 1))
        return Residual(*inner)

    width, outputs = rng.integers(1, 7, 2).tolist()
    model = nn.Sequential()
    for _ in range(rng.integers(1, 4)):
        model.append(block(width, 2))
        if rng.random() < 0.5:
            model.append(ACTIVATIONS[rng.integers(len(ACTIVATIONS))]())
    if rng.random() < 0.5 or not list(model.parameters()):  # whose dtype the constants take
        model.append(linear(width, outputs))
    return model.requires_grad_(False), numbers((3, width))


# Orders of summation: terms [N, out, n] and bias [out] to sums [N, out], each operation in the terms' dtype.


def forwards(terms, bias):
    return np.add.accumulate(terms, axis=-1)[..., -1] + bias


def backwards(terms, bias):
    return forwards(terms[..., ::-1], bias)


def bias_first(terms, bias):
    start = np.broadcast_to(bias, terms.shape[:-1])[..., None]
    return np.add.accumulate(np.concatenate([start, terms], axis=-1), axis=-1)[..., -1]


def pairwise(terms, bias):
    while (count := terms.shape[-1]) > 1:
        folded = terms[..., : count // 2] + terms[..., count - count // 2 :]
        terms = np.concatenate([folded, terms[..., count // 2 : count - count // 2]], axis=-1)
    return terms[..., 0] + bias


def largest_first(terms, bias):
    return forwards(np.take_along_axis(terms, np.argsort(-abs(terms), axis=-1), axis=-1), bias)


def signs_apart(terms, bias):
    return forwards(np.sort(terms, axis=-1), bias)


def evaluate(stages, x, add):
    """The network in NumPy, with the given order of summation."""
    value = x.numpy()
    for stage in stages:
        match stage:
            case Dense(weight, bias):
                offset = np.zeros(len(weight), value.dtype) if bias is None else bias.numpy()
                value = add(weight.numpy() * value[:, None, :], offset)
            case Clip(low, high):
                value = np.clip(value, value.dtype.type(low), value.dtype.type(high))
            case Leaky(slope):
                value = np.where(value >= 0, value, value.dtype.type(slope) * value)
            case Skip(inner):
                value = evaluate(inner, torch.from_numpy(value), add) + value
    return value


def evaluate_permuted(stages, x, rng):
    """The network in PyTorch, the input columns of every layer in another order."""
    value = x
    for stage in stages:
        if isinstance(stage, Dense):
            order = torch.from_numpy(rng.permutation(stage.weight.shape[1]))
            value = nn.functional.linear(value[:, order], stage.weight[:, order], stage.bias)
        elif isinstance(stage, Skip):
            value = value + torch.from_numpy(evaluate_permuted(stage.stages, value, rng))
        else:
            value = torch.from_numpy(evaluate([stage], value, None))
    return value.numpy()


def evaluate_fused(stages, x):
    """The network in float64 with fused multiply-adds: each rounds the exact sum once."""
    value = x.tolist()
    for stage in stages:
        if isinstance(stage, Dense):
            bias = [0.0] * len(stage.weight) if stage.bias is None else stage.bias.tolist()
            value = [
                [fused(ws, row, b) for ws, b in zip(stage.weight.tolist(), bias, strict=True)]
                for row in value
            ]
        elif isinstance(stage, Skip):
            inner = evaluate_fused(stage.stages, torch.tensor(value, dtype=torch.float64))
            value = (np.array(value) + inner).tolist()
        else:
            value = evaluate([stage], torch.tensor(value, dtype=torch.float64), None).tolist()
    return np.array(value)


def fused(weights, values, total):
    for weight, value in zip(weights, values, strict=True):
        total = float(Fraction(weight) * Fraction(value) + Fraction(total))
    return total


ORDERS = [forwards, backwards, bias_first, pairwise, largest_first, signs_apart]


def within_the_bound(model, x, rng):
    """Check every evaluation of a network; where its bound is finite, and the bound."""
    stages = graph.stages(model)
    value, bound = running_bound(stages, x)
    known = torch.isfinite(bound).numpy()
    evaluations = [value.numpy(), model(x).numpy(), evaluate_permuted(stages, x, rng)]
    evaluations += [evaluate(stages, x, order) for order in ORDERS]
    if x.dtype == torch.float64 and known.all():
        evaluations.append(evaluate_fused(stages, x))
    exact = exact_forward(stages, x).fractions()[known]
    allowed = dyadic(bound.numpy()[known]).fractions()
    own = dyadic(value.numpy()[known]).fractions()
    for outputs in evaluations:
        found = dyadic(outputs[known]).fractions()  # refuses infinities: the bound is finite here
        assert (abs(found - exact) <= allowed).all()
        assert (abs(found - own) <= 2 * allowed).all()
    return known, bound


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


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_evaluation_of_a_residual_network_is_within_the_bound(kind, dtype):
    rng = np.random.default_rng([99, KINDS.index(kind), ALL_DTYPES.index(dtype)])
    finite, zero = [], []
    for _ in range(NETWORKS):
        model, x = residual_network(rng, kind, dtype)
        known, bound = within_the_bound(model, x, rng)
        finite.append(known.mean())
        zero.append((bound == 0).double().mean())
    coarse = dtype == torch.float16 or kind in {large, subnormal}
    assert np.mean(finite) > (0.08 if coarse else 0.9)
    assert np.mean(zero) < 0.5
    assert kind is not integers or np.mean(zero) > 0.1


def dense(weight, bias=None, dtype=torch.float64):
    return Dense(torch.tensor(weight, dtype=dtype), None if bias is None else torch.tensor(bias, dtype=dtype))


def bounds_of(stages, x, dtype=torch.float64):
    return running_bound(stages, torch.tensor(x, dtype=dtype))[1]


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
        Skip((Clip(-1.0, 1.0),)),
        Skip((Clip(0.0, 0.0),)),
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


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_the_sum_of_a_block_is_rounded_once_or_not_at_all(dtype):
    unit = torch.finfo(dtype).eps / 2
    scaled = Skip((dense([[unit]], dtype=dtype),))
    # 1 + u is halfway between two numbers, 3 u + 3 too long for the last bit, 4 + 4 u too; 0 + 0 is not.
    x = torch.tensor([[1.0], [3.0], [4.0], [0.0]], dtype=dtype)
    value, bound = running_bound([scaled], x)
    errors = abs(exact_forward([scaled], x).fractions() - dyadic(value).fractions())
    assert errors.ravel().tolist() == [Fraction(unit), Fraction(unit), Fraction(4 * unit), 0]
    assert (errors <= bound.numpy()).all()
    assert (bound.squeeze(1) <= torch.tensor([1.01, 3.01, 4.02, 0.0]) * unit * (1 + unit)).all()
    # A sum that is a number of the dtype has no error, however far its terms are apart.
    fits = Skip((dense([[2 * unit]], dtype=dtype),))
    assert bounds_of([fits], [[1.0], [-2.0], [0.5]], dtype).tolist() == [[0.0], [0.0], [0.0]]


def test_a_block_that_adds_nothing_passes_the_error_on_as_it_is():
    first = dense([[0.1, 0.2], [0.3, -0.7]])
    x = [[1.0, 1.0], [1.5, 2.5]]
    error = bounds_of([first], x)
    assert (error > 0).all()
    zero = Skip((dense([[0.0, 0.0], [0.0, 0.0]]),))
    off = Skip((Clip(-1.0, 1.0), dense([[1.0, 1.0], [1.0, 1.0]], [-9.0, -9.0]), Clip(0.0, math.inf)))
    for block in (zero, off):
        assert torch.equal(bounds_of([first, block], x), error)
    # One unit is off on all rows; what is added to 0 keeps its error.
    gone = dense([[1.0, 0.0], [0.0, 1.0]], [-9.0, 0.0])
    clipped = bounds_of([first, gone, Clip(0.0, math.inf)], x)
    assert (clipped[:, 0] == 0).all()
    beside = bounds_of([first, gone, Clip(0.0, math.inf), Skip((dense([[0.0, 0.1], [0.0, 0.0]]),))], x)
    inner = bounds_of([first, gone, Clip(0.0, math.inf), dense([[0.0, 0.1], [0.0, 0.0]])], x)
    assert torch.equal(beside[:, 0], inner[:, 0])


def test_what_is_0_only_as_computed_is_still_added_with_rounding():
    # Below 0 by less than rounding may take: 0 behind the ReLU, but with an error.
    near = (dense([[0.1, 0.2], [0.0, 1.0]], [-0.3 - 2e-16, 0.0]), Clip(0.0, math.inf))
    x = [[1.0, 1.0]]
    value, error = running_bound([*near], torch.tensor(x, dtype=torch.float64))
    assert value[0, 0] == 0 < error[0, 0]
    assert bounds_of([Skip(near)], x)[0, 0] > error[0, 0] + 0.99 * 2.0**-53
    other = dense([[0.0, 1.0], [0.0, 0.0]])
    beside = bounds_of([*near, other], x)[0, 0]
    assert bounds_of([*near, Skip((other,))], x)[0, 0] > error[0, 0] + beside + 0.99 * 2.0**-53


def test_errors_of_both_ways_add_up():
    first, inner = dense([[0.1, 0.2]]), dense([[3.0]], [0.1])
    x = [[1.0, 1.0]]
    one, other = bounds_of([first], x).item(), bounds_of([first, inner], x).item()
    value, bound = running_bound([first, Skip((inner,))], torch.tensor(x, dtype=torch.float64))
    rounding = 2.0**-53 * (value.item() + 2 * (one + other))
    assert one + other + 0.999 * rounding < bound.item() < one + other + 1.001 * rounding


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_a_block_that_may_overflow_has_no_finite_bound(dtype):
    top = torch.finfo(dtype).max
    double = Skip(())
    bound = bounds_of([double], [[0.75 * top], [-0.75 * top], [0.5 * top], [0.25 * top]], dtype)
    assert bound.squeeze(1).tolist() == [math.inf, math.inf, 0.0, 0.0]
    opposite = Skip((dense([[-1.0]], dtype=dtype),))
    assert bounds_of([opposite], [[2.0 ** (math.log2(top) // 1 - 3)]], dtype).tolist() == [[0.0]]


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
