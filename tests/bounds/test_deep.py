"""Where the blocks of a deep network stand, against every place there is."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.bounds.deep import deep_layout, deep_problem, require_deep_layout, smallest_deep, used_widths
from isthmus.bounds.theorems import dense_parameters
from isthmus.errors import WidthError

ACTIVATIONS = st.sampled_from(["hardtanh", "relu", "leaky_relu"])
RULES = st.sampled_from(["paper", "tight"])


def rows_of_a_block(widths, start, less, carried, activation, rule):
    """The conditions of Proposition 3.4 and Corollary A.1 as the paper has them, or without parity."""
    units = 1 if activation == "hardtanh" else 2
    first, second = max(0, widths[start - 1] - less), max(0, widths[start] - less)
    if rule == "tight":
        return (first // units) * (second // (units * carried))
    return 4 * (first // (2 * units)) * (second // (2 * units * carried))


def places(widths, carried):
    """Every set of starts that leaves enough units to carry, with r_j of all blocks."""
    layers = len(widths)
    for count in range(1, layers // 2 + 1):
        for starts in itertools.combinations(range(1, layers), count):
            gaps = [range(a + 2, b) for a, b in itertools.pairwise(starts)]
            behind = range(starts[-1] + 2, layers + 1)
            if (
                all(b - a >= 2 for a, b in itertools.pairwise(starts))
                and all(widths[k - 1] >= carried + 1 for gap in gaps for k in gap)
                and all(widths[k - 1] >= carried for k in behind)
            ):
                yield starts, [carried * (j > 0) + (j < count - 1) for j in range(count)]


def best(rows, outputs, widths, activation, rule, gates):
    """The fewest blocks, and the most rows that so many hold; None if no blocks hold all rows."""
    found = []
    units = 1 if activation == "hardtanh" else 2
    gate = units * (2 * outputs if rule == "paper" else max(1, outputs - 1))
    fronts = [widths]
    if gates:
        fronts = [
            widths[:q]
            for q in range(len(widths))
            if widths[q] >= gate and all(width >= outputs for width in widths[q + 1 :])
        ]
    carried = 1 if gates else outputs
    for front in fronts:
        for starts, less in places(front, carried):
            held = [
                rows_of_a_block(front, start, r, carried, activation, rule)
                for start, r in zip(starts, less, strict=True)
            ]
            if all(held) and sum(held) >= rows:
                found.append((len(starts), -sum(held)))
    return min(found, default=None)


@given(
    widths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    rows=st.integers(1, 90),
    outputs=st.integers(1, 3),
    activation=ACTIVATIONS,
    rule=RULES,
    gates=st.booleans(),
)
@settings(max_examples=500)
def test_no_other_place_is_better(widths, rows, outputs, activation, rule, gates):
    problem = deep_problem(rows, 3, outputs, activation, rule, gates)
    layout = deep_layout(problem, widths)
    expected = best(rows, outputs, widths, activation, rule, gates)
    if expected is None:
        assert layout is None
        with pytest.raises(WidthError, match=r"the best blocks of .* hold \d+\. Give "):
            require_deep_layout(problem, widths)
        return
    assert layout is not None
    assert (len(layout.starts), -layout.rows) == expected
    used = used_widths(problem, widths, layout)
    assert all(have <= given for have, given in zip(used, widths, strict=True))
    again = deep_layout(problem, used)
    assert again is not None
    assert again.rows == layout.rows


@pytest.mark.parametrize("gates", [False, True])
@pytest.mark.parametrize("rule", ["paper", "tight"])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("depth", [3, 4, 5])
def test_no_other_widths_are_smaller(depth, outputs, rule, gates):
    for rows in (1, 2, 3, 5, 8, 12):
        problem = deep_problem(rows, 2, outputs, "hardtanh", rule, gates)
        if depth - 1 < problem.fewest_layers:
            continue
        costs = {
            "units": sum,
            "parameters": lambda widths: dense_parameters((2, *widths, outputs)),
            "width": max,
        }
        found = {name: smallest_deep(problem, depth, name) for name in costs}
        limit = max(map(max, found.values())) + 1
        everything = [
            widths
            for widths in itertools.product(range(1, limit), repeat=depth - 1)
            if best(rows, outputs, widths, "hardtanh", rule, gates) is not None
        ]
        for name, cost in costs.items():
            assert found[name] in everything
            assert cost(found[name]) == min(map(cost, everything)), (name, rows)


def test_narrowest_widths_of_many_layers():
    """245 x 245 units hold 60,000 rows in two layers; in twenty, ten pairs of about 78."""
    problem = deep_problem(60_000, 784, 1, "hardtanh", "tight", False)
    assert max(smallest_deep(problem, 3, "width")) == 245
    assert max(smallest_deep(problem, 21, "width")) == 80


@pytest.mark.parametrize(("gates", "depth", "layers"), [(False, 2, 2), (True, 3, 3)])
def test_too_few_layers_are_refused(gates, depth, layers):
    problem = deep_problem(10, 2, 2, "relu", "tight", gates)
    with pytest.raises(WidthError, match=rf"depth {depth} has {depth - 1} hidden .* take {layers}"):
        smallest_deep(problem, depth, "units")


def test_the_message_gives_the_condition_its_value_and_widths_that_do():
    problem = deep_problem(2000, 20, 10, "relu", "paper", True)
    with pytest.raises(WidthError) as refusal:
        require_deep_layout(problem, (5, 6, 7, 40))
    assert str(refusal.value) == (
        "Corollary A.2/A.3 asks for the sum of 4*floor((d_l - r)/4)*floor((d_(l+1) - r)/4) over blocks to "
        "reach 2000, and a later layer of at least 40 units with at least 10 after it; the best blocks of "
        "5-6-7-40 hold 4. Give widths 92-92-1-40, say."
    )
