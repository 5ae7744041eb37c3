"""The cases of a patch: what the model makes of them, and which rows must be left as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from isthmus._types import Conflicts
from isthmus.certificate import TOLERANCE
from isthmus.data.coerce import labels
from isthmus.data.dataset import Dataset, as_dataset, from_arrays
from isthmus.errors import DataError, InputError
from isthmus.graph import dtype_of
from isthmus.memorize.held import rows_as_held
from isthmus.nets.onnx_model import OnnxModel
from isthmus.patch.attach import Opened
from isthmus.patch.running import outputs

FEW = 7  # rows at a time, to see how a model's outputs vary with the batch
VARIATION = 4.0  # times that, a value may miss its target
ROUNDINGS = 64  # in the dtype of the model, by which its own outputs may vary from batch to batch


@dataclass(frozen=True)
class Cases:
    """Distinct cases as the model sees them.

    Attributes:
        data: the rows, with classes numbered as the model's outputs are.
        number: the first row of every case in the data as given, from 1 [P].
        given: how many rows were given.
        before: the model's outputs [P, K].
        right: whether they are right already [P].
        tolerance: largest error of a value that counts as right; None for classes.
    """

    data: Dataset
    number: Tensor
    given: int
    before: Tensor
    right: Tensor
    tolerance: float | None

    @property
    def wrong(self) -> Tensor:
        """The cases to repair, by index."""
        return torch.nonzero(~self.right).squeeze(1)


def read_cases(model: Opened, data: Any, tolerance: float | None, conflicts: Conflicts) -> Cases:
    """Run the model on every case.

    Args:
        model: in evaluation mode.
        data: a Dataset or a pair (x, y).
        tolerance: largest error of a regression, in units of the target; 1e-8 of the range of the targets by
            default, or what rounding in the model's dtype comes to.
        conflicts: what to do about equal cases with different targets, see `Dataset.resolve`.

    Raises:
        DataError: cases that contradict one another, or a class that the model does not have.
        InputError: the model does not take these inputs, or its outputs do not fit the targets.
        PrecisionError: cases with different targets that become equal in the model's dtype.
    """
    dtype = dtype_of(model.module)
    given = model.taken(_dataset(data, "cases"))
    data = given.resolve(conflicts)
    number = torch.arange(1, given.rows + 1)
    if data.rows < given.rows:
        number = number[torch.isin(number, given.conflicts() + 1, invert=True)]
    if isinstance(model.module, OnnxModel):
        model.module.settle(data.x.to(dtype))
    data = named(data, outputs(model.module, data.x[:1].to(dtype)).shape[1], model.names)
    held = rows_as_held(data, dtype)
    held = replace(held, x=held.x.to(dtype))
    number = number[replace(data, x=data.x.to(dtype)).first_rows]
    before = outputs(model.module, held.x)
    strange = torch.nonzero(~torch.isfinite(before).all(1)).squeeze(1)
    if len(strange):
        raise InputError(
            f"the model's outputs for case {int(number[strange[0]])} are not finite numbers, and nothing "
            "added to them would be; leave it out."
        )
    if data.task == "classification" and tolerance is not None:
        raise InputError("a tolerance is for regression; a class is right or wrong.")
    if tolerance is not None and not 0 <= tolerance < torch.inf:
        raise InputError(f"a tolerance of {tolerance} says nothing; choose a finite one, 0 or more.")
    if data.task == "regression" and tolerance is None:
        rounding = ROUNDINGS * torch.finfo(before.dtype).eps * float(data.y.abs().max())
        noise = VARIATION * float((before - outputs(model.module, held.x, FEW)).abs().max())
        tolerance = max(TOLERANCE * data.target_range(), rounding, noise)
    right = is_right(before, held, tolerance) & labeled_right(model.module, held)
    return Cases(held, number, given.rows, before, right, tolerance)


def labeled_right(model: nn.Module, data: Dataset) -> Tensor:
    """Whether a graph that gives labels itself gives every row its own [N]; true of all other models."""
    found = model.named(data.x) if isinstance(model, OnnxModel) else None
    if found is None or not data.classes:
        return torch.ones(data.rows, dtype=torch.bool)
    wanted = [data.classes[label] for label in data.y.tolist()]
    return torch.tensor([one == other for one, other in zip(found, wanted, strict=True)])


def _dataset(data: Any, source: str) -> Dataset:
    """A Dataset itself, or a pair as one; whole numbers are classes there, however many there are."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        return as_dataset(data)
    y = labels(data[1], source)
    whole = y.ndim == 1 and y.dtype.kind in "iu"
    return from_arrays(*data, task="classification" if whole else "auto", source=source)


