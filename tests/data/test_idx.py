"""IDX files written by hand, byte for byte as MNIST's page describes them."""

import gzip
import struct

import numpy as np
import pytest

from isthmus.data import load, opened
from isthmus.data.idx import read_idx
from isthmus.errors import DataError

IMAGES = struct.pack(">4B3I", 0, 0, 8, 3, 2, 2, 3) + bytes([0, 1, 2, 3, 4, 255, 6, 7, 8, 9, 10, 11])
LABELS = struct.pack(">4BI", 0, 0, 8, 1, 2) + bytes([7, 3])
PIXELS = [[0, 1, 2, 3, 4, 255], [6, 7, 8, 9, 10, 11]]


def write(folder, names, packed=False):
    for name in names:
        content = IMAGES if "images" in name else LABELS
        if "t10k" in name:
            content = content[:-1] + b"\x05"  # to tell the splits apart
        path = folder / (name + ".gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("separator", "-.")
def test_folder_and_file(tmp_path, packed, separator):
    names = [
        f"{part}-{kind}"
        for part in ("train", "t10k")
        for kind in (f"images{separator}idx3-ubyte", f"labels{separator}idx1-ubyte")
    ]
    write(tmp_path, names, packed)
    suffix = ".gz" if packed else ""
    for source in (tmp_path, str(tmp_path), f"{tmp_path}:split=train", tmp_path / (names[0] + suffix)):
        data = load(source)
        assert (data.flat.tolist(), data.classes, data.y.tolist()) == (PIXELS, (3, 7), [1, 0])
        assert tuple(data.x.shape) == (2, 2, 3)
        assert str(data.x.dtype) == "torch.uint8"
    for source in (f"{tmp_path}:split=test", tmp_path / (names[2] + suffix)):
        assert load(source).classes == (5, 7)
    with pytest.raises(DataError, match="split=valid is unknown; choose train or test"):
        load(f"{tmp_path}:split=valid")


def test_packed_images_find_plain_labels(tmp_path):
    write(tmp_path, ["train-images-idx3-ubyte"], packed=True)
    write(tmp_path, ["train-labels-idx1-ubyte"])
    assert load(tmp_path).rows == 2


@pytest.mark.parametrize(
    ("code", "dtype"),
    [(0x08, ">u1"), (0x09, ">i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")],
)
def test_every_dtype(tmp_path, code, dtype):
    values = np.array([[1, 2, 3], [100, 5, 6]], dtype)
    path = tmp_path / "values.idx2"
    path.write_bytes(struct.pack(">4B2I", 0, 0, code, 2, 2, 3) + values.tobytes())
    read = read_idx(path)
    assert np.array_equal(read, values)
    assert read.dtype.isnative


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file .*nothing"),
        (b"\0\0\x08", "not an IDX file"),
        (b"\1\0\x08\x01", "not an IDX file .*01 00 08 01"),
        (b"\0\0\x0a\x01", "not an IDX file"),
        (b"\0\0\x08\x00", "0 dimensions"),
        (b"\0\0\x08\xff", "255 dimensions"),
        (IMAGES[:9], "ends within its header"),
        (IMAGES[:-1], "declares 2 x 2 x 3 values, 12 bytes, but 11 follow"),
        (IMAGES + b"\0", "12 bytes, but more follow"),
        (struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3), "more than the 16 GiB"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 0, 2, 3), "no rows"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 2, 0, 3), "no inputs"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_bad_files(tmp_path, content, message, packed):
    write(tmp_path, ["train-labels-idx1-ubyte"])
    if "no rows" in message:
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 0))
    path = tmp_path / ("train-images-idx3-ubyte" + (".gz" if packed else ""))
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))


def test_bad_pairs(tmp_path):
    write(tmp_path, ["train-images-idx3-ubyte"])
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    with pytest.raises(DataError, match=r"expected train-labels-idx1-ubyte or train-labels-idx1-ubyte\.gz"):
        load(images)
    labels.write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 3) + bytes(3))
    with pytest.raises(
        DataError, match=r"2 images, but train-labels-idx1-ubyte holds an array of shape \(3,\)"
    ):
        load(images)
    with pytest.raises(DataError, match="expected the file of images"):
        load(labels)
    with pytest.raises(DataError, match="holds no t10k-images-idx3-ubyte"):
        load(f"{tmp_path}:split=test")
    with pytest.raises(DataError, match="'part' is no option here; the options are: split=train"):
        load(f"{tmp_path}:part=test")


def test_gzip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(opened, "FREE_BYTES", 1 << 16)
    write(tmp_path, ["train-labels-idx1-ubyte"])
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(
        gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, 1 << 10, 1 << 5, 1 << 5) + bytes(1 << 20))
    )
    with pytest.raises(DataError, match="decompression bomb"):
        load(path)
    path.write_bytes(gzip.compress(IMAGES + bytes(1 << 24)))
    with pytest.raises(DataError, match="12 bytes, but more follow"):
        load(path)


def test_truncated_gzip(tmp_path):
    write(tmp_path, ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"], packed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError):
            load(path)
