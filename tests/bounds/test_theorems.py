"""Capacities and smallest widths against brute force and the papers' own numbers."""

from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.bounds import theorems
from isthmus.bounds.theorems import Activation, Grid, Rule

RULES = st.sampled_from(get_args(Rule))
ACTIVATIONS = st.sampled_from(get_args(Activation))
GRIDS = (
    theorems.PAPER_HARDTANH,
    theorems.PAPER_RELU,
    theorems.TIGHT_HARDTANH,
    theorems.TIGHT_RELU,
    theorems.SHARED_KNOTS,
    theorems.ZIGZAG,
)
ROWS = st.integers(1, 10**9)
SMALL = st.integers(1, 40)
OUTPUTS = st.integers(1, 4)


def naive_grid_capacity(d1: int, d2: int, outputs: int, activation: Activation, rule: Rule) -> int:
    if rule == "paper":
        return (
            4 * (d1 // 2) * (d2 // (2 * outputs))
            if activation == "hardtanh"
            else 4 * (d1 // 4) * (d2 // (4 * outputs))
        )
    return d1 * (d2 // outputs) if activation == "hardtanh" else (d1 // 2) * (d2 // (2 * outputs))


@given(st.integers(0, 50), st.integers(0, 50), OUTPUTS, ACTIVATIONS, RULES)
def test_three_layer_capacity_is_the_condition(d1, d2, outputs, activation, rule):
    capacity = theorems.three_layer_capacity((d1, d2), outputs, activation, rule)
    assert capacity == naive_grid_capacity(d1, d2, outputs, activation, rule)
    assert capacity <= theorems.three_layer_capacity((d1 + 1, d2), outputs, activation, rule)
    assert capacity <= theorems.three_layer_capacity((d1, d2 + 1), outputs, activation, rule)


@pytest.mark.parametrize(
    ("activation", "rule", "third"),
    [("hardtanh", "paper", 6), ("relu", "paper", 12), ("hardtanh", "tight", 2), ("leaky_relu", "tight", 4)],
)
def test_classifier_capacity_needs_its_decoder(activation, rule, third):
    widths = (8, 12)
    assert theorems.classifier_capacity((*widths, third - 1), 3, activation, rule) == 0
    scalar = theorems.three_layer_capacity(widths, 1, activation, rule)
    assert theorems.classifier_capacity((*widths, third), 3, activation, rule) == scalar > 0


@pytest.mark.parametrize("grid", GRIDS)
@given(rows=SMALL, outputs=OUTPUTS, inputs=st.integers(1, 30))
def test_smallest_grid_is_the_best_of_all(grid: Grid, rows, outputs, inputs):
    limit1, limit2 = grid.group_units * rows, grid.slot_units * outputs * rows
    candidates = (
        w
        for w in product(range(1, limit1 + 1), range(outputs, limit2 + 1, outputs))
        if grid.capacity(w, outputs) >= rows
    )
    cost = min((sum(w), theorems.dense_parameters((inputs, *w, outputs))) for w in candidates)
    found = grid.smallest(rows, outputs, inputs)
    assert grid.capacity(found, outputs) >= rows
    assert (sum(found), theorems.dense_parameters((inputs, *found, outputs))) == cost


@given(ROWS, st.integers(1, 2000), ACTIVATIONS, RULES)
def test_no_width_of_the_smallest_can_shrink(rows, outputs, activation, rule):
    d1, d2 = theorems.smallest_three_layer(rows, outputs, activation, rule)

    def holds(*widths):
        return theorems.three_layer_capacity(widths, outputs, activation, rule) >= rows

    assert holds(d1, d2)
    assert not holds(d1 - 1, d2)
    assert not holds(d1, d2 - 1)


@given(ROWS, st.integers(1, 2000), ACTIVATIONS, RULES)
def test_no_width_of_the_smallest_classifier_can_shrink(rows, classes, activation, rule):
    widths = theorems.smallest_classifier(rows, classes, activation, rule)
    assert theorems.classifier_capacity(widths, classes, activation, rule) >= rows
    for layer in range(3):
        fewer = [w - (layer == i) for i, w in enumerate(widths)]
        assert theorems.classifier_capacity(tuple(fewer), classes, activation, rule) < rows


@given(st.integers(1, 2 * 10**5), st.integers(1, 9), st.integers(1, 300))
def test_splits_reach_the_least_cost(cells, group_cost, slot_cost):
    least = min(group_cost * -(-cells // n) + slot_cost * n for n in range(1, min(cells, 3000) + 1))
    splits = list(theorems._splits(cells, group_cost, slot_cost))
    assert all(groups * slots >= cells for groups, slots in splits)
    assert min(group_cost * groups + slot_cost * slots for groups, slots in splits) <= least


def test_equal_units_are_decided_by_parameters():
    few_inputs, many_inputs = (
        theorems.smallest_three_layer(11, 1, "hardtanh", "tight", d) for d in (1, 1000)
    )
    assert sum(few_inputs) == sum(many_inputs) == 7
    assert many_inputs == (3, 4)


def test_a_billion_rows_take_no_time():
    for activation, rule in product(get_args(Activation), get_args(Rule)):
        theorems.smallest_classifier(10**9, 1000, activation, rule)


def test_the_million_rows_of_the_paper():
    assert theorems.smallest_classifier(10**6, 1000, "relu", "paper") == (2000, 2000, 4000)
    assert theorems.three_layer_capacity((2000, 2000), 1, "relu", "paper") == 10**6


def test_dense_parameters_match_torch():
    import torch

    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3), torch.nn.Linear(3, 2))
    assert theorems.dense_parameters((5, 7, 3, 2)) == sum(p.numel() for p in net.parameters())


def test_residual_parameters_by_hand():
    # U [4,3], b [4], V [3,4], c [3]; U [6,3], b [6], V [2,6], c [2]
    assert theorems.residual_parameters(3, (4, 6), 2) == (12 + 4 + 12 + 3) + (18 + 6 + 12 + 2)
    assert theorems.residual_parameters(3, (4, 6), 2, shifts=False) == (12 + 4 + 12) + (18 + 6 + 12)


@given(st.integers(1, 500), st.integers(1, 60), st.integers(1, 12), st.sampled_from([2, 3, 4]))
def test_smallest_gates_is_the_first_that_holds(rows, inputs, classes, gate):
    width = theorems.smallest_gates(rows, inputs, classes, gate)
    assert width * inputs >= gate * (rows + classes * inputs) > (width - 1) * inputs
    assert theorems.gate_capacity(width, inputs, classes, gate) >= rows
    assert theorems.gate_capacity(width - 1, inputs, classes, gate) < rows


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.integers(1, 30),
    st.sampled_from([theorems.HARDTANH_GATE, theorems.RELU_GATE, theorems.HAT_GATE]),
)
def test_gates_for_every_class_fit_in_the_theorems_width(counts, inputs, gate):
    needed = gate * sum(-(-count // inputs) for count in counts)
    assert needed <= theorems.smallest_gates(sum(counts), inputs, len(counts), gate)


def test_residual_capacity_needs_its_last_block():
    widths = theorems.smallest_residual(50000, 3072, 10, theorems.RELU_GATE)
    assert widths == (106, 20)
    assert theorems.residual_capacity(widths, 3072, 10, theorems.RELU_GATE) >= 50000
    assert theorems.residual_capacity((53, 53, 20), 3072, 10, theorems.RELU_GATE) >= 50000
    assert theorems.residual_capacity((106, 19), 3072, 10, theorems.RELU_GATE) == 0
    assert theorems.residual_capacity((105, 20), 3072, 10, theorems.RELU_GATE) < 50000


def test_earlier_results():
    assert theorems.zhang(100) == 100
    assert sum(theorems.hardt_ma(50000, 10)) == 50010
    assert theorems.baum(101, 10) == 11
    assert theorems.bubeck(101, 10, 1) == 44
    assert [theorems.sontag(n) for n in (1, 2, 3, 4, 5, 6)] == [0, 0, 0, 1, 1, 2]


@given(st.integers(1, 3000), st.integers(1, 20))
def test_huang_is_near_its_formula(rows, outputs):
    ideal = 2 * ((outputs + 2) * rows) ** 0.5
    assert ideal <= sum(theorems.huang(rows, outputs)) + 1e-9
    assert sum(theorems.huang(rows, outputs)) <= ideal + outputs + 3


@pytest.mark.parametrize(
    ("widths", "outputs", "activation", "expected"),
    [
        ((30, 20), 2, "relu", ["4*floor(d1/4)*floor(d2/8) >= 1797", "= 56", "d1 >= 900", "d2 >= 520", "-"]),
        ((30, 20, 9), 10, "hardtanh", ["and d3 >= 20", "and d3 = 9", "no single layer"]),
        ((100, 100, 9), 10, "hardtanh", ["With the other widths kept, d3 >= 20;"]),
        ((1, 100), 1, "hardtanh", ["With the other widths kept, d1 >= 18;"]),
    ],
)
def test_width_message_says_what_would_do(widths, outputs, activation, expected):
    message = theorems.width_message(widths, 1797, outputs, activation, "paper")
    assert all(part in message for part in expected), message


@given(st.integers(1, 60), st.integers(1, 60), OUTPUTS, st.integers(1, 300), ACTIVATIONS, RULES)
def test_widths_in_the_message_are_the_smallest(d1, d2, outputs, rows, activation, rule):
    message = theorems.width_message((d1, d2), rows, outputs, activation, rule)
    for option in message.split("kept, ")[1].split(";")[0].split(" or "):
        if option.startswith("no single"):
            continue
        layer, width = option.split(" >= ")
        for w, holds in ((int(width), True), (int(width) - 1, False)):
            widths = (w, d2) if layer == "d1" else (d1, w)
            assert (theorems.three_layer_capacity(widths, outputs, activation, rule) >= rows) == holds
