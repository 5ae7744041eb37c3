"""Kinds of numbers, orders of summation and networks evaluated in each, for rounding to be bounded.

Every evaluator here is one that the bound of `isthmus.arithmetic.rounding` must cover; none shares code with
it.
"""

from fractions import Fraction

import numpy as np
import torch
from torch import nn

from isthmus import graph
from isthmus.arithmetic.exact import dyadic, exact_forward
from isthmus.arithmetic.rounding import running_bound
from isthmus.graph import Clip, Dense, Leaky, Sum

DTYPES = [torch.float64, torch.float32]
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
            case Sum(((), inner)):
                value = evaluate(inner, torch.from_numpy(value), add) + value
    return value


def evaluate_permuted(stages, x, rng):
    """The network in PyTorch, the input columns of every layer in another order."""
    value = x
    for stage in stages:
        if isinstance(stage, Dense):
            order = torch.from_numpy(rng.permutation(stage.weight.shape[1]))
            value = nn.functional.linear(value[:, order], stage.weight[:, order], stage.bias)
        elif isinstance(stage, Sum):
            value = value + torch.from_numpy(evaluate_permuted(stage.branches[1], value, rng))
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
        elif isinstance(stage, Sum):
            inner = evaluate_fused(stage.branches[1], torch.tensor(value, dtype=torch.float64))
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


def beside(*stages):
    """x -> x + f(x)."""
    return Sum(((), stages))


def dense(weight, bias=None, dtype=torch.float64):
    return Dense(torch.tensor(weight, dtype=dtype), None if bias is None else torch.tensor(bias, dtype=dtype))


def bounds_of(stages, x, dtype=torch.float64):
    return running_bound(stages, torch.tensor(x, dtype=dtype))[1]
