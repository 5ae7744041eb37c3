"""A finite data set: the only form in which the rest of isthmus sees rows and targets.

Values are kept as they were stored (pixels stay 0..255): scaling is part of a network, never of the data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from isthmus._types import Conflicts, Task
from isthmus.data import coerce
from isthmus.errors import DataError

HASHED_VALUES = 1 << 20  # numbers hashed at a time: the copies that this takes stay small beside the data


@dataclass(frozen=True)
class Shape:
    """The size of a data set without its rows, for bounds that need no more: N rows, d inputs, K outputs."""

    rows: int
    inputs: int
    outputs: int
    task: Task


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """N rows with their targets.

    Attributes:
        x: inputs ``[N, *shape]`` in the dtype they were stored in; every value is finite.
        y: class indices [N] (int64) for classification, values [N, K] (float64) for regression.
        task: ``"classification"`` or ``"regression"``.
        classes: the name of every class index, sorted; empty for regression.
        columns: the name of every input column, if the source named them.
        source: where the rows came from, for messages.
    """

    x: Tensor
    y: Tensor
    task: Task
    classes: tuple[str | int, ...] = ()
    columns: tuple[str, ...] = ()
    source: str = "data"

    @property
    def rows(self) -> int:
        """Number of rows, N."""
        return self.x.shape[0]

    @property
    def inputs(self) -> int:
        """Number of input values in a row, d."""
        return self.x[0].numel()

    @property
    def outputs(self) -> int:
        """Number of network outputs, K: the classes, or the columns of the target."""
        return len(self.classes) if self.task == "classification" else self.y.shape[1]

    @property
    def shape(self) -> Shape:
        """The size of this data set."""
        return Shape(self.rows, self.inputs, self.outputs, self.task)

    @property
    def flat(self) -> Tensor:
        """The inputs as a matrix [N, d], in their stored dtype."""
        return self.x.reshape(self.rows, -1)

    def targets(self, rows: slice = slice(None)) -> Tensor:
        """What a network's outputs should equal on these rows [n, K] (float64): one-hot, or the values."""
        y = self.y[rows]
        return y if self.task == "regression" else torch.nn.functional.one_hot(y, self.outputs).double()

    def target_range(self) -> float:
        """The largest minus the smallest target, to which tolerances are relative; 1 if all are equal."""
        if self.task == "classification":
            return 1.0
        spread = float(self.y.max() - self.y.min())
        return spread if spread > 0 else 1.0

    def chunks(self, size: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Walk over the flat inputs in float64.

        Args:
            size: rows at a time; by default as many as keep a chunk near 128 MiB.

        Yields:
            The slice of rows and their inputs [size, d].
        """
        step = size or max(1, coerce.CHUNK_VALUES // max(1, self.inputs))
        flat = self.flat
        for start in range(0, self.rows, step):
            rows = slice(start, min(start + step, self.rows))
            yield rows, flat[rows].double()

    def _hashed_chunks(self) -> Iterator[tuple[slice, Tensor]]:
        return self.chunks(max(1, HASHED_VALUES // self.inputs))

    def take(self, index: Tensor) -> Dataset:
        """The rows at ``index`` [n], in that order, with the same classes."""
        if index.dtype == torch.int64 and torch.equal(index, torch.arange(self.rows)):
            return self  # merging repeated rows, where there are none, costs no copy
        return replace(self, x=self.x[index], y=self.y[index])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of inputs and targets in row order, as little-endian float64 and int64 (or float64)."""
        sha = hashlib.sha256()
        for _, x in self._hashed_chunks():
            sha.update((x + 0.0).numpy().astype("<f8", copy=False).tobytes())  # + 0.0: -0 counts as 0
        y = self.y if self.task == "classification" else self.y + 0.0
        sha.update(y.numpy().astype("<i8" if self.task == "classification" else "<f8", copy=False).tobytes())
        return sha.hexdigest()

    @cached_property
    def groups(self) -> Tensor:
        """For every row the number of its distinct input [N]; inputs are numbered by their first row."""
        keys = np.empty(self.rows, dtype=np.uint64)
        # An odd random multiplier per column: equal rows get equal keys, others all but never do.
        multipliers = np.random.default_rng(0).integers(1, 2**63, self.inputs, dtype=np.uint64) * 2 + 1
        for rows, x in self._hashed_chunks():
            words = (x + 0.0).numpy().view(np.uint64)
            keys[rows] = ((words ^ (words >> np.uint64(29))) * multipliers).sum(axis=1, dtype=np.uint64)
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        flat = self.flat
        representative = torch.from_numpy(first[inverse])
        repeated = torch.nonzero(representative != torch.arange(self.rows)).squeeze(1)
        if not torch.equal(flat[repeated], flat[representative[repeated]]):  # two inputs met in one key
            _, inverse = np.unique((flat.double() + 0.0).numpy(), axis=0, return_inverse=True)
        return _numbered_by_first_row(torch.from_numpy(inverse.reshape(-1)))

    @cached_property
    def first_rows(self) -> Tensor:
        """The first row of every distinct input, ascending [n]."""
        return _first_occurrences(self.groups)

    def conflicts(self) -> Tensor:
        """The rows whose input also occurs with another target, ascending [m]."""
        targets = self.y if self.task == "regression" else self.y[:, None]
        differs = (targets != targets[self.first_rows[self.groups]]).any(dim=1)
        groups = torch.unique(self.groups[differs])
        return torch.nonzero(torch.isin(self.groups, groups)).squeeze(1)

    def resolve(self, conflicts: Conflicts = "error") -> Dataset:
        """The same rows as a function: no input with two targets.

        Args:
            conflicts: ``"error"`` refuses, ``"drop"`` leaves out every row of a conflicting input,
                ``"majority"`` gives all of them their most frequent target (the smallest among equals).

        Raises:
            DataError: there are conflicts and ``conflicts`` is ``"error"``, or nothing is left.
        """
        coerce.require_choice(conflicts, get_args(Conflicts), "conflicts")
        rows = self.conflicts()
        if len(rows) == 0:
            return self
        if conflicts == "error":
            first = int(rows[0])
            twin = rows[(self.groups[rows] == self.groups[first]) & (rows != first)]
            other = next(int(r) for r in twin if not torch.equal(self.y[r], self.y[first]))
            raise DataError(
                f"{self.source}: {len(torch.unique(self.groups[rows]))} input(s), in {len(rows)} rows, occur "
                f"with different targets, first in rows {first + 1} and {other + 1} "
                f"({self.target_name(first)} and {self.target_name(other)}): no function fits both. "
                f"Correct them, or choose conflicts='drop' or 'majority'."
            )
        if conflicts == "drop":
            keep = torch.ones(self.rows, dtype=torch.bool)
            keep[rows] = False
            if not keep.any():
                raise DataError(f"{self.source}: every row conflicts with another, so none is left to fit.")
            return self.take(torch.nonzero(keep).squeeze(1))
        y = self.y.clone()
        y[rows] = _majority(y[rows], self.groups[rows])
        return replace(self, y=y)

    def with_classes(self, classes: Sequence[str | int]) -> Dataset:
        """The same rows with their classes numbered as in ``classes``, matched by name.

        Raises:
            DataError: a class that is not among them.
        """
        place = {str(name): index for index, name in enumerate(classes)}
        strange = [name for name in self.classes if str(name) not in place]
        if strange:
            raise DataError(f"{self.source}: the model knows no class {strange[0]!r}; leave out its rows.")
        index = torch.tensor([place[str(name)] for name in self.classes])
        return replace(self, y=index[self.y], classes=tuple(classes))

    def target_name(self, row: int) -> str:
        """The target of a row as a person would write it."""
        if self.task == "classification":
            return str(self.classes[int(self.y[row])])
        return ", ".join(f"{value:g}" for value in self.y[row].tolist())

    def __repr__(self) -> str:
        kind = f"{self.outputs} classes" if self.task == "classification" else f"{self.outputs} target(s)"
        return f"Dataset({self.source}: {self.rows} rows, {self.inputs} inputs, {kind})"


def _first_occurrences(groups: Tensor) -> Tensor:
    first = torch.full((int(groups.max()) + 1,), len(groups), dtype=torch.int64)
    return first.scatter_reduce_(0, groups, torch.arange(len(groups)), "amin")


def _numbered_by_first_row(groups: Tensor) -> Tensor:
    order = torch.argsort(_first_occurrences(groups))
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    return rank[groups]


def _majority(y: Tensor, groups: Tensor) -> Tensor:
    values, value = torch.unique(y, dim=0, return_inverse=True)
    pairs, counts = torch.unique(groups * len(values) + value, return_counts=True)
    # Pairs ascend, so a stable sort leaves the smallest target first among those equally frequent.
    ranked = pairs[torch.argsort(counts, descending=True, stable=True)].numpy()
    voters, best = np.unique(ranked // len(values), return_index=True)
    winners = ranked[best] % len(values)
    return values[torch.from_numpy(winners[np.searchsorted(voters, groups.numpy())])]


def from_arrays(
    x: Any,
    y: Any,
    *,
    task: Task | Literal["auto"] = "auto",
    columns: Sequence[str] = (),
    source: str = "data",
) -> Dataset:
    """A data set from tensors, arrays or nested lists.

    Args:
        x: numbers ``[N, *shape]``; a vector [N] is read as one column.
        y: labels of any kind [N], or numbers [N] or [N, K].
        task: ``"auto"`` reads numbers that are not all integers, or of which there are more than 100
            distinct ones, or that have several columns, as regression; everything else as classification.
        columns: names of the input columns.
        source: where they come from; opens every message.

    Raises:
        DataError: no rows, different lengths, a value that is not a finite number (names row and column).
    """
    coerce.require_choice(task, ("auto", *get_args(Task)), "task")
    columns = tuple(columns)
    inputs = coerce.inputs(x, source, columns)
    labels = coerce.labels(y, source)
    if labels.ndim == 0 or len(labels) != len(inputs):
        raise DataError(
            f"{source}: {len(inputs)} rows of inputs but targets of shape {labels.shape}; give one each."
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim > 2 or labels.size == 0:
        raise DataError(
            f"{source}: targets of shape {labels.shape}; give a vector, or a matrix of one row each."
        )
    if task == "auto":
        task = coerce.guess_task(labels)
    if task == "classification":
        if labels.ndim == 2:
            raise DataError(f"{source}: {labels.shape[1]} target columns, but a class is one column.")
        classes, index = coerce.classes(labels, source)
        return Dataset(inputs, index, "classification", classes, columns, source)
    return Dataset(inputs, coerce.values(labels, source), "regression", (), columns, source)


def as_dataset(data: Any) -> Dataset:
    """A data set itself, or a pair ``(x, y)`` of tensors or arrays made into one.

    Raises:
        DataError: neither of the two, or a pair that does not hold a data set.
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, tuple | list) and len(data) == 2:
        return from_arrays(*data)
    raise DataError(f"expected a Dataset or a pair (x, y), found {type(data).__name__}; see isthmus.load.")
