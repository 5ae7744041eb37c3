"""`memorize` from end to end: right or refused, never wrong; checked by plain forward passes in float64."""

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from isthmus.data import from_arrays
from isthmus.errors import DataError, InputError, NotCertified, PrecisionError, WidthError
from isthmus.memorize import Status, memorize

search = import_module("isthmus.memorize.search")

ACTIVATIONS = ("hardtanh", "relu", "leaky_relu")
REFUSALS = (PrecisionError, NotCertified)


def wrong_rows(found, x, y):
    """Rows that the returned module gets wrong, counted without isthmus."""
    parameter = next(found.model.parameters())
    output = found.model(torch.as_tensor(np.asarray(x)).to(parameter.dtype)).numpy()
    if found.data.task == "regression":
        error = np.abs(output - np.asarray(y, float).reshape(len(output), -1)).max(1)
        return int((~(error <= found.certificate.tolerance)).sum())
    label = np.unique(y, return_inverse=True)[1]
    rivals = output.copy()
    rivals[np.arange(len(y)), label] = -np.inf
    return int((~(output[np.arange(len(y)), label] > rivals.max(1))).sum())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("task", ["classification", "regression"])
@given(
    seed=st.integers(0, 2**32), rows=st.integers(1, 60), inputs=st.integers(1, 5), outputs=st.integers(1, 4)
)
@settings(max_examples=15)
def test_random_tables_are_memorized(activation, task, seed, rows, inputs, outputs):
    random = np.random.default_rng(seed)
    x = np.arange(rows)[:, None] + random.uniform(-0.3, 0.3, (rows, inputs))
    y = random.integers(0, outputs, rows) if task == "classification" else random.normal(size=(rows, outputs))
    found = memorize(from_arrays(x, y, task=task), activation=activation)
    assert found.status is Status.CERTIFIED
    assert found.certificate.level in {"proven", "bitwise"}
    assert wrong_rows(found, x, y) == 0
    assert found.certificate.rows == rows
    assert found.tried[-1].widths == found.widths
    built = [layer for layer in found.model if isinstance(layer, nn.Linear)]
    assert tuple(layer.out_features for layer in built[:-1]) == found.widths
    assert found.parameters == sum(parameter.numel() for parameter in found.model.parameters())


METHODS = [
    (activation, method) for activation in ACTIVATIONS for method in ("affine", "three-layer", "classifier")
]
METHODS += [("relu", "interpolant"), ("leaky_relu", "interpolant")]


@pytest.mark.parametrize(("activation", "method"), METHODS)
@pytest.mark.parametrize(
    "x", [[[3.0, 4.0]], [[0.0]], [[1.0], [2.0], [5.0], [4.0]]], ids=["one", "zero", "four"]
)
def test_one_row_or_one_class_is_no_special_case(activation, method, x):
    y = ["only"] * len(x)
    found = memorize((x, y), activation=activation, method=method)
    assert found.certificate.level in {"proven", "bitwise"}
    assert found.model(torch.tensor(x, dtype=torch.float64)).shape == (len(x), 1)
    assert found.model[-1].out_features == 1
    built = [layer.out_features for layer in found.model if isinstance(layer, nn.Linear)]
    assert tuple(built[:-1]) == found.widths


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("method", ["three-layer", None])
def test_equal_targets(activation, method):
    x = np.random.default_rng(0).normal(size=(12, 2))
    found = memorize(from_arrays(x, [2.5] * 12, task="regression"), activation=activation, method=method)
    assert wrong_rows(found, x, [2.5] * 12) == 0
    assert found.certificate.tolerance == 1e-8


def test_duplicates_are_merged_and_counted():
    x = np.random.default_rng(0).normal(size=(20, 2))
    y = np.arange(20) % 2
    once, twice = memorize((x, y)), memorize((np.vstack([x, x[::-1]]), np.append(y, y[::-1])))
    assert (once.widths, once.certificate.merged) == (twice.widths, 0)
    assert (twice.certificate.rows, twice.certificate.merged) == (40, 20)
    assert wrong_rows(twice, x, y) == 0


