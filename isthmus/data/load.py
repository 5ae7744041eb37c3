"""One door for data: a path, a name, arrays or a frame in, a `Dataset` out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from isthmus._types import Conflicts, Task
from isthmus.data import generators, options
from isthmus.data.arrays import read_npz
from isthmus.data.arrow import is_arrow, read_arrow
from isthmus.data.bundled import BUNDLED
from isthmus.data.cifar import (
    NAME_HUNDRED,
    NAME_TEN,
    is_pickled,
    read_cifar10,
    read_cifar10_file,
    read_cifar100,
    read_cifar100_file,
)
from isthmus.data.coerce import require_choice
from isthmus.data.columns import Target
from isthmus.data.dataset import Dataset, Shape, as_dataset, from_arrays
from isthmus.data.frames import Frame, from_frame
from isthmus.data.generators import GENERATORS
from isthmus.data.idx import IDX_NAME, read_idx_folder, read_idx_pair
from isthmus.data.image_folder import class_folders, read_image_folder
from isthmus.data.tables import delimiter, read_table
from isthmus.errors import DataError

LabelSource = Literal["true", "random"]

SHAPE = "shape"
FOLDERS = (
    "folders of MNIST's idx files (train-images-idx3-ubyte ...), of CIFAR's binary version (data_batch_1.bin "
    "..., or train.bin), and of images in one folder per class"
)
UNDERSTOOD = (
    f".csv, .tsv (both also .gz), .parquet, .feather, .arrow, .npz, MNIST's idx files (also .gz), CIFAR's "
    f".bin files, {FOLDERS}, or one of the names "
    f"{', '.join([*BUNDLED, *(f'{name}:n=...' for name in GENERATORS)])}"
)
REFUSED = {
    re.compile(r"\.(pkl|pickle|pt|pth|joblib)$|^(data|test)_batch(_\d)?$", re.IGNORECASE): (
        "is a pickled file, which could run code; load it where you trust it and store its arrays with "
        "numpy.savez(path, x=x, y=y)"
    ),
}


def load(
    source: Any,
    *,
    target: Target = None,
    task: Task | Literal["auto"] = "auto",
    rows: int | None = None,
    labels: LabelSource = "true",
    conflicts: Conflicts | None = None,
    seed: int = 0,
) -> Dataset:
    """Load a data set from wherever it is.

    Args:
        source: a path (CSV, TSV, Parquet, Feather, Arrow, NPZ, idx, CIFAR's binary files; a folder of idx
            files, of CIFAR, or of images in one folder per class) with options, if it has any, after a colon
            (``"cifar-100-binary:split=test,labels=coarse"``, ``"photos:size=32,channels=gray"``), a name
            (``"digits"``, ``"sphere:n=1000,d=100"``), a pair ``(x, y)``, a data frame, or a `Dataset`.
        target: the target column of a table or frame, by name or by position from 0 (negative: from the
            end), several with commas between them; by default the last.
        task: see `isthmus.data.from_arrays`.
        rows: keep the first so many rows.
        labels: ``"random"`` replaces class labels by uniform ones and shuffles regression targets.
        conflicts: settle equal inputs with different targets, see `Dataset.resolve`; by default they stay.
        seed: of random labels.

    Raises:
        DataError: the source cannot be read, or an option does not apply to it.
    """
    require_choice(task, ("auto", *get_args(Task)), "task")
    require_choice(labels, get_args(LabelSource), "labels")
    data = _read(source, target, task)
    if task not in {"auto", data.task}:
        raise DataError(f"{data.source} is a data set for {data.task}; task={task!r} does not apply to it.")
    if rows is not None:
        data = _first_rows(data, rows)
    if labels == "random":
        data = _with_random_labels(data, seed)
    return data if conflicts is None else data.resolve(conflicts)


def load_shape(source: Any) -> Shape | None:
    """The size that ``"shape:n=50000,d=3072,k=10"`` states, for bounds without data.

    Args:
        source: what `load` takes; anything but a shape gives ``None``.
    """
    name, _, given = source.partition(":") if isinstance(source, str) else ("", "", "")
    return options.call(generators.shape, given, source) if name == SHAPE else None


def _read(source: Any, target: Target, task: Task | Literal["auto"]) -> Dataset:
    if isinstance(source, Frame):
        return from_frame(source, target, task)
    path = Path(os.fsdecode(source)) if isinstance(source, str | os.PathLike) else None
    if path is not None and delimiter(path) is not None:
        return read_table(path, target, task)
    if path is not None and is_arrow(path):
        return read_arrow(path, target, task)
    if target is not None:
        raise DataError(
            f"target={target!r} names a column of a table, but this source brings its own targets."
        )
    if isinstance(source, str):
        name, _, given = source.partition(":")
        if name in BUNDLED:
            return replace(options.call(partial(BUNDLED[name], task), given, source), source=source)
        if name in GENERATORS:
            return replace(options.call(GENERATORS[name], given, source), source=source)
        if name == SHAPE:
            raise DataError(f"{source}: a shape has no rows to load; only bounds does without them.")
    if path is not None:
        return _read_path(path, task)
    if isinstance(source, tuple | list) and len(source) == 2:
        return from_arrays(*source, task=task)
    return as_dataset(source)


def _read_path(path: Path, task: Task | Literal["auto"]) -> Dataset:
    place, given = path, ""
    if not os.path.exists(path):
        name, _, given = str(path).rpartition(":")
        place = Path(name)
        if not name or not os.path.exists(place):
            raise DataError(
                f"{path}: there is no file, folder or data set of this name; understood are {UNDERSTOOD}."
            )
    reader = _folder_reader(place, task) if place.is_dir() else _file_reader(place, task)
    return options.call(reader, given, str(path))


def _folder_reader(folder: Path, task: Task | Literal["auto"]) -> Callable[..., Dataset]:
    try:
        files = [entry.name for entry in os.scandir(folder) if not entry.is_dir()]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}).") from None
    if any(map(IDX_NAME.search, files)):
        return partial(read_idx_folder, folder, task)
    if any(map(NAME_TEN.search, files)):
        return partial(read_cifar10, folder)
    if any(map(NAME_HUNDRED.search, files)):
        return partial(read_cifar100, folder)
    if is_pickled(files):
        raise DataError(
            f"{folder}: holds CIFAR's pickled version, which could run code; fetch the binary version."
        )
    if class_folders(folder):
        return partial(read_image_folder, folder)
    raise DataError(f"{folder}: this folder is not understood; understood are {FOLDERS}.")


def _file_reader(path: Path, task: Task | Literal["auto"]) -> Callable[..., Dataset]:
    if path.suffix.lower() == ".npz":
        return partial(read_npz, path, task)
    if IDX_NAME.search(path.name):
        return partial(read_idx_pair, path, task)
    if NAME_TEN.search(path.name):
        return partial(read_cifar10_file, path)
    if NAME_HUNDRED.search(path.name):
        return partial(read_cifar100_file, path)
    for name, reason in REFUSED.items():
        if name.search(path.name):
            raise DataError(f"{path} {reason}.")
    raise DataError(f"{path}: this kind of file is not understood; understood are {UNDERSTOOD}.")


def _first_rows(data: Dataset, rows: int) -> Dataset:
    if not 1 <= rows <= data.rows:
        raise DataError(f"{data.source}: rows={rows}, but there are {data.rows}; choose 1 to {data.rows}.")
    return data.take(torch.arange(rows))


def _with_random_labels(data: Dataset, seed: int) -> Dataset:
    random = generators.generator(seed)
    source = f"{data.source} with random labels"
    if data.task == "regression":
        return replace(data, y=data.y[torch.from_numpy(random.permutation(data.rows))], source=source)
    return replace(data, y=torch.from_numpy(random.integers(0, data.outputs, data.rows)), source=source)
