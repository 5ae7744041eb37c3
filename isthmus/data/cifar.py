"""CIFAR-10 and CIFAR-100 in their binary version: a row is its labels, a byte each, and its pixels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from isthmus.data.dataset import Dataset
from isthmus.data.idx import Split
from isthmus.data.opened import opened
from isthmus.errors import DataError

LabelSet = Literal["fine", "coarse"]

IMAGE = (3, 32, 32)
PIXELS = 3 * 32 * 32
LONGEST_NAMES = 1 << 16  # bytes; a longer file holds no names of classes


@dataclass(frozen=True)
class LabelKind:
    """One of the labels that every row of a file has.

    Attributes:
        place: its byte in the row.
        classes: how many there are.
        names: the file beside the images that names them, a line each.
    """

    place: int
    classes: int
    names: str


TEN = LabelKind(0, 10, "batches.meta.txt")
HUNDRED: dict[LabelSet, LabelKind] = {
    "coarse": LabelKind(0, 20, "coarse_label_names.txt"),
    "fine": LabelKind(1, 100, "fine_label_names.txt"),
}
FILES_TEN: dict[Split, list[str]] = {
    "train": [f"data_batch_{number}.bin" for number in range(1, 6)],
    "test": ["test_batch.bin"],
}
FILES_HUNDRED: dict[Split, list[str]] = {"train": ["train.bin"], "test": ["test.bin"]}
ROWS = {"train.bin": 50_000}  # as published; the other files have 10,000

NAME_TEN = re.compile(r"^(data_batch_\d|test_batch)\.bin$")
NAME_HUNDRED = re.compile(r"^(train|test)\.bin$")
PICKLED = re.compile(r"^(data|test)_batch(_\d)?$")  # one of these files lies in the folder of CIFAR-10
PICKLED_HUNDRED = {"train", "test", "meta"}  # all of these lie in the folder of CIFAR-100


def read_cifar10(folder: Path, *, split: Split = "train") -> Dataset:
    """Read CIFAR-10 from its folder ``cifar-10-batches-bin``.

    Args:
        folder: holds ``data_batch_1.bin`` and its companions.
        split: ``"train"``, 50,000 rows, or ``"test"``, 10,000.
    """
    return _read([folder / name for name in FILES_TEN[split]], TEN, 1, str(folder))


def read_cifar100(folder: Path, *, split: Split = "train", labels: LabelSet = "fine") -> Dataset:
    """Read CIFAR-100 from its folder ``cifar-100-binary``.

    Args:
        folder: holds ``train.bin`` and ``test.bin``.
        split: ``"train"``, 50,000 rows, or ``"test"``, 10,000.
        labels: ``"fine"`` for 100 classes, ``"coarse"`` for 20.
    """
    paths = [folder / name for name in FILES_HUNDRED[split]]
    return _read(paths, HUNDRED[labels], len(HUNDRED), str(folder))


def read_cifar10_file(path: Path) -> Dataset:
    """Read one file of CIFAR-10, perhaps with the names of the classes beside it."""
    return _read([path], TEN, 1, str(path))


def read_cifar100_file(path: Path, *, labels: LabelSet = "fine") -> Dataset:
    """Read one file of CIFAR-100, perhaps with the names of the classes beside it.

    Args:
        path: the file.
        labels: ``"fine"`` for 100 classes, ``"coarse"`` for 20.
    """
    return _read([path], HUNDRED[labels], len(HUNDRED), str(path))


def is_pickled(names: Sequence[str]) -> bool:
    """Whether a folder of these files holds CIFAR's pickled ("python") version."""
    return any(map(PICKLED.search, names)) or set(names) >= PICKLED_HUNDRED


def _read(paths: Sequence[Path], kind: LabelKind, labels: int, source: str) -> Dataset:
    names = _names(paths[0].parent / kind.names, kind.classes)
    parts = [_rows(path, labels) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        strange = np.flatnonzero(part[:, kind.place] >= kind.classes)
        if len(strange) > 0:
            row = int(strange[0])
            raise DataError(
                f"{path}: row {row + 1} has the label {part[row, kind.place]}, but the labels are 0 to "
                f"{kind.classes - 1}; fetch the file again."
            )
    x = np.concatenate([part[:, labels:] for part in parts]).reshape(-1, *IMAGE)
    label = np.concatenate([part[:, kind.place] for part in parts])
    order = sorted(range(kind.classes), key=lambda index: names[index])
    index = np.argsort(order)[label]
    # Not through from_arrays: a class that no row happens to have is still one of them.
    return Dataset(
        torch.from_numpy(x),
        torch.from_numpy(index),
        "classification",
        tuple(names[place] for place in order),
        source=source,
    )


def _rows(path: Path, labels: int) -> np.ndarray:
    size = labels + PIXELS
    most = size * ROWS.get(path.name, 10_000)
    with opened(path) as file:
        content = file.read(most + 1)
    if not content or len(content) % size or len(content) > most:
        found = "more" if len(content) > most else f"{len(content)}"
        raise DataError(
            f"{path}: expected {most} bytes ({most // size} rows of {size}), or a whole number of rows less, "
            f"but found {found}; fetch the file again."
        )
    return np.frombuffer(content, np.uint8).reshape(-1, size)


def _names(path: Path, classes: int) -> Sequence[str | int]:
    if not path.exists():
        return range(classes)
    with opened(path) as file:
        content = file.read(LONGEST_NAMES)
    names = [line.strip() for line in content.decode(errors="replace").splitlines() if line.strip()]
    if len(set(names)) != classes or len(names) != classes:
        raise DataError(
            f"{path}: expected {classes} different class names, a line each, but found {len(set(names))} in "
            f"{len(names)} lines; fetch the file again, or remove it for numbers in their place."
        )
    return names
