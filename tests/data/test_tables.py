"""CSV and TSV against pandas, NumPy and hand-written files."""

import csv
import gzip
import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from isthmus.data import from_arrays, load, opened, tables
from isthmus.errors import DataError


@pytest.fixture
def written(tmp_path):
    def write(content, name="data.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"]), min_size=1
).filter(lambda name: tables._number(name) is None and name == name.strip())


@given(arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 4)), elements=finite), st.data())
def test_numbers_survive_the_round_trip(tmp_path_factory, x, data):
    y = data.draw(arrays(np.float64, len(x), elements=finite))
    header = data.draw(st.booleans())
    path = tmp_path_factory.mktemp("round") / "data.csv"
    frame = pd.DataFrame(np.column_stack([x, y]), columns=[f"c{i}" for i in range(x.shape[1])] + ["y"])
    frame.to_csv(path, header=header, index=False)
    read, expected = load(path, task="regression"), from_arrays(x, y, task="regression")
    assert read.digest == expected.digest
    assert np.array_equal(read.x.numpy(), x)
    assert read.columns == (tuple(frame.columns[:-1]) if header else ())


@given(st.lists(st.tuples(finite, names), min_size=2, max_size=8), st.sampled_from("\t,"))
def test_class_names_survive_the_round_trip(tmp_path_factory, table, delimiter):
    path = tmp_path_factory.mktemp("round") / ("data.tsv" if delimiter == "\t" else "data.csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([["x", "label"], *table])
    read = load(path)
    assert [read.classes[i] for i in read.y] == [name for _, name in table]
    assert read.classes == tuple(sorted({name for _, name in table}))


def test_agrees_with_pandas_and_loadtxt(written):
    content = "a,b,y\n1,2.5,0\n-3e-3, 4 ,1\n+.5,6.,0\n"
    path = written(content)
    read = load(path)
    frame = pd.read_csv(path, skipinitialspace=True)
    assert read.x.tolist() == frame[["a", "b"]].to_numpy().tolist()
    plain = np.loadtxt(path, delimiter=",", skiprows=1)
    assert np.array_equal(read.x.numpy(), plain[:, :2])
    assert read.y.tolist() == plain[:, 2].tolist()


PLAIN = "a,b,label\n1,2,x\n3,4,y\n"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        "\ufeff" + PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN + "\n\n  \n",
        PLAIN.rstrip("\n"),
        '"a","b","label"\n"1","2","x"\n3,4,"y"\n',
        "a, b, label\n1, 2, x\n3, 4, y\n",
        '\n\na,b,label\n1,2,"x"\n\n3,4,y\n',
    ],
    ids=["plain", "bom", "crlf", "blank end", "no newline", "quoted", "spaces", "blank lines"],
)
def test_spellings_of_one_table(written, content):
    read = load(written(content))
    assert read.x.tolist() == [[1, 2], [3, 4]]
    assert (read.classes, read.columns) == (("x", "y"), ("a", "b"))


def test_gzip_and_tabs(written):
    expected = load(written(PLAIN)).digest
    assert load(written(gzip.compress(PLAIN.encode()), "data.csv.gz")).digest == expected
    tabs = PLAIN.replace(",", "\t").encode()
    assert load(written(tabs, "data.tsv")).digest == expected
    assert load(written(gzip.compress(tabs), "DATA.TSV.GZ")).digest == expected


@pytest.mark.parametrize(
    ("content", "columns", "rows"),
    [
        ("1,2,x\n3,4,y\n", (), 2),
        ("1,2,3\n", (), 1),
        ("1,2,3\n4,5,6\n", (), 2),
        ("a,b,y\n1,2,3\n", ("a", "b"), 1),
        ("0,1,target\n5,6,0\n5,7,1\n", ("0", "1"), 2),
        ("150,4,setosa,virginica\n5.1,3.5,1.4,0\n4.9,3.0,1.4,1\n", ("150", "4", "setosa"), 2),
        ("5,x\n6,y\n", (), 2),
    ],
)
def test_header_is_detected(written, content, columns, rows):
    read = load(written(content))
    assert (read.columns, read.rows) == (columns, rows)


def test_a_first_row_with_a_missing_cell_is_no_header(written):
    for cell in ("?", "", "NA"):
        with pytest.raises(DataError, match=r"line 1, column 2 (is|has)"):
            load(written(f"5.1,{cell},1.4,0\n4.9,3.0,1.3,1\n"))
        with pytest.raises(DataError, match=r"line 1, column 2 (is|has)"):
            load(written(f"0,{cell},0,0\n4,3,0,1\n"))


def test_target_name_makes_numbers_a_header(written):
    path = written("1100.5,1102.5,kind\n1,2,a\n3,4,b\n")
    assert load(path, target="kind").columns == ("1100.5", "1102.5")


@pytest.mark.parametrize(
    ("target", "x", "y"),
    [
        (None, [1, 2], 3),
        ("c", [1, 2], 3),
        ("a", [2, 3], 1),
        (0, [2, 3], 1),
        ("1", [1, 3], 2),
        (-1, [1, 2], 3),
        ("-3", [2, 3], 1),
    ],
)
def test_target_by_name_or_position(written, target, x, y):
    read = load(written("a,b,c\n1,2,3\n"), target=target)
    assert (read.x.tolist(), read.classes) == ([x], (y,))


def test_a_name_wins_over_a_position(written):
    assert load(written("1,a,0\n5,6,7\n5,6,8\n"), target="0").columns == ("1", "a")