def test_conflicts_are_refused_dropped_or_outvoted():
    x, y = [[0.0], [1.0], [1.0], [1.0], [2.0]], [0, 1, 1, 0, 0]
    with pytest.raises(DataError, match=r"first in rows 2 and 4 \(1 and 0\)"):
        memorize((x, y))
    assert memorize((x, y), conflicts="drop").certificate.rows == 2
    voted = memorize((x, y), conflicts="majority")
    assert wrong_rows(voted, x, [0, 1, 1, 1, 0]) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_images_get_a_flatten(dtype):
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (100, 1, 4, 5)).astype(np.uint8), random.integers(0, 3, 100)
    found = memorize((x, y), dtype=dtype)
    assert isinstance(found.model[0], nn.Flatten)
    assert found.model(torch.from_numpy(x).to(dtype)).shape == (100, 3)
    assert wrong_rows(found, x, y) == 0
    assert {parameter.dtype for parameter in found.model.parameters()} == {dtype}


def test_float32_is_refused_where_float64_would_do():
    random = np.random.default_rng(0)
    with pytest.raises(PrecisionError, match=r"^float32 is too coarse .* choose dtype float64\.$"):
        memorize((random.normal(size=(300, 1)), random.normal(size=300)), dtype=torch.float32, tolerance=1e-6)
    with pytest.raises(PrecisionError, match=r"float32 rounds the targets .* choose dtype float64"):
        memorize((random.normal(size=(9, 1)), 10 + random.normal(size=9)), dtype=torch.float32)


def test_tolerance_decides_what_is_right():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(100, 2)), random.normal(size=100)
    loose = memorize((x, y), tolerance=1e-3, dtype=torch.float32, level="measured")
    assert loose.certificate.tolerance == 1e-3
    assert wrong_rows(loose, x, y) == 0
    assert memorize((x, y), tolerance=10.0).widths == ()
    with pytest.raises(NotCertified, match="allow a larger tolerance"):
        memorize((x, y), tolerance=0.0)
    with pytest.raises(InputError, match="a tolerance is for regression"):
        memorize((x, y > 0), tolerance=1e-3)


def test_a_spent_budget_is_said():
    random = np.random.default_rng(0)
    table = random.normal(size=(100, 2)), random.normal(size=100)
    with pytest.raises(NotCertified, match=r"^the time budget ended .*; give a larger budget"):
        memorize(table, budget=0.0)
    best = memorize(table, budget=0.0, raise_on_failure=False)
    assert best.status is Status.OUT_OF_BUDGET
    assert len(best.tried) == 1
    assert best.certificate.wrong > 0


def test_without_raising_the_best_candidate_comes_back():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(30, 2)), random.integers(0, 2, 30)
    with pytest.raises(NotCertified, match="of 30 rows are wrong"):
        memorize((x, y), method="affine")
    best = memorize((x, y), method="affine", raise_on_failure=False)
    assert best.status is Status.EXHAUSTED
    assert best.certificate.wrong == wrong_rows(best, x, y) > 0


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_seed_decides_every_bit(activation):
    random = np.random.default_rng(0)
    table = random.normal(size=(80, 3)), random.integers(0, 4, 80)

    def weights(seed):
        return memorize(table, method="classifier", activation=activation, seed=seed).model.state_dict()

    one, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["0.weight"], other["0.weight"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"activation": "gelu"}, InputError, "unknown activation 'gelu'; choose one of hardtanh, relu"),
        ({"rule": "loose"}, InputError, "unknown rule 'loose'; choose one of paper, tight"),
        ({"level": "none"}, InputError, "unknown level 'none'; choose one of measured, proven, bitwise"),
        ({"method": "magic"}, InputError, "unknown method 'magic'; choose one of affine"),
        ({"method": "interpolant"}, InputError, "is made of ReLUs; choose activation 'relu'"),
        ({"dtype": torch.bfloat16}, InputError, r"dtype torch\.bfloat16 is not offered"),
        ({"conflicts": "ignore"}, DataError, "conflicts='ignore' is unknown"),
        ({"widths": (1,)}, WidthError, r"Corollary 4\.2 .* d1 >= \d+, but here d1 = 1"),
        ({"widths": "ab"}, InputError, "widths are positive integers"),
        ({"widths": (2, 2)}, WidthError, r"asks for d1\*d2 >= 9, but here 2\*2 = 4"),
        ({"widths": (3, 3, 3), "method": "three-layer"}, InputError, "has 2 hidden layer.*, but 3 width"),
    ],
)
def test_misuse_is_answered_with_a_sentence(options, error, message):
    with pytest.raises(error, match=message):
        memorize((np.random.default_rng(0).normal(size=(9, 2)), [0, 1, 1] * 3), **options)


