"""Data sets made from a formula and a seed; the same options give the same bits on the same machine.

Every function refuses, as a `DataError`, numbers that are too small and sizes that no memory holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch

from isthmus._types import Inputs, Task
from isthmus.data.dataset import Dataset, Shape, from_arrays
from isthmus.data.opened import MOST_BYTES
from isthmus.errors import DataError

FRIEDMAN_INPUTS = 5  # as many enter the formula; the others are noise
MOST_CLASSES = 1 << 20  # each has a name


def generator(seed: int) -> np.random.Generator:
    """The stream of random numbers that a seed stands for.

    Args:
        seed: 0 or more.

    Raises:
        DataError: the seed is negative.
    """
    if seed < 0:
        raise DataError(f"seed={seed} is negative; a seed is 0 or more.")
    return np.random.default_rng(seed)


def sphere(*, n: int, d: int, k: int = 2, task: Task = "classification", seed: int = 0) -> Dataset:
    """Points uniform on the unit sphere with random targets.

    Args:
        n: rows.
        d: inputs.
        k: classes, if the task is classification.
        task: labels uniform over the classes, or values uniform in [-1, 1].
        seed: of points and targets.
    """
    _require_size("sphere", n, d)
    random = generator(seed)
    x = random.standard_normal((n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return _randomly_labeled(torch.from_numpy(x), k, task, random, "sphere")


def gaussian(*, n: int, d: int, k: int = 2, task: Task = "classification", seed: int = 0) -> Dataset:
    """Standard normal points with random targets.

    Args:
        n: rows.
        d: inputs.
        k: classes, if the task is classification.
        task: labels uniform over the classes, or values uniform in [-1, 1].
        seed: of points and targets.
    """
    _require_size("gaussian", n, d)
    random = generator(seed)
    x = torch.from_numpy(random.standard_normal((n, d)))
    return _randomly_labeled(x, k, task, random, "gaussian")


def friedman(*, n: int, d: int = 10, noise: float = 0.0, seed: int = 0) -> Dataset:
    """Friedman's first regression problem, 10 sin(π x₁x₂) + 20 (x₃ - ½)² + 10 x₄ + 5 x₅ on the unit cube.

    Args:
        n: rows.
        d: inputs, at least 5; those beyond the fifth do not enter the target.
        noise: standard deviation of what is added to the targets.
        seed: of points and noise.

    Raises:
        DataError: a number too small, or more values than are held in memory.
    """
    _require_size("friedman", n, d, fewest_inputs=FRIEDMAN_INPUTS)
    if noise < 0:
        raise DataError(f"friedman: noise={noise} is a standard deviation and cannot be negative.")
    random = generator(seed)
    x = random.random((n, d))
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    y += noise * random.standard_normal(n)
    return from_arrays(x, y, task="regression", source="friedman")


def zigzag(*, n: int, d: int = 1, task: Task = "regression") -> Dataset:
    """The data of Theorem 3.3 (Yun et al.), with N - 1 linear pieces: x_i = i u, y_i = (-1)^i, i = 1..n.

    Args:
        n: rows.
        d: inputs; u is the vector of ones.
        task: whether the targets are the values -1 and 1 or two classes of these names.
    """
    _require_size("zigzag", n, d)
    i = np.arange(1, n + 1)
    x = np.repeat(i[:, None].astype(np.float64), d, axis=1)
    return from_arrays(x, 1 - 2 * (i % 2), task=task, source="zigzag")


def shape(*, n: int, d: int, k: int = 0, dy: int = 0) -> Shape:
    """The size of a data set that does not exist, for bounds.

    Args:
        n: rows.
        d: inputs.
        k: classes, for classification.
        dy: target columns, for regression.

    Raises:
        DataError: a number too small, or not exactly one of ``k`` and ``dy``.
    """
    if n < 1 or d < 1 or k < 0 or dy < 0:
        raise DataError(f"shape: n={n}, d={d}, k={k}, dy={dy}; each is at least 1 where it is given.")
    if (k > 0) == (dy > 0):
        raise DataError(f"shape: k={k} and dy={dy}; give k for classification or dy for regression.")
    return Shape(n, d, k or dy, "classification" if k else "regression")


GENERATORS: Final[dict[str, Callable[..., Dataset]]] = {
    function.__name__: function for function in (sphere, gaussian, friedman, zigzag)
}


def _require_size(name: str, n: int, d: int, fewest_inputs: int = 1) -> None:
    if n < 1:
        raise DataError(f"{name}: n={n}, but there must be at least 1 row.")
    if d < fewest_inputs:
        raise DataError(f"{name}: d={d}, but there must be at least {fewest_inputs} input(s).")
    if 8 * n * d > MOST_BYTES:
        raise DataError(f"{name}: n={n} and d={d} need {8 * n * d} bytes; at most {MOST_BYTES} are made.")


def _randomly_labeled(x: Inputs, k: int, task: Task, random: np.random.Generator, name: str) -> Dataset:
    if task == "regression":
        return Dataset(x, torch.from_numpy(random.uniform(-1, 1, (len(x), 1))), "regression", source=name)
    if not 1 <= k <= MOST_CLASSES:
        raise DataError(f"{name}: k={k}, but there must be 1 to {MOST_CLASSES} classes.")
    # Not through from_arrays: a class that no row happened to draw is still one of the k.
    y = torch.from_numpy(random.integers(0, k, len(x)))
    return Dataset(x, y, "classification", tuple(range(k)), source=name)
