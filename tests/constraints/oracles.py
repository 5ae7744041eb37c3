"""Nearest points by other ways than the library's: every split in rational arithmetic, and NNLS."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from isthmus.constraints import Constraint

EDGES = (
    1.0,
    2.0,
    3.0,
    5.0,
    16.0,
    25.0,
    30.0,
    math.inf,
)  # ratios that lose no bit of k/8, k <= 7, in bfloat16


@dataclass(frozen=True)
class Case:
    """A point to be projected onto {v : v_j >= floor and v_j <= ratio v_k}."""

    point: np.ndarray
    floor: float
    ratio: float

    @property
    def scale(self) -> float:
        return max(np.abs(self.point).max(), self.floor)


class Uncertified(Exception):
    """NNLS found no solution."""


def random_cases(seed: int, count: int, most: int = 8) -> Iterator[Case]:
    random = np.random.default_rng(seed)
    for _ in range(count):
        entries = random.integers(1, most + 1)
        floor = 10.0 ** random.uniform(-4, 1)
        ratio = (
            1.0,
            math.inf,
            float(random.integers(2, 101)),
            random.uniform(1, 100),
            1 + 10 ** random.uniform(-6, 0),
        )[random.integers(5)]
        at_limits = floor * random.choice([1.0, 1.0, random.uniform(1, 3)])
        factor = random.uniform(1, 5) if math.isinf(ratio) else ratio
        limits = np.array([at_limits, factor * at_limits, floor, factor * floor, 0.0])
        point = (
            random.normal(size=entries) * 10 ** random.uniform(-2, 2),
            random.normal(size=entries) * 10 ** random.uniform(-4, 3, entries),
            random.integers(-3, 7, entries) / 4,
            random.choice(limits, entries),
            random.choice(limits, entries) + random.normal(size=entries) * 10 ** random.uniform(-9, 0),
        )[random.integers(5)]
        yield Case(point, floor, ratio)


def nearest_of_all_splits(case: Case) -> list[Fraction]:
    """The nearest of all clip(v, s, ratio s) whose s is best for one way to split v into low, free and high.

    They are all of the set, and the projection is among them; nothing is rounded.
    """
    v, floor = [Fraction(value) for value in case.point.tolist()], Fraction(case.floor)
    if math.isinf(case.ratio):
        return [max(value, floor) for value in v]
    ratio, ordered, count = Fraction(case.ratio), sorted(v), len(v)
    levels = {floor, *ordered[:1]}
    for low in range(count + 1):
        for high in range(count - low + 1):
            if low + high:
                pull = sum(ordered[:low]) + ratio * sum(ordered[count - high :])
                levels.add(pull / (low + ratio**2 * high))
    allowed = [s for s in levels if s >= floor]
    # What is clearly farther in floating point need not be looked at in rational arithmetic.
    low = np.array([float(s) for s in allowed])[:, None]
    squares = np.square(np.clip(case.point, low, case.ratio * low) - case.point).sum(1)
    near = squares <= squares.min() * (1 + 1e-9) + (1e-9 * case.scale) ** 2
    candidates = (
        [min(max(x, s), ratio * s) for x in v] for s, is_near in zip(allowed, near, strict=True) if is_near
    )
    return min(candidates, key=lambda x: sum((a - b) ** 2 for a, b in zip(x, v, strict=True)))


def nearest_by_bisection(case: Case) -> list[float]:
    """As above for many entries: the kink at which the slope in s turns, in rational arithmetic."""
    v, floor, ratio = (
        [Fraction(value) for value in case.point.tolist()],
        *map(Fraction, (case.floor, case.ratio)),
    )

    def slope(s: Fraction) -> Fraction:
        return sum(s - x for x in v if x < s) - ratio * sum(x - ratio * s for x in v if x > ratio * s)

    level = floor
    if slope(floor) < 0:
        kinks = sorted({floor, *(k for x in v for k in (x, x / ratio) if k > floor)})
        left, right = 0, len(kinks)  # the slope is negative at left, and not at right, which may be infinite
        while right - left > 1:
            middle = (left + right) // 2
            left, right = (middle, right) if slope(kinks[middle]) < 0 else (left, middle)
        start = kinks[left]
        lows, highs = [x for x in v if x <= start], [x for x in v if x > ratio * start]
        level = (sum(lows) + ratio * sum(highs)) / (len(lows) + ratio**2 * len(highs))
    return [float(min(max(x, level), ratio * level)) for x in v]


def nearest_by_nnls(case: Case) -> np.ndarray:
    """Least-distance programming over v_j >= floor and v_j <= ratio v_k (Lawson & Hanson 1974, ch. 23)."""
    point, count = case.point / case.scale, len(case.point)
    rows, limits = [*np.eye(count)], [case.floor / case.scale] * count
    for j in range(count):
        for k in range(count):
            if j != k and math.isfinite(case.ratio):
                rows.append((case.ratio * np.eye(count)[k] - np.eye(count)[j]) / math.hypot(case.ratio, 1))
                limits.append(0.0)
    walls = np.array(rows)
    stacked = np.vstack([walls.T, np.array(limits) - walls @ point])
    target = np.eye(count + 1)[-1]
    residual = certified_nnls(stacked, target) - target
    return case.scale * (point - residual[:-1] / residual[-1])


def certified_nnls(columns: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The nearest sum of non-negative multiples of columns.

    Where columns are dependent, SciPy's NNLS may stop early; mostly it does not in another order.

    Raises:
        Uncertified: in none of 50 orders is the residual in the polar cone, and normal to the nearest point.
    """
    random = np.random.default_rng(0)
    slack = 1e-13 * np.linalg.norm(columns, axis=0) * np.linalg.norm(target)
    for _ in range(50):
        order = random.permutation(len(slack))
        multipliers = nnls(columns[:, order], target)[0]
        used = columns[:, order[multipliers > 0]]
        nearest = used @ np.linalg.lstsq(used, target, rcond=None)[0]
        residual = nearest - target
        of_the_cone = np.linalg.norm(nearest - columns[:, order] @ multipliers) <= 1e-9 * np.linalg.norm(
            target
        )
        normal = abs(residual @ nearest) <= 1e-13 * (target @ target)
        if of_the_cone and normal and (residual @ columns >= -slack).all():
            return nearest
    raise Uncertified


