"""Floor and ratio against rational arithmetic, least-distance programming and non-negative least squares."""

import math
from contextlib import suppress
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isthmus.constraints import FloorAndRatio, Product
from isthmus.errors import InputError

from .oracles import (
    Case,
    Uncertified,
    compiled,
    exact,
    nearest_by_bisection,
    nearest_by_nnls,
    nearest_in_cone,
    nearest_of_all_splits,
    outward_walls,
    point_on_edges,
    random_cases,
    same_bits,
)

SEEDS = st.integers(0, 2**32)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LISTS = st.lists(st.floats(-100, 100), min_size=1, max_size=8)
FLOORS = st.floats(1e-3, 10)
RATIOS = st.one_of(st.just(1.0), st.floats(1, 100), st.just(math.inf))


def double(values: object) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def positive(case: Case, dtype: torch.dtype = torch.float64) -> FloorAndRatio:
    """The set around a center without negative entries."""
    return FloorAndRatio(case.floor, case.ratio).at(torch.ones(len(case.point), dtype=dtype))


def signs(random: np.random.Generator, count: int) -> np.ndarray:
    return random.choice([-1.0, 1.0], count)


def project_with_signs(case: Case, seed: int) -> np.ndarray:
    """The projection of a point whose set has been reflected, reflected back."""
    sign = signs(np.random.default_rng(seed), len(case.point))
    constraint = FloorAndRatio(case.floor, case.ratio).at(torch.from_numpy(sign))
    return sign * constraint.project(torch.from_numpy(sign * case.point)).numpy()


@pytest.mark.parametrize("seed", range(3))
def test_projections_are_the_nearest_of_all_splits(seed: int) -> None:
    for number, case in enumerate(random_cases(seed, 500)):
        nearest = np.array([float(value) for value in nearest_of_all_splits(case)])
        assert np.abs(project_with_signs(case, number) - nearest).max() <= 1e-12 * case.scale, case


@pytest.mark.parametrize("seed", range(100, 103))
def test_projections_solve_the_convex_program(seed: int) -> None:
    certified = 0
    for number, case in enumerate(random_cases(seed, 500)):
        with suppress(Uncertified):
            nearest = nearest_by_nnls(case)
            assert np.abs(project_with_signs(case, number) - nearest).max() <= 1e-12 * case.scale, case
            certified += 1
    assert certified > 490


def test_the_random_cases_have_the_limits_in_every_combination() -> None:
    met = set()
    for case in random_cases(0, 500):
        exactly = nearest_of_all_splits(case)
        low, high = min(exactly), max(exactly)
        moved = exactly != [Fraction(value) for value in case.point.tolist()]
        met.add((moved, low == Fraction(case.floor), high == low * Fraction(min(case.ratio, 1e9))))
    # What has moved is at one limit or at the other.
    assert met == set(product([True, False], repeat=3)) - {(True, False, False)}


# The search for the level looks at 64 points a round.
@pytest.mark.parametrize(
    ("count", "floor", "ratio"),
    [
        *product([32, 63, 64, 65, 128, 129], [0.5], [1.7, 100.0]),
        (4095, 1e-3, 100.0),
        (4096, 0.5, 1.7),
        (4097, 1e-3, 3.0),
    ],
)
def test_many_entries_against_bisection_in_rational_arithmetic(
    count: int, floor: float, ratio: float
) -> None:
    random = np.random.default_rng(count)
    # Few bits, so that rational arithmetic is fast; and many ties.
    case = Case(np.round(random.lognormal(sigma=2, size=count) * 64) / 64, floor, ratio)
    found = positive(case).project(torch.from_numpy(case.point)).numpy()
    assert np.abs(found - nearest_by_bisection(case)).max() <= 1e-12 * case.scale


