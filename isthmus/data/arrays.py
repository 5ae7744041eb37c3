"""NumPy's archives: an NPZ file with the inputs as ``x`` and the targets as ``y``."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.lib import format as npy

from isthmus._types import Task
from isthmus.data.dataset import Dataset, from_arrays
from isthmus.data.opened import opened, require_modest
from isthmus.errors import DataError


def read_npz(path: Path, task: Task | Literal["auto"] = "auto") -> Dataset:
    """Read the arrays ``x`` and ``y`` of an NPZ file; nothing in it is ever unpickled.

    Args:
        path: the file.
        task: see `isthmus.data.from_arrays`.

    Raises:
        DataError: no such archive, damaged, an array missing or of Python objects, or a decompression bomb.
    """
    x, y = read_arrays(path, "x", "y")
    return from_arrays(x, y, task=task, source=str(path))


def read_arrays(path: Path, *names: str) -> list[np.ndarray]:
    """Read arrays of an NPZ file by name.

    Raises:
        DataError: no such archive, damaged, an array missing or of Python objects, or a decompression bomb.
    """
    with opened(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return [_read_array(archive, name, path) for name in names]
        except DataError:
            raise
        except Exception as error:  # damaged bytes make zipfile and NumPy's parser raise nearly anything
            raise DataError(
                f"{path}: not a sound NPZ file ({type(error).__name__}: {error}); write it anew with "
                f"numpy.savez(path, x=x, y=y)."
            ) from None


def _read_array(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    try:
        member = archive.getinfo(f"{name}.npy")
    except KeyError:
        there = ", ".join(entry.removesuffix(".npy") for entry in archive.namelist())
        raise DataError(
            f"{path}: holds no array {name!r}, only [{there}]; inputs are x and targets y, as in "
            f"numpy.savez(path, x=x, y=y)."
        ) from None
    require_modest(member.file_size, path)
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        if dtype.hasobject:
            raise DataError(
                f"{path}: the array {name!r} holds pickled Python objects, which could run code; store "
                f"numbers or fixed-length strings."
            )
        # NumPy allocates what this header declares, so it must agree with the directory, which is bounded.
        expected = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or expected != member.file_size - stream.tell():
            raise DataError(f"{path}: the array {name!r} declares {expected} bytes but holds another number.")
    with archive.open(member) as stream:
        return npy.read_array(stream, allow_pickle=False)