def outward_walls(point: np.ndarray, floor: float, ratio: float) -> np.ndarray:
    """The outward normals [n, m] of all that holds with equality at a point of the set."""
    unit, count = np.eye(len(point)), len(point)
    walls = [-unit[j] for j in range(count) if point[j] == floor]
    walls += [
        unit[j] - ratio * unit[k]
        for j in range(count)
        for k in range(count)
        if j != k and point[j] == ratio * point[k]
    ]
    return np.array(walls).reshape(-1, count)


def nearest_in_cone(generators: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """The nearest sum of non-negative multiples of the rows of a matrix."""
    if not len(generators):
        return np.zeros_like(direction)
    return certified_nnls((generators / np.linalg.norm(generators, axis=1, keepdims=True)).T, direction)


def point_on_edges(random: np.random.Generator, most: int = 8) -> Case:
    """A point of the set with entries at its limits, all of them exact in bfloat16 too."""
    entries, ratio = random.integers(1, most + 1), float(random.choice(EDGES))
    low = random.integers(1, 8) / 8
    high = low * (8.0 if math.isinf(ratio) else ratio)
    inside = torch.from_numpy(random.uniform(low, high, entries)).bfloat16().double().numpy()
    inside = inside.clip(low, high)
    point = np.where(random.random(entries) < 0.4, inside, random.choice([low, high], entries))
    return Case(point, low * random.choice([1.0, 0.5]), ratio)


def exact(tensor: Tensor) -> list[Fraction]:
    return [Fraction(value) for value in tensor.detach().double().flatten().tolist()]


def exact_square(point: Tensor, other: Tensor) -> Fraction:
    """The squared distance between two tensors as they are."""
    return sum(((a - b) ** 2 for a, b in zip(exact(point), exact(other), strict=True)), Fraction(0))


def same_bits(point: Tensor, other: Tensor) -> bool:
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[point.element_size()]
    return point.dtype == other.dtype and torch.equal(point.view(kind), other.view(kind))


def compiled(constraint: Constraint) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """`project`, but by a `project_` that is compiled to one graph."""
    project_ = torch.compile(constraint.project_, backend="eager", fullgraph=True)

    def project(point: dict[str, Tensor]) -> dict[str, Tensor]:
        moved = {name: tensor.clone() for name, tensor in point.items()}
        project_(moved)
        return moved

    return project
