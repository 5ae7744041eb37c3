"""The table of bad input: one sentence on stderr, exit code 2, no traceback, nothing on disk touched."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from .conftest import Outcome, Run


def refused(seen: Outcome, *words: str) -> None:
    assert seen.code == 2
    assert seen.out == ""
    assert seen.err.startswith("isthmus: ")
    assert seen.err.count("\n") == 1
    assert "Traceback" not in seen.err
    for word in words:
        assert word in seen.err


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.csv", "", ("empty.csv",)),
        ("nan.csv", "a,b,y\n1,2,0\n3,nan,1\n", ("nan.csv", "line 3", "b")),
        ("text.csv", "a,b,y\n1,2,0\n3,oops,1\n", ("text.csv", "line 3", "oops")),
        ("ragged.csv", "a,b,y\n1,2,0\n3,1\n", ("ragged.csv", "line 3")),
        ("short.gz", gzip.compress(b"0" * 500, mtime=0)[:20], ("short.gz",)),
        ("cut-images-idx3-ubyte", struct.pack(">4i", 2051, 3, 2, 2) + b"123", ("cut-images",)),
        ("data_batch_1", pickle.dumps({"data": [1]}), ("pickle",)),
        ("model.pkl", pickle.dumps([1]), ("pickle",)),
        ("notes.docx", "words", ("notes.docx",)),
        ("broken.npz", b"PK\x03\x04 but no more", ("broken.npz",)),
        ("empty.parquet", b"", ("empty.parquet", "Parquet")),
        ("words.arrow", "no table", ("words.arrow", "Arrow IPC")),
        ("test_batch.bin", bytes(5), ("test_batch.bin", "30730000 bytes", "found 5")),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(
    run: Run, tmp_path: Path, name: str, content: str | bytes, words: tuple[str, ...]
) -> None:
    path = write(tmp_path / name, content)
    refused(run("memorize", path, "--out", tmp_path / "model"), *words)
    assert not (tmp_path / "model").exists()


def test_folders_that_cannot_be_read(run: Run, tmp_path: Path) -> None:
    refused(run("bounds", tmp_path), "not understood", "MNIST", "CIFAR", "one folder per class")
    (tmp_path / "cat").mkdir()
    refused(run("bounds", tmp_path), "cat", "no images")
    write(tmp_path / "cat" / "tom.png", "no image")
    refused(run("bounds", tmp_path), "tom.png")
    refused(run("bounds", f"{tmp_path}:size=0"), "size=0")
    write(tmp_path / "data_batch_1", pickle.dumps({"data": [1]}))
    refused(run("bounds", tmp_path), "pickled", "binary version")


def test_missing_file_and_unknown_name(run: Run, tmp_path: Path) -> None:
    refused(run("bounds", tmp_path / "nothing.csv"), "nothing.csv")
    refused(run("bounds", "irises"), "irises")
    refused(run("bounds", "sphere:n=ten,d=3"), "ten")


def test_missing_target(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "p,q,y\n1,2,0\n3,4,1\n")
    refused(run("bounds", path, "--target", "label"), "label", "p", "q")
    pd.read_csv(path).to_parquet(tmp_path / "a.parquet")
    refused(run("bounds", tmp_path / "a.parquet", "--target", "label"), "label", "p", "q")
    seen = run("bounds", tmp_path / "a.parquet", "--target", "p", "--json")
    assert seen.json["data"]["inputs"] == 2


def test_conflicting_rows(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "p,y\n1,0\n2,1\n1,1\n1,0\n3,0\n")
    refused(run("memorize", path, "--out", tmp_path / "model"), "rows 1 and 3", "conflicts")
    seen = run("memorize", path, "--out", tmp_path / "model", "--conflicts", "majority", "--json")
    assert seen.code == 0
    assert seen.json["certificate"]["merged"] == 2
    assert run("verify", tmp_path / "model", path, "--conflicts", "majority").code == 0
    assert run("verify", tmp_path / "model", path).code == 1


def test_too_few_units(run: Run, tmp_path: Path) -> None:
    seen = run("memorize", "digits", "--widths", "40,40,9", "--out", tmp_path / "model")
    refused(seen, "1797", "40")
    refused(run("memorize", "digits", "--widths", "45,x", "--out", tmp_path / "model"), "45,x")
    refused(run("memorize", "digits", "--widths", "45", "--out", tmp_path / "model"), "d1 >= 54", "45")


def test_too_coarse_a_dtype(run: Run, tmp_path: Path) -> None:
    seen = run("memorize", "friedman:n=2000", "--dtype", "float32", "--out", tmp_path / "model")
    refused(seen, "float32", "float64")


def test_options_that_do_not_go_together(run: Run, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "model")
    refused(run("memorize", "diabetes", "--method", "classifier", *out), "class labels")
    refused(run("memorize", "digits", "--tolerance", 0.1, *out), "tolerance", "regression")
    refused(run("memorize", "digits", "--method", "interpolant", *out), "relu")
    refused(run("memorize", "digits", "--rows", 0, *out), "rows")
    refused(run("memorize", "digits"), "--out")
    refused(run("memorize", "digits", "--colour", "red", *out), "--colour")
    refused(run("nonsense"), "nonsense")


def test_what_is_on_disk_stays(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert run("memorize", "wine", "--out", out).code == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    refused(run("memorize", "wine", "--out", out), "--force")
    refused(run("memorize", "nothing.csv", "--out", out, "--force"), "nothing.csv")
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert run("memorize", "wine", "--out", out, "--force", "--seed", 1).code == 0

    (tmp_path / "letters").mkdir()
    letter = write(tmp_path / "letters" / "dear.txt", "do not lose me")
    refused(run("memorize", "wine", "--out", tmp_path / "letters", "--force"), "letters")
    assert letter.read_text() == "do not lose me"
    refused(run("memorize", "wine", "--out", tmp_path / "no" / "such" / "folder"), "no")


def test_damaged_models(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert run("memorize", "wine", "--out", out).code == 0
    weights = (out / "model.safetensors").read_bytes()
    changed = bytearray(weights)
    changed[-3] ^= 1
    write(out / "model.safetensors", bytes(changed))
    refused(run("verify", out, "wine"), "digest")
    write(out / "model.safetensors", weights[:50])
    refused(run("verify", out, "wine"), "model.safetensors")
    write(out / "model.safetensors", pickle.dumps([1]))
    refused(run("predict", out, "wine"), "model.safetensors")
    write(out / "model.safetensors", weights)
    write(out / "certificate.json", "{}")
    refused(run("verify", out, "wine"), "certificate.json")
    refused(run("verify", tmp_path / "nowhere", "wine"), "nowhere")


def test_other_data_than_the_model_takes(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert run("memorize", "wine", "--out", out).code == 0
    refused(run("verify", out, "digits"), "no input column 'alcohol'")
    np.savez(tmp_path / "few.npz", x=np.zeros((3, 5)), y=np.zeros(3, dtype=int))
    refused(run("predict", out, tmp_path / "few.npz"), "13")
