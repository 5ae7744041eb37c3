"""Data sets by name: scikit-learn's small ones, and Fashion-MNIST as Debian packages it."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, Literal

from isthmus import _extras
from isthmus._types import Task
from isthmus.data.dataset import Dataset, from_arrays
from isthmus.data.idx import Split, read_idx_folder
from isthmus.errors import DataError

FASHION_MNIST = "fashion-mnist"
FOLDER_VARIABLE = "ISTHMUS_DATA"


def from_sklearn(name: str, task: Task | Literal["auto"] = "auto") -> Dataset:
    """One of the data sets that scikit-learn brings along, with its column and class names.

    Args:
        name: what follows ``load_`` in `sklearn.datasets`.
        task: see `isthmus.data.from_arrays`.
    """
    datasets = _extras.require("sklearn.datasets", f"the data set {name.replace('_', '-')}")
    bunch = getattr(datasets, f"load_{name}")()
    classes = bunch.get("target_names")
    y = bunch.target if classes is None else classes[bunch.target]
    return from_arrays(
        bunch.data, y, task=task, columns=list(map(str, bunch.feature_names)), source=name.replace("_", "-")
    )


def fashion_mnist(task: Task | Literal["auto"] = "auto", *, split: Split = "train") -> Dataset:
    """Fashion-MNIST (Zalando Research), 28 x 28 pixels 0..255 in 10 classes named 0 to 9.

    Args:
        task: see `isthmus.data.from_arrays`.
        split: ``"train"``, 60,000 rows, or ``"test"``, 10,000.

    Raises:
        DataError: it is not on this machine, or its files are damaged.
    """
    folder = next((place for place in _fashion_mnist_places() if place.is_dir()), None)
    if folder is None:
        raise DataError(
            f"{FASHION_MNIST} is not installed: apt-get install dataset-fashion-mnist, or give a folder "
            f"of its idx files, or name the folder above that in the environment as {FOLDER_VARIABLE}."
        )
    return read_idx_folder(folder, task, split=split)


BUNDLED: Final[dict[str, Callable[..., Dataset]]] = {
    "digits": partial(from_sklearn, "digits"),
    "wine": partial(from_sklearn, "wine"),
    "breast-cancer": partial(from_sklearn, "breast_cancer"),
    "diabetes": partial(from_sklearn, "diabetes"),
    FASHION_MNIST: fashion_mnist,
}


def _fashion_mnist_places() -> Iterator[Path]:
    if FOLDER_VARIABLE in os.environ:
        yield Path(os.environ[FOLDER_VARIABLE]) / FASHION_MNIST
    # The default is that of the XDG base directory specification.
    shares = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    for share in (os.path.join(sysconfig.get_path("data"), "share"), *shares.split(":")):
        yield Path(share) / "datasets" / FASHION_MNIST