@pytest.mark.parametrize("position", [0, 62, 63, 64, 65, 127, 128, 199])
@pytest.mark.parametrize("outlier", [1e6, -1e6])
def test_the_level_is_found_wherever_it_is_among_the_entries(position: int, outlier: float) -> None:
    point = np.arange(1.0, 201.0)
    point[position] = outlier
    for ratio in (1.5, 16.0):
        case = Case(point, 0.5, ratio)
        found = positive(case).project(torch.from_numpy(point)).numpy()
        assert np.abs(found - nearest_by_bisection(case)).max() <= 1e-12 * case.scale


def test_the_two_rational_oracles_agree() -> None:
    for case in random_cases(7, 100):
        if math.isfinite(case.ratio):
            assert nearest_by_bisection(case) == [float(value) for value in nearest_of_all_splits(case)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_few_bits_the_projection_is_rounded_and_no_more(dtype: torch.dtype) -> None:
    for case in random_cases(11, 60):
        point = torch.from_numpy(case.point).to(dtype)
        rounded = Case(point.double().numpy(), case.floor, case.ratio)
        nearest = double([float(value) for value in nearest_of_all_splits(rounded)])
        found = positive(case, dtype).project(point)
        assert found.dtype == dtype
        # The level, and again its multiple by the ratio; in float16 the least entries are subnormal.
        error = 2 * torch.finfo(dtype).eps * nearest + torch.finfo(dtype).smallest_normal
        error = error + 1e-12 * rounded.scale
        assert ((found.double() - nearest).abs() <= error).all(), case


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25)
@given(values=LISTS, floor=FLOORS, ratio=RATIOS)
def test_projecting_again_changes_no_bit(
    dtype: torch.dtype, values: list[float], floor: float, ratio: float
) -> None:
    point = torch.tensor(values, dtype=dtype)
    constraint = FloorAndRatio(floor, ratio).at(torch.ones_like(point))
    once = constraint.project(point)
    assert same_bits(constraint.project(once), once)
    assert constraint.distance(once) == 0


@settings(max_examples=50)
@given(values=LISTS, floor=FLOORS, ratio=RATIOS, data=st.data())
def test_projections_are_no_farther_apart_than_the_points(
    values: list[float], floor: float, ratio: float, data: st.DataObject
) -> None:
    point = double(values)
    other = double(data.draw(st.lists(st.floats(-100, 100), min_size=len(values), max_size=len(values))))
    constraint = FloorAndRatio(floor, ratio).at(torch.ones_like(point))
    apart = (constraint.project(point) - constraint.project(other)).norm()
    assert apart <= (point - other).norm() + 1e-11


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25)
@given(seed=SEEDS)
def test_points_of_the_set_come_back_bit_for_bit(dtype: torch.dtype, seed: int) -> None:
    random = np.random.default_rng(seed)
    case = point_on_edges(random)
    sign = torch.from_numpy(signs(random, len(case.point))).to(dtype)
    point = sign * torch.from_numpy(case.point).to(dtype)
    constraint = FloorAndRatio(case.floor, case.ratio).at(sign)
    assert same_bits(constraint.project(point), point)
    assert constraint.distance(point) == 0


@settings(max_examples=50)
@given(values=LISTS, floor=FLOORS, ratio=RATIOS)
def test_projections_are_in_the_set(values: list[float], floor: float, ratio: float) -> None:
    point = double(values)
    found = exact(FloorAndRatio(floor, ratio).at(torch.ones_like(point)).project(point))
    assert min(found) >= floor
    assert max(found) <= min(found) * min(ratio, 1e9) * (1 + 2 * torch.finfo(torch.float64).eps)


def test_entries_have_the_sign_of_the_center_and_zero_counts_as_plus() -> None:
    center = double([2.0, -3.0, 0.0, -0.0, 1.0, -1.0])
    constraint = FloorAndRatio(0.5, math.inf).at(center)
    found = constraint.project(double([-1.0, 5.0, -2.0, -4.0, 7.0, -7.0]))
    assert found.tolist() == [0.5, -0.5, 0.5, 0.5, 7.0, -7.0]
    assert constraint.project(torch.zeros(6, dtype=torch.float64)).tolist() == [
        0.5,
        -0.5,
        0.5,
        0.5,
        0.5,
        -0.5,
    ]