def test_advice_names_hardtanh_only_where_it_is_another_activation():
    random = np.random.default_rng(0)
    table = random.normal(size=(30, 2)), random.normal(size=30)
    with pytest.raises(NotCertified, match=r"more units \(widths\)\.$"):
        memorize(table, method="three-layer", tolerance=0.0)
    with pytest.raises(NotCertified, match=r"more units \(widths\), or choose activation 'hardtanh'\.$"):
        memorize(table, method="three-layer", tolerance=0.0, activation="relu")
    with pytest.raises(NotCertified, match=r"choose a method with hidden layers"):
        memorize(table, method="affine")


def awkward(kind, random, rows=150):
    x = random.normal(size=(rows, 8))
    match kind:
        case "scales from 1e-6 to 1e9":
            x *= 10.0 ** np.linspace(-6, 9, 8)
        case "timestamps":
            x[:] = 1.7e9 + random.integers(0, 10**6, x.shape)
        case "fractions of a second":
            x += 1.7e9
        case "constant columns":
            x[:, 2:5] = [0.0, 7.0, -1e12]
        case "near the largest":
            x *= 1e300
        case "near the smallest":
            x *= 1e-300
        case "binary":
            x[:] = (np.arange(rows)[:, None] >> np.arange(8)) & 1
    return x


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "kind",
    [
        "scales from 1e-6 to 1e9",
        "timestamps",
        "fractions of a second",
        "constant columns",
        "near the largest",
        "near the smallest",
        "binary",
    ],
)
def test_awkward_columns_are_memorized(kind, activation):
    random = np.random.default_rng(0)
    x, y = awkward(kind, random), random.integers(0, 5, 150)
    found = memorize((x, y), activation=activation)
    assert wrong_rows(found, x, y) == 0
    constant = torch.from_numpy(np.ptp(x, axis=0) == 0)
    assert (found.model[0].weight[:, constant] == 0).all()
    assert bool(found.certificate.notes) == bool(constant.any())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("inputs", [1, 4])
