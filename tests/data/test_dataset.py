"""Dataset against a naive oracle of dictionaries, and from_arrays against everything it must refuse."""

from collections import Counter, defaultdict
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isthmus.data import Dataset, as_dataset, coerce, from_arrays
from isthmus.data import dataset as dataset_module
from isthmus.errors import DataError

# Few distinct values, so that equal rows and conflicts are common; -0.0 equals 0.0.
cells = st.sampled_from([0.0, -0.0, 1.0, 2.5])
rows = st.lists(st.tuples(cells, cells, st.integers(0, 2)), min_size=1, max_size=25)


def by_input(table):
    members = defaultdict(list)
    for row, (a, b, _) in enumerate(table):
        members[a + 0.0, b + 0.0].append(row)
    return list(members.values())


def dataset(table, task):
    return from_arrays([row[:2] for row in table], [row[2] for row in table], task=task)


@given(rows)
def test_groups_number_distinct_inputs_by_first_row(table):
    data = dataset(table, "classification")
    expected = np.empty(len(table), int)
    for number, members in enumerate(by_input(table)):
        expected[members] = number
    assert data.groups.tolist() == expected.tolist()
    assert data.first_rows.tolist() == [members[0] for members in by_input(table)]


@given(rows, st.sampled_from(["classification", "regression"]))
def test_conflicts_are_the_rows_of_inputs_with_several_targets(table, task):
    expected = [
        row
        for members in by_input(table)
        if len({table[member][2] for member in members}) > 1
        for row in members
    ]
    assert dataset(table, task).conflicts().tolist() == sorted(expected)


@given(rows, st.sampled_from(["classification", "regression"]))
def test_resolve_by_dropping(table, task):
    data = dataset(table, task)
    bad = set(data.conflicts().tolist())
    if len(bad) == len(table):
        with pytest.raises(DataError, match="every row conflicts"):
            data.resolve("drop")
        return
    keep = [row for row in range(len(table)) if row not in bad]
    assert data.resolve("drop").digest == data.take(torch.tensor(keep)).digest


@given(rows, st.sampled_from(["classification", "regression"]))
def test_resolve_by_majority(table, task):
    data = dataset(table, task)
    expected = [0] * len(table)
    for members in by_input(table):
        counts = Counter(table[member][2] for member in members)
        winner = min(counts, key=lambda target: (-counts[target], target))
        for member in members:
            expected[member] = winner
    resolved = data.resolve("majority")
    found = (
        [data.classes[i] for i in resolved.y.tolist()]
        if task == "classification"
        else resolved.y[:, 0].tolist()
    )
    assert found == expected
    assert len(resolved.conflicts()) == 0


def test_resolve_names_the_first_two_rows_that_differ():
    data = from_arrays([[1.0], [2.0], [1.0], [1.0]], ["a", "b", "a", "c"], source="toy.csv")
    with pytest.raises(DataError, match=r"toy\.csv: 1 input\(s\), in 3 rows.* rows 1 and 4 \(a and c\)"):
        data.resolve()
    with pytest.raises(DataError, match=r"conflicts='most' is unknown; choose 'error'"):
        data.resolve("most")  # pyrefly: ignore


def test_equal_inputs_with_equal_targets_are_no_conflict():
    data = from_arrays([[1.0], [1.0]], [0, 0])
    assert data.resolve("error") is data


def test_majority_of_many_conflicts_is_fast():
    n = 40_000
    data = from_arrays(np.repeat(np.arange(n), 3), np.tile([1, 0, 1], n))
    assert data.resolve("majority").y.tolist() == [1] * (3 * n)


def test_groups_survive_a_collision_of_their_keys(monkeypatch):
    class Ones:
        def integers(self, low, high, size, dtype):
            return np.zeros(size, dtype)  # every multiplier is 1, so that columns may be swapped

    data = from_arrays([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]], [0, 1, 0])
    monkeypatch.setattr(np.random, "default_rng", lambda seed: Ones())
    assert data.groups.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int16, np.int64, np.float16, np.float32, ">i4", ">f8", np.uint32]
)
def test_digest_does_not_depend_on_the_dtype(dtype):
    x = np.arange(12).reshape(4, 3)
    assert from_arrays(x.astype(dtype), [0, 1, 0, 1]).digest == from_arrays(x.tolist(), [0, 1, 0, 1]).digest