def test_several_targets(written):
    read = load(written("a,b,c,d\n1,2,3,4\n5,6,7,8.5\n"), target="d, b")
    assert read.task == "regression"
    assert (read.x.tolist(), read.y.tolist()) == ([[1, 3], [5, 7]], [[4, 2], [8.5, 6]])
    assert load(written('"a,b",c\n1,2\n'), target="a,b").columns == ("c",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("a,b,c\n", "a header, but no rows"),
        ("a,b,c\n1,2,3\n4,5\n", "line 3 has 2 cells, but the first row has 3"),
        ("a,b,c\n1,2,3\n\n4,5,6,7\n", "line 4 has 4 cells, but the first row has 3"),
        ("a,b,c\n1,nan,3\n", r"line 2, column 2 \('b'\) is nan, not a finite"),
        ("a,b,c\n1,-inf,3\n", "is -inf, not a finite"),
        ("a,b,c\n1,1e999,3\n", "is 1e999, not a finite"),
        ("a,b,c\n1,,3\n", r"line 2, column 2 \('b'\) is empty"),
        ("a,b,c\n1,red,3\n", r"line 2, column 2 \('b'\) is 'red', not a number"),
        ("a,b,c\n1,1_000,3\n", "is '1_000', not a number"),
        ("a,b,c\n1,2,\n", r"line 2, column 3 \('c'\) has no target"),
        ("a,b,c\n1,2,0.5\n1,2,?\n", r"line 3, column 3 \('c'\) is '\?', but line 2 holds a number"),
        ("a,b,c\n1,2,0.5\n1,2,nan\n", r"line 3, column 3 \('c'\) is nan, not a finite"),
        ("a\n1\n2\n", "none of them an input; expected cells separated by ','"),
        ("a;b\n1;2\n", "none of them an input; expected cells separated by ','"),
        ('a,b\n1,"2\n3,4\n', "cannot be split into cells"),
        ('a,b\n1,"2"3\n', "line 2 cannot be split into cells"),
        ("a,b\r1,2\r", "cannot be split into cells"),
        (b"a,b\n1,caf\xe9\n", "line 2 is not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "line 1 is not UTF-8"),
        (b"\x00\x01\x02", "a header, but no rows"),
    ],
)
def test_bad_tables(written, content, message):
    path = written(content)
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))


def test_bad_regression_targets(written):
    path = written("a,b\n1,2.5\n2,x\n")
    with pytest.raises(DataError, match=r"line 3, column 2 \('b'\) is 'x', not a number"):
        load(path, task="regression")
    assert load(path, task="classification").classes == ("2.5", "x")


def test_huge_integers_stay_different_classes(written):
    read = load(written("a,b\n1,9007199254740992\n2,9007199254740993\n"), task="classification")
    assert read.outputs == 2


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("d", "no column 'd'; the columns are 'a', 'b', 'b'"),
        (3, "no column 3; .* from 0 to 2"),
        ("-4", "no column '-4'"),
        ("b", "2 columns are named 'b'; give the target's position, for example 2"),
        ("a,0", "names a column twice"),
        ("a,d", "no column 'd'"),
        ("0,1,2", "none of them an input"),
    ],
)
def test_bad_targets(written, target, message):
    with pytest.raises(DataError, match=message):
        load(written("a,b,b\n1,2,3\n"), target=target)


def test_missing_target_without_a_header_and_in_a_wide_table(written):
    with pytest.raises(DataError, match="no column 'y'; there is no header, and 3 columns"):
        load(written("1,2,3\n"), target="y")
    wide = ",".join(f"c{i}" for i in range(50))
    with pytest.raises(DataError, match=r"'c19', \.\.\.\. Give a name, or a position from 0 to 49"):
        load(written(wide + "\n" + ",".join("1" * 50)), target="y")


def test_damaged_gzip_and_missing_file(written, tmp_path):
    packed = gzip.compress(("a,b\n" + "1,2\n" * 1000).encode())
    with pytest.raises(DataError, match="truncated"):
        load(written(packed[:-12], "cut.csv.gz"))
    with pytest.raises(DataError, match="not a sound gzip file"):
        load(written(packed[:20] + b"\xff\xff\xff" + packed[23:], "hurt.csv.gz"))
    with pytest.raises(DataError, match="not a sound gzip file"):
        load(written(PLAIN, "plain.csv.gz"))
    with pytest.raises(DataError, match=r"none\.csv: cannot be read \(No such file"):
        load(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder\.csv: cannot be read"):
        load(tmp_path / "folder.csv")


def test_bombs_and_endless_lines(written, monkeypatch):
    monkeypatch.setattr(opened, "FREE_BYTES", 1 << 16)
    with pytest.raises(DataError, match="decompression bomb"):
        load(written(gzip.compress(b"0,0\n" * (1 << 18)), "bomb.csv.gz"))
    monkeypatch.setattr(tables, "LONGEST_LINE", 1000)
    with pytest.raises(DataError, match="line 2 is longer than 1000 bytes"):
        load(written("a,b\n" + "1" * 2000))


def test_blocks_do_not_show(written, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_CELLS", 7)
    x = np.random.default_rng(0).standard_normal((101, 3))
    text = io.StringIO()
    np.savetxt(text, x, fmt="%.17g", delimiter=",")
    read = load(written(text.getvalue()))
    assert np.array_equal(np.column_stack([read.x, read.y]), x)
    with pytest.raises(DataError, match="line 102, column 2 is 'oops'"):
        load(written(text.getvalue() + "1,oops,2\n"))
    with pytest.raises(DataError, match=r"line 102 has 2 cells"):
        load(written(text.getvalue() + "1,2\n"))
