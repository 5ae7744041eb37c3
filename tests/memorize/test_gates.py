"""Corollary 4.2 at exactly the paper's widths, and gates against their formula in rational arithmetic."""

from fractions import Fraction
from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus import graph
from isthmus.arithmetic.exact import exact_forward
from isthmus.data import from_arrays
from isthmus.errors import WidthError
from isthmus.memorize import memorize
from isthmus.memorize.gates import GATE_UNITS, HAT_REACH, gate_layers
from isthmus.memorize.slabs import Slabs
from isthmus.nets.sequential import LEAK, sequential

ACTIVATIONS = st.sampled_from(["hardtanh", "relu", "leaky_relu"])
SEEDS = st.integers(0, 2**32)
PAPER_UNITS = {"hardtanh": 2, "relu": 4, "leaky_relu": 4}
TIGHT_UNITS = {"hardtanh": 2, "relu": 3, "leaky_relu": 3}


def wrong_rows(found, x, y):
    output = found.model(torch.from_numpy(x)).numpy()
    rivals = np.where(np.eye(output.shape[1])[y] == 1, -np.inf, output)
    return int((output[np.arange(len(y)), y] <= rivals.max(1)).sum())


def gaussian(seed, rows, inputs, classes):
    """Rows in general position, with every class among them."""
    random = np.random.default_rng(seed)
    y = np.append(np.arange(classes), random.integers(0, classes, rows - classes))
    return random.normal(size=(rows, inputs)), random.permutation(y)


@st.composite
def sizes(draw, most):
    """N, d, K; a class alone has rows enough to span the space."""
    inputs, classes = draw(st.integers(1, 40)), draw(st.integers(1, 12))
    fewest = classes if classes > 1 else inputs + 1
    return draw(st.integers(fewest, most)), inputs, classes


# The paper's widths -----------------------------------------------------------------------------------------


def check_corollary(activation, size, seed):
    rows, inputs, classes = size
    x, y = gaussian(seed, *size)
    width = ceil(Fraction(PAPER_UNITS[activation] * rows, inputs)) + PAPER_UNITS[activation] * classes
    found = memorize(
        (x, y), widths=(width,), rule="paper", activation=activation, method="gates", level="proven"
    )
    assert len(found.widths) == 1
    assert found.widths[0] <= width
    assert wrong_rows(found, x, y) == 0
    if activation == "hardtanh":
        assert (found.model(torch.from_numpy(x)).numpy() == np.eye(classes)[y]).all()
        assert found.certificate.level == "bitwise"


@given(activation=ACTIVATIONS, size=sizes(300), seed=SEEDS)
@settings(max_examples=40)
def test_the_corollary_up_to_300_rows(activation, size, seed):
    check_corollary(activation, size, seed)


@pytest.mark.long
@given(activation=ACTIVATIONS, size=sizes(2000), seed=SEEDS)
@settings(max_examples=150)
def test_the_corollary_up_to_2000_rows(activation, size, seed):
    check_corollary(activation, size, seed)


@given(activation=ACTIVATIONS, size=sizes(150), seed=SEEDS)
@settings(max_examples=40)
def test_tight_gates_are_counted_class_by_class(activation, size, seed):
    """Rows over their dimension, rounded up, for every class but the one with the most."""
    rows, inputs, classes = size
    x, y = gaussian(seed, *size)
    found = memorize((x, y), method="gates", activation=activation)
    gates = [ceil(count / min(inputs, rows - 1)) for count in np.bincount(y)] if classes > 1 else [1]
    spared = max(gates) if classes > 1 else 0
    assert found.widths == (TIGHT_UNITS[activation] * (sum(gates) - spared),)
    assert wrong_rows(found, x, y) == 0


@pytest.mark.parametrize("rule", ["paper", "tight"])
@pytest.mark.parametrize("activation", ["hardtanh", "relu", "leaky_relu"])
@given(size=sizes(200), seed=SEEDS)
@settings(max_examples=8)
def test_one_unit_less_is_refused_with_the_width_that_does(activation, rule, size, seed):
    x, y = gaussian(seed, *size)
    rows, inputs, classes = size
    units = (PAPER_UNITS if rule == "paper" else TIGHT_UNITS)[activation]
    gates = [ceil(count / min(inputs, rows - 1)) for count in np.bincount(y)] if classes > 1 else [1]
    enough = units * (sum(gates) - (max(gates) if classes > 1 else 0))
    if rule == "paper":
        enough = ceil(Fraction(units * rows, inputs)) + units * classes
    options = {"rule": rule, "activation": activation}
    with pytest.raises(WidthError, match=rf"Corollary 4\.2 .* d1 >= {enough}, but here d1 = {enough - 1}\.$"):
        memorize((x, y), widths=(enough - 1,), **options)
    found = memorize((x, y), widths=(enough,), **options)
    assert found.widths[0] <= enough
    assert wrong_rows(found, x, y) == 0


@pytest.mark.parametrize("activation", ["hardtanh", "relu"])
def test_more_width_is_spent_on_gates_for_fewer_rows(activation):
    x, y = gaussian(0, 60, 10, 2)
    tight = memorize((x, y), method="gates", activation=activation)
    wide = memorize((x, y), widths=(4 * tight.hidden_units,), activation=activation)
    assert tight.hidden_units < wide.hidden_units <= 4 * tight.hidden_units
    assert wrong_rows(wide, x, y) == 0


# The formula ------------------------------------------------------------------------------------------------

