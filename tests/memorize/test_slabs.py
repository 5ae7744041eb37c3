"""Slabs on rows in no general position, with every distance |u x - b| recomputed in rational arithmetic."""

import re
import signal
from contextlib import contextmanager
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.data import from_arrays
from isthmus.errors import PrecisionError
from isthmus.memorize import memorize
from isthmus.memorize.gates import class_pools
from isthmus.memorize.slabs import find_slabs

ROWS = 50
PATIENCE = 30  # seconds that no search for slabs of so few rows may take
NARROW = Fraction(1, 8)  # of the margin, in which the rows of a slab lie: its gate is open there
SEEDS = st.integers(0, 2**32)
DTYPES = {torch.float64: 53, torch.float32: 24, torch.float16: 11}  # bits of the significand


@contextmanager
def patience(seconds=PATIENCE):
    """Interrupt what does not end by itself."""

    def give_up(*_):
        raise AssertionError(f"no answer after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def found(x, y, most=None, adding=False, dtype=torch.float64, seed=0):
    data = from_arrays(x, y, task="classification")
    with patience():
        generator = torch.Generator().manual_seed(seed)
        return find_slabs(data, class_pools(data), most or x.shape[1], adding, dtype, generator)


def dimension(x):
    """Of the affine hull, columns scaled alike."""
    reach = np.abs(x - x[0]).max(0)
    return np.linalg.matrix_rank((x - x[0]) / np.where(reach > 0, reach, 1), rtol=1e-8)


def whole(values):
    """Floats as integers and the denominator of them all."""
    ratios = [value.as_integer_ratio() for value in values.flat]
    common = max(denominator for _, denominator in ratios)
    integers = np.array([top * (common // bottom) for top, bottom in ratios], dtype=object)
    return integers.reshape(values.shape), common


def check(slabs, x, y, most=None, dtype=torch.float64):
    """Every row on one slab of its class, all others a margin off that the dtype holds."""
    assert torch.equal(slabs.normal.to(dtype).double(), slabs.normal)
    rows, below = whole(np.column_stack([x, np.ones(len(x))]))
    planes, under = whole(torch.column_stack([slabs.normal, -slabs.center]).numpy())
    distance, terms = abs(rows @ planes.T), (abs(rows) @ abs(planes).T).max(0)
    margin = np.array([Fraction(mu) * below * under for mu in slabs.margin.tolist()])
    own = distance <= NARROW * margin
    assert (own.sum(1) == 1).all()
    assert (slabs.pool.numpy()[own.argmax(1)] == y).all()
    assert own.any(0).all()
    if len(set(y.tolist())) > 1:  # rows of one class all lie on one, whatever it is
        assert own.sum(0).max() <= min(most or x.shape[1], dimension(x))
    rounding = (x.shape[1] + 1) * terms  # of u x - b, in units of the roundoff
    assert (own | (distance >= margin - 4 * rounding * Fraction(2) ** -53)).all()
    assert (margin > 5 * rounding * Fraction(2) ** -DTYPES[dtype]).all()


def integers(random, rows, columns, reach=9):
    return random.integers(-reach, reach + 1, (rows, columns)).astype(float)


def table(kind, random):
    """Distinct rows and their classes, in no general position."""
    rows, columns = random.integers(2, ROWS + 1), random.integers(1, 7)
    x, y = random.normal(size=(rows, columns)), random.integers(0, random.integers(1, 5), rows)
    match kind:
        case "constant columns":
            x[:, random.random(columns) < 0.5] = 3.0
        case "columns dead for one class":
            x[y == 0, : columns // 2] = 0.0
        case "mostly zero":
            x *= random.random(x.shape) < 0.3
        case "low rank":
            rank = random.integers(1, columns + 1)
            x = random.normal(size=(rows, rank)) @ random.normal(size=(rank, columns))
        case "low rank, whole":
            rank = random.integers(1, columns + 1)
            x = integers(random, rows, rank) @ integers(random, rank, columns)
        case "a full grid":
            x = np.array(list(product(range(4), repeat=3)), float)
        case "a cube's corners":
            x = np.array(list(product(range(2), repeat=5)), float)
        case "small integers":
            x = integers(random, rows, columns, 2)
        case "collinear, alternating":
            x = np.arange(rows)[:, None] * integers(random, 1, columns)
            x[:, 0] = np.arange(rows)
        case "one column":
            x = x[:, :1]
        case "a class per row":
            y = np.arange(rows)
        case "few rows, dependent":
            x = integers(random, rows := random.integers(2, 13), 2) @ integers(random, 2, 12)
        case "scales from 1e-150 to 1e150":
            x *= 10.0 ** random.choice([-150, 0, 150], columns)
        case "tiny" | "vast":
            x *= {"tiny": 1e-200, "vast": 1e150}[kind]
        case "an offset of a million":
            x = 1e6 + x * 10.0 ** -random.integers(0, 4, columns)
    x, first = np.unique(x, axis=0, return_index=True)
    y = np.arange(len(x)) % 2 if "alternating" in kind else np.resize(y, max(first) + 1)[first]
    return x, np.unique(y, return_inverse=True)[1]


KINDS = [
    "normal", "constant columns", "columns dead for one class", "mostly zero", "low rank", "low rank, whole",
    "a full grid", "a cube's corners", "small integers", "collinear, alternating", "one column",
    "a class per row", "few rows, dependent", "scales from 1e-150 to 1e150", "tiny", "vast",
    "an offset of a million",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@given(seed=SEEDS, most=st.sampled_from([None, 1, 2]), adding=st.booleans())
@settings(max_examples=8)
def test_float64_covers_rows_in_any_position(kind, seed, most, adding):
    x, y = table(kind, np.random.default_rng(seed))
    if len(x) > 1:
        check(found(x, y, most, adding, seed=seed), x, y, most)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "1e-150" not in kind])
@given(seed=SEEDS, adding=st.booleans())
@settings(max_examples=6)
def test_narrow_margins_hold_or_are_refused(kind, dtype, seed, adding):
    x, y = table(kind, np.random.default_rng(seed))
    if len(x) == 1:
        return
    try:
        slabs = found(x, y, adding=adding, dtype=dtype, seed=seed)
    except PrecisionError as error:
        refusal = str(error)
    else:
        check(slabs, x, y, dtype=dtype)
        return
    row, nearest = (int(number) - 1 for number in re.findall(r"row (\d+)", refusal))
    apart = np.abs(x - x[row]).max(1)
    apart[row] = np.inf
    assert apart[nearest] == apart.min()
    assert f"at most {apart.min():.1e} away" in refusal


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("a full grid", torch.float32), ("small integers", torch.float32), ("a cube's corners", torch.float16)],
)
def test_short_numbers_are_not_refused(kind, dtype):
    for seed in range(5):
        x, y = table(kind, np.random.default_rng(seed))
        if len(x) > 1:
            check(found(x, y, adding=dtype == torch.float32, dtype=dtype), x, y, dtype=dtype)


@given(seed=SEEDS, rows=st.integers(2, 200), columns=st.integers(1, 12), classes=st.integers(2, 5))
@settings(max_examples=40)
def test_general_position_takes_no_gate_too_many(seed, rows, columns, classes):
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(rows, columns)), np.arange(rows) % classes
    slabs = found(x, y, seed=seed)
    most = min(columns, rows - 1)
    assert torch.bincount(slabs.pool).tolist() == [-(-count // most) for count in np.bincount(y)]


def test_rows_that_lie_between_others_get_a_slab_of_their_own():
    """The line through rows 0 and 2 meets row 1, of the other class."""
    x, y = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]), np.array([0, 1, 0])
    slabs = found(x, y)
    check(slabs, x, y)
    assert sorted(slabs.pool.tolist()) == [0, 0, 1]


def test_the_same_seed_gives_the_same_slabs():
    x, y = table("a full grid", np.random.default_rng(0))
    one, again, other = found(x, y), found(x, y), found(x, y, seed=1)
    assert torch.equal(one.normal, again.normal)
    assert torch.equal(one.margin, again.margin)
    assert not torch.equal(one.normal, other.normal)


def test_rows_that_float16_cannot_tell_apart_are_named():
    x = np.array([[0.0], [1.0], [1.0001], [3.0]])
    with pytest.raises(PrecisionError) as refusal:
        found(x, np.array([0, 0, 1, 1]), dtype=torch.float16)
    assert "no hyperplane through row 2" in str(refusal.value) or "row 3 " in str(refusal.value)
    assert "in float16; nearest to it is row" in str(refusal.value)
    assert "at most 1.0e-04 away in any column." in str(refusal.value)


def test_repeated_rows_are_merged_before():
    random = np.random.default_rng(0)
    x, y = table("small integers", random)
    again = random.integers(0, len(x), 3 * len(x))
    x, y = np.vstack([x, x[again]]), np.append(y, y[again])
    for activation in ("hardtanh", "relu"):
        with patience():
            seen = memorize((x, y), method="gates", activation=activation)
        assert seen.certificate.merged == len(again)
        assert (seen.model(torch.from_numpy(x)).argmax(1).numpy() == y).all()


@pytest.mark.parametrize("activation", ["hardtanh", "relu"])
@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_gates_are_right_in_any_position(kind, activation):
    x, y = table(kind, np.random.default_rng(1))
    with patience():
        seen = memorize((x, y), method="gates", activation=activation)
    output = seen.model(torch.from_numpy(x)).numpy()
    assert (np.eye(output.shape[1])[y] == output.round(2)).all()
    assert seen.certificate.level == "bitwise" or activation == "relu"


@pytest.mark.parametrize("scale", [1e-308, 1e-320])
def test_columns_that_hardly_vary_are_no_trouble(scale):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(57, 4)), np.arange(57) % 2
    x[:, 0] *= scale
    assert memorize((x, y)).certificate.wrong == 0


def test_one_row_opens_one_gate():
    found_network = memorize(([[3.0, 4.0]], ["a"]), method="gates")
    assert found_network.widths == (2,)
    assert found_network.certificate.level == "bitwise"


@pytest.mark.parametrize("seed", range(6))
def test_rows_that_a_narrow_normal_misses_are_never_wrong(seed):
    random = np.random.default_rng(seed)
    x = random.normal(size=(5, 2)) * [2e4, 1e-3]
    try:
        slabs = found(x, np.arange(5) % 2, dtype=torch.float16)
    except PrecisionError:
        return
    owned = np.abs(x @ slabs.normal.numpy().T - slabs.center.numpy()) <= slabs.margin.numpy() / 4
    assert (owned.sum(1) == 1).all()
