"""Bundled data sets hold exactly what their packages hold."""

import gzip
import hashlib
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets

from isthmus import _extras
from isthmus.data import bundled, load
from isthmus.errors import DataError, MissingExtra


@pytest.mark.parametrize(
    ("name", "rows", "task"),
    [
        ("digits", 1797, "classification"),
        ("wine", 178, "classification"),
        ("breast-cancer", 569, "classification"),
        ("diabetes", 442, "regression"),
    ],
)
def test_sklearn_sets(name, rows, task):
    data = load(name)
    theirs = getattr(sklearn.datasets, f"load_{name.replace('-', '_')}")()
    assert (data.rows, data.task, data.source) == (rows, task, name)
    assert np.array_equal(data.x.numpy(), theirs.data)
    assert data.columns == tuple(theirs.feature_names)
    if task == "regression":
        assert np.array_equal(data.y[:, 0].numpy(), theirs.target)
    else:
        assert [data.classes[i] for i in data.y] == theirs.target_names[theirs.target].tolist()


def test_task_of_a_bundled_set():
    assert load("digits", task="regression").outputs == 1
    with pytest.raises(DataError, match="not numbers"):
        load("wine", task="regression")
    with pytest.raises(DataError, match="'n' is no option here; the options are: none"):
        load("digits:n=3")


def test_without_sklearn(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(_extras, "import_module", missing)
    with pytest.raises(MissingExtra, match=r"the data set digits needs .*isthmus\[sklearn\]"):
        load("digits")


def small_set(folder):
    folder.mkdir(parents=True)
    for part, label in (("train", 1), ("t10k", 2)):
        images = struct.pack(">4B3I", 0, 0, 8, 3, 1, 2, 2) + bytes(4)
        labels = struct.pack(">4BI", 0, 0, 8, 1, 1) + bytes([label])
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def test_fashion_mnist_is_looked_for_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(bundled.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(bundled.sysconfig, "get_path", lambda name: str(tmp_path / "none"))
    monkeypatch.setenv("XDG_DATA_DIRS", f"{tmp_path / 'a'}:{tmp_path / 'b'}")
    with pytest.raises(
        DataError, match=r"apt-get install dataset-fashion-mnist, or give a folder .*ISTHMUS_DATA"
    ):
        load("fashion-mnist")
    small_set(tmp_path / "b" / "datasets" / "fashion-mnist")
    assert load("fashion-mnist").classes == (1,)
    assert load("fashion-mnist:split=test").classes == (2,)
    assert load("fashion-mnist").source == "fashion-mnist"
    (tmp_path / "mine" / "fashion-mnist").mkdir(parents=True)
    monkeypatch.setenv(bundled.FOLDER_VARIABLE, str(tmp_path / "mine"))
    with pytest.raises(DataError, match=r"mine.*holds no train-images"):
        load("fashion-mnist")


@pytest.mark.long
@pytest.mark.parametrize(("split", "part", "rows"), [("train", "train", 60_000), ("test", "t10k", 10_000)])
def test_fashion_mnist(split, part, rows):
    data = load(f"fashion-mnist:split={split}")
    assert (tuple(data.x.shape), data.classes) == ((rows, 28, 28), tuple(range(10)))
    assert data.y.bincount().tolist() == [rows // 10] * 10
    folder = next(place for place in bundled._fashion_mnist_places() if place.is_dir())
    raw = gzip.decompress(Path(folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    assert hashlib.sha256(data.x.numpy().tobytes()).digest() == hashlib.sha256(raw[16:]).digest()


@pytest.mark.long
def test_fashion_mnist_as_csv_within_a_minute(tmp_path):
    data = load("fashion-mnist")
    path = tmp_path / "fashion.csv"
    np.savetxt(path, np.column_stack([data.flat, data.y]), fmt="%d", delimiter=",")
    start = time.monotonic()
    assert load(path).digest == data.digest
    assert time.monotonic() - start < 60
