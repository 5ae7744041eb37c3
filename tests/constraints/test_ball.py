"""Balls against the plain formula, with distances measured in rational arithmetic."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isthmus.constraints import Ball, Product
from isthmus.errors import InputError, PrecisionError

from .oracles import compiled, exact_square, same_bits

SEEDS = st.integers(0, 2**32)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = {"a": (4, 3), "b": (5,), "c": ()}


def double(values: object) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def square(point: dict[str, Tensor], other: dict[str, Tensor]) -> Fraction:
    return sum((exact_square(point[name], other[name]) for name in point), Fraction(0))


def several(random: np.random.Generator, scale: float = 1.0) -> dict[str, Tensor]:
    return {name: double(scale * random.normal(size=shape)) for name, shape in SHAPES.items()}


def shifted(center: dict[str, Tensor], offset: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: center[name] + offset[name] for name in center}


def by_formula(center: np.ndarray, point: np.ndarray, radius: float) -> np.ndarray:
    distance = math.sqrt(math.fsum((point - center).ravel() ** 2))
    return point if distance <= radius else center + radius / distance * (point - center)


def assert_is_within(point: dict[str, Tensor], center: dict[str, Tensor], radius: float) -> None:
    assert square(point, center) <= Fraction(radius) ** 2, (radius, math.sqrt(square(point, center)))


@settings(max_examples=40)
@given(seed=SEEDS)
def test_a_joint_ball_against_the_formula(seed: int) -> None:
    random = np.random.default_rng(seed)
    center, radius = several(random), 10 ** random.uniform(-4, 2)
    point = shifted(center, several(random, 10 ** random.uniform(-4, 2)))
    found = Ball(radius).at(center).project(point)
    flat = [
        torch.cat([tensor.flatten() for tensor in each.values()]).numpy() for each in (found, center, point)
    ]
    scale = max(1.0, np.abs(flat[2]).max())
    assert np.abs(flat[0] - by_formula(flat[1], flat[2], radius)).max() <= 1e-12 * scale


@settings(max_examples=40)
@given(seed=SEEDS)
def test_balls_of_tensors_against_the_formula(seed: int) -> None:
    random = np.random.default_rng(seed)
    center, radius = several(random), 10 ** random.uniform(-4, 2)
    point = {
        name: center[name] + random.lognormal(sigma=4) * double(random.normal(size=s))
        for name, s in SHAPES.items()
    }
    found = Ball(radius, joint=False).at(center).project(point)
    for name, tensor in point.items():
        nearest = by_formula(center[name].numpy(), tensor.numpy(), radius)
        assert np.abs(found[name].numpy() - nearest).max() <= 1e-12 * max(1.0, tensor.abs().max().item())


def test_joint_and_single_balls_differ_and_one_tensor_is_the_same_for_both() -> None:
    center = {"a": torch.zeros(2), "b": torch.zeros(2)}
    point = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([0.0, 4.0])}
    joint, single = Ball(4.0).at(center).project(point), Ball(4.0, joint=False).at(center).project(point)
    assert joint["a"].tolist() == pytest.approx([2.4, 0.0], rel=1e-6)
    assert joint["b"].tolist() == pytest.approx([0.0, 3.2], rel=1e-6)
    assert all(same_bits(single[name], point[name]) for name in point)
    one = torch.tensor([30.0, 40.0])
    assert same_bits(
        Ball(4.0).at(center["a"]).project(one), Ball(4.0, joint=False).at(center["a"]).project(one)
    )


def smallest_radius(center: dict[str, Tensor]) -> float:
    """The least radius that a ball around a center may have, to within a part in 1000."""
    low, high = 0.0, 1e6
    while high - low > 1e-3 * high:
        middle = math.sqrt(max(low, 1e-30) * high)
        try:
            Ball(middle).at(center)
        except PrecisionError:
            low = middle
        else:
            high = middle
    return high


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_step_leads_out_of_a_ball(dtype: torch.dtype, joint: bool) -> None:
    random = np.random.default_rng(3)
    most = torch.finfo(dtype).max / 64
    for number in range(9):
        scale = 10 ** random.uniform(-2, 0.5)
        center = {name: tensor.to(dtype) for name, tensor in several(random, scale).items()}
        least = smallest_radius(center)
        radius = least * (1.0 if number % 3 == 0 else 10 ** random.uniform(0, 4))
        ball = Ball(radius, joint).at(center)
        direction = several(random)
        length = math.sqrt(sum(tensor.square().sum().item() for tensor in direction.values()))
        for factor in (0.99, 1.0, 1 + 1e-7, 1.001, 1.1, 2.0, 1e3, 1e6):
            step = min(factor * radius, most) / length
            point = {
                name: (center[name].double() + step * direction[name]).to(dtype).clamp(-most, most)
                for name in SHAPES
            }
            found = ball.project(point)
            assert all(tensor.dtype == dtype for tensor in found.values())
            if joint:
                assert_is_within(found, center, radius)
            for name in SHAPES:
                assert_is_within({name: found[name]}, {name: center[name]}, radius)
            again = ball.project(found)
            assert all(same_bits(again[name], found[name]) for name in SHAPES)
            assert ball.distance(found) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_few_bits_little_of_the_radius_is_lost(dtype: torch.dtype) -> None:
    random = np.random.default_rng(5)
    unit = torch.finfo(dtype).eps / 2
    for _ in range(50):
        center = double(random.normal(size=100)).to(dtype)
        radius = 0.3 * center.double().norm().item()
        point = double(random.normal(size=100) * 5).to(dtype)
        found = Ball(radius).at(center).project(point)
        nearest = by_formula(center.double().numpy(), point.double().numpy(), radius)
        # The margin, and the rounding of weights.
        error = 2 * unit * (center.double().norm().item() + 4 * radius)
        assert np.linalg.norm(found.double().numpy() - nearest) <= error + 1e-12


# In float64 the difference itself can only be had rounded.
@pytest.mark.parametrize(
    ("dtype", "small"), [(torch.float32, 1e-8), (torch.bfloat16, 1e-10), (torch.float16, 6e-8)]
)
def test_a_point_that_is_a_rounding_outside_does_not_stay_there(dtype: torch.dtype, small: float) -> None:
    # Without the center's small entry, the difference is rounded to the radius.
    center, point = torch.tensor([-small], dtype=dtype), torch.tensor([1.0], dtype=dtype)
    assert exact_square(point, center) > 1
    assert_is_within({"": Ball(1.0).at(center).project(point)}, {"": center}, 1.0)


def test_subnormal_weights_do_not_leave_a_ball() -> None:
    # Entries are about 1e-5, where float16 has steps of 6e-8.
    center = torch.zeros(10_000, dtype=torch.float16)
    for radius in torch.linspace(1e-3, 1.1e-3, 50).tolist():
        found = Ball(radius).at(center).project(torch.ones_like(center))
        assert found.double().norm().item() <= radius


@settings(max_examples=40)
@given(seed=SEEDS, share=st.floats(0, 0.999), kind=st.sampled_from(DTYPES), joint=st.booleans())
def test_points_inside_come_back_bit_for_bit(seed: int, share: float, kind: torch.dtype, joint: bool) -> None:
    random = np.random.default_rng(seed)
    center = {name: tensor.to(kind) for name, tensor in several(random).items()}
    point = {name: (center[name] + double(random.normal(size=s))).to(kind) for name, s in SHAPES.items()}
    radius = max(math.sqrt(square(point, center)) / max(share, 0.1), 0.1)
    ball = Ball(radius * (1 + 1e-6), joint).at(center)
    found = ball.project(point)
    assert all(same_bits(found[name], point[name]) for name in SHAPES)
    assert ball.distance(point) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sphere_belongs_to_the_ball(dtype: torch.dtype) -> None:
    point = torch.tensor([3.0, -4.0, 1.0], dtype=dtype)
    center = torch.tensor([0.0, 0.0, 1.0], dtype=dtype)
    ball = Ball(5.0).at(center)
    assert same_bits(ball.project(point), point)
    assert same_bits(ball.project(center), center)


@settings(max_examples=40)
@given(seed=SEEDS, joint=st.booleans())
def test_projections_are_no_farther_apart_than_the_points(seed: int, joint: bool) -> None:
    random = np.random.default_rng(seed)
    center, radius = several(random), 10 ** random.uniform(-3, 1)
    ball = Ball(radius, joint).at(center)
    point = shifted(center, several(random, radius * 10 ** random.uniform(-1, 2)))
    other = shifted(point, several(random, radius * 10 ** random.uniform(-3, 2)))
    before, after = square(point, other), square(ball.project(point), ball.project(other))
    assert math.sqrt(after) <= math.sqrt(before) + 1e-13


@settings(max_examples=40)
@given(seed=SEEDS)
def test_distance_is_what_lies_beyond_the_radius(seed: int) -> None:
    random = np.random.default_rng(seed)
    center, radius = several(random), random.uniform(0.1, 5)
    point = shifted(center, several(random))
    joint = max(0.0, math.sqrt(square(point, center)) - radius)
    assert Ball(radius).at(center).distance(point) == pytest.approx(joint, rel=0, abs=1e-13)
    parts = [max(0.0, math.sqrt(exact_square(point[n], center[n])) - radius) for n in SHAPES]
    assert Ball(radius, joint=False).at(center).distance(point) == pytest.approx(
        math.hypot(*parts), rel=0, abs=1e-13
    )


# Radius 0, infinity, and too small


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_radius_zero_pins_to_the_center(dtype: torch.dtype, joint: bool) -> None:
    random = np.random.default_rng(7)
    for scale in (0.1, 1.0, 10.0):
        center = {name: tensor.to(dtype) for name, tensor in several(random, scale).items()}
        ball = Ball(0.0, joint).at(center)
        for step in (1e-9, 1e-3, 1.0, 1e3):
            point = {
                name: (center[name].double() + step * d).to(dtype) for name, d in several(random).items()
            }
            found = ball.project(point)
            assert all(same_bits(found[name], center[name]) for name in SHAPES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [2.0, -1.0, 0.5, 1.5, 100.0])
def test_radius_zero_pins_one_weight(dtype: torch.dtype, value: float) -> None:
    center = torch.tensor([1.0], dtype=dtype)
    ball = Ball(0.0).at(center)
    point = torch.tensor([value], dtype=dtype)
    assert ball.project(point).item() == 1.0
    assert ball.distance(point) == abs(value - 1)
    assert ball.distance(center) == 0


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_radius_infinity_sets_no_limit(dtype: torch.dtype, joint: bool) -> None:
    ball = Ball(math.inf, joint).at(torch.ones(3, dtype=dtype))
    point = torch.tensor([torch.finfo(dtype).max, -0.0, torch.finfo(dtype).min], dtype=dtype)
    assert same_bits(ball.project(point), point)
    assert ball.distance(point) == 0
    assert torch.equal(ball.normal(point, torch.ones_like(point)), torch.zeros_like(point))


@pytest.mark.parametrize("dtype", DTYPES)
def test_radii_that_rounding_would_swallow_are_refused_with_one_that_works(dtype: torch.dtype) -> None:
    center = 100 * torch.ones(50, dtype=dtype)
    with pytest.raises(
        PrecisionError, match=rf"{re.escape(str(dtype))}.*take a radius of .* or more"
    ) as refused:
        Ball(torch.finfo(dtype).eps * 100).at(center)
    advised = float(re.search(r"take a radius of (\S+) or more", str(refused.value))[1])
    ball = Ball(advised).at(center)
    found = ball.project(2 * center)
    assert_is_within({"": found}, {"": center}, advised)
    assert not torch.equal(found, center)


def test_a_radius_has_to_suit_what_shares_a_ball() -> None:
    center = {str(number): torch.ones(1) for number in range(100)}
    radius = 20 * torch.finfo(torch.float32).eps / 2
    with pytest.raises(PrecisionError, match="around weights of norm 10 "):
        Ball(radius).at(center)
    found = (
        Ball(radius, joint=False).at(center).project({name: 2 * tensor for name, tensor in center.items()})
    )
    for name, tensor in center.items():
        assert_is_within({name: found[name]}, {name: tensor}, radius)
        assert found[name] > tensor


# Several balls


def test_every_part_of_a_product_keeps_its_own_radius() -> None:
    center = {"first": torch.zeros(3), "second": torch.zeros(3)}
    point = {"first": torch.tensor([10.0, 0.0, 0.0]), "second": torch.tensor([0.0, 10.0, 0.0])}
    for radii in [(1.0, 2.0), (2.0, 1.0)]:
        parts = {name: Ball(radius) for name, radius in zip(center, radii, strict=True)}
        found = Product(parts).at(center).project(point)
        assert [found[name].norm().item() for name in center] == pytest.approx(radii, rel=1e-6)
        torch.compiler.reset()
        moved = compiled(Product(parts).at(center))(point)
        assert all(same_bits(moved[name], found[name]) for name in center)


def test_a_set_may_be_put_at_several_centers() -> None:
    ball, point = Ball(1.0), torch.full((2,), 3.0)
    first, second = ball.at(torch.zeros(2)), ball.at(torch.tensor([3.0, 0.0]))
    assert first.project(point).tolist() == pytest.approx([math.sqrt(0.5)] * 2, rel=1e-6)
    assert second.project(point).tolist() == pytest.approx([3.0, 1.0], rel=1e-6)
    with pytest.raises(InputError, match="no center yet"):
        ball.project(point)


def test_the_center_is_a_copy_and_so_is_the_projection() -> None:
    center = torch.zeros(2)
    ball = Ball(1.0).at(center)
    center.fill_(9)
    point = torch.tensor([0.0, 4.0])
    found = ball.project(point)
    assert found.tolist() == pytest.approx([0.0, 1.0], rel=1e-6)
    assert point.tolist() == [0.0, 4.0]
    weight = torch.nn.Parameter(torch.full((3, 2), 4.0).T)
    Ball(1.0).at(torch.zeros(2, 3)).project_({"": weight})
    assert weight.norm().item() == pytest.approx(1, rel=1e-6)
    assert weight.requires_grad


def test_dtypes_may_differ_from_tensor_to_tensor() -> None:
    center = {"a": torch.ones(40, dtype=torch.float64), "b": torch.ones(40, dtype=torch.bfloat16)}
    point = {name: 5 * tensor for name, tensor in center.items()}
    found = Ball(1.0).at(center).project(point)
    assert [found[name].dtype for name in found] == [torch.float64, torch.bfloat16]
    assert_is_within(found, center, 1.0)
    assert square(found, center) > Fraction(0.8)


# Normal cones


@settings(max_examples=40)
@given(seed=SEEDS)
def test_on_the_sphere_normals_point_outwards(seed: int) -> None:
    random = np.random.default_rng(seed)
    center, radius = several(random), random.uniform(0.1, 5)
    ball = Ball(radius).at(center)
    point = ball.project(shifted(center, several(random, 20 * radius)))
    direction = several(random)
    normal = ball.normal(point, direction)
    offset, towards, found = (
        torch.cat([each[name].flatten() for name in SHAPES])
        for each in (shifted(point, {name: -center[name] for name in SHAPES}), direction, normal)
    )
    along = max(0.0, float(towards @ offset)) / float(offset @ offset)
    assert (found - along * offset).abs().max() <= 1e-12
    # Moreau: what is left of the direction leads along the sphere or inwards.
    assert abs(float(found @ (towards - found))) <= 1e-12
    assert float(offset @ (towards - found)) <= 1e-12
    for step in (0.1, 1.0):
        back = ball.project({name: point[name] + step * normal[name] for name in SHAPES})
        assert max((back[name] - point[name]).abs().max().item() for name in SHAPES) <= 1e-12


@settings(max_examples=40)
@given(seed=SEEDS, joint=st.booleans())
def test_normals_at_a_projection_lead_back_to_the_point(seed: int, joint: bool) -> None:
    random = np.random.default_rng(seed)
    center, radius = several(random), random.uniform(0.1, 5)
    ball = Ball(radius, joint).at(center)
    point = shifted(center, several(random, radius))
    nearest = ball.project(point)
    offset = {name: point[name] - nearest[name] for name in SHAPES}
    found = ball.normal(nearest, offset)
    assert max((found[name] - offset[name]).abs().max().item() for name in SHAPES) <= 1e-12 * max(1.0, radius)


def test_normals_are_zero_inside_and_inwards_and_of_every_tensor_apart_unless_joint() -> None:
    center = {"a": torch.zeros(2), "b": torch.zeros(2)}
    point = {"a": torch.tensor([2.0, 0.0]), "b": torch.tensor([0.0, 1.0])}
    direction = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([1.0, 5.0])}
    found = Ball(2.0, joint=False).at(center).normal(point, direction)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"a": [3.0, 0.0], "b": [0.0, 0.0]}
    inside = Ball(3.0).at(center).normal(point, direction)
    assert not any(tensor.any() for tensor in inside.values())
    inwards = Ball(2.0, joint=False).at(center).normal(point, {name: -d for name, d in direction.items()})
    assert not any(tensor.any() for tensor in inwards.values())


def test_a_pinned_point_has_every_direction_as_its_normal() -> None:
    center, direction = torch.ones(3), torch.tensor([1.0, -2.0, 0.0])
    found = Ball(0.0).at(center).normal(center, direction)
    assert torch.equal(found, direction)
    found.zero_()
    assert direction.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_normals_in_few_bits(dtype: torch.dtype) -> None:
    random = np.random.default_rng(11)
    for _ in range(50):
        center = double(random.normal(size=50)).to(dtype)
        ball = Ball(3.0).at(center)
        point = ball.project((center + double(random.normal(size=50)) * 10).to(dtype))
        direction = (point - center).double() + double(random.normal(size=50))
        found = ball.normal(point, direction.to(dtype))
        offset = point.double() - center.double()
        nearest = max(0.0, float(direction @ offset)) / float(offset @ offset) * offset
        assert found.dtype == dtype
        assert (found.double() - nearest).abs().max() <= max(4 * torch.finfo(dtype).eps, 1e-12) * 3


def test_normals_do_not_overflow_where_weights_do_not() -> None:
    center = torch.zeros(10_000, dtype=torch.float16)
    found = Ball(100.0).at(center).normal(torch.ones_like(center), 10 * torch.ones_like(center))
    assert found.unique().tolist() == pytest.approx([10.0], rel=1e-2)


# Bad input


@pytest.mark.parametrize("radius", [-1.0, -1e-300, math.nan, -math.inf])
def test_radii_that_are_negative_or_no_numbers_are_refused(radius: float) -> None:
    with pytest.raises(InputError, match=rf"^a ball's radius is 0 or more, not {radius}\.$"):
        Ball(radius)


def test_centers_that_are_not_finite_floating_point_are_refused() -> None:
    with pytest.raises(InputError, match=r"^the center of fc\.bias is torch\.int64, .*\.$"):
        Ball(1.0).at({"fc.bias": torch.arange(3)})
    with pytest.raises(InputError, match=r"^the center is torch\.bool, but weights are of floating point\.$"):
        Ball(1.0).at(torch.tensor([True]))
    with pytest.raises(InputError, match=r"^the center is torch\.complex64, .*\.$"):
        Ball(1.0).at(torch.ones(2, dtype=torch.complex64))
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(InputError, match=r"^the center of w has entries that are not finite\.$"):
            Ball(1.0).at({"v": torch.zeros(2), "w": torch.tensor([0.0, value])})


def test_points_unlike_the_center_are_refused() -> None:
    ball = Ball(1.0).at({"v": torch.zeros(2, 3)})
    for ask in (ball.project, ball.distance, lambda x: ball.normal(x, x)):
        with pytest.raises(
            InputError, match=r"tensors named \['w'\], but the constraint's center \['v'\]\.$"
        ):
            ask({"w": torch.zeros(2, 3)})
        with pytest.raises(InputError, match=r"tensors named \['v', 'w'\]"):
            ask({"v": torch.zeros(2, 3), "w": torch.zeros(2, 3)})
        with pytest.raises(InputError, match=r"tensors named \[\]"):
            ask({})
        with pytest.raises(InputError, match=r"the point of v is torch\.float32 \[3, 2\], .* \[2, 3\]\.$"):
            ask({"v": torch.zeros(3, 2)})
        with pytest.raises(
            InputError, match=r"the point of v is torch\.float64 \[2, 3\], .* torch\.float32 "
        ):
            ask({"v": torch.zeros(2, 3).double()})
    with pytest.raises(InputError, match=r"the point of v is"):
        ball.normal({"v": torch.zeros(2, 3)}, {"v": torch.zeros(3)})
    one = Ball(1.0).at(torch.zeros(2))
    with pytest.raises(InputError, match=r"^the point is torch\.float32 \[3\], but the constraint's center "):
        one.project(torch.zeros(3))


@pytest.mark.parametrize("ask", ["project", "distance", "project_", "normal"])
def test_a_ball_without_a_center_says_so(ask: str) -> None:
    point = {"v": torch.zeros(2)}
    with pytest.raises(InputError, match=r"^this Ball has no center yet; put it \.at\(weights\)\.$"):
        getattr(Ball(1.0), ask)(*[point] * (2 if ask == "normal" else 1))


# torch.compile


@pytest.mark.parametrize("joint", [True, False])
def test_compiled_projections_are_the_same(joint: bool) -> None:
    random = np.random.default_rng(13)
    kinds = dict(zip(SHAPES, DTYPES, strict=False))
    center = {name: tensor.to(kinds[name]) for name, tensor in several(random).items()}
    far = {name: (10 * tensor).to(kinds[name]) for name, tensor in several(random).items()}
    ball = Ball(2.0, joint).at(center)
    torch.compiler.reset()
    project = compiled(ball)
    for point in (far, ball.project(far), center):
        found, eager = project(point), ball.project(point)
        assert all(same_bits(found[name], eager[name]) for name in SHAPES)


def test_balls_of_several_radii_compile_one_after_the_other() -> None:
    center = {"a": torch.ones(3), "b": torch.ones(2)}
    point = {"a": torch.full((3,), 3.0), "b": torch.full((2,), 4.0)}
    torch.compiler.reset()
    for radius in (1.0, 2.0, 3.0, 0.0, math.inf):
        ball = Ball(radius).at(center)
        found, eager = compiled(ball)(point), ball.project(point)
        assert all(same_bits(found[name], eager[name]) for name in point)