def named(data: Dataset, size: int, classes: Sequence[str | int]) -> Dataset:
    """The rows with their classes numbered as a model's outputs, or with as many targets.

    Args:
        data: rows.
        size: K, how many outputs the model has.
        classes: their names; empty if they are the integers from 0.

    Raises:
        DataError: a class that the model does not have, or another number of targets.
    """
    if size == 1 and data.task == "classification":
        raise DataError(
            f"{data.source}: {len(data.classes)} class(es), but the model has one output, so none is "
            "largest; give values as targets instead (task='regression')."
        )
    if data.task == "regression":
        if data.y.shape[1] != size:
            raise DataError(f"{data.source}: {data.y.shape[1]} targets, but the model has {size} outputs.")
        return data
    strange = [name for name in data.classes if str(name) not in set(map(str, classes or range(size)))]
    if strange and not classes:
        raise DataError(
            f"{data.source}: class {strange[0]!r} is not the number of an output, 0 to {size - 1}; name the "
            "outputs with classes=."
        )
    return data.with_classes(classes or tuple(range(size)))


def is_right(output: Tensor, data: Dataset, tolerance: float | None) -> Tensor:
    """Whether outputs [N, K] lead at their class strictly, or are within the tolerance [N]."""
    if tolerance is not None:
        return (output.double() - data.y).abs().amax(1) <= tolerance
    return leads(output, data.y) > 0


def leads(output: Tensor, label: Tensor) -> Tensor:
    """By how much the output of a class [N] is larger than every other [N]; not a number counts as -inf."""
    own = output.double().gather(1, label[:, None]).squeeze(1)
    others = output.double().scatter(1, label[:, None], -torch.inf).amax(1)
    return (own - others).nan_to_num(nan=-torch.inf, posinf=torch.inf)


@dataclass(frozen=True)
class Others:
    """Rows beside the cases.

    Attributes:
        x: inputs in the model's dtype [N, *shape].
        y: class indices [N] or values [N, K]; None if they are not known.
        same: how many rows were left out, because they equal a case.
    """

    x: Tensor
    y: Tensor | None
    same: int

    def take(self, index: Tensor) -> Others:
        """The rows at an index."""
        return replace(self, x=self.x[index], y=None if self.y is None else self.y[index])


def read_others(cases: Cases, model: Opened, rows: Any, name: str, conflicts: Conflicts) -> Others:
    """Rows that the patch should leave alone, without those that are cases.

    Args:
        cases: what is repaired.
        model: what is to be repaired.
        rows: inputs [N, *shape], a Dataset, or a pair (x, y).
        name: of the rows, for messages.
        conflicts: what to do about rows that equal a case but have another target: ``"error"`` refuses, all
            else leaves the row out.

    Raises:
        DataError: rows that contradict a case, inputs of another shape, or rows that hold other targets.
    """
    known = isinstance(rows, Dataset) or (isinstance(rows, tuple | list) and len(rows) == 2)
    if not known:
        data = from_arrays(rows, torch.zeros(len(rows)), source=name)
    elif isinstance(rows, Dataset):
        data = rows
    else:
        data = from_arrays(*rows, task=cases.data.task, source=name)
    data = model.taken(data)
    own = cases.data
    if data.x.shape[1:] != own.x.shape[1:]:
        raise DataError(
            f"{data.source}: rows of shape {tuple(data.x.shape[1:])}, but the cases have "
            f"{tuple(own.x.shape[1:])}."
        )
    if known and data.task != own.task:
        raise DataError(
            f"{data.source} was read as {data.task}, but the cases as {own.task}; choose the task."
        )
    if known:
        data = named(data, own.outputs, model.names)
    x = data.x.to(own.x.dtype)
    together = Dataset(torch.cat([own.x, x]), torch.zeros(own.rows + len(x)), own.task)
    twin = together.groups[own.rows :]
    same = twin < own.rows  # cases are distinct, so their groups are their numbers
    differs = torch.zeros_like(same)
    if known:
        wanted = own.y[twin.clamp_max(own.rows - 1)]
        differs = same & (wanted != data.y).view(len(x), -1).any(1)
    if differs.any() and conflicts == "error":
        row = int(torch.nonzero(differs)[0])
        case = int(twin[row])
        raise DataError(
            f"{data.source}: {int(differs.sum())} row(s) equal a case that wants another target, first row "
            f"{row + 1} ({data.target_name(row)}) and case {int(cases.number[case])} "
            f"({own.target_name(case)}); correct them, or choose conflicts='drop' to leave out the rows."
        )
    kept = torch.nonzero(~same).squeeze(1)
    return Others(x[kept], data.y[kept] if known else None, int(same.sum()))
