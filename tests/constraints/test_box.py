"""Boxes entry by entry, and sets that are read back from plain data."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.constraints import Ball, Box, Constraint, FloorAndRatio, Product, restored
from isthmus.errors import InputError

from .oracles import compiled, nearest_in_cone, same_bits

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LIMITS = st.floats(-10, 10)
LISTS = st.lists(st.floats(-100, 100), min_size=1, max_size=8)


@settings(max_examples=50)
@given(values=LISTS, limits=st.tuples(LIMITS, LIMITS).filter(lambda pair: pair[0] != pair[1]))
def test_every_entry_is_moved_to_the_nearer_limit(values: list[float], limits: tuple[float, float]) -> None:
    low, high = sorted(limits)
    point = torch.tensor(values, dtype=torch.float64)
    box = Box(low, high).at(torch.zeros_like(point))
    found = box.project(point)
    assert found.tolist() == [min(max(value, low), high) for value in values]
    assert same_bits(box.project(found), found)
    assert box.distance(found) == 0
    beyond = [max(low - value, value - high, 0.0) for value in values]
    assert box.distance(point) == pytest.approx(math.hypot(*beyond), rel=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_entries_of_a_box_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    point = torch.tensor([-1.0, -0.0, 0.0, 0.3, 2.0], dtype=dtype)
    box = Box(-1.0, 2.0).at(torch.zeros_like(point))
    assert same_bits(box.project(point), point)
    assert box.project(1000 * point).tolist() == [-1.0, 0.0, 0.0, 2.0, 2.0]


def test_limits_may_be_infinite() -> None:
    point = torch.tensor([-5.0, 0.5, 7.0])
    assert Box(0.0, math.inf).at(point).project(point).tolist() == [0.0, 0.5, 7.0]
    assert Box(-math.inf, 0.0).at(point).project(point).tolist() == [-5.0, 0.0, 0.0]
    assert same_bits(Box(-math.inf, math.inf).at(point).project(point), point)
    normal = (
        Box(0.0, math.inf).at(point).normal(torch.tensor([0.0, 1.0, 7.0]), torch.tensor([-1.0, -1.0, 1.0]))
    )
    assert normal.tolist() == [-1.0, 0.0, 0.0]


def test_limits_beyond_the_dtype_set_no_limit() -> None:
    point = torch.tensor([-6e4, 0.5, 6e4], dtype=torch.float16)
    box = Box(-1e6, 1e6).at(point)
    assert same_bits(box.project(point), point)
    assert not box.normal(point, point).any()


def test_boxes_hold_for_all_tensors_and_for_parameters_in_place() -> None:
    point = {"a": torch.tensor([[3.0, -3.0]]), "b": torch.nn.Parameter(torch.tensor([0.5, 9.0]))}
    box = Box(-1.0, 1.0).at(point)
    found = box.project(point)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"a": [[1.0, -1.0]], "b": [0.5, 1.0]}
    assert point["b"].tolist() == [0.5, 9.0]
    box.project_(point)
    assert point["b"].tolist() == [0.5, 1.0]
    torch.compiler.reset()
    moved = compiled(box)({name: 7 * tensor.detach() for name, tensor in point.items()})
    assert {name: tensor.tolist() for name, tensor in moved.items()} == {
        "a": [[1.0, -1.0]],
        "b": [1.0, 1.0],
    }


def test_normals_are_the_nearest_elements_of_the_cone() -> None:
    random, unit = np.random.default_rng(1), np.eye(6)
    for _ in range(300):
        low, high = random.integers(-8, 0) / 4, random.integers(0, 8) / 4
        point = random.choice([low, high, random.uniform(low, high)], 6)
        direction = random.normal(size=6)
        walls = [-unit[j] for j in range(6) if point[j] == low] + [
            unit[j] for j in range(6) if point[j] == high
        ]
        box = Box(low, high).at(torch.zeros(6, dtype=torch.float64))
        found = box.normal(torch.from_numpy(point), torch.from_numpy(direction))
        assert np.abs(found.numpy() - nearest_in_cone(np.array(walls), direction)).max() <= 1e-12
        assert (box.project(torch.from_numpy(point) + found) - torch.from_numpy(point)).abs().max() <= 1e-12


@settings(max_examples=50)
@given(values=LISTS)
def test_normals_at_a_projection_lead_back_to_the_point(values: list[float]) -> None:
    point = torch.tensor(values, dtype=torch.float64)
    box = Box(-1.0, 3.0).at(point)
    offset = point - box.project(point)
    assert torch.equal(box.normal(box.project(point), offset), offset)


def test_a_rounding_away_from_a_limit_counts_as_on_it() -> None:
    box = Box(-1.0, 1000.0).at(torch.zeros(4))
    point = torch.tensor([-1 + 1e-6, -1 - 1e-6, 1000.01, -0.99])
    direction = torch.tensor([-1.0, -1.0, 1.0, -1.0])
    assert box.normal(point, direction).tolist() == [-1.0, -1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "limits", [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.nan), (math.inf, math.inf)]
)
def test_boxes_without_an_inside_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(
        InputError, match=rf"low limit below its high one, not {limits[0]} and {limits[1]}\.$"
    ):
        Box(*limits)


def test_boxes_need_a_center_of_the_same_kind_to_project() -> None:
    with pytest.raises(InputError, match=r"^this Box has no center yet"):
        Box(0.0, 1.0).project(torch.zeros(2))
    box = Box(0.0, 1.0).at(torch.zeros(2))
    with pytest.raises(InputError, match=r"^the point is torch\.float32 \[3\], .*\.$"):
        box.project(torch.zeros(3))
    with pytest.raises(InputError, match=r"are of floating point\.$"):
        Box(0.0, 1.0).at(torch.zeros(2, dtype=torch.int32))


# Plain data


@pytest.mark.parametrize(
    "constraint",
    [
        Ball(0.5),
        Ball(0.0, joint=False),
        Ball(math.inf),
        Box(-1.0, 0.1),
        Box(-math.inf, 2.0),
        FloorAndRatio(),
        FloorAndRatio(0.25, 7.0),
        FloorAndRatio(0.25, math.inf),
        Product({
            "layer1": Ball(3.0, joint=False),
            "fc.weight": FloorAndRatio(0.1),
            "fc.bias": Box(0.0, 1.0),
        }),
        Product({"": Ball(0.1)}),
    ],
)
def test_sets_are_restored_from_json(constraint: Constraint) -> None:
    described = constraint.to_dict()
    again = restored(json.loads(json.dumps(described)))
    assert type(again) is type(constraint)
    assert again.to_dict() == described
    with pytest.raises(InputError, match="no center yet"):
        again.center  # noqa: B018


def test_restored_sets_project_alike_and_centers_are_no_part_of_the_data() -> None:
    center = {"a": torch.zeros(3), "v": torch.tensor([[1.0, -1.0]])}
    point = {"a": torch.tensor([1.0, 2.0, 3.0]), "v": torch.tensor([[0.1, 9.0]])}
    constraint = Product({"a": Ball(1.5), "v": FloorAndRatio(0.25, 3.0)})
    assert constraint.at(center).to_dict() == constraint.to_dict()
    found = restored(constraint.at(center).to_dict()).at(center).project(point)
    expected = constraint.at(center).project(point)
    assert all(same_bits(found[name], expected[name]) for name in center)


@pytest.mark.parametrize(
    "described",
    [
        {},
        {"set": "Ball"},
        {"set": "Sphere", "radius": 1.0},
        {"set": "ball", "radius": 1.0},
        {"set": None},
        {"set": ["Ball"], "radius": 1.0},
        {"radius": 1.0},
        {"set": "Ball", "radius": 1.0, "width": 3},
        {"set": "Ball", "radius": "wide"},
        {"set": "Ball", "radius": None},
        {"set": "Ball", "radius": -1.0},
        {"set": "Box", "low": 0.0},
        {"set": "Box", "low": 1.0, "high": 0.0},
        {"set": "FloorAndRatio", "floor": 0.0},
        {"set": "FloorAndRatio", "ratio": 0.5},
        {"set": "Product"},
        {"set": "Product", "parts": {}},
        {"set": "Product", "parts": None},
        {"set": "Product", "parts": ["Ball"]},
        {"set": "Product", "parts": {"a": {"set": "Ball"}}},
        {"set": "Product", "parts": {"a": None}},
        {
            "set": "Product",
            "parts": {"a": {"set": "Product", "parts": {"b": {"set": "Ball", "radius": 1.0}}}},
        },
        {"set": "Constraint"},
        {"set": "Ball", "radius": 1.0, "_center": {}},
    ],
)
def test_what_describes_no_set_is_refused(described: dict) -> None:
    with pytest.raises(InputError, match=r"\.$"):
        restored(described)
