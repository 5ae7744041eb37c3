"""Theorem 3.1 and Proposition 3.2 of arXiv 1810.07770 at exact equality of the paper's widths.

In float64, for N <= 2000 rows, at all aspect ratios and for all three activations, a network is found

- with one input, if neighboring rows are at least 0.75 mean gaps apart;
- with two to twenty, if rows are at least 1/200 of the diagonal of their bounding box apart.

Experiments gave these numbers; most data do with far closer rows. What fails first is
hard-tanh regression with one input: with 100 groups and more in one chain, of few rows each, and gaps of very
different sizes, a unit's weights wander beyond 1e6. Closer rows are right or refused, never wrong.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from isthmus.data import from_arrays
from isthmus.errors import NotCertified, PrecisionError
from isthmus.memorize import memorize

ACTIVATIONS = st.sampled_from(["hardtanh", "relu", "leaky_relu"])
SEEDS = st.integers(0, 2**32)
LINE_GAP = 0.75  # one input: smallest gap between sorted rows, over the mean gap
DISTANCE = 5e-3  # more inputs: smallest distance of two rows, over the diagonal of the box they fill
TOLERANCE = 1e-6


@st.composite
def networks(draw, most):
    """Halves a, b of the numbers of groups and rows per group: 4 a b = N rows, at all aspect ratios."""
    cells = draw(st.integers(1, most // 4))
    a = draw(st.sampled_from([g for g in range(1, cells + 1) if cells % g == 0]))
    return a, cells // a


def widths(activation, a, b, outputs):
    """d1, d2 with 4 floor(d1/2) floor(d2/(2 dy)) = 4 a b, or with 4 in place of 2 for ReLU-like units."""
    per_half = 2 if activation == "hardtanh" else 4
    return per_half * a, per_half * b * outputs


def on_a_line(random, kind, rows, smallest):
    """Rows with one input whose neighbors are at least ``smallest`` mean gaps apart."""
    gaps = {
        "equal": np.ones,
        "uniform": lambda n: random.uniform(0, 1, n),
        "exponential": lambda n: random.exponential(size=n),
        "heavy": lambda n: random.pareto(1.5, n),
        "two sizes": lambda n: random.integers(0, 2, n).astype(float),
        "clusters": lambda n: (np.arange(1, n + 1) % 17 == 0).astype(float),
    }[kind](rows - 1)
    gaps = smallest + (1 - smallest) * gaps / gaps.mean() if gaps.any() else np.ones(rows - 1)
    x = np.append(0, gaps).cumsum() * 10.0 ** random.integers(-3, 4) + random.normal()
    return random.permutation(x)[:, None]


def in_space(random, kind, rows, inputs):
    match kind:
        case "normal":
            return random.normal(size=(rows, inputs))
        case "uniform":
            return random.uniform(size=(rows, inputs))
        case "grid":
            side = int(np.ceil((4 * rows) ** (1 / inputs))) + 1
            index = random.choice(min(side**inputs, 2**40), size=rows, replace=False)
            return np.stack([index // side**k % side for k in range(inputs)], 1).astype(float)
        case "clusters":
            centers = random.uniform(size=(rows // 20 + 1, inputs))
            return centers[random.integers(0, len(centers), rows)] + 0.03 * random.normal(size=(rows, inputs))
        case "a sphere":
            x = random.normal(size=(rows, inputs))
            return x / np.linalg.norm(x, axis=1, keepdims=True)
    raise ValueError(kind)


LINES = ("equal", "uniform", "exponential", "heavy", "two sizes", "clusters")
SPACES = ("normal", "uniform", "grid", "clusters", "a sphere")


def apart(x):
    """The smallest gap in the unit of its constant: see LINE_GAP and DISTANCE."""
    if x.shape[1] == 1:
        gaps = np.diff(np.sort(x[:, 0]))
        return gaps.min() / gaps.mean()
    return cKDTree(x).query(x, k=2)[0][:, 1].min() / np.linalg.norm(np.ptp(x, axis=0))


def far(x):
    """Whether all rows are as far apart as the tests promise success for."""
    return apart(x) >= (LINE_GAP if x.shape[1] == 1 else DISTANCE)


@st.composite
def inputs(draw, rows):
    random = np.random.default_rng(draw(SEEDS))
    columns = draw(st.integers(1, 20))
    if columns == 1:
        return on_a_line(random, draw(st.sampled_from(LINES)), rows, 1.01 * LINE_GAP)
    x = in_space(random, draw(st.sampled_from(SPACES)), rows, columns)
    for _ in range(100):  # rows too close to another are drawn away from it
        if far(x):
            return x
        near = cKDTree(x).query(x, k=2)[0][:, 1] < 1.01 * DISTANCE * np.linalg.norm(np.ptp(x, axis=0))
        x[near] += 0.1 * np.ptp(x, axis=0) * random.normal(size=(near.sum(), columns))
    reject()


def fits(activation, shape, x, y, seed):
    """Memorize at exact equality, and look at every row with a plain forward pass."""
    a, b = shape
    outputs = y.shape[1] if y.ndim == 2 else 1
    classes = len(np.unique(y))
    asked = widths(activation, a, b, outputs)
    if y.ndim == 1:
        asked += ((2 if activation == "hardtanh" else 4) * classes,)
    options = {"tolerance": TOLERANCE} if y.ndim == 2 else {}
    data = from_arrays(x, y, task="regression" if y.ndim == 2 else "classification")
    found = memorize(
        data, widths=asked, rule="paper", activation=activation, level="measured", seed=seed, **options
    )
    built = [layer.out_features for layer in found.model if isinstance(layer, torch.nn.Linear)]
    assert all(have <= most for have, most in zip(built[:-1], asked, strict=True))
    output = found.model(torch.from_numpy(x)).numpy()
    if y.ndim == 2:
        assert np.abs(output - y).max() <= TOLERANCE
    else:
        one_hot = np.eye(classes)[np.unique(y, return_inverse=True)[1]]
        rivals = np.where(one_hot == 1, -np.inf, output)
        assert (output[one_hot == 1] > rivals.max(1)).all()
        if activation == "hardtanh" and far(x):
            assert (output == one_hot).all()


def check_theorem(most, activation, draw, seed):
    """Regression with 1 or 3 targets."""
    a, b = draw.draw(networks(most))
    x = draw.draw(inputs(4 * a * b))
    y = np.random.default_rng(seed).uniform(-1, 1, (len(x), draw.draw(st.sampled_from([1, 3]))))
    fits(activation, (a, b), x, y, seed)


def check_proposition(most, activation, draw, seed):
    """Classification."""
    a, b = draw.draw(networks(most))
    x = draw.draw(inputs(4 * a * b))
    y = np.random.default_rng(seed).integers(0, draw.draw(st.integers(2, 20)), len(x))
    fits(activation, (a, b), x, y, seed)


CHECKS = pytest.mark.parametrize("check", [check_theorem, check_proposition])


@CHECKS
@given(activation=ACTIVATIONS, draw=st.data(), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_exact_equality_up_to_500_rows(check, activation, draw, seed):
    """Always right where rows are LINE_GAP or DISTANCE apart."""
    check(500, activation, draw, seed)


@pytest.mark.long
@CHECKS
@given(activation=ACTIVATIONS, draw=st.data(), seed=st.integers(0, 99))
@settings(max_examples=400)
def test_exact_equality_up_to_2000_rows(check, activation, draw, seed):
    """Always right where rows are LINE_GAP or DISTANCE apart."""
    check(2000, activation, draw, seed)


@given(
    activation=ACTIVATIONS,
    shape=networks(400),
    kind=st.sampled_from(LINES),
    smallest=st.sampled_from([1e-2, 1e-4, 1e-8, 1e-12, 1e-15]),
    classification=st.booleans(),
    seed=SEEDS,
)
@settings(max_examples=60)
def test_closer_rows_are_right_or_refused(activation, shape, kind, smallest, classification, seed):
    random = np.random.default_rng(seed)
    rows = 4 * shape[0] * shape[1]
    x = on_a_line(random, kind, rows, smallest)
    y = random.integers(0, 5, rows) if classification else random.uniform(-1, 1, (rows, 1))
    if len(np.unique(x)) < rows:
        return
    try:
        fits(activation, shape, x, y, 0)
    except (PrecisionError, NotCertified):
        assert not far(x)
