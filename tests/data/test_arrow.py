"""Parquet, Feather and Arrow IPC hold the same data set as the arrays they were made of."""

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from isthmus.data import arrow, from_arrays, load, load_inputs, opened
from isthmus.errors import DataError


def write_stream(table, path):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


def write_parts(table, path):
    parquet.write_table(table, path, row_group_size=2)


WRITERS = {
    "one.parquet": parquet.write_table,
    "parts.parquet": write_parts,
    "lz4.feather": feather.write_feather,
    "plain.arrow": lambda table, path: feather.write_feather(table, path, "uncompressed"),
    "stream.arrow": write_stream,
}
every = pytest.mark.parametrize("name", WRITERS)


@pytest.fixture
def written(tmp_path):
    def write(table, name="data.parquet"):
        path = tmp_path / name
        WRITERS.get(name, parquet.write_table)(pa.table(table), path)
        return path

    return write


@every
def test_the_same_digest_as_arrays(written, name):
    x = np.random.default_rng(0).standard_normal((5, 3))
    y = ["b", "a", "b", "c", "a"]
    read, expected = (
        load(written({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": y}, name)),
        from_arrays(x, y),
    )
    assert (read.digest, read.classes, read.columns) == (expected.digest, expected.classes, ("a", "b", "c"))


@every
def test_targets_are_chosen_as_in_other_tables(written, name):
    path = written({"a": [1, 2], "kind": ["x", "y"], "b": [0.5, 1.5], "on": [True, False]}, name)
    read = load(path, target="kind")
    assert (read.columns, read.classes) == (("a", "b", "on"), ("x", "y"))
    assert read.x.tolist() == [[1, 0.5, 1], [2, 1.5, 0]]
    with pytest.raises(DataError, match="no column 'z'; the columns are 'a', 'kind', 'b', 'on'"):
        load(path, target="z")
    numbers = written({"a": [1, 2], "b": [3, 4], "c": [5, 6]}, name)
    assert load(numbers, target="0,2").y.tolist() == [[1, 5], [2, 6]]
    assert load(numbers, task="regression").y.tolist() == [[5], [6]]


def test_batches_do_not_show(written, monkeypatch):
    x = np.random.default_rng(0).standard_normal((101, 3))
    path = written({"a": x[:, 0], "b": x[:, 1], "y": x[:, 2]})
    monkeypatch.setattr(arrow, "BATCH_VALUES", 21)
    read = load(path)
    assert np.array_equal(np.column_stack([read.x, read.y]), x)
    holed = x[:, 1].tolist()
    holed[76] = None
    with pytest.raises(DataError, match="row 77, column 'b' is missing"):
        load(written({"a": x[:, 0], "b": holed, "y": x[:, 2]}))


@pytest.mark.parametrize(
    ("column", "dtype"),
    [
        (pa.array([1, 2], pa.uint8()), "torch.uint8"),
        (pa.array([1, 2], pa.uint16()), "torch.int64"),
        (pa.array([1, 2], pa.int64()), "torch.int64"),
        (pa.array([1, 2], pa.float16()), "torch.float64"),
        (pa.array([1, 2], pa.float32()), "torch.float32"),
        (pa.array([Decimal("1.00"), Decimal("2.00")]), "torch.float64"),
        (pa.array([1, 2]).dictionary_encode(), "torch.int64"),
    ],
)
def test_dtypes(written, column, dtype):
    read = load(written({"a": column, "y": [0, 1]}))
    assert (read.x.tolist(), str(read.x.dtype)) == ([[1], [2]], dtype)


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (pa.array(["v", "u"]), ("u", "v")),
        (pa.array(["v", "u"], pa.large_string()), ("u", "v")),
        (pa.array(["v", "u"]).dictionary_encode(), ("u", "v")),
        (pa.array([True, False]), ("False", "True")),
        (pa.array([Decimal(7), Decimal(3)]), (3, 7)),
        (pa.array([1.5, 2.5]), ()),
    ],
)
def test_targets(written, y, classes):
    assert load(written({"a": [1, 2], "y": y})).classes == classes


@every
@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"a": [1.0, float("nan")], "y": [0, 1]}, r": row 2, input column 1 \('a'\) is nan: not a finite"),
        ({"a": [float("inf"), 1.0], "y": [0, 1]}, r": row 1, input column 1 \('a'\) is inf: not a finite"),
        ({"a": [1.0, None], "y": [0, 1]}, ": row 2, column 'a' is missing; remove or fill in the row"),
        ({"a": pa.nulls(2), "y": [0, 1]}, ": row 1, column 'a' is missing"),
        ({"a": [1, 2], "y": ["x", None]}, ": row 2, column 'y' has no target; remove or fill"),
        ({"a": [1, 2], "y": [0.5, None]}, ": row 2, column 'y' has no target"),
        ({"a": ["red", "blue"], "y": [0, 1]}, ": column 'a' holds string, not numbers; remove or encode it"),
        ({"a": [[1, 2], [3, 4]], "y": [0, 1]}, ": column 'a' holds list<.*>, not numbers"),
        ({"a": [{"b": 1}, {"b": 2}], "y": [0, 1]}, ": column 'a' holds struct<.*>, not numbers"),
        ({"a": [b"x", b"y"], "y": [0, 1]}, ": column 'a' holds binary, not numbers"),
        ({"a": [datetime.datetime(2020, 1, 1)] * 2, "y": [0, 1]}, ": column 'a' holds timestamp"),
        ({"a": [1, 2], "y": [datetime.date(2020, 1, 1)] * 2}, ": column 'y' holds date32.*, not numbers"),
        ({"a": [1, 2**53 + 1], "y": [0, 1]}, r": row 2, input column 1 \('a'\) is 9007199254740993: beyond"),
        (
            {"a": [1, 2**53 + 1], "b": [0.5, 1], "y": [0, 1]},
            ": row 2, column 'a' is 9007199254740993: beyond 2.53, where float64 skips integers",
        ),
        ({"a": [Decimal(2**53 + 1)], "y": [0]}, ": row 1, column 'a' is 9007199254740992.0: beyond"),
        ({"y": [1, 2]}, r": 1 column\(s\), none of them an input"),
        ({}, r": 0 column\(s\), none of them an input"),
        ({"a": pa.array([], pa.float64()), "y": pa.array([], pa.int64())}, "there are no rows"),
    ],
)  # fmt: skip
def test_bad_tables(written, name, table, message):
    path = written(table, name)
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))