NORMALS = [[1.0, 0.0], [0.0, 1.0], [0.75, -1.0], [1.0, 0.5]]
SLABS = Slabs(
    torch.tensor(NORMALS).double(),
    torch.tensor([0.0, 4.0, -2.0, 9.0]).double(),
    torch.tensor([0.5, 0.25, 1.0, 0.125]).double(),
    torch.tensor([0, 1, 1, 2]),
    torch.arange(4)[:, None],
)


def clipped(value):
    return max(-1, min(1, value))


def formula(gate, z, margin, leak):
    """A gate's value at distance z, as the module's docstring has it."""

    def ramp(value):
        return max(value, Fraction(leak) * value)

    if gate == "step pair":
        k = Fraction(2)
        while k * margin < 16:
            k *= 2
        return (clipped(k * (z + margin / 2)) - clipped(k * (z - margin / 2))) / 2
    if gate == "trapezoid":
        q = 3 * z / margin
        return (ramp(q + 2) - ramp(q + 1) - ramp(q - 1) + ramp(q - 2)) / (1 - Fraction(leak))
    q = z / (Fraction(HAT_REACH) * margin)
    return (ramp(q + 1) - 2 * ramp(q) + ramp(q - 1)) / (1 - Fraction(leak))


CASES = [
    ("step pair", "hardtanh", 0.0),
    ("trapezoid", "relu", 0.0),
    ("trapezoid", "leaky_relu", LEAK),
    ("hat", "relu", 0.0),
    ("hat", "leaky_relu", LEAK),
]


@pytest.mark.parametrize("spared", [None, 0, 1, 2])
@pytest.mark.parametrize(("gate", "activation", "leak"), CASES)
@given(x=st.tuples(*[st.integers(-640, 640).map(lambda n: n / 64)] * 2))
@settings(max_examples=25)
def test_layers_are_the_formula(gate, activation, leak, spared, x):
    layers = gate_layers(SLABS, 3, gate, leak, spared)
    network = sequential(layers, activation)
    kept = [k for k, label in enumerate(SLABS.pool.tolist()) if label != spared]
    assert layers[0].weight.shape == (GATE_UNITS[gate] * len(kept), 2)
    output = exact_forward(graph.stages(network), np.array([x])).fractions()[0]
    opened = [Fraction(0)] * 3
    for k in kept:
        z = sum(Fraction(a) * Fraction(b) for a, b in zip(NORMALS[k], x, strict=True))
        z -= Fraction(SLABS.center[k].item())
        opened[SLABS.pool[k]] += formula(gate, z, Fraction(SLABS.margin[k].item()), leak)
    if spared is not None:
        opened[spared] = 1 - sum(opened)
    # The slope of a gate is rounded, and multiplies what is at most 50 margins away.
    slack = Fraction(0 if gate == "step pair" else 1e-11)
    assert all(abs(got - wanted) <= slack for got, wanted in zip(output, opened, strict=True))


@pytest.mark.parametrize(("gate", "activation", "leak"), CASES)
def test_a_gate_is_one_on_its_slab_and_zero_from_its_margin_on(gate, activation, leak):
    network = sequential(gate_layers(SLABS, 3, gate, leak, None), activation)
    on = torch.tensor([[0.0, 20.0], [20.0, 4.0], [12.0, 11.0], [9.0, 0.0]]).double()
    torch.testing.assert_close(network(on), torch.eye(3).double()[SLABS.pool], rtol=0, atol=1e-12)
    steps = SLABS.margin[:, None] * SLABS.normal / SLABS.normal.square().sum(1, keepdim=True)
    for side in (-1, 1):  # rows at the margin itself: |u x - b| = mu
        assert (network(on + side * steps).abs() <= 1e-12).all()


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("rule", ["paper", "tight"])
@pytest.mark.parametrize("activation", ["hardtanh", "relu", "leaky_relu"])
def test_one_or_two_classes(activation, rule, classes):
    x, y = gaussian(3, 24, 4, classes)
    found = memorize((x, y), method="gates", rule=rule, activation=activation)
    output = found.model(torch.from_numpy(x))
    assert output.shape == (24, classes)
    torch.testing.assert_close(output, torch.eye(classes).double()[torch.from_numpy(y)], rtol=0, atol=1e-3)
    last = found.model[-1]
    assert last.bias.tolist().count(1.0) == (classes == 2 and rule == "tight")


def test_the_spared_class_is_the_one_with_most_gates():
    x, _ = gaussian(4, 60, 5, 1)
    y = np.repeat([0, 1, 2], [10, 35, 15])
    found = memorize((x, y), method="gates")
    assert found.widths == (2 * (2 + 3),)
    assert found.model[-1].bias.tolist() == [0.0, 1.0, 0.0]
    paper = memorize((x, y), method="gates", rule="paper")
    assert paper.widths == (2 * (2 + 7 + 3),)
    assert paper.model[-1].bias.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_steps_keep_normals_that_the_dtype_holds(dtype):
    """Slopes are powers of two: what was certified of a normal is true of the weights."""
    random = np.random.default_rng(5)
    data = from_arrays(random.normal(size=(40, 6)), np.arange(40) % 3)
    found = memorize(data, method="gates", dtype=dtype)
    assert wrong_rows(found, data.x.numpy().astype(str(dtype)[6:]), data.y.numpy()) == 0
    weight = found.model[0].weight
    significand, _ = torch.frexp(weight.abs().amax(1))
    assert (significand == 0.5).all()
    assert torch.equal(weight[::2], weight[1::2])


def test_a_class_without_rows_takes_no_gates():
    data = from_arrays(np.arange(6.0)[:, None] % 2, ["a", "a", "a", "a", "a", "b"]).resolve("majority")
    found = memorize(data, method="gates")
    assert found.widths == (2,)
    assert found.certificate.wrong == 0