def test_digest_depends_on_values_targets_and_order():
    digests = {
        from_arrays(x, y).digest
        for x in ([[1.0], [2.0]], [[2.0], [1.0]], [[1.0], [3.0]])
        for y in ([0, 1], [1, 0], [0.5, 1.5])
    }
    assert len(digests) == 9
    assert from_arrays([[0.0]], [0.5]).digest == from_arrays([[-0.0]], [0.5]).digest


@pytest.mark.parametrize("rows_at_a_time", [1, 2, 100])
def test_digest_and_groups_do_not_depend_on_the_chunks(monkeypatch, rows_at_a_time):
    x = np.random.default_rng(0).integers(0, 2, (50, 4))
    before = from_arrays(x, x[:, 0])
    expected = before.digest, before.groups.tolist()
    monkeypatch.setattr(dataset_module, "HASHED_VALUES", rows_at_a_time * 4)
    after = from_arrays(x, x[:, 0])
    assert (after.digest, after.groups.tolist()) == expected


def test_taking_all_rows_in_order_copies_nothing():
    data = from_arrays(np.eye(3), [0, 1, 0])
    assert data.take(torch.arange(3)) is data
    assert data.take(torch.tensor([0, 2, 1])).y.tolist() == [0, 0, 1]
    assert data.take(torch.tensor([False, True, True])).rows == 2


def test_read_only_arrays_are_copied_without_a_warning():
    x = np.arange(4.0)
    x.flags.writeable = False
    assert from_arrays(x, [0, 1, 0, 1]).x[:, 0].tolist() == x.tolist()


@pytest.mark.parametrize(
    ("y", "task", "classes"),
    [
        ([1, 2, 1], "classification", (1, 2)),
        ([1.0, 2.0, 1.0], "classification", (1, 2)),
        ([0.5, 1, 2], "regression", ()),
        (["b", "a", "b"], "classification", ("a", "b")),
        ([b"b", b"a", b"b"], "classification", ("a", "b")),
        ([True, False, True], "classification", ("False", "True")),
        (np.array([3, 1, 1], object), "classification", (1, 3)),
        ([[1, 2], [3, 4], [5, 6]], "regression", ()),
        ([[7], [8], [7]], "classification", (7, 8)),
        ([1e300, 0, 1], "regression", ()),
    ],
)
def test_task_is_guessed(y, task, classes):
    data = from_arrays(np.eye(3), y)
    assert (data.task, data.classes) == (task, classes)
    if task == "classification":
        assert [str(data.classes[i]) for i in data.y] == [
            str(cell.decode() if isinstance(cell, bytes) else cell) for cell in np.ravel(y).tolist()
        ] or all(float(data.classes[i]) == float(c) for i, c in zip(data.y, np.ravel(y), strict=True))


def test_more_than_a_hundred_numbers_are_a_regression():
    for count, task in ((coerce.MOST_CLASSES, "classification"), (coerce.MOST_CLASSES + 1, "regression")):
        assert from_arrays(np.arange(count), np.arange(count)).task == task