@settings(max_examples=50)
@given(values=LISTS, floor=FLOORS, ratio=RATIOS, seed=SEEDS)
def test_signs_are_those_of_the_center(values: list[float], floor: float, ratio: float, seed: int) -> None:
    sign = torch.from_numpy(signs(np.random.default_rng(seed), len(values)))
    found = FloorAndRatio(floor, ratio).at(3 * sign).project(double(values))
    assert torch.equal(found.sign(), sign)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25)
@given(values=LISTS, floor=FLOORS, ratio=RATIOS, seed=SEEDS)
def test_one_output_may_have_an_axis_of_its_own(
    dtype: torch.dtype, values: list[float], floor: float, ratio: float, seed: int
) -> None:
    point = torch.tensor(values, dtype=dtype)
    center = torch.from_numpy(signs(np.random.default_rng(seed), len(values))).to(dtype)
    constraint = FloorAndRatio(floor, ratio)
    flat, row = constraint.at(center), constraint.at(center[None])
    found = row.project(point[None])
    assert found.shape == (1, len(values))
    assert same_bits(found[0], flat.project(point))
    assert same_bits(row.normal(found, point[None])[0], flat.normal(found[0], point))


def test_one_entry_has_a_floor_and_nothing_else() -> None:
    constraint = FloorAndRatio(0.25, 1.0).at(double([1.0]))
    for value, nearest in [(-3.0, 0.25), (0.0, 0.25), (0.25, 0.25), (0.3, 0.3), (1e9, 1e9)]:
        assert constraint.project(double([value])).item() == nearest


@settings(max_examples=50)
@given(values=LISTS, floor=FLOORS)
def test_ratio_one_makes_all_entries_their_mean_or_the_floor(values: list[float], floor: float) -> None:
    found = FloorAndRatio(floor, 1.0).at(torch.ones(len(values))).project(torch.tensor(values))
    assert found.unique().numel() == 1
    found = FloorAndRatio(floor, 1.0).at(double([1.0] * len(values))).project(double(values))
    assert found.unique().numel() == 1
    assert found[0].item() == pytest.approx(
        max(floor, math.fsum(values) / len(values)), rel=0, abs=1e-12 * 100
    )


@settings(max_examples=50)
@given(values=LISTS, floor=FLOORS)
def test_without_a_ratio_every_entry_has_its_own_floor(values: list[float], floor: float) -> None:
    found = FloorAndRatio(floor, math.inf).at(double([1.0] * len(values))).project(double(values))
    assert found.tolist() == [max(value, floor) for value in values]


@pytest.mark.parametrize("ratio", [1e100, 1e154, 1e155, 1e300])
def test_a_huge_ratio_is_as_good_as_none(ratio: float) -> None:
    point = double([-2.0, 0.5, 3.0])
    constraint = FloorAndRatio(0.25, ratio).at(torch.ones_like(point))
    assert constraint.project(point).tolist() == [0.25, 0.5, 3.0]


@pytest.mark.parametrize(
    ("floor", "dtype"),
    [(1e-9, torch.float16), (1e6, torch.float16), (1e-50, torch.float32), (1e50, torch.float32)],
)
def test_a_floor_that_the_dtype_does_not_have_is_refused(floor: float, dtype: torch.dtype) -> None:
    with pytest.raises(InputError):
        FloorAndRatio(floor).at(torch.ones(3, dtype=dtype))


def columns(random: np.random.Generator, case: Case) -> tuple[Tensor, Tensor]:
    """Output weights [K, m] whose columns have the sizes of a case, and their unit directions."""
    direction = torch.from_numpy(random.normal(size=(random.integers(2, 6), len(case.point))))
    direction /= direction.norm(dim=0)
    return direction * torch.from_numpy(np.abs(case.point)), direction


