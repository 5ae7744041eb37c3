"""NPZ: sound archives load, every other kind is refused before it costs memory or runs code."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

from isthmus.data import from_arrays, load, opened
from isthmus.errors import DataError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.npz"


def npy(array):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), allow_pickle=True)
    return stream.getvalue()


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "y", [[0, 1, 0], ["b", "a", "b"], [0.5, 1, 2], [[1, 2], [3, 4], [5, 6]], [b"u", b"v", b"u"]]
)
def test_round_trip(path, save, y):
    x = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)
    save(path, x=x, y=np.array(y), other=np.zeros(2))
    read, expected = load(path), from_arrays(x, y)
    assert (read.digest, read.classes, read.x.shape) == (expected.digest, expected.classes, (3, 2, 4))


def test_fortran_order_and_second_version_of_the_header(path):
    x, y = np.asfortranarray(np.arange(6.0).reshape(3, 2)), np.array([0, 1, 0])
    stream = io.BytesIO()
    np.lib.format.write_array(stream, x, version=(2, 0))
    archive(path, {"x.npy": stream.getvalue(), "y.npy": npy(y)})
    assert load(path).digest == from_arrays(x, y).digest


def test_missing_arrays(path):
    np.savez(path, X=np.eye(2), y=[0, 1])
    with pytest.raises(DataError, match=r"holds no array 'x', only \[X, y\]"):
        load(path)
    archive(path, {})
    with pytest.raises(DataError, match=r"holds no array 'x', only \[\]"):
        load(path)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("this pickle was executed",)


def test_nothing_is_unpickled(path):
    for member in ("x", "y"):
        arrays = {"x": npy(np.eye(2)), "y": npy([0, 1]), member: npy(np.array([Bomb(), 1], object))}
        archive(path, {f"{name}.npy": content for name, content in arrays.items()})
        with pytest.raises(DataError, match=f"the array '{member}' holds pickled Python objects"):
            load(path)
    archive(path, {"x.npy": pickle.dumps(Bomb()), "y.npy": npy([0])})
    with pytest.raises(DataError, match="not a sound NPZ file"):
        load(path)


def test_zip_bombs(path, monkeypatch):
    monkeypatch.setattr(opened, "FREE_BYTES", 1 << 16)
    np.savez_compressed(path, x=np.zeros((1 << 18, 1)), y=np.zeros(1 << 18))
    with pytest.raises(DataError, match=r"more than 100 times the size of the file.*bomb"):
        load(path)
    np.savez(path, x=np.zeros((1 << 18, 1)), y=np.zeros(1 << 18))
    assert load(path).rows == 1 << 18
    monkeypatch.setattr(opened, "MOST_BYTES", 1 << 20)
    with pytest.raises(DataError, match="more than the 0 GiB that are read"):
        load(path)


def header(shape, descr="<f8"):
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("shape", [(10**12,), (2**40, 2**40), (-1, 3), (-1, -2), (3,), (1, 2, 0)])
def test_header_that_declares_another_size(path, shape):
    archive(path, {"x.npy": header(shape) + bytes(16), "y.npy": npy([0, 1])})
    with pytest.raises(DataError):
        load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a zip file",
        header((2,))[:30],
        header((2,), "<f8x") + bytes(16),
        header((2,), "O") + bytes(16),
        header((2,), "<c16") + bytes(32),
        header((2,), [("a", "<f8")]) + bytes(16),
        b"\x93NUMPY\x03\x00" + bytes(40),
        b"\x93NUMPY\x01\x00\xff\x00" + b"(" * 255,
    ],
    ids=range(9),
)
def test_unsound_members_and_files(path, content):
    archive(path, {"x.npy": content, "y.npy": npy([0, 1])})
    with pytest.raises(DataError):
        load(path)
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a sound NPZ file"):
        load(path)


def test_truncated_archive(path):
    np.savez(path, x=np.eye(3), y=[0, 1, 2])
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="not a sound NPZ file"):
            load(path)


def test_values_are_checked(path):
    np.savez(path, x=[[1.0], [np.nan]], y=[0, 1])
    with pytest.raises(DataError, match=r"data\.npz: row 2, input column 1 is nan"):
        load(path)
    np.savez(path, x=[[1.0]], y=[0, 1])
    with pytest.raises(DataError, match="1 rows of inputs but targets of shape"):
        load(path)
