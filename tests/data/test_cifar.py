"""CIFAR's binary files written by hand, byte for byte as its page describes them."""

import pickle

import numpy as np
import pytest

from isthmus.data import load, load_inputs
from isthmus.errors import DataError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def rows(*labels, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), np.uint8)
    return np.column_stack([np.array(labels, np.uint8).reshape(len(labels), -1), pixels])


@pytest.fixture
def ten(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for number in range(1, 6):
        (folder / f"data_batch_{number}.bin").write_bytes(rows(number, 0, seed=number).tobytes())
    (folder / "test_batch.bin").write_bytes(rows(9, 8, 7).tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    return folder


@pytest.fixture
def hundred(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    (folder / "train.bin").write_bytes(rows((19, 99), (0, 1)).tobytes())
    (folder / "test.bin").write_bytes(rows((3, 4)).tobytes())
    return folder


def test_cifar_10(ten):
    for source in (ten, str(ten), f"{ten}:split=train"):
        data = load(source)
        assert (data.rows, tuple(data.x.shape), str(data.x.dtype)) == (10, (10, 3, 32, 32), "torch.uint8")
        assert [data.target_name(row) for row in range(4)] == ["automobile", "airplane", "bird", "airplane"]
    assert np.array_equal(data.flat[2:4].numpy(), rows(2, 0, seed=2)[:, 1:])
    for source in (f"{ten}:split=test", ten / "test_batch.bin", f"{ten / 'test_batch.bin'}:"):
        test = load(source)
        assert (test.y.tolist(), test.classes) == ([9, 8, 7], tuple(NAMES))
    assert load_inputs(ten / "test_batch.bin", (), 3072).shape == (3, 3072)


def test_cifar_100(hundred):
    data = load(hundred)
    assert (data.y.tolist(), data.classes) == ([99, 1], tuple(range(100)))
    assert np.array_equal(data.flat.numpy(), rows((19, 99), (0, 1))[:, 2:])
    for source in (f"{hundred}:labels=coarse", f"{hundred / 'train.bin'}:labels=coarse"):
        coarse = load(source)
        assert (coarse.y.tolist(), coarse.classes) == ([19, 0], tuple(range(20)))
    assert load(f"{hundred}:split=test,labels=fine").y.tolist() == [4]


def test_class_names_are_sorted(ten):
    (ten / "batches.meta.txt").write_text("\n".join(reversed(NAMES)))
    data = load(ten / "test_batch.bin")
    assert data.classes == tuple(NAMES)
    assert [data.target_name(row) for row in range(3)] == ["airplane", "automobile", "bird"]


def test_bad_options(ten, hundred):
    with pytest.raises(DataError, match="'labels' is no option here; the options are: split=train"):
        load(f"{ten}:labels=coarse")
    with pytest.raises(DataError, match="labels=medium is unknown; choose fine or coarse"):
        load(f"{hundred}:labels=medium")
    with pytest.raises(DataError, match="data set for classification; task='regression' does not apply"):
        load(ten, task="regression")
    with pytest.raises(DataError, match="target='y' names a column of a table"):
        load(ten, target="y")


@pytest.mark.parametrize("missing", ["data_batch_1.bin", "data_batch_4.bin", "test_batch.bin"])
def test_missing_files(ten, missing):
    (ten / missing).unlink()
    with pytest.raises(DataError, match=rf"{missing}: cannot be read \(No such file"):
        load(f"{ten}:split={'test' if 'test' in missing else 'train'}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"expected 30730000 bytes \(10000 rows of 3073\).* but found 0; fetch the file again"),
        (bytes(3072), "expected 30730000 bytes .* found 3072"),
        (bytes(3074), "found 3074"),
        (bytes(3073 * 10_000 + 1), "found more"),
        (rows(1, 9, 10, 255).tobytes(), "row 3 has the label 10, but the labels are 0 to 9"),
    ],
)
def test_bad_files(ten, content, message):
    path = ten / "data_batch_3.bin"
    path.write_bytes(content)
    for source in (ten, path):
        with pytest.raises(DataError, match=message) as caught:
            load(source)
        assert str(caught.value).startswith(str(path))


def test_bad_labels_of_cifar_100(hundred):
    (hundred / "train.bin").write_bytes(rows((20, 99), (0, 100)).tobytes())
    with pytest.raises(DataError, match="row 2 has the label 100, but the labels are 0 to 99"):
        load(hundred)
    with pytest.raises(DataError, match="row 1 has the label 20, but the labels are 0 to 19"):
        load(f"{hundred}:labels=coarse")


@pytest.mark.parametrize("names", [NAMES[:9], [*NAMES, "zebra"], [*NAMES[:9], "cat"], []])
def test_bad_names(ten, names):
    (ten / "batches.meta.txt").write_text("\n".join(names))
    with pytest.raises(DataError, match=r"batches\.meta\.txt: expected 10 different class names"):
        load(ten)


@pytest.mark.parametrize(
    "names", [["data_batch_1", "batches.meta"], ["test_batch"], ["train", "test", "meta"]]
)
def test_the_pickled_version_is_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(pickle.dumps({"data": [1]}))
    with pytest.raises(DataError, match="CIFAR's pickled version, which could run code; fetch the binary"):
        load(tmp_path)