nan, inf = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([], [], "no rows"),
        (np.zeros((0, 3)), [], "no rows"),
        (np.zeros((2, 0)), [0, 1], "no inputs"),
        (3.0, [1], "one row per example"),
        ([[1, 2], [3]], [0, 1], "rows of equal length"),
        ([[1.0, 2.0], [nan, 1.0]], [0, 1], r"row 2, input column 1 is nan: .*remove or fill"),
        ([[1.0, inf], [1.0, 1.0]], [0, 1], "row 1, input column 2 is inf"),
        ([[1], [2**53 + 1]], [0, 1], "row 2, input column 1 is 9007199254740993: beyond 2"),
        (np.array([[2**64 - 1]], np.uint64), [0], "beyond 2"),
        ([["a"]], [0], "not numbers"),
        ([[10**400]], [0], "not numbers"),
        ([[1j]], [0], "complex128, not numbers"),
        (np.array(["2020-01-01"], "M8[D]"), [0], "datetime64"),
        ([[1.0]], [0, 1], r"1 rows of inputs but targets of shape \(2,\)"),
        ([[1.0]], 5, r"targets of shape \(\)"),
        ([[1.0]], None, r"targets of shape \(\)"),
        ([[1.0]], [[[1.0]]], "give a vector"),
        ([[1.0]], [[]], "give a vector"),
        ([[1.0], [2.0]], [0.5, nan], "row 2, target column 1 is nan"),
        ([[1.0], [2.0]], np.array(["a", None]), "row 2 has no target"),
        ([[1.0], [2.0]], [[1.0, 2.0], [3.0, inf]], "row 2, target column 2 is inf"),
        ([[1.0]], [1j], "neither numbers nor names"),
        ([[1.0]], [b"\xff"], "not UTF-8"),
        ([[1.0], [2.0]], [[1], [2, 3]], "equal length"),
        (torch.eye(2).to_sparse(), [0, 1], "not an array"),
    ],
)
def test_what_from_arrays_refuses(x, y, message):
    with pytest.raises(DataError, match=message):
        from_arrays(x, y, source="here")


def test_from_arrays_refuses_impossible_options():
    with pytest.raises(DataError, match="2 target columns, but a class is one"):
        from_arrays([[1.0]], [[1, 2]], task="classification")
    with pytest.raises(DataError, match="not numbers"):
        from_arrays([[1.0]], ["a"], task="regression")
    with pytest.raises(DataError, match="task='rank' is unknown"):
        from_arrays([[1.0]], [1], task="rank")  # pyrefly: ignore
    with pytest.raises(DataError, match="2 column names for 1 columns"):
        from_arrays([[1.0]], [1], columns=["a", "b"])


def test_errors_name_the_column_if_it_has_a_name():
    with pytest.raises(DataError, match=r"row 1, input column 2 \('b'\) is nan"):
        from_arrays([[1.0, nan]], [1], columns=["a", "b"])


def test_decimals_and_text_that_are_numbers_are_numbers():
    assert from_arrays([[Decimal("1.5")], [Decimal(2)]], [0, 1]).x.tolist() == [[1.5], [2.0]]
    assert from_arrays([["1.5"]], [Decimal("2.5")], task="regression").y.tolist() == [[2.5]]


def test_bfloat16_and_booleans_are_inputs():
    x = torch.tensor([[1.5], [2.0]])
    assert from_arrays(x.bfloat16(), [0, 1]).digest == from_arrays(x, [0, 1]).digest
    assert from_arrays([[True], [False]], [0, 1]).x.dtype == torch.uint8


def test_properties_and_targets():
    data = from_arrays(np.zeros((3, 2, 4), np.uint8), ["a", "b", "a"])
    assert (data.rows, data.inputs, data.outputs, tuple(data.flat.shape)) == (3, 8, 2, (3, 8))
    assert data.targets().tolist() == [[1, 0], [0, 1], [1, 0]]
    assert data.target_range() == 1.0
    assert repr(data) == "Dataset(data: 3 rows, 8 inputs, 2 classes)"
    values = from_arrays([1.0, 2.0], [[0.5, 1.0], [2.0, 4.5]])
    assert torch.equal(values.targets(), values.y)
    assert (values.target_range(), values.target_name(1)) == (4.0, "2, 4.5")


def test_as_dataset():
    data = from_arrays([[1.0]], [1])
    assert as_dataset(data) is data
    assert isinstance(as_dataset((torch.eye(2), [0, 1])), Dataset)
    with pytest.raises(DataError, match=r"expected a Dataset or a pair"):
        as_dataset(torch.eye(3))
