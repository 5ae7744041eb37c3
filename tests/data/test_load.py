"""The one door: options of load, and what it says about sources it does not take."""

import pickle

import numpy as np
import pytest
import torch

from isthmus.data import from_arrays, load
from isthmus.errors import DataError

PAIR = (np.arange(6.0).reshape(3, 2), ["a", "b", "a"])


def test_datasets_and_pairs():
    data = from_arrays(*PAIR)
    assert load(data) is data
    assert load(PAIR).digest == load(list(PAIR)).digest == data.digest
    assert load((torch.eye(2), [0, 1]), task="regression").task == "regression"


def test_rows():
    data = load(PAIR, rows=2)
    assert (data.rows, data.classes) == (2, ("a", "b"))
    for rows in (0, -1, 4):
        with pytest.raises(DataError, match=f"rows={rows}, but there are 3; choose 1 to 3"):
            load(PAIR, rows=rows)


def test_random_labels():
    data = load("digits")
    first, again, other = (load(data, labels="random", seed=seed) for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert torch.equal(first.x, data.x)
    assert first.classes == data.classes
    assert (first.y.bincount(minlength=10) - 179.7).abs().max() < 4 * np.sqrt(179.7)
    assert (first.y == data.y).double().mean() < 0.15
    values = load("diabetes", labels="random")
    assert sorted(values.y[:, 0].tolist()) == sorted(load("diabetes").y[:, 0].tolist())
    assert not torch.equal(values.y, load("diabetes").y)


def test_conflicts():
    pair = ([[1.0], [1.0], [1.0], [2.0]], [0, 1, 1, 0])
    assert load(pair).rows == 4
    assert load(pair, conflicts="drop").rows == 1
    assert load(pair, conflicts="majority").y.tolist() == [1, 1, 1, 0]
    with pytest.raises(DataError, match="1 input"):
        load(pair, conflicts="error")
    assert load(pair, rows=1, conflicts="error").rows == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "rank"}, "task='rank' is unknown"),
        ({"labels": "false"}, "labels='false' is unknown; choose 'true', 'random'"),
        ({"conflicts": "keep"}, "conflicts='keep' is unknown"),
        ({"target": "y"}, "target='y' names a column of a table"),
        ({"task": "regression"}, "is a data set for classification; task='regression' does not apply"),
    ],
)
def test_options_that_do_not_apply(options, message):
    with pytest.raises(DataError, match=message):
        load(from_arrays(*PAIR), **options)


def test_unknown_sources(tmp_path):
    for source in (3, None, b"x.csv", np.eye(3), (1, 2, 3)):
        with pytest.raises(DataError, match=r"expected a Dataset or a pair"):
            load(source)
    for source in (
        "digit",
        "digit:n=3",
        str(tmp_path / "none.npz"),
        tmp_path / "none",
        "",
        "a\0b",
        "x" * 5000,
    ):
        with pytest.raises(
            DataError,
            match=r"no file, folder or data set of this name.*\.csv.*digits.*sphere|holds no images",
        ):
            load(source)
    with pytest.raises(
        DataError, match=r"is not understood; understood are folders of MNIST's .* CIFAR's .* one folder per"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data_batch_1", r"is a pickled file.*numpy\.savez"),
        ("test_batch", "is a pickled file"),
        ("data.pkl", "is a pickled file"),
        ("data.PICKLE", "is a pickled file"),
        ("data.pt", "is a pickled file"),
        ("data.xlsx", r"this kind of file is not understood; understood are \.csv"),
        ("data", "not understood"),
    ],
)
def test_files_that_are_refused(tmp_path, name, message):
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"data": [1]}))
    for source in (path, str(path)):
        with pytest.raises(DataError, match=message):
            load(source)


def test_negative_seeds_are_refused():
    with pytest.raises(DataError, match="seed=-1 is negative"):
        load(PAIR, labels="random", seed=-1)
