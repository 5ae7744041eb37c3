"""Whatever the bytes, a reader loads them or raises DataError: never anything else."""

import contextlib
import gzip
import io
import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import feather, parquet

from isthmus.data import load, load_shape, opened
from isthmus.errors import DataError


def npz(save):
    stream = io.BytesIO()
    save(stream, x=np.arange(6.0).reshape(3, 2), y=np.array(["a", "b", "a"]))
    return stream.getvalue()


def arrow(write, **options):
    stream = io.BytesIO()
    columns = {"a": [1.5, 2.0, 1.5], "b": [1, 2, 3], "y": ["u", "v", "u"]}
    write(pa.table(columns).set_column(2, "y", pa.array(columns["y"]).dictionary_encode()), stream, **options)
    return stream.getvalue()


def stream(table, file):
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def image(kind):
    file = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(file, kind)
    return file.getvalue()


IDX = struct.pack(">4B3I", 0, 0, 8, 3, 2, 2, 2) + bytes(range(8))
CSV = b'a,b,"c d"\n1,2.5,x\n-3e2,"4",y\n'
SOUND = {
    "data.csv": [CSV, CSV.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + CSV, b"1,2,3\n4,5,6\n"],
    "data.tsv": [CSV.replace(b",", b"\t")],
    "data.csv.gz": [gzip.compress(CSV, mtime=0)],
    "data.npz": [npz(np.savez), npz(np.savez_compressed)],
    "data.parquet": [arrow(parquet.write_table), arrow(parquet.write_table, compression="zstd")],
    "data.feather": [arrow(feather.write_feather, compression=how) for how in ("uncompressed", "lz4")],
    "data.arrow": [arrow(stream)],
    "test_batch.bin": [bytes(3073) + b"\x09" + bytes(3072)],
    "train-images-idx3-ubyte": [IDX],
    "train-images-idx3-ubyte.gz": [gzip.compress(IDX, mtime=0)],
}


@st.composite
def mutated(draw, sound):
    content = bytearray(draw(st.sampled_from(sound)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(content)))
        removed = draw(st.integers(0, 8))
        content[at : at + removed] = draw(st.binary(max_size=8))
    return bytes(content)


def reads_or_refuses(path, content):
    path.write_bytes(content)
    for task in ("auto", "classification", "regression"):
        with contextlib.suppress(DataError):
            data = load(path, task=task)
            assert data.rows > 0
            assert len(data.digest) == 64
            assert len(data.groups) == data.rows


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(opened, "MOST_BYTES", 1 << 24)  # a mutated header may declare gigabytes
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 2) + b"\1\2")
    return tmp_path


quick = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("name", SOUND)
def test_sound_files_load(folder, name):
    for content in SOUND[name]:
        (folder / name).write_bytes(content)
        assert load(folder / name).rows >= 2


@pytest.mark.parametrize("name", SOUND)
@given(content=st.binary(max_size=200))
@quick
def test_random_bytes(folder, name, content):
    reads_or_refuses(folder / name, content)


@pytest.mark.parametrize("name", SOUND)
@given(data=st.data())
@settings(quick, max_examples=200)
def test_mutated_files(folder, name, data):
    reads_or_refuses(folder / name, data.draw(mutated(SOUND[name])))


@pytest.mark.parametrize("name", ["data.csv.gz", "train-images-idx3-ubyte.gz"])
@given(data=st.data())
@quick
def test_mutated_before_packing(folder, name, data):
    plain = [gzip.decompress(packed) for packed in SOUND[name]]
    reads_or_refuses(folder / name, gzip.compress(data.draw(mutated(plain))))


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "webp", "ppm", "tiff"])
@given(data=st.data())
@quick
def test_mutated_images(folder, kind, data):
    path = folder / "photos" / "cat" / f"a.{kind}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.draw(mutated([image(kind)])))
    with contextlib.suppress(DataError):
        assert load(folder / "photos").rows == 1


@given(st.text(st.sampled_from('0123456789.,-+e"\n\r\t nai_x\x00é'), max_size=60))
@settings(quick, max_examples=300)
def test_text_that_is_nearly_a_table(folder, text):
    reads_or_refuses(folder / "data.csv", text.encode())


@given(
    st.text(max_size=30),
    st.sampled_from(["sphere:", "friedman:n=3,", "shape:", "zigzag:n=2,", "digits:", ""]),
)
@quick
def test_names(text, prefix):
    for function in (load, load_shape):
        with contextlib.suppress(DataError):
            function(prefix + text)


@given(st.one_of(st.none(), st.integers(), st.text(max_size=5)))
@quick
def test_targets(folder, target):
    path = folder / "data.csv"
    path.write_bytes(CSV)
    with contextlib.suppress(DataError):
        load(path, target=target)
