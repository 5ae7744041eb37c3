"""Predictions by name, from every kind of source, with and without targets."""

import gzip
from importlib import import_module

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from torch import nn

from isthmus.data import Dataset, from_arrays
from isthmus.errors import DataError, ModelFileError
from isthmus.predict import predict
from tests.saved import named_by, random_network, saved

COLUMNS = ("a", "b", "c")
NAMES = ("cat", "dog", "eel")
X = np.random.default_rng(2).integers(-9, 10, (10, 3)).astype(np.float64)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    classes = random_network(4, [3, 5, 3], nn.Hardtanh())
    values = random_network(5, [3, 2], nn.ReLU())
    images = nn.Sequential(nn.Flatten(), *random_network(6, [6, 2], nn.ReLU(), torch.float32))
    pixels = np.arange(60, dtype=np.uint8).reshape(10, 2, 3)
    with torch.no_grad():
        targets = values(torch.from_numpy(X))
    return {
        "classes": saved(folder / "classes", classes, named_by(classes, X, NAMES, COLUMNS)),
        "unnamed": saved(folder / "unnamed", classes, named_by(classes, X, NAMES)),
        "values": saved(folder / "values", values, from_arrays(X, targets, task="regression")),
        "images": saved(folder / "images", images, named_by(images, pixels)),
    }


@pytest.fixture(scope="module")
def wanted():
    model = random_network(4, [3, 5, 3], nn.Hardtanh())
    return [NAMES[index] for index in model(torch.from_numpy(X)).argmax(1).tolist()]


def write(path, header, columns, target=False):
    lines = [",".join(header)] * bool(header)
    lines += [",".join([*map(str, row), *["?"] * target]) for row in X[:, columns].tolist()]
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_names_and_values(places, wanted):
    assert len(set(wanted)) > 1
    assert predict(places["classes"], X) == wanted
    model = random_network(5, [3, 2], nn.ReLU())
    assert predict(places["values"], X) == model(torch.from_numpy(X)).tolist()
    assert predict(str(places["values"]), X[:1].tolist()) == model(torch.from_numpy(X[:1])).tolist()


@pytest.mark.parametrize("kind", ["classes", "unnamed"])
@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_tables(places, wanted, tmp_path, kind, target, suffix):
    header = [*COLUMNS, *["animal"] * target]
    for names in (header, []):
        path = write(tmp_path / f"rows{len(names)}{suffix}", names, [0, 1, 2], target)
        assert predict(places[kind], path) == wanted
        assert predict(places[kind], str(path)) == wanted


@pytest.mark.parametrize("target", [False, True])
def test_a_table_in_another_order(places, wanted, tmp_path, target):
    path = write(tmp_path / "rows.csv", ["c", "a", "b", *["animal"] * target], [2, 0, 1], target)
    assert predict(places["classes"], path) == wanted
    path.write_text(path.read_text().replace("b", "x", 1))
    with pytest.raises(DataError, match="'b'"):
        predict(places["classes"], path)


def test_archives(places, wanted, tmp_path):
    np.savez(tmp_path / "x.npz", x=X)
    np.savez(tmp_path / "both.npz", x=X, y=np.zeros(10))
    np.savez(tmp_path / "y.npz", y=X)
    assert predict(places["classes"], tmp_path / "x.npz") == wanted
    assert predict(places["classes"], tmp_path / "both.npz") == wanted
    with pytest.raises(DataError, match="no array 'x'"):
        predict(places["classes"], tmp_path / "y.npz")


@pytest.mark.parametrize("library", [pd, pl])
def test_frames(places, wanted, library):
    columns = dict(zip(COLUMNS, X.T, strict=True))
    frame = library.DataFrame({"c": columns["c"], "note": ["?"] * 10, "b": columns["b"], "a": columns["a"]})
    assert predict(places["classes"], frame) == wanted
    assert predict(places["unnamed"], library.DataFrame(columns)) == wanted
    with pytest.raises(DataError, match="no column 'c'"):
        predict(places["classes"], library.DataFrame({"a": columns["a"], "b": columns["b"]}))


def test_data_sets_are_matched_by_name_too(places, wanted):
    order = [2, 0, 1]
    data = from_arrays(X[:, order], np.arange(10), columns=[COLUMNS[column] for column in order])
    assert isinstance(data, Dataset)
    assert predict(places["classes"], data) == wanted
    assert predict(places["classes"], from_arrays(X, np.arange(10))) == wanted
    with pytest.raises(DataError, match="'b'"):
        predict(places["classes"], from_arrays(X, np.arange(10), columns=("a", "x", "c")))


def test_pairs(places, wanted):
    assert predict(places["classes"], (X, np.arange(10))) == wanted


def test_names_that_are_numbers_are_no_positions(tmp_path):
    model = random_network(4, [2, 3], nn.Hardtanh())
    place = saved(tmp_path / "m", model, named_by(model, X[:, :2], NAMES, ("0", "1")))
    (tmp_path / "b.csv").write_text("p,q\n5,6\n")
    with pytest.raises(DataError, match="no column '0', which the model takes"):
        predict(place, tmp_path / "b.csv")


def test_images_in_any_shape_of_as_many_pixels(places):
    pixels = np.arange(60, dtype=np.uint8).reshape(10, 2, 3)
    found = predict(places["images"], pixels)
    assert len(found) == 10
    assert set(found) <= {0, 1}
    assert predict(places["images"], pixels.reshape(10, 6)) == found
    assert predict(places["images"], torch.from_numpy(pixels)) == found


def test_parts_say_the_same(places, wanted, monkeypatch):
    monkeypatch.setattr(import_module("isthmus.predict"), "CHUNK_VALUES", 7)
    assert predict(places["classes"], X) == wanted


@pytest.mark.parametrize("inputs", [X[:, :2], X[0], np.ones((2, 3, 3)), [[1.0], [2.0]]])
def test_the_wrong_width(places, inputs):
    with pytest.raises(DataError, match="the model takes 3"):
        predict(places["classes"], inputs)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_a_table_of_the_wrong_width(places, tmp_path, width):
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(",".join(["1.5"] * width) for _ in range(3)) + "\n")
    with pytest.raises(DataError, match=f"{width} columns, but the model takes 3"):
        predict(places["unnamed"], path)


@pytest.mark.parametrize("inputs", [np.full((2, 3), np.nan), np.ones((0, 3)), [["a", "b", "c"]], 3, None])
def test_what_is_no_input(places, inputs):
    with pytest.raises(DataError):
        predict(places["classes"], inputs)


def test_what_is_no_model(tmp_path):
    with pytest.raises(ModelFileError):
        predict(tmp_path / "none", X)
