"""What people pass as inputs and targets, checked and made into tensors of finite numbers and of classes."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isthmus._types import Inputs, Labels, Task, Values
from isthmus.errors import DataError

MOST_CLASSES = 100  # a numeric target with more distinct values than this is read as regression
LARGEST_INTEGER = 2**53  # beyond it float64, in which everything is computed, skips integers
TOO_LARGE = "beyond 2^53, where float64 skips integers; use smaller numbers"

CHUNK_VALUES = 1 << 24  # numbers converted to float64 at a time: 128 MiB

NUMBERS_OR_NAMES = "biufOSU"  # NumPy's kinds; the others are dates, complex numbers and records


def inputs(x: Any, source: str, columns: tuple[str, ...]) -> Inputs:
    """Inputs as a tensor [N, *shape] of the dtype they came in, or the nearest that torch computes with.

    Args:
        x: a tensor, an array or nested lists; a vector is read as one column.
        source: where they come from; opens every message.
        columns: names of the columns of a matrix, or none.

    Raises:
        DataError: no rows, no columns, or a value that is not a finite number.
    """
    array = _numpy(x, source)
    if array.ndim == 0:
        raise DataError(f"{source}: inputs of shape (); give one row per example.")
    if len(array) == 0:
        raise DataError(f"{source}: there are no rows.")
    if array.size == 0:
        raise DataError(f"{source}: the rows have no inputs.")
    if array.dtype.kind not in NUMBERS_OR_NAMES:
        raise DataError(f"{source}: the inputs are {array.dtype}, not numbers.")
    array = array.reshape(-1, 1) if array.ndim == 1 else array
    if columns and len(columns) != array[0].size:
        raise DataError(f"{source}: {len(columns)} column names for {array[0].size} columns; give one each.")
    array = _numeric(array, source)
    _require_finite(array.reshape(len(array), -1), source, "input", columns)
    if array.dtype in {np.dtype(np.uint16), np.dtype(np.uint32), np.dtype(np.uint64)}:
        array = array.astype(np.int64)  # torch computes little with these
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))  # torch warns of read-only memory


def labels(y: Any, source: str) -> np.ndarray:
    """Targets as an array of numbers or names, none of them missing.

    Args:
        y: a tensor, an array or a list.
        source: where they come from; opens every message.

    Raises:
        DataError: neither numbers nor names, or one is missing (names the row).
    """
    array = _numpy(y, source)
    if array.dtype.kind not in NUMBERS_OR_NAMES:
        raise DataError(f"{source}: the targets are {array.dtype}, neither numbers nor names.")
    if array.dtype.kind != "O" or array.size == 0 or array.ndim == 0:
        return array
    cells = array.reshape(-1).tolist()
    missing = next((index for index, cell in enumerate(cells) if _is_missing(cell)), None)
    if missing is not None:
        row = missing // (array.size // len(array)) + 1
        raise DataError(f"{source}: row {row} has no target ({cells[missing]}); remove or fill in the row.")
    if all(isinstance(cell, Real) for cell in cells):
        return np.asarray(cells).reshape(array.shape)
    return array


def guess_task(y: np.ndarray) -> Task:
    """The task that targets [N] or [N, K] suggest; the rule is stated at `isthmus.data.from_arrays`."""
    if y.ndim == 2:
        return "regression"
    if y.dtype.kind == "f" and not _whole(y):
        return "regression"
    if y.dtype.kind in "iuf" and len(np.unique(y)) > MOST_CLASSES:
        return "regression"
    return "classification"


def classes(y: np.ndarray, source: str) -> tuple[tuple[str | int, ...], Labels]:
    """The sorted names of the classes in ``y`` [N], and for every row the index of its own [N]."""
    if y.dtype.kind == "f":
        _require_finite(y[:, None], source, "target")
        y = y.astype(np.int64) if _whole(y) else y
    if y.dtype.kind in "iu":
        numbers, index = np.unique(y, return_inverse=True)
        return tuple(numbers.tolist()), torch.from_numpy(index.reshape(-1).astype(np.int64))
    # Not through an array of strings, where one long name would make every row as long.
    cells = [_name(cell, source) for cell in y.tolist()]
    names = sorted(set(cells))
    index_of = {name: index for index, name in enumerate(names)}
    return tuple(names), torch.tensor([index_of[cell] for cell in cells])


def values(y: np.ndarray, source: str) -> Values:
    """Regression targets [N] or [N, K] as a matrix of finite numbers in float64."""
    array = y.reshape(len(y), -1)
    if array.dtype.kind not in "iuf":
        array = _numeric(array, source)
    with np.errstate(all="ignore"):
        array = array.astype(np.float64)
    _require_finite(array, source, "target")
    return torch.from_numpy(np.ascontiguousarray(array))


def require_choice(value: object, choices: Sequence[str], option: str) -> None:
    """Refuse a value that an option does not have.

    Args:
        value: what was given.
        choices: what may be given.
        option: name of the option, for the message.

    Raises:
        DataError: ``value`` is not among ``choices``.
    """
    if value not in choices:
        raise DataError(f"{option}={value!r} is unknown; choose {', '.join(map(repr, choices))}.")


def require_exact(column: np.ndarray, name: str, first: int, source: str) -> None:
    """Refuse integers that are about to be rounded, because a column beside theirs is of floats.

    Args:
        column: integers, perhaps already in float64.
        name: of the column.
        first: number of its first row, from 0.
        source: where it comes from; opens the message.

    Raises:
        DataError: one of them is beyond 2^53.
    """
    most = LARGEST_INTEGER - (column.dtype.kind == "f")  # the integer after it may have been rounded to it
    bad = (column > most) | (column < -most)
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"{source}: row {first + row + 1}, column {name!r} is {column[row]}: {TOO_LARGE}.")


def _numpy(values: Any, source: str) -> np.ndarray:
    try:
        if isinstance(values, Tensor):
            values = values.detach().cpu()
            return (values.double() if values.dtype == torch.bfloat16 else values).numpy()
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{source}: not an array of rows of equal length ({error}).") from None


def _numeric(array: np.ndarray, source: str) -> np.ndarray:
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind in "iu":
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.itemsize in {4, 8} and array.dtype.kind == "f":
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    try:
        with np.errstate(all="ignore"):  # what float64 cannot hold becomes inf, and is refused as such
            return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{source}: the values are {array.dtype}, not numbers ({error}).") from None


def _require_finite(array: np.ndarray, source: str, what: str, names: tuple[str, ...] = ()) -> None:
    step = max(1, CHUNK_VALUES // array.shape[1])
    for start in range(0, len(array), step):
        part = array[start : start + step]
        if array.dtype.kind == "f":
            bad = ~np.isfinite(part)
            problem = "not a finite number; remove or fill in the row"
        elif array.dtype.itemsize == 8:
            bad = (part > LARGEST_INTEGER) | (part < -LARGEST_INTEGER)
            problem = TOO_LARGE
        else:
            return
        if bad.any():
            row, column = np.argwhere(bad)[0]
            name = f" ({names[column]!r})" if names else ""
            raise DataError(
                f"{source}: row {start + row + 1}, {what} column {column + 1}{name} is {part[row, column]}: "
                f"{problem}."
            )


def _is_missing(cell: Any) -> bool:
    try:
        return cell is None or bool(cell != cell)  # NaN and NaT
    except (TypeError, ValueError):  # pandas' NA has no truth value
        return True


def _whole(y: np.ndarray) -> bool:
    return bool(np.all((y == np.floor(y)) & (np.abs(y) <= float(LARGEST_INTEGER))))


def _name(cell: Any, source: str) -> str:
    try:
        return cell.decode() if isinstance(cell, bytes) else str(cell)
    except UnicodeDecodeError:
        raise DataError(f"{source}: the class name {cell!r} is not UTF-8; encode it anew.") from None
