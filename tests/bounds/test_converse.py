"""Counts of linear pieces, against Theorem 3.3 as printed and against networks themselves."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.bounds import theorems
from isthmus.bounds.converse import fails, largest_failing, pieces_by_layer, pieces_by_unit

WIDTH = st.integers(1, 30)
P = st.sampled_from([2, 3])


@given(WIDTH, WIDTH, P)
def test_pieces_by_unit_are_those_of_the_theorem(d1, d2, p):
    assert pieces_by_unit((d1,), p) == (p - 1) * d1 + 1
    assert pieces_by_unit((d1, d2), p) == p * (p - 1) * d1 * d2 + (p - 1) * d2 + 1


@given(st.lists(st.tuples(WIDTH, P), min_size=1, max_size=4))
def test_the_sharper_count_is_never_larger(layers):
    widths, p = zip(*layers, strict=True)
    assert pieces_by_layer(widths, p) <= pieces_by_unit(widths, p)
    assert pieces_by_layer(widths[:1], p[:1]) == pieces_by_unit(widths[:1], p[:1])


@given(st.lists(WIDTH, max_size=4), P, st.sampled_from([pieces_by_unit, pieces_by_layer]))
def test_one_activation_is_that_of_every_layer(widths, p, count):
    assert count(widths, p) == count(widths, [p] * len(widths))


def test_each_layer_counts_with_its_own_activation():
    assert pieces_by_unit((3, 4), (2, 3)) == 4 * (3 * (3 * (2 - 1) + 1) - 1) + 1
    assert pieces_by_layer((3, 4), (2, 3)) == (3 + 1) * (2 * 4 + 1)
    assert pieces_by_unit((), 2) == pieces_by_layer((), 2) == 1


@given(st.integers(1, 3000), st.integers(1, 3), P, st.sampled_from([pieces_by_unit, pieces_by_layer]))
def test_largest_failing_is_the_last_that_fails(rows, layers, p, count):
    widths = largest_failing(rows, layers, p, count)
    last = 0 if widths is None else widths[0]
    assert widths is None or widths == (last,) * layers
    assert last == 0 or fails(count((last,) * layers, p), rows)
    assert not fails(count((last + 1,) * layers, p), rows)


@given(st.integers(1, 10**6), P)
def test_sufficient_and_impossible_do_not_meet(rows, p):
    activation = "relu" if p == 2 else "hardtanh"
    for rule in ("paper", "tight"):
        widths = theorems.smallest_three_layer(rows, 1, activation, rule)
        assert not fails(pieces_by_layer(widths, p), rows)
    assert not fails(pieces_by_layer(theorems.ZIGZAG.smallest(rows, 1, 1), 2), rows)
    assert not fails(pieces_by_unit((theorems.zhang(rows),), 2), rows)


def bends(weights, clip_low, clip_high):
    """Distinct slopes in a row of one network's output on a fine rational grid, at most its linear pieces."""

    def output(t):
        values = [t]
        for layer in weights:
            sums = [sum(w * v for w, v in zip(row, values, strict=False)) + row[-1] for row in layer]
            values = [min(max(s, clip_low), clip_high) for s in sums] if layer is not weights[-1] else sums
        return values[0]

    points = [output(Fraction(i, 40)) for i in range(-120, 121)]
    rises = [b - a for a, b in pairwise(points)]
    # A bend inside a cell changes the rise twice, so count cells whose rise equals that of a neighbor.
    steady = [a for a, b in pairwise(rises) if a == b]
    return 1 + sum(a != b for a, b in pairwise(steady))


@pytest.mark.parametrize(("p", "low", "high"), [(2, 0, 10**9), (3, -1, 1)])
@given(data=st.data())
def test_no_network_has_more_pieces(p, low, high, data):
    widths = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    sizes = [1, *widths, 1]
    weight = st.integers(-4, 4)
    weights = [
        data.draw(st.lists(st.lists(weight, min_size=n + 1, max_size=n + 1), min_size=m, max_size=m))
        for n, m in pairwise(sizes)
    ]
    assert bends(weights, low, high) <= pieces_by_layer(widths, p)