def test_with_several_outputs_the_norms_of_columns_are_projected() -> None:
    random = np.random.default_rng(5)
    for case in random_cases(21, 300):
        point, direction = columns(random, case)
        center = torch.from_numpy(random.normal(size=point.shape))
        constraint = FloorAndRatio(case.floor, case.ratio).at(center)
        found = constraint.project(point)
        sizes = Case(np.abs(case.point), case.floor, case.ratio)
        nearest = double([float(value) for value in nearest_of_all_splits(sizes)])
        direction = torch.where(point.norm(dim=0) > 0, direction, center / center.norm(dim=0))
        assert (found - direction * nearest).abs().max() <= 1e-12 * case.scale, case
        # No matrix of the set is nearer than its columns' norms are to the point's.
        least = (nearest - torch.from_numpy(sizes.point)).norm().item()
        assert constraint.distance(point) == pytest.approx(least, rel=0, abs=1e-12 * case.scale)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25)
@given(seed=SEEDS)
def test_with_several_outputs_projecting_again_changes_no_bit(dtype: torch.dtype, seed: int) -> None:
    random = np.random.default_rng(seed)
    outputs, hidden = random.integers(2, 30), random.integers(1, 9)
    point = torch.from_numpy(random.normal(size=(outputs, hidden)) * random.lognormal(sigma=2, size=hidden))
    constraint = FloorAndRatio(
        random.uniform(0.05, 2), random.choice([1.0, 1.5, 3.0, random.uniform(1, 100)])
    )
    constraint = constraint.at(torch.ones(outputs, hidden, dtype=dtype))
    once = constraint.project(point.to(dtype))
    assert same_bits(constraint.project(once), once)
    assert constraint.distance(once) == 0
    sizes = once.double().norm(dim=0)
    rounding = (outputs + 4) * torch.finfo(dtype).eps
    assert sizes.min() >= constraint.floor * (1 - rounding)
    assert sizes.max() <= constraint.ratio * sizes.min() * (1 + 2 * rounding)


@pytest.mark.parametrize("dtype", DTYPES)
def test_with_several_outputs_points_of_the_set_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    # 3-4-5 triangles have their norms exactly.
    point = torch.tensor([[3.0, -0.75, 6.0, 0.0], [4.0, 1.0, -8.0, -2.5]], dtype=dtype)
    constraint = FloorAndRatio(1.25, 8.0).at(torch.ones_like(point))
    assert same_bits(constraint.project(point), point)
    assert constraint.distance(point) == 0


