"""Plans are counted rightly: what is planned is what is built, and it meets the theorem."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus._types import Activation, Rule
from isthmus.bounds.theorems import classifier_capacity, three_layer_capacity
from isthmus.data import from_arrays
from isthmus.data.dataset import Shape
from isthmus.errors import InputError, WidthError
from isthmus.memorize.build import build
from isthmus.memorize.plan import Wish
from isthmus.memorize.planner import plans

ACTIVATIONS = st.sampled_from(get_args(Activation))
RULES = st.sampled_from(get_args(Rule))


@st.composite
def shapes(draw, most=3000):
    task = draw(st.sampled_from(["classification", "regression"]))
    return Shape(draw(st.integers(1, most)), draw(st.integers(1, 50)), draw(st.integers(1, 6)), task)


def table(shape, seed=0):
    random = np.random.default_rng(seed)
    x = np.arange(shape.rows)[:, None] + random.uniform(-0.1, 0.1, (shape.rows, shape.inputs))
    if shape.task == "regression":
        return from_arrays(x, random.uniform(size=(shape.rows, shape.outputs)), task="regression")
    return from_arrays(x, np.arange(shape.rows) % shape.outputs, task="classification")


@given(shapes(most=40), ACTIVATIONS, RULES, st.integers(0, 10**6))
def test_widths_counted_are_widths_built(shape, activation, rule, pick):
    data = table(shape)
    class_rows = torch.bincount(data.y).tolist() if data.classes else ()
    candidates = plans(data.shape, Wish(activation, rule, None, None), class_rows)
    plan = candidates[pick % len(candidates)]
    model = build(data, plan, seed=0)
    built = [layer.out_features for layer in model if isinstance(layer, torch.nn.Linear)]
    if plan.method == "gates":  # a margin that rounding would take costs a gate more
        # Rows that an affine map fits take a single gate for real targets.
        assert plan.hidden_units <= sum(built[:-1]) or data.rows <= data.inputs + 1
    else:
        assert tuple(built) == (*plan.widths, data.outputs)
        assert plan.hidden_units == sum(built[:-1])


@given(shapes(), ACTIVATIONS, RULES)
def test_candidates_ascend_and_have_room_for_all_rows(shape, activation, rule):
    candidates = plans(shape, Wish(activation, rule, None, None))
    assert [plan.hidden_units for plan in candidates] == sorted(plan.hidden_units for plan in candidates)
    assert len(set(candidates)) == len(candidates)
    assert candidates[0].method == "affine"
    for plan in candidates:
        assert plan.activation == activation
        if plan.groups:
            assert plan.groups <= shape.rows <= plan.groups * plan.size
        if plan.method in {"three-layer", "classifier"}:
            assert 1 <= plan.chain <= plan.groups


@given(shapes(), ACTIVATIONS, RULES, st.data())
@settings(max_examples=300)
def test_given_widths_are_met_or_refused(shape, activation, rule, draw):
    four = shape.task == "classification" and draw.draw(st.booleans())
    scalars = shape.outputs if shape.task == "regression" else 1
    near = int((4 * shape.rows * scalars) ** 0.5) + 8
    widths = tuple(draw.draw(st.integers(1, 3 * near)) for _ in range(2))
    widths += (draw.draw(st.integers(1, 5 * shape.outputs)),) * four
    if four:
        capacity = classifier_capacity(widths, shape.outputs, activation, rule)
    else:
        capacity = three_layer_capacity(widths, scalars, activation, rule)
    wish = Wish(activation, rule, None, widths)
    if capacity < shape.rows:
        theorem = "Proposition 3.2" if four else "Theorem 3.1"
        with pytest.raises(WidthError, match=rf"^{theorem} .* asks for .* but here .*; the fewest units are"):
            plans(shape, wish)
        return
    candidates = plans(shape, wish)
    assert {plan.method for plan in candidates} == {"classifier" if four else "three-layer"}
    for plan in candidates:
        assert len(plan.widths) == len(widths)
        assert all(have <= asked for have, asked in zip(plan.widths, widths, strict=True))
        assert plan.groups <= shape.rows <= plan.groups * plan.size


def test_the_width_message_names_numbers_and_ways_out():
    with pytest.raises(WidthError) as refusal:
        plans(Shape(100, 5, 2, "regression"), Wish("hardtanh", "paper", None, (10, 19)))
    # floor(d1/2) >= 7 or floor(d2/4) >= 5 would do.
    assert str(refusal.value) == (
        "Theorem 3.1 (hardtanh, rule 'paper') asks for 4*floor(d1/2)*floor(d2/4) >= 100, but here "
        "4*floor(10/2)*floor(19/4) = 80. With the other widths kept, d1 >= 14 or d2 >= 20; the fewest units "
        "are 10-20."
    )


@pytest.mark.parametrize(
    ("task", "wish", "message"),
    [
        ("regression", Wish("relu", "tight", "classifier", None), "is for class labels; use 'three-layer'"),
        ("regression", Wish("relu", "tight", "residual", None), "is for class labels; use 'three-layer'"),
        ("regression", Wish("hardtanh", "tight", "zigzag", None), "is made of ReLUs; choose activation"),
        ("regression", Wish("relu", "tight", "deep", None), "'deep' needs a depth, or widths"),
        ("regression", Wish("relu", "tight", "deep", (9, 9), 3), "give widths or a depth, not both"),
        ("regression", Wish("relu", "tight", "gates", None, 3), "a depth is for the methods 'deep'"),
        ("regression", Wish("relu", "tight", None, None, 2), "depth 2 has 1 hidden layer"),
        ("regression", Wish("relu", "tight", None, None, None, "width"), "minimize is for the methods"),
        ("regression", Wish("relu", "tight", None, None, 5, "depth"), "'depth' cannot be minimized"),
        ("classification", Wish("relu", "tight", "residual", None, 1), "depth 1 has no layer for gates"),
        ("classification", Wish("relu", "tight", "residual", (9,)), "has 2 or more hidden layer"),
        ("regression", Wish("hardtanh", "tight", "interpolant", None), "is made of ReLUs; choose activation"),
        (
            "classification",
            Wish("relu", "tight", "affine", (2, 2)),
            "chooses its own width; leave widths out",
        ),
        ("classification", Wish("relu", "tight", "classifier", (2, 2)), "has 3 hidden layer.*, but 2 width"),
        ("classification", Wish("relu", "tight", None, (0, 2)), "widths are positive integers"),
        ("classification", Wish("relu", "tight", None, (2.5, 2)), "widths are positive integers"),
        (
            "classification",
            Wish("relu", "tight", "magic", None),
            "unknown method 'magic'; choose one of affine",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(task, wish, message):
    with pytest.raises(InputError, match=message):
        plans(Shape(10, 2, 2, task), wish)
