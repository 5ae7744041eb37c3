"""The table: published numbers, the JSON, the text, and every printed condition against its widths."""

import json
import math
import re
from fractions import Fraction

import numpy as np
import pytest

from isthmus.bounds import BoundsTable, bounds
from isthmus.data.dataset import Shape, from_arrays
from isthmus.errors import DataError

from .test_deep import best

DEEP = ("3.4 H", "A.1 R", "A.2 H", "A.3 R")
CIFAR = Shape(50000, 3072, 10, "classification")
SHAPES = [
    CIFAR,
    Shape(1797, 64, 10, "classification"),
    Shape(10**6, 16, 1000, "classification"),
    Shape(442, 10, 1, "regression"),
    Shape(1000, 7, 3, "regression"),
    Shape(40, 100, 2, "classification"),
]


@pytest.mark.parametrize(
    ("id", "hidden_units"), [("4.2 R", 106), ("4.1 R", 126), ("Hardt-Ma 2017", 50010), ("4.2 R hat", 79)]
)
def test_published_numbers_for_cifar(id, hidden_units):
    assert bounds(CIFAR)[id].hidden_units == hidden_units


@pytest.mark.parametrize("inputs", [1, 16, 150528])
def test_published_widths_for_a_million_rows(inputs):
    table = bounds(Shape(10**6, inputs, 1000, "classification"))
    assert table["3.2 R"].widths == (2000, 2000, 4000)
    assert table["3.2 H tight"].widths == (1000, 1000, 999)


def holds(condition, widths):
    """Evaluate a printed condition; sums over residual blocks have one block here."""
    names = {f"d{i}": Fraction(width) for i, width in enumerate(widths, 1)}
    names |= {"dL": widths[-1], "floor": math.floor, "ceil": math.ceil, "Fraction": Fraction}
    expression = condition.split(" (")[0].replace("d1 + ... + d(L-1)", "d1")
    return eval(re.sub(r"(?<![\w/(])(\d+)/(\d+)|\((\d+)/(\d+)", _fraction, expression), names)


def _fraction(match):
    plain, grouped = match.group(1, 2), match.group(3, 4)
    return f"Fraction({plain[0]}, {plain[1]})" if plain[0] else f"(Fraction({grouped[0]}, {grouped[1]})"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_printed_condition_is_met_and_tight(shape):
    for bound in bounds(shape).bounds:
        if bound.widths is None or bound.id in {"Huang 2003", "Bubeck 2020", *DEEP}:
            continue
        assert holds(bound.condition, bound.widths), bound
        step = -1 if bound.direction == "sufficient" else 1
        beyond = tuple(width + step for width in bound.widths)
        assert not holds(bound.condition, beyond), bound


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_deep_networks_are_as_narrow_as_the_best_places_of_blocks_allow(shape):
    table, classes = bounds(shape), shape.task == "classification"
    for id in DEEP if classes else DEEP[:2]:
        bound, activation = table[id], "hardtanh" if id.endswith("H") else "relu"
        asked = (shape.outputs, activation, "paper", id in DEEP[2:])
        assert best(shape.rows, asked[0], bound.widths, *asked[1:]) is not None
        narrower = tuple(min(width, max(bound.widths) - 1) for width in bound.widths)
        assert best(shape.rows, asked[0], narrower, *asked[1:]) is None
    assert {bound.id for bound in table.bounds} & set(DEEP[2:]) == (set(DEEP[2:]) if classes else set())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_units_and_parameters_add_up(shape):
    for bound in bounds(shape).bounds:
        assert bound.hidden_units == (None if bound.widths is None else sum(bound.widths))
        assert (bound.parameters is None) == (bound.widths is None) or bound.id == "Sontag 1997"


def test_json_has_the_documented_keys():
    table = bounds((np.eye(3), [0, 1, 1])).to_dict()
    assert json.loads(json.dumps(table)) == table
    assert list(table["data"]) == ["rows", "inputs", "outputs", "task", "distinct", "rank"]
    assert table["data"] == {
        "rows": 3,
        "inputs": 3,
        "outputs": 2,
        "task": "classification",
        "distinct": 3,
        "rank": 2,
    }
    for row in table["bounds"]:
        assert list(row) == [
            "id",
            "paper",
            "network",
            "direction",
            "widths",
            "hidden_units",
            "parameters",
            "condition",
            "assumptions",
            "met",
        ]
        assert row["direction"] in {"sufficient", "impossible"}
        assert all(list(assumption) == ["name", "met", "reason"] for assumption in row["assumptions"])


def test_ids_are_unique_and_rows_found_by_them():
    table = bounds(CIFAR)
    assert all(table[bound.id] is bound for bound in table.bounds)
    with pytest.raises(KeyError):
        table["9.9"]


def test_without_data_nothing_is_checked():
    table = bounds(CIFAR)
    assert table.data.rank is table.data.distinct is None
    assert {bound.met for bound in table.bounds if bound.id in {"3.1 R", "4.1 R", "4.2 R"}} == {None}
    assert table["Baum 1988"].met is False
    assert table["3.3 R 3 layers"].met is True


def test_rows_count_once():
    x = np.arange(12.0).reshape(6, 2) ** 2
    table = bounds((np.concatenate([x, x]), [0, 1, 0, 1, 0, 1] * 2))
    assert (table.data.rows, table.data.distinct) == (12, 6)
    assert table["Zhang 2017"].widths == (6,)
    assert table["3.1 R"].met is True


def test_conflicting_rows_meet_no_assumption():
    table = bounds(([[1, 2], [1, 2], [3, 4]], [0, 1, 0]))
    assert table["3.2 H tight"].met is False


def test_regression_has_no_classifiers():
    table = bounds(from_arrays(np.random.default_rng(0).normal(size=(20, 3)), np.linspace(0, 1, 20)))
    assert not [bound for bound in table.bounds if bound.id.startswith(("3.2", "4.", "Hardt", "Baum"))]
    assert table["Bubeck 2020"].widths == (28,)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_smallest_data_set(task):
    table = bounds(Shape(1, 1, 1, task))
    assert table["3.1 H tight"].widths == (1, 1)
    assert table["3.3 R 2 layers"].widths is None
    assert str(table)


def test_second_hand_formulas_say_so():
    table = bounds(CIFAR)
    assert all(
        "quoted second-hand" in table[id].condition for id in ("Huang 2003", "Sontag 1997", "Park 2021")
    )
    assert "not exact" in table["Huang 2003"].condition


def test_text_is_an_aligned_table():
    table = bounds(CIFAR)
    lines = str(table).splitlines()
    header = next(line for line in lines if line.startswith("theorem"))
    row = next(line for line in lines if line.startswith("4.2 R "))
    assert row[header.index("condition") :].startswith("d1 >= ")
    assert row[: header.index("hidden units") + len("hidden units")].endswith(" 106")
    assert "general position: unchecked (no data)" in lines
    assert repr(table) == "BoundsTable(50,000 rows (rows not seen), 3,072 inputs, 10 classes; 34 bounds)"
    assert isinstance(table, BoundsTable)


@pytest.mark.parametrize(
    "data", [Shape(0, 3, 2, "classification"), Shape(3, 0, 1, "regression"), Shape(3, 1, 0, "regression"), 7]
)
def test_what_is_not_data_is_refused(data):
    with pytest.raises(DataError):
        bounds(data)