def test_columns_that_are_zero_take_the_direction_of_the_center() -> None:
    center = double([[3.0, 0.0, 1.0], [-4.0, 0.0, 1.0]])
    point = double([[0.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
    found = FloorAndRatio(0.5, math.inf).at(center).project(point)
    assert found[:, 0].tolist() == pytest.approx([0.3, -0.4], rel=1e-15)
    # Where the center has no direction either, any will do.
    assert found[:, 1].norm().item() == pytest.approx(0.5, rel=1e-15)
    assert found[:, 2].tolist() == [5.0, 0.0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_that_need_not_move_keep_their_bits(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(3)
    for _ in range(20):
        point = torch.randn(3, 5, generator=random, dtype=torch.float64)
        point = (point / point.norm(dim=0) * torch.tensor([0.01, 5.0, 6.0, 7.0, 20.0])).to(dtype)
        found = FloorAndRatio(0.5, 4.0).at(torch.ones_like(point)).project(point)
        # The level is between 4 and 5.
        assert same_bits(found[:, 1:4], point[:, 1:4])
        assert not (found == point)[:, [0, 4]].all(0).any()


def test_columns_keep_their_direction_even_against_that_of_the_center() -> None:
    center, point = double([[1.0], [1.0]]), double([[-0.3], [-0.4]])
    assert torch.allclose(FloorAndRatio(1.0).at(center).project(point), double([[-0.6], [-0.8]]), rtol=1e-15)


def test_every_tensor_has_a_level_of_its_own() -> None:
    point = {
        "a": double([1.0, 100.0]),
        "b": double([[-30.0, -0.001, -7.0]]),
        "c": double([[0.3, 8], [0.4, 6]]),
    }
    constraint = FloorAndRatio(0.01, 4.0)
    found = constraint.at(point).project(point)
    for name, tensor in point.items():
        assert same_bits(found[name], constraint.at(tensor).project(tensor))
    assert not torch.equal(found["a"], point["a"])


def test_distance_is_that_to_the_nearest_point() -> None:
    for case in random_cases(31, 100):
        exactly = nearest_of_all_splits(case)
        square = sum((a - Fraction(b)) ** 2 for a, b in zip(exactly, case.point.tolist(), strict=True))
        found = positive(case).distance(torch.from_numpy(case.point))
        assert found == pytest.approx(math.sqrt(square), rel=0, abs=1e-12 * case.scale)


def test_the_center_itself_need_not_be_in_the_set() -> None:
    center = double([1e-9, 1e9, -1.0])
    constraint = FloorAndRatio(0.1, 10.0).at(center)
    found = constraint.project(center)
    assert constraint.distance(center) > 1
    assert constraint.distance(found) == 0


def test_projection_makes_a_new_tensor_and_project_in_place_does_not() -> None:
    center = torch.ones(2, 3).T
    constraint = FloorAndRatio(0.5, 2.0).at({"v": center})
    point = torch.arange(6.0).reshape(2, 3).T
    before = point.clone()
    found = constraint.project({"v": point})["v"]
    assert torch.equal(point, before)
    assert not torch.equal(found, before)
    weight = torch.nn.Parameter(point)
    constraint.project_({"v": weight})
    assert torch.equal(weight, found)
    assert torch.equal(point, found)
    assert weight.requires_grad
    assert not found.requires_grad
    center.fill_(-5)
    assert torch.equal(constraint.center["v"], torch.ones(3, 2))


# Normal cones


def test_normals_are_the_nearest_elements_of_the_cone() -> None:
    random = np.random.default_rng(41)
    for _ in range(400):
        case = point_on_edges(random)
        sign = signs(random, len(case.point))
        direction = random.normal(size=len(case.point)) * random.choice([1.0, 10.0], len(case.point))
        constraint = FloorAndRatio(case.floor, case.ratio).at(torch.from_numpy(sign))
        found = constraint.normal(torch.from_numpy(sign * case.point), torch.from_numpy(sign * direction))
        nearest = nearest_in_cone(outward_walls(case.point, case.floor, case.ratio), direction)
        assert np.abs(sign * found.numpy() - nearest).max() <= 1e-11, (case, direction)


def test_normals_and_what_is_left_of_the_direction_are_polar() -> None:
    random = np.random.default_rng(43)
    moved = 0
    for _ in range(200):
        case = point_on_edges(random)
        point, direction = torch.from_numpy(case.point), torch.from_numpy(random.normal(size=len(case.point)))
        constraint = positive(case)
        normal = constraint.normal(point, direction)
        rest = direction - normal
        assert abs(normal @ rest) <= 1e-12
        # A tangent: one can go that way, and the set is a polyhedron.
        assert constraint.distance(point + 1e-4 * rest) <= 1e-15 * case.scale
        for step in (1e-3, 1e-2, 1.0):
            assert (constraint.project(point + step * normal) - point).abs().max() <= 1e-12 * case.scale
        assert (constraint.normal(point, normal) - normal).abs().max() <= 1e-12
        moved += bool(normal.any())
    assert 50 < moved < 200


def test_normals_at_a_projection_lead_back_to_the_point() -> None:
    for case in random_cases(47, 400):
        constraint, point = positive(case), torch.from_numpy(case.point)
        nearest = constraint.project(point)
        offset = point - nearest
        assert (constraint.normal(nearest, offset) - offset).abs().max() <= 1e-12 * case.scale, case


def test_no_other_point_of_the_set_is_on_the_side_of_a_normal() -> None:
    random = np.random.default_rng(53)
    for _ in range(100):
        case = point_on_edges(random)
        constraint, count = positive(case), len(case.point)
        point, direction = torch.from_numpy(case.point), torch.from_numpy(random.normal(size=count))
        normal = constraint.normal(point, direction)
        for _ in range(5):
            other = constraint.project(torch.from_numpy(random.normal(size=count) * 10))
            assert normal @ (other - point) <= 1e-10


@pytest.mark.parametrize("floor", [0.5, 1.0])
def test_inside_the_set_the_normal_is_zero(floor: float) -> None:
    constraint = FloorAndRatio(floor, 4.0).at(double([1.0, -1.0, 1.0]))
    found = constraint.normal(double([1.5, -2.0, 3.0]), double([-3.0, 1.0, 5.0]))
    assert torch.equal(found, torch.zeros_like(found))


def test_a_rounding_away_from_an_edge_counts_as_on_it() -> None:
    constraint = FloorAndRatio(1.0, 4.0).at(torch.ones(3))
    direction = torch.tensor([-2.0, 1.0, 1.0])
    for error in (-1e-6, 0.0, 1e-6):
        found = constraint.normal(torch.tensor([1.0 + error, 2.0, 3.0]), direction)
        assert found.tolist() == [-2.0, 0.0, 0.0]
    far = constraint.normal(torch.tensor([1.01, 2.0, 3.0]), direction)
    assert torch.equal(far, torch.zeros(3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_normals_in_few_bits(dtype: torch.dtype) -> None:
    random = np.random.default_rng(59)
    for _ in range(60):
        # Entries that are exact in bfloat16, and farther from the edges than a rounding.
        low, ratio = random.integers(1, 8) / 8, float(random.choice([2.0, 3.0, 16.0]))
        point = random.choice([low, 1.5 * low, ratio * low], 5)
        floor = low * random.choice([1.0, 0.5])
        direction = torch.from_numpy(random.normal(size=5)).to(dtype)
        found = (
            FloorAndRatio(floor, ratio)
            .at(torch.ones(5, dtype=dtype))
            .normal(torch.from_numpy(point).to(dtype), direction)
        )
        nearest = nearest_in_cone(outward_walls(point, floor, ratio), direction.double().numpy())
        assert found.dtype == dtype
        assert np.abs(found.double().numpy() - nearest).max() <= max(4 * torch.finfo(dtype).eps, 1e-12) * 3


def test_with_several_outputs_normals_are_along_the_columns() -> None:
    random = np.random.default_rng(61)
    triangles = double([[0.6, -0.6, 0.0, 1.0], [0.8, 0.8, -1.0, 0.0]])
    for _ in range(200):
        case = point_on_edges(random, most=4)
        unit = triangles[:, random.permutation(4)[: len(case.point)]]
        point = unit * torch.from_numpy(case.point)
        direction = torch.from_numpy(random.normal(size=point.shape))
        constraint = FloorAndRatio(case.floor, case.ratio).at(torch.ones_like(point))
        found = constraint.normal(point, direction)
        radial = (unit * direction).sum(0).numpy()
        nearest = nearest_in_cone(outward_walls(case.point, case.floor, case.ratio), radial)
        assert (found - unit * torch.from_numpy(nearest)).abs().max() <= 1e-11
        # So short that no column comes near to zero.
        step = 0.01 / max(1.0, found.abs().max().item())
        assert (constraint.project(point + step * found) - point).abs().max() <= 1e-12 * case.scale


# Bad input


@pytest.mark.parametrize("floor", [0.0, -1.0, math.nan, math.inf])
def test_floors_that_are_not_positive_numbers_are_refused(floor: float) -> None:
    with pytest.raises(InputError, match=rf"floor of output weights .* not {floor}\.$"):
        FloorAndRatio(floor=floor)


@pytest.mark.parametrize("ratio", [0.5, 0.0, -2.0, math.nan, -math.inf])
def test_ratios_below_one_are_refused(ratio: float) -> None:
    with pytest.raises(InputError, match=rf"ratio of output weights is 1 or more, not {ratio}\.$"):
        FloorAndRatio(ratio=ratio)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (0, 2), (2, 3, 4)])
def test_only_vectors_and_matrices_are_output_weights(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"output weights \[m\] or \[outputs, m\], but this is \["):
        FloorAndRatio().at(torch.ones(shape))
    with pytest.raises(InputError, match=r"but head\.weight is \["):
        FloorAndRatio().at({"head.weight": torch.ones(shape)})


def test_centers_and_points_that_do_not_fit_are_refused() -> None:
    constraint = FloorAndRatio()
    with pytest.raises(InputError, match=r"FloorAndRatio has no center yet"):
        constraint.project(torch.ones(3))
    with pytest.raises(InputError, match=r"the center of v is torch\.int64, but weights are of floating"):
        constraint.at({"v": torch.ones(3, dtype=torch.int64)})
    with pytest.raises(InputError, match=r"the center has entries that are not finite"):
        constraint.at(torch.tensor([1.0, math.nan]))
    placed = constraint.at({"v": torch.ones(1, 3)})
    for other in (
        {"v": torch.ones(3)},
        {"v": torch.ones(1, 3).double()},
        {"w": torch.ones(1, 3)},
        torch.ones(1, 3),
    ):
        for ask in (placed.project, placed.distance, lambda x: placed.normal(x, x)):
            with pytest.raises(InputError, match=r"^the point .* center .*\.$"):
                ask(other)


# torch.compile


@pytest.mark.parametrize("ratio", [3.0, math.inf])
def test_compiled_projections_are_the_same(ratio: float) -> None:
    random = torch.Generator().manual_seed(1)
    center = {
        "one": torch.randn(70, generator=random),
        "several": torch.randn(3, 6, generator=random).bfloat16(),
    }
    far = {name: 10 * torch.randn(c.shape, generator=random).to(c.dtype) for name, c in center.items()}
    zero = {name: torch.zeros_like(c) for name, c in center.items()}
    constraint = FloorAndRatio(0.25, ratio).at(center)
    torch.compiler.reset()
    project = compiled(constraint)
    for point in (far, constraint.project(far), zero):
        found, eager = project(point), constraint.project(point)
        assert all(same_bits(found[name], eager[name]) for name in point)


def test_sets_with_other_numbers_compile_too() -> None:
    point = {"v": torch.tensor([[0.1, 5.0, 7.0]], dtype=torch.float64)}
    torch.compiler.reset()
    for floor, ratio in [(0.2, 3.0), (0.3, 2.0), (0.4, 1.0), (0.4, math.inf), (0.5, math.inf)]:
        constraint = FloorAndRatio(floor, ratio).at(point)
        assert same_bits(compiled(constraint)(point)["v"], constraint.project(point)["v"])


def test_a_compiled_product_of_floors_and_ratios() -> None:
    point = {"a": torch.tensor([0.1, 5.0, -7.0]), "b": torch.tensor([0.1, 5.0, 7.0])}
    constraint = Product({"a": FloorAndRatio(1.0, 2.0), "b": FloorAndRatio(0.5, 20.0)}).at(point)
    torch.compiler.reset()
    found, eager = compiled(constraint)(point), constraint.project(point)
    assert all(same_bits(found[name], eager[name]) for name in point)
    assert found["a"].abs().min() >= 1.0
    assert found["b"].abs().min() < 1.0