@pytest.mark.parametrize("apart", [1e-9, 1e-11, 1e-13, 0.0])
def test_rows_that_nearly_meet_are_right_or_refused(activation, task, inputs, apart):
    """``apart`` 0 stands for one unit in the last place."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(60, inputs)), random.normal(size=60)
    if task == "classification":
        y = np.arange(60) % 3
    for row in range(0, 12, 2):
        x[row + 1] = x[row] + apart
        x[row + 1, 0] = np.nextafter(x[row, 0], 9) if apart == 0 else x[row + 1, 0]
    try:
        found = memorize(from_arrays(x, y, task=task), activation=activation, level="measured")
    except REFUSALS:
        assert apart < 1e-8
        return
    assert wrong_rows(found, x, y) == 0


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([[-1.7e308], [1.7e308], [0.0]], [0, 1, 0], "input column 1 spans more than float64 holds"),
        ([[0.0], [1.0], [2.0]], [-1.7e308, 1.7e308, 0.5], "the targets span more than float64 holds"),
    ],
)
def test_spans_beyond_float64_are_refused(x, y, message):
    with pytest.raises(PrecisionError, match=message):
        memorize(from_arrays(x, y, task="regression" if 0.5 in y else "classification"))


def test_results_say_what_they_are():
    random = np.random.default_rng(0)
    found = memorize((random.normal(size=(30, 2)), random.integers(0, 2, 30)))
    assert repr(found).startswith("Memorized(three-layer, hardtanh 2-")
    summary = found.to_dict()
    assert summary["model"]["widths"] == list(found.widths)
    assert summary["model"]["hidden_units"] == found.hidden_units == sum(found.widths)
    assert [attempt["reason"] for attempt in summary["tried"]][-1] == "certified"


def test_progress_is_told():
    told = []
    random = np.random.default_rng(0)
    memorize(
        (random.normal(size=(30, 2)), random.integers(0, 2, 30)), on_progress=lambda *step: told.append(step)
    )
    assert {what for what, _ in told} == {"drawing ramps"}
    assert all(0 < part <= 1 for _, part in told)


# Ranking ----------------------------------------------------------------------------------------------------


def by_any_method(table, activation, **options):
    """Hidden units of what every method alone comes to, where that is certified."""
    methods = ("affine", "gates", "three-layer", "classifier")
    for method in methods if activation == "hardtanh" else (*methods, "interpolant", "zigzag"):
        found = memorize(table, method=method, activation=activation, raise_on_failure=False, **options)
        if found.status is Status.CERTIFIED:
            yield found.hidden_units


@pytest.mark.parametrize("level", ["proven", "bitwise"])
@pytest.mark.parametrize("activation", ["hardtanh", "relu"])
@given(
    seed=st.integers(0, 2**32), rows=st.integers(4, 40), inputs=st.integers(1, 12), classes=st.integers(2, 4)
)
@settings(max_examples=6)
def test_no_method_alone_takes_fewer_units(activation, level, seed, rows, inputs, classes):
    random = np.random.default_rng(seed)
    table = random.normal(size=(rows, inputs)), np.arange(rows) % classes
    found = memorize(table, activation=activation, level=level, raise_on_failure=False)
    alone = list(by_any_method(table, activation, level=level))
    assert (found.status is Status.CERTIFIED) == bool(alone)
    if alone:
        assert found.hidden_units == min(alone)
        assert wrong_rows(found, *table) == 0
    certified = [attempt.hidden_units for attempt in found.tried if attempt.reason == "certified"]
    assert certified == [found.hidden_units] * bool(alone)
    units = [attempt.hidden_units for attempt in found.tried]
    assert units == sorted(units)


def test_one_hot_is_bit_for_bit():
    random = np.random.default_rng(0)
    for inputs in (2, 10):
        x, y = random.normal(size=(60, inputs)), random.integers(0, 4, 60)
        found = memorize((x, y), level="bitwise")
        assert found.certificate.level == "bitwise"
        assert (found.model(torch.from_numpy(x)).numpy() == np.eye(4)[y]).all()


def collinear(rows=30):
    """Alternating classes on a line in space: a gate holds one row, not three."""
    return np.arange(rows)[:, None] * np.array([1.0, 2.0, -1.0]), np.arange(rows) % 2


def grown(monkeypatch, extra):
    """Gates that come out with some more than planned, and the order in which candidates are certified."""
    build, certified = search._build, []

    def more(data, plan, *rest):
        built = build(data, plan, *rest)
        if plan.method != "gates":
            return built
        return replace(built, plan=replace(plan, widths=(plan.hidden_units + extra,)))

    certify = search._certified

    def noted(data, built, *rest):
        certified.append((built.plan.method, built.plan.hidden_units))
        return certify(data, built, *rest)

    monkeypatch.setattr(search, "_build", more)
    monkeypatch.setattr(search, "_certified", noted)
    return certified


@pytest.mark.parametrize(("extra", "winner"), [(0, "gates"), (2, "gates"), (40, "three-layer")])
def test_gates_that_grow_go_back_to_their_place(monkeypatch, extra, winner):
    random = np.random.default_rng(1)
    x, y = random.normal(size=(60, 8)), np.arange(60) % 2
    planned = memorize((x, y), method="gates").hidden_units
    certified = grown(monkeypatch, extra)
    found = memorize((x, y))
    assert found.recipe["plan"]["method"] == winner
    assert [units for _, units in certified] == sorted(units for _, units in certified)
    assert certified.count(("gates", planned + extra)) == (winner == "gates")
    assert [(attempt.method, attempt.hidden_units) for attempt in found.tried] == certified


def test_collinear_rows_take_more_gates_than_counted():
    x, y = collinear()
    found = memorize((x, y), method="gates")
    assert found.widths == (2 * 15,)  # a gate for every row of one class
    assert found.tried[-1].hidden_units == found.hidden_units
    assert wrong_rows(found, x, y) == 0
    with pytest.raises(PrecisionError, match="took 30 units; allow more"):
        memorize((x, y), widths=(2 * 5,))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_seed_decides_every_bit_of_gates(activation):
    random = np.random.default_rng(0)
    table = random.normal(size=(80, 6)), random.integers(0, 4, 80)

    def weights(seed):
        return memorize(table, method="gates", activation=activation, seed=seed).model.state_dict()

    one, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["0.weight"], other["0.weight"])
