"""Data frames of pandas and polars, told by what they can do: neither library is imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from isthmus._types import Task
from isthmus.data import coerce
from isthmus.data.columns import Target, target_columns
from isthmus.data.dataset import Dataset, from_arrays
from isthmus.errors import DataError


@runtime_checkable
class Frame(Protocol):
    """What data frames have in common: named columns, each of which becomes an array."""

    @property
    def columns(self) -> Any:
        """The columns' names."""

    def to_numpy(self) -> Any:
        """All cells as a matrix."""

    def __getitem__(self, name: Any, /) -> Any: ...


def from_frame(
    frame: Frame,
    target: Target = None,
    task: Task | Literal["auto"] = "auto",
    source: str = "frame",
) -> Dataset:
    """Read a data frame of pandas or polars.

    Args:
        frame: the columns; their row index, if there is one, is no input.
        target: see `isthmus.data.columns.target_columns`; the other columns are the inputs.
        task: see `isthmus.data.from_arrays`.
        source: where it comes from; opens every message.

    Raises:
        DataError: a column that is not numbers (names row and column), a missing value, no such target.
    """
    keys = list(frame.columns)
    repeated = [key for key, count in Counter(keys).items() if count > 1]
    if repeated:
        raise DataError(
            f"{source}: {len(repeated)} column name(s) occur twice, first {repeated[0]!r}; rename one."
        )
    names = [str(key) for key in keys]
    chosen = target_columns(target, len(names), names, source) if names else []
    kept = [position for position in range(len(names)) if position not in chosen]
    if not kept:
        raise DataError(f"{source}: {len(names)} column(s), none of them an input.")
    x = _matrix({names[position]: frame[keys[position]] for position in kept}, source)
    if len(chosen) > 1:
        y = _matrix({names[position]: frame[keys[position]] for position in chosen}, source)
    else:
        y = frame[keys[chosen[0]]].to_numpy()
    return from_arrays(x, y, task=task, columns=[names[position] for position in kept], source=source)


def frame_inputs(frame: Frame, columns: Sequence[str], size: int, source: str) -> np.ndarray:
    """The inputs alone of a data frame, which need not hold targets [N, d].

    Args:
        frame: the columns.
        columns: the inputs' names, or none for the first ``size`` columns, of as many or one more.
        size: how many inputs there are, d.
        source: where it comes from; opens every message.

    Raises:
        DataError: an input is missing or no number.
    """
    keys = {str(key): key for key in frame.columns}
    if not columns and len(keys) not in {size, size + 1}:
        raise DataError(f"{source}: {len(keys)} columns, but the model takes {size} inputs.")
    chosen = columns or list(keys)[:size]
    missing = [name for name in chosen if name not in keys]
    if missing:
        raise DataError(f"{source}: there is no column {missing[0]!r}, which the model takes.")
    return _matrix({name: frame[keys[name]] for name in chosen}, source)


def _matrix(columns: dict[str, Any], source: str) -> np.ndarray:
    arrays = {name: _numbers(column, name, source) for name, column in columns.items()}
    if np.result_type(*arrays.values()).kind == "f":
        for name, array in arrays.items():
            if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
                coerce.require_exact(array, name, 0, source)
    return np.column_stack(list(arrays.values()))


def _numbers(column: Any, name: str, source: str) -> np.ndarray:
    array = np.asarray(column.to_numpy())
    if array.ndim != 1 or array.dtype.kind not in coerce.NUMBERS_OR_NAMES:
        raise DataError(f"{source}: column {name!r} holds {column.dtype}, not numbers; remove or encode it.")
    if array.dtype.kind in "biuf":
        return array
    for row, cell in enumerate(array.tolist(), start=1):
        try:
            float(cell)
        except (TypeError, ValueError, OverflowError):
            raise DataError(
                f"{source}: row {row}, column {name!r} is {cell!r}, not a number; fill in or remove the row, "
                f"or encode the column."
            ) from None
    return array.astype(np.float64)