def test_repeated_names(written):
    columns = [pa.array([1, 2])] * 3
    with pytest.raises(DataError, match="occur twice, first 'a'"):
        load(written(pa.Table.from_arrays(columns, ["a", "a", "y"])))


def test_the_index_of_pandas_is_no_column(tmp_path):
    frame = pd.DataFrame({"a": [1, 2, 3], "y": ["u", "v", "u"]})
    for number, index in enumerate((frame, frame.iloc[::-1], frame.set_index(frame["a"].rename("id")))):
        index.to_parquet(tmp_path / f"{number}.parquet")
        assert load(tmp_path / f"{number}.parquet").digest == load(index).digest


def test_what_polars_writes(tmp_path):
    frame = pl.DataFrame({"a": [1, 2], "y": ["u", "v"]}, schema_overrides={"y": pl.Categorical})
    frame.write_parquet(tmp_path / "data.parquet")
    frame.write_ipc(tmp_path / "data.arrow")
    assert (
        load(tmp_path / "data.parquet").digest == load(tmp_path / "data.arrow").digest == load(frame).digest
    )


@every
def test_inputs_alone(written, name):
    path = written({"b": [3, 4], "a": [1.0, 2.0], "y": ["u", None]}, name)
    assert load_inputs(path, ("a", "b"), 2).tolist() == [[1, 3], [2, 4]]
    assert load_inputs(path, (), 2).tolist() == [[3, 1], [4, 2]]
    with pytest.raises(DataError, match="no column 'c', which the model takes"):
        load_inputs(path, ("a", "c"), 2)
    with pytest.raises(DataError, match="3 columns, but the model takes 5 inputs"):
        load_inputs(path, (), 5)


@every
def test_truncated_and_missing_files(written, name, tmp_path):
    path = written({"a": list(range(50)), "y": ["u", "v"] * 25}, name)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 8, 29):  # the last 8 bytes of a stream say no more than that it ends
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"not a sound (Parquet|Feather|Arrow IPC) file") as caught:
            load(path)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match=r"cannot be read \(No such file"):
        load(path)


@pytest.mark.parametrize("name", ["one.parquet", "plain.arrow"])
def test_bombs(written, name, monkeypatch):
    monkeypatch.setattr(opened, "FREE_BYTES", 1 << 16)
    zeros = np.zeros(1 << 17)
    path = written({"a": zeros, "y": zeros}, name)
    if name == "plain.arrow":
        feather.write_feather(pa.table({"a": zeros, "y": zeros}), path, "zstd")
    with pytest.raises(DataError, match="decompression bomb"):
        load(path)
