"""Every theorem at exact equality of its widths, against rational arithmetic.

Yun, Sra and Jadbabaie 2019: Theorem 3.1, Propositions 3.2 and 3.4, Corollaries A.1 to A.3, Theorem 4.1 and
Corollary 4.2; Bubeck, Eldan, Lee and Mikulincer 2020. Networks are built in float64, and what they give is
computed without any rounding, on all rows or `RATIONAL_ROWS` of them, and in float64 on all: 0 rows wrong,
and values within 1e-6 of their targets in [-1, 1].
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from isthmus import graph
from isthmus.data import from_arrays
from isthmus.memorize import memorize

from .rational import rational_error, rational_wrong
from .test_yun_sra_jadbabaie import LINES, SEEDS, in_space, on_a_line

ACTIVATIONS = st.sampled_from(["hardtanh", "relu", "leaky_relu"])
RULES = st.sampled_from(["paper", "tight"])
TOLERANCE = 1e-6
RATIONAL_ROWS = 300
GENERAL = st.sampled_from(["normal", "uniform", "a sphere"])  # rows in general position, almost surely


def units(activation):
    """ReLU-like units per hard-tanh unit."""
    return 1 if activation == "hardtanh" else 2


@st.composite
def inputs(draw, rows, fewest=1):
    """Rows of one input up to twenty; in one, neighbors are at least 0.76 mean gaps apart."""
    random = np.random.default_rng(draw(SEEDS))
    columns = draw(st.integers(fewest, 20))
    if columns == 1:
        return on_a_line(random, draw(st.sampled_from(LINES)), rows, 0.76)
    return in_space(random, draw(GENERAL), rows, columns)


@st.composite
def grids(draw, most, rule):
    """G groups of n rows, of which the paper's theorem counts pairs."""
    pair = 2 if rule == "paper" else 1
    cells = draw(st.integers(1, max(1, most // pair**2)))
    groups = draw(st.sampled_from([g for g in range(1, cells + 1) if cells % g == 0]))
    return pair * groups, pair * (cells // groups)


@st.composite
def deep_widths(draw, most, activation, rule, carried):
    """Widths of one to four blocks with layers before, between and behind them, and the rows they hold."""
    blocks = draw(st.integers(1, 4))
    widths, rows = [1] * draw(st.integers(0, 2)), 0
    for block in range(blocks):
        groups, size = draw(grids(most // blocks, rule))
        carry = carried * (block > 0) + (block < blocks - 1)
        widths += [units(activation) * groups + carry, units(activation) * size * carried + carry]
        widths += [carried + 1] * (draw(st.integers(0, 1)) if block < blocks - 1 else 0)
        rows += groups * size
    return (*widths, *[carried] * draw(st.integers(0, 2))), rows


def fits(x, y, widths, **options):
    """Build a network within the widths, and look at every row without rounding."""
    values = y.ndim == 2
    data = from_arrays(x, y, task="regression" if values else "classification")
    options |= {"tolerance": TOLERANCE} if values else {}
    found = memorize(data, widths=widths, level="measured", **options)
    built = graph.widths(graph.stages(found.model))
    assert built == found.widths
    if found.recipe["plan"]["method"] == "residual":  # a block that needs no gate is left out
        assert sum(built[:-1]) <= sum(widths[:-1])
        assert built[-1] <= widths[-1]
    else:
        assert len(built) == len(widths)
        assert all(have <= most for have, most in zip(built, widths, strict=True))
    x, some = torch.from_numpy(x), slice(None, None, -(-len(x) // RATIONAL_ROWS))
    outputs = found.model(x)
    if values:
        assert rational_error(found.model, x[some], y[some]) <= TOLERANCE
        assert np.abs(outputs.numpy() - y).max() <= TOLERANCE
        return
    _, label = np.unique(y, return_inverse=True)
    assert rational_wrong(found.model, x[some], label[some]) == 0
    assert (outputs.argmax(1).numpy() == label).all()
    if options["activation"] == "hardtanh" and options.get("method") != "deep":
        assert torch.equal(outputs, torch.eye(outputs.shape[1], dtype=torch.float64)[label])


def labels(draw, rows, most=10):
    y = np.random.default_rng(draw.draw(SEEDS)).integers(0, draw.draw(st.integers(2, most)), rows)
    assume(len(np.unique(y)) > 1)
    return np.unique(y, return_inverse=True)[1]


def targets(draw, rows, outputs):
    return np.random.default_rng(draw.draw(SEEDS)).uniform(-1, 1, (rows, outputs))


def three_layers(most, draw, activation, rule, seed):
    """Theorem 3.1."""
    outputs = draw.draw(st.sampled_from([1, 1, 3]))
    groups, size = draw.draw(grids(most, rule))
    widths = (units(activation) * groups, units(activation) * size * outputs)
    x = draw.draw(inputs(groups * size))
    fits(x, targets(draw, len(x), outputs), widths, activation=activation, rule=rule, seed=seed)


def four_layers(most, draw, activation, rule, seed):
    """Proposition 3.2."""
    groups, size = draw.draw(grids(most, rule))
    x = draw.draw(inputs(groups * size))
    y = labels(draw, len(x))
    decoder = 2 * (y.max() + 1) if rule == "paper" else y.max()
    widths = tuple(units(activation) * width for width in (groups, size, int(decoder)))
    fits(x, y, widths, activation=activation, rule=rule, seed=seed)


def deep(most, draw, activation, rule, seed):
    """Proposition 3.4 and Corollary A.1."""
    outputs = draw.draw(st.sampled_from([1, 1, 2, 3]))
    widths, rows = draw.draw(deep_widths(most, activation, rule, outputs))
    x = draw.draw(inputs(rows))
    y = targets(draw, rows, outputs)
    fits(x, y, widths, method="deep", activation=activation, rule=rule, seed=seed)


def deep_classifier(most, draw, activation, rule, seed):
    """Corollaries A.2 and A.3."""
    widths, rows = draw.draw(deep_widths(most, activation, rule, 1))
    x = draw.draw(inputs(rows))
    y = labels(draw, rows)
    classes = int(y.max()) + 1
    decoder = units(activation) * (2 * classes if rule == "paper" else classes - 1)
    widths += (decoder, *[classes] * draw.draw(st.integers(0, 2)))
    fits(x, y, widths, method="deep-classifier", activation=activation, rule=rule, seed=seed)


def residual(most, draw, activation, rule, seed):
    """Theorem 4.1, with the gates spread over blocks of any widths."""
    rows = draw.draw(st.integers(2, most))
    x = draw.draw(inputs(rows, fewest=2))
    y = labels(draw, rows, most=min(x.shape[1], 10))
    columns, classes = x.shape[1], int(y.max()) + 1
    gate = 2 * units(activation)
    total = -(-gate * rows // columns) + gate * classes
    ends = sorted(draw.draw(st.lists(st.integers(0, total), max_size=4)))
    widths = [end - start for start, end in pairwise([0, *ends, total]) if end > start]
    # Half a ReLU step is no step, and without a column to spare no gate is cut.
    piece = gate if columns <= classes else units(activation)
    widths = [width + -width % piece for width in widths]
    last = units(activation) * classes
    fits(x, y, (*widths, last), method="residual", activation=activation, rule="paper", seed=seed)


def gates(most, draw, activation, rule, seed):
    """Corollary 4.2."""
    rows = draw.draw(st.integers(2, most))
    x = draw.draw(inputs(rows, fewest=2))
    y = labels(draw, rows)
    gate = 2 * units(activation)
    width = -(-gate * rows // x.shape[1]) + gate * (int(y.max()) + 1)
    fits(x, y, (width,), activation=activation, rule="paper", seed=seed)


def real_gates(most, draw, activation, rule, seed):
    """Bubeck et al. 2020: 4 ceil(N / d) ReLUs for one target, or half as many hard-tanh units."""
    rows = draw.draw(st.integers(2, most))
    x = draw.draw(inputs(rows, fewest=2))
    outputs = draw.draw(st.sampled_from([1, 1, 2]))
    width = (outputs + 1) * units(activation) * -(-rows // x.shape[1])
    fits(x, targets(draw, rows, outputs), (width,), method="gates", activation=activation, seed=seed)


THEOREMS = pytest.mark.parametrize(
    "theorem",
    [three_layers, four_layers, deep, deep_classifier, residual, gates, real_gates],
)


@THEOREMS
@given(activation=ACTIVATIONS, rule=RULES, draw=st.data(), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_exact_equality_up_to_150_rows(theorem, activation, rule, draw, seed):
    theorem(150, draw, activation, rule, seed)


@pytest.mark.long
@THEOREMS
@given(activation=ACTIVATIONS, rule=RULES, draw=st.data(), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_exact_equality_up_to_2000_rows(theorem, activation, rule, draw, seed):
    theorem(2000, draw, activation, rule, seed)
