"""The table of bad input, the same for every reader."""

import struct

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import feather, parquet

from isthmus import _extras
from isthmus.data import load
from isthmus.errors import DataError, MissingExtra

COLUMNS = ("a", "b", "y")


def frame(x, y):
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": y})


def save_idx(path, x, y):
    x = np.asarray(x, np.uint8)
    path.write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, len(x), 1, 2) + x.tobytes())
    labels = path.with_name("train-labels-idx1-ubyte")
    labels.write_bytes(struct.pack(">4BI", 0, 0, 8, 1, len(y)) + bytes(y))


def save_images(path, x, y):
    for row, (pixels, label) in enumerate(zip(np.asarray(x, np.uint8), y, strict=True)):
        (path / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.tile(pixels[:, None], (1, 40))).save(path / str(label) / f"{row}.png")


def save_cifar(path, x, y):
    pixels = np.tile(np.asarray(x, np.uint8), 3072 // 2)
    path.write_bytes(np.column_stack([np.asarray(y, np.uint8), pixels]).tobytes())


TABLES = {
    "data.csv": lambda path, x, y: frame(x, y).to_csv(path, index=False),
    "data.tsv": lambda path, x, y: frame(x, y).to_csv(path, index=False, sep="\t"),
    "data.csv.gz": lambda path, x, y: frame(x, y).to_csv(path, index=False),
    "data.parquet": lambda path, x, y: parquet.write_table(pa.table(dict(frame(x, y))), path),
    "data.feather": lambda path, x, y: feather.write_feather(pa.table(dict(frame(x, y))), path),
    "data.npz": lambda path, x, y: np.savez(path, x=x, y=y),
}
FILES = TABLES | {"train-images-idx3-ubyte": save_idx, "test_batch.bin": save_cifar}
SAVED = FILES | {"photos": save_images}
FRAMES = {"pandas": pd.DataFrame, "polars": pl.DataFrame}

X = np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [5.0, 6.0]])


def source(name, folder, x, y):
    """Rows as a reader finds them: the frame, or the path they were saved to."""
    if name in FRAMES:
        return FRAMES[name]({"a": x[:, 0], "b": x[:, 1], "y": y})
    SAVED[name](folder / name, x, y)
    return folder / name


@pytest.mark.parametrize("name", SAVED)
def test_missing(tmp_path, name):
    with pytest.raises(DataError, match=name):
        load(tmp_path / name)


@pytest.mark.parametrize("name", ["data.parquet", "data.feather", "photos"])
def test_missing_extra(tmp_path, name, monkeypatch):
    path = source(name, tmp_path, X, [0, 1, 0, 1])

    def missing(module):
        raise ImportError(module)

    monkeypatch.setattr(_extras, "import_module", missing)
    with pytest.raises(MissingExtra, match=r'^reading .* needs an extra: pip install "isthmus\[data\]"'):
        load(path)


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("damage", ["empty", "truncated", "unreadable"])
def test_unsound_files(tmp_path, name, damage):
    path = source(name, tmp_path, X, [0, 1, 0, 1])
    file = path / "0" / "0.png" if path.is_dir() else path
    whole = file.read_bytes()
    file.unlink()
    if damage == "unreadable":
        file.mkdir()
    else:
        file.write_bytes(whole[: len(whole) - 22] if damage == "truncated" else b"")
    if name == "photos" and damage != "unreadable":
        with pytest.raises(DataError, match=r"0\.png: not a sound image"):
            load(path)
    elif name == "photos":
        assert load(path).rows == 3  # a folder is no image, whatever its name
    else:
        with pytest.raises(DataError, match=name) as caught:
            load(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*TABLES, *FRAMES])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 1, 2])
def test_numbers_that_are_not_finite(tmp_path, name, value, column):
    cells = np.column_stack([X, [0.5, 1.5, 2.5, 3.5]])
    cells[2, column] = value
    where = "line 4" if "sv" in name else "row 3"
    with pytest.raises(DataError, match=where) as caught:
        load(source(name, tmp_path, cells[:, :2], cells[:, 2]))
    number = f"column {column % 2 + 1}" if column < 2 or "sv" not in name else "column 3"
    number = "column 1" if column == 2 and "sv" not in name else number
    assert number in str(caught.value) or f"column {COLUMNS[column]!r}" in str(caught.value)


@pytest.mark.parametrize("name", [*TABLES, *FRAMES])
def test_missing_targets_and_cells_that_are_no_numbers(tmp_path, name):
    y = np.array(["u", "v", None, "u"], object)
    if name == "data.npz":
        with pytest.raises(DataError, match="'y' holds pickled Python objects"):
            load(source(name, tmp_path, X, y))
        words = np.array([["1", "2"], ["x", "4"]])
        with pytest.raises(DataError, match=r"data\.npz: the values are <U1, not numbers .*'x'"):
            load(source(name, tmp_path, words, [0, 1]))
        return
    with pytest.raises(DataError, match=r"(line 4, column 3 \('y'\)|row 3(, column 'y')?) has no target"):
        load(source(name, tmp_path, X, y))
    words = X.astype(object)
    words[:, 1] = ["p", "q", "r", "s"]
    with pytest.raises(
        DataError, match=r"(column 2 \('b'\)|column 'b') (is 'p', not a number|holds .*string)"
    ):
        load(source(name, tmp_path, words, [0, 1, 0, 1]))


@pytest.mark.parametrize("name", [*SAVED, *FRAMES])
def test_equal_inputs(tmp_path, name):
    with pytest.raises(DataError, match=r"1 input\(s\), in 2 rows, occur with different targets, first in"):
        load(source(name, tmp_path, X, [0, 1, 1, 0]), conflicts="error")


@pytest.mark.parametrize("name", [*SAVED, *FRAMES])
def test_equal_inputs_with_equal_targets(tmp_path, name):
    data = load(source(name, tmp_path, X, [0, 1, 0, 1]), conflicts="error")
    assert (data.rows, len(data.first_rows)) == (4, 3)
