"""Data frames of pandas and polars hold the same data set as the arrays they were made of."""

import datetime

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from isthmus.data import from_arrays, load
from isthmus.errors import DataError

both = pytest.mark.parametrize("library", [pd, pl], ids=["pandas", "polars"])
finite = st.floats(allow_nan=False, allow_infinity=False)


@given(arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 4)), elements=finite), st.data())
def test_one_digest_for_every_format(tmp_path_factory, x, data):
    y = data.draw(arrays(np.int64, len(x), elements=st.integers(-3, 3)))
    expected = from_arrays(x, y).digest
    table = {f"c{i}": x[:, i] for i in range(x.shape[1])} | {"label": y}
    folder = tmp_path_factory.mktemp("formats")
    pd.DataFrame(table).to_csv(folder / "data.csv", index=False)
    pl.DataFrame(table).write_csv(folder / "data.tsv", separator="\t")
    np.savez(folder / "data.npz", x=x, y=y)
    sources = [pd.DataFrame(table), pl.DataFrame(table), (x, y), *sorted(folder.iterdir())]
    assert {load(source).digest for source in sources} == {expected}


@both
def test_columns_targets_and_names(library):
    frame = library.DataFrame({"a": [1, 2], "kind": ["x", "y"], "b": [0.5, 1.5], "on": [True, False]})
    read = load(frame, target="kind")
    assert read.columns == ("a", "b", "on")
    assert read.x.tolist() == [[1, 0.5, 1], [2, 1.5, 0]]
    assert read.classes == ("x", "y")
    several = load(library.DataFrame({"a": [1, 2], "b": [3, 4], "c": [5, 6]}), target="0,2")
    assert several.y.tolist() == [[1, 5], [2, 6]]


@both
def test_dtype_of_equal_columns_is_kept(library):
    frame = library.DataFrame({"a": np.array([1, 2], np.uint8), "b": np.array([3, 4], np.uint8), "y": [0, 1]})
    assert str(load(frame).x.dtype) == "torch.uint8"


@both
@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"a": [1.0, float("nan")], "y": [0, 1]}, r"frame: row 2, input column 1 \('a'\) is nan"),
        ({"a": [1.0, None], "y": [0, 1]}, r"row 2, input column 1 \('a'\) is nan"),
        ({"a": ["red", "blue"], "y": [0, 1]}, "row 1, column 'a' is 'red', not a number"),
        ({"a": ["1", None], "y": [0, 1]}, "row 2, (column 'a' is None|input column 1 .* is nan)"),
        ({"a": [datetime.datetime(2020, 1, 1)] * 2, "y": [0, 1]}, "column 'a' holds .*not numbers"),
        ({"a": [1, 2], "y": ["x", None]}, "row 2 has no target"),
        ({"a": [1, 2], "y": [0.5, None]}, "row 2, target column 1 is nan"),
        ({"a": [1, 2], "y": [datetime.datetime(2020, 1, 1)] * 2}, "neither numbers nor names"),
        ({"y": [1, 2]}, "none of them an input"),
        ({}, "none of them an input"),
        ({"a": [], "y": []}, "no rows"),
    ],
)
def test_bad_frames(library, table, message):
    with pytest.raises(DataError, match=message):
        load(library.DataFrame(table))


@both
def test_missing_target(library):
    with pytest.raises(DataError, match="no column 'z'; the columns are 'a', 'y'"):
        load(library.DataFrame({"a": [1], "y": [1]}), target="z")


def test_what_only_pandas_has():
    with pytest.raises(DataError, match="occur twice, first 'a'"):
        load(pd.DataFrame([[1, 2, 3]], columns=["a", "a", "y"]))
    with pytest.raises(DataError, match=r"row 2(, target column 1 is nan| has no target)"):
        load(pd.DataFrame({"a": [1, 2], "y": pd.array([1, None], dtype="Int64")}))
    nullable = pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "y": [1, 2]})
    with pytest.raises(DataError, match=r"row 2, (column 'a' is <NA>|input column 1 \('a'\) is nan)"):
        load(nullable)
    category = pd.DataFrame({"a": [1, 2], "y": pd.Categorical(["u", "v"])}, index=[7, 9])
    assert load(category).classes == ("u", "v")
    assert load(pd.DataFrame(np.eye(3)), target=0).columns == ("1", "2")


def test_what_only_polars_has():
    nested = pl.DataFrame({"a": [[1, 2], [3, 4]], "y": [0, 1]})
    with pytest.raises(DataError, match="'a'"):
        load(nested)
    category = pl.DataFrame({"a": [1, 2], "y": ["u", "v"]}, schema_overrides={"y": pl.Categorical})
    assert load(category).classes == ("u", "v")
