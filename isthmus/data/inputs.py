"""Inputs without targets, for a model to predict."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from isthmus.data import coerce
from isthmus.data.arrays import read_arrays
from isthmus.data.arrow import is_arrow, read_arrow_inputs
from isthmus.data.dataset import Dataset
from isthmus.data.frames import Frame, frame_inputs
from isthmus.data.idx import IDX_NAME, read_idx
from isthmus.data.load import load
from isthmus.data.tables import delimiter, read_inputs
from isthmus.errors import DataError


def load_inputs(source: Any, columns: Sequence[str], size: int) -> Tensor:
    """Load the inputs of any source that `load` understands; targets in it are passed over.

    Args:
        source: a path, a name, a frame, an array or tensor [N, *shape], a `Dataset`, or a pair ``(x, y)``.
        columns: the inputs' names, by which tables and frames are searched; may be empty.
        size: how many inputs a row has, d.

    Returns:
        The inputs [N, d].

    Raises:
        DataError: the source cannot be read, or has other inputs.
    """
    x = _load(source, columns, size)
    x = x.reshape(len(x), -1)
    if x.shape[1] != size:
        raise DataError(f"{_name(source)}: {x.shape[1]} inputs in a row, but the model takes {size}.")
    return x


def _load(source: Any, columns: Sequence[str], size: int) -> Tensor:
    if isinstance(source, Dataset):
        return _matched(source, columns)
    if isinstance(source, Frame):
        return coerce.inputs(frame_inputs(source, columns, size, "frame"), "frame", ())
    path = Path(os.fsdecode(source)) if isinstance(source, str | os.PathLike) else None
    if isinstance(source, tuple) and len(source) == 2:
        source = source[0]
    if path is None:
        return coerce.inputs(source, "inputs", ())
    if delimiter(path) is not None:
        return coerce.inputs(read_inputs(path, columns, size), str(path), ())
    if is_arrow(path):
        return coerce.inputs(read_arrow_inputs(path, columns, size), str(path), ())
    if path.suffix.lower() == ".npz":
        return coerce.inputs(read_arrays(path, "x")[0], str(path), ())
    if IDX_NAME.search(path.name) and path.is_file():
        return coerce.inputs(read_idx(path), str(path), ())
    return _matched(load(source), columns)


def _matched(data: Dataset, columns: Sequence[str]) -> Tensor:
    """The inputs of a data set, by name where both the data and the model have names.

    Raises:
        DataError: an input is missing.
    """
    if not columns or not data.columns or tuple(columns) == data.columns:
        return data.x
    missing = [name for name in columns if name not in data.columns]
    if missing:
        raise DataError(f"{data.source}: there is no column {missing[0]!r}, which the model takes.")
    return data.flat[:, [data.columns.index(name) for name in columns]]


def _name(source: Any) -> str:
    if isinstance(source, Dataset):
        return source.source
    return str(source) if isinstance(source, str | os.PathLike) else "inputs"
