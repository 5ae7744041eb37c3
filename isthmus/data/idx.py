"""IDX files, the format of MNIST: big-endian arrays, images in one file and labels in another beside it."""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import Literal

import numpy as np

from isthmus._types import Task
from isthmus.data.dataset import Dataset, from_arrays
from isthmus.data.opened import opened, require_modest
from isthmus.errors import DataError

Split = Literal["train", "test"]

DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MOST_DIMENSIONS = 8

PREFIXES: dict[Split, str] = {"train": "train", "test": "t10k"}
IDX_NAME = re.compile(r"[.-]idx\d(-ubyte)?(\.gz)?$", re.IGNORECASE)


def read_idx(path: Path) -> np.ndarray:
    """Read one IDX file, plain or gzip.

    Args:
        path: the file.

    Returns:
        Its array, in its own dtype and native byte order.

    Raises:
        DataError: no IDX header, or more or fewer bytes than the header says.
    """
    with opened(path) as file:
        magic = file.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES:
            raise DataError(
                f"{path}: not an IDX file (it begins with {magic.hex(' ') or 'nothing'}); see MNIST."
            )
        dimensions = magic[3]
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise DataError(f"{path}: {dimensions} dimensions; an IDX file has 1 to {MOST_DIMENSIONS}.")
        header = file.read(4 * dimensions)
        if len(header) < 4 * dimensions:
            raise DataError(f"{path}: ends within its header; it is truncated, so fetch it again.")
        shape = struct.unpack(f">{dimensions}I", header)
        dtype = np.dtype(DTYPES[magic[2]])
        size = math.prod(shape) * dtype.itemsize
        require_modest(size, path)
        content = file.read(size + 1)
    if len(content) != size:
        found = f"{len(content)}" if len(content) < size else "more"
        raise DataError(
            f"{path}: the header declares {' x '.join(map(str, shape))} values, {size} bytes, but {found} "
            f"follow; fetch the file again."
        )
    return np.frombuffer(content, dtype).astype(dtype.newbyteorder("=")).reshape(shape)


def read_idx_pair(images: Path, task: Task | Literal["auto"] = "auto") -> Dataset:
    """Read a file of images and the file of labels beside it.

    Args:
        images: named like ``train-images-idx3-ubyte`` or ``train-images.idx3-ubyte``, perhaps with ``.gz``.
        task: see `isthmus.data.from_arrays`.

    Raises:
        DataError: either file is missing or damaged, or they differ in length.
    """
    name = images.name.removesuffix(".gz")
    if "images" not in name:
        raise DataError(
            f"{images}: expected the file of images, with 'images' in its name; labels lie beside it."
        )
    beside = re.sub(r"idx\d", "idx1", name.replace("images", "labels"))
    labels = _existing(images.parent, [beside])
    if labels is None:
        raise DataError(f"{images}: there is no file of labels beside it; expected {beside} or {beside}.gz.")
    x, y = read_idx(images), read_idx(labels)
    if y.ndim != 1 or len(x) != len(y):
        raise DataError(
            f"{images}: {len(x)} images, but {labels.name} holds an array of shape {y.shape}; "
            f"expected a label for each."
        )
    return from_arrays(x, y, task=task, source=str(images))


def read_idx_folder(
    folder: Path, task: Task | Literal["auto"] = "auto", *, split: Split = "train"
) -> Dataset:
    """Read MNIST or a data set in its place from a folder of IDX files.

    Args:
        folder: holds ``train-images-idx3-ubyte`` and its companions, with or without ``.gz``.
        task: see `isthmus.data.from_arrays`.
        split: ``"train"``, or ``"test"`` for the files that begin with ``t10k``.

    Raises:
        DataError: the folder holds no such files, or they are damaged.
    """
    names = [f"{PREFIXES[split]}-images{separator}idx3-ubyte" for separator in "-."]
    images = _existing(folder, names)
    if images is None:
        raise DataError(
            f"{folder}: this folder holds no {names[0]} or {names[0]}.gz, as MNIST's files are named; add or "
            f"rename it."
        )
    return read_idx_pair(images, task)


def _existing(folder: Path, names: list[str]) -> Path | None:
    candidates = [folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)
