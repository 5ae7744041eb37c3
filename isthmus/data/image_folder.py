"""Folders of images, one folder per class as in ImageNet, decoded when they are asked for."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from isthmus import _extras
from isthmus._types import Labels
from isthmus.data.dataset import Dataset
from isthmus.data.opened import MOST_BYTES
from isthmus.errors import DataError

Channels = Literal["rgb", "gray"]

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MODES: dict[Channels, str] = {"rgb": "RGB", "gray": "L"}  # in Pillow's words
HIDDEN = "."
DEEP_MODES = ("I", "F")  # how its names of modes with more than 8 bits begin
LARGEST_SIZE = 1 << 14


@dataclass(frozen=True, eq=False, repr=False)
class ImageFolder:
    """Images with their classes, read one at a time; what a `torch.utils.data.DataLoader` takes.

    Attributes:
        root: the folder that holds a folder per class.
        paths: the images' paths below it, by class and name.
        y: class indices [N] (int64).
        classes: the names of the class folders, sorted.
        size: the shorter side is resized to it and the middle square kept; ``None`` keeps images as stored.
        channels: ``"rgb"`` for three, ``"gray"`` for one.
    """

    root: Path
    paths: tuple[str, ...]
    y: Labels
    classes: tuple[str, ...]
    size: int | None
    channels: Channels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Decode an image.

        Args:
            index: of the image, from 0.

        Returns:
            Its pixels [C, H, W] (uint8) and the index of its class.

        Raises:
            DataError: it cannot be decoded; names the file.
        """
        path = self.root / self.paths[index]
        images = _extras.require("PIL.Image", "reading images")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", images.DecompressionBombWarning)
                with images.open(path) as image:
                    pixels = _pixels(image, MODES[self.channels], self.size, images, path)
        except DataError:
            raise
        except (images.DecompressionBombWarning, images.DecompressionBombError) as error:
            raise DataError(
                f"{path}: refused as a decompression bomb ({error}); store a smaller image."
            ) from None
        except Exception as error:  # damaged bytes make Pillow raise nearly anything
            raise DataError(
                f"{path}: not a sound image ({type(error).__name__}: {error}); fetch it again, or remove it."
            ) from None
        return torch.from_numpy(pixels), int(self.y[index])

    def __repr__(self) -> str:
        return f"ImageFolder({self.root}: {len(self)} images, {len(self.classes)} classes)"


def find_images(root: str | Path, *, size: int | None = None, channels: Channels = "rgb") -> ImageFolder:
    """Find the images of a folder; none is opened yet.

    Hidden files, and files that are no images by their names, are passed over. A class folder may be a link;
    links to folders below it are not followed, so that none is walked twice.

    Args:
        root: holds a folder per class, in which images lie at any depth.
        size: see `ImageFolder`.
        channels: see `ImageFolder`.

    Raises:
        DataError: there are no class folders, one of them holds no image, or a folder cannot be listed.
    """
    root = Path(root)
    if size is not None and not 1 <= size <= LARGEST_SIZE:
        raise DataError(f"{root}: size={size}; choose 1 to {LARGEST_SIZE} pixels.")
    classes = class_folders(root)
    if not classes:
        raise DataError(f"{root}: there are no folders in it; expected one per class, with its images.")
    paths: list[str] = []
    y: list[int] = []
    for index, name in enumerate(classes):
        found = sorted(_images(root, name))
        if not found:
            raise DataError(
                f"{root / name}: this class folder holds no images ({', '.join(SUFFIXES)}); add or remove it."
            )
        paths += found
        y += [index] * len(found)
    return ImageFolder(root, tuple(paths), torch.tensor(y), tuple(classes), size, channels)


def read_image_folder(root: Path, *, size: int | None = None, channels: Channels = "rgb") -> Dataset:
    """Decode all images of a folder into one data set [N, C, H, W].

    Args:
        root: see `find_images`.
        size: see `ImageFolder`.
        channels: see `ImageFolder`.

    Raises:
        DataError: an image cannot be decoded or differs from the first in size, or there are too many.
    """
    folder = find_images(root, size=size, channels=channels)
    first, _ = folder[0]
    total = len(folder) * first.numel()
    if total > MOST_BYTES:
        raise DataError(
            f"{root}: {len(folder)} images need {total} bytes, more than the {MOST_BYTES >> 30} GiB that are "
            f"read; give a smaller size=, or train on isthmus.data.find_images, which reads them one by one."
        )
    x = torch.empty(len(folder), *first.shape, dtype=torch.uint8)
    for index, path in enumerate(folder.paths):
        image, _ = folder[index]
        if image.shape != first.shape:
            raise DataError(
                f"{root / path}: {_extent(image)} pixels, but {folder.paths[0]} has {_extent(first)}; add "
                f"size= to give all images one size, for example {root}:size={min(first.shape[1:])}."
            )
        x[index] = image
    return Dataset(x, folder.y, "classification", folder.classes, source=str(root))


def class_folders(root: Path) -> list[str]:
    """The names of the folders in a folder, sorted, without hidden ones.

    Args:
        root: the folder.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        with os.scandir(root) as entries:
            return sorted(
                entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(HIDDEN)
            )
    except OSError as error:
        _refuse(error)


def _images(root: Path, name: str) -> Iterator[str]:
    for folder, folders, files in os.walk(root / name, onerror=_refuse):
        folders[:] = [below for below in folders if not below.startswith(HIDDEN)]
        place = os.path.relpath(folder, root)
        for file in files:
            if file.lower().endswith(SUFFIXES) and not file.startswith(HIDDEN):
                yield os.path.join(place, file)


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror}).") from None


def _pixels(image: Any, mode: str, size: int | None, images: Any, path: Path) -> np.ndarray:
    if image.mode.startswith(DEEP_MODES):
        raise DataError(
            f"{path}: has more than 8 bits per channel (mode {image.mode}); store it with 8 bits, 0..255."
        )
    image = image.convert(mode)
    if size is not None:
        side = min(image.size)
        left, top = ((extent - side) // 2 for extent in image.size)
        image = image.resize((size, size), images.Resampling.BILINEAR, (left, top, left + side, top + side))
    array = np.array(image)
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def _extent(image: Tensor) -> str:
    return f"{image.shape[2]} x {image.shape[1]}"
