"""Every command as a user runs it: results, exit codes, JSON keys."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

from isthmus._types import Rule
from isthmus.bounds.deep import MINIMIZE
from isthmus.cli.memorize import command as memorize_command
from isthmus.memorize.plan import Method

from .conftest import Run

KEYS = {
    "bounds": {"id", "paper", "network", "direction", "widths", "hidden_units", "parameters", "condition"},
    "model": {"kind", "widths", "hidden_units", "parameters", "activation", "dtype"},
    "verify": {
        "verified", "rows", "wrong", "max_error", "margin", "bound", "proven", "level", "backend",
    },
}  # fmt: skip


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A CSV file of 60 rows with named classes."""
    random = np.random.default_rng(0)
    path = tmp_path / "flowers.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["petal", "sepal", "kind"])
        for row in random.normal(size=(60, 2)):
            writer.writerow([*row, random.choice(["iris", "lily", "rose"])])
    return path


def test_help_needs_no_torch() -> None:
    script = "import sys; from isthmus.cli import app; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_bounds(run: Run) -> None:
    seen = run("bounds", "digits", "--json")
    assert seen.code == 0
    assert seen.json["data"] == {
        "rows": 1797, "inputs": 64, "outputs": 10, "task": "classification", "distinct": 1797, "rank": 61,
    }  # fmt: skip
    assert all(KEYS["bounds"] | {"assumptions", "met"} == set(bound) for bound in seen.json["bounds"])


def test_bounds_without_data_print_the_published_numbers(run: Run) -> None:
    bounds = {b["id"]: b for b in run("bounds", "shape:n=50000,d=3072,k=10", "--json").json["bounds"]}
    assert [bounds[name]["hidden_units"] for name in ("4.2 R", "4.1 R", "Hardt-Ma 2017")] == [
        106,
        126,
        50_010,
    ]
    text = run("bounds", "shape:n=1000000,d=3072,k=1000").out
    assert "2,000 2,000 4,000" in text
    assert "unchecked" in text


def test_memorize_verify_predict_export(run: Run, table: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    built = run("memorize", table, "--out", model, "--level", "bitwise", "--json", "--quiet")
    assert built.code == 0
    assert built.err == ""
    assert KEYS["model"] == set(built.json["model"])
    assert built.json["certificate"]["level"] == "bitwise"
    assert built.json["tried"][-1]["hidden_units"] == built.json["model"]["hidden_units"]
    assert set(built.json["seconds"]) == {"build", "certify", "export"}
    assert {file.name for file in model.iterdir()} == {"model.safetensors", "model.json", "certificate.json"}

    for backend in ("numpy", "torch", "exact"):
        verified = run("verify", model, table, "--backend", backend, "--json")
        assert verified.code == 0
        assert KEYS["verify"] <= set(verified.json)
        assert verified.json["verified"] is True
        assert verified.json["proven"] is True

    expected = [line.rpartition(",")[2] for line in table.read_text().splitlines()[1:]]
    assert run("predict", model, table, "--json").json["predictions"] == expected
    assert run("predict", model, table, "--out", tmp_path / "labels.csv").code == 0
    assert (tmp_path / "labels.csv").read_text().split() == expected

    exported = run("export", model, "--onnx", tmp_path / "net.onnx", "--data", table, "--json")
    assert exported.code == 0
    assert exported.json["backends"][0]["wrong"] == 0


def test_export_matches_classes_by_name(run: Run, table: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    assert run("memorize", table, "--out", model).code == 0
    lines = table.read_text().splitlines()
    part = tmp_path / "part.csv"
    part.write_text("\n".join([lines[0], *(line for line in lines if line.endswith(("lily", "rose")))]))
    seen = run("export", model, "--onnx", tmp_path / "net.onnx", "--data", part, "--json")
    assert seen.code == 0
    assert seen.json["backends"][0]["wrong"] == 0
    assert run("export", model, "--onnx", tmp_path / "net.onnx", "--data", "wine").code == 2


def test_verify_says_no_with_exit_code_1(run: Run, table: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    assert run("memorize", table, "--out", model).code == 0
    lines = table.read_text().splitlines()
    lines[7] = lines[7].rpartition(",")[0] + (",iris" if lines[7].endswith("rose") else ",rose")
    changed = tmp_path / "changed.csv"
    changed.write_text("\n".join(lines))
    seen = run("verify", model, changed, "--json")
    assert seen.code == 1
    assert seen.json["wrong"] == 1
    assert seen.json["first_wrong"] == [7]


def test_regression_in_plain_words(run: Run, tmp_path: Path) -> None:
    seen = run("memorize", "diabetes", "--rows", 60, "--out", tmp_path / "model")
    assert seen.code == 0
    assert "gates" in seen.out
    assert "proven" in seen.out
    assert run("verify", tmp_path / "model", "diabetes", "--rows", 60).code == 0


def test_options_reach_the_library(run: Run, tmp_path: Path) -> None:
    seen = run(
        "memorize", "sphere:n=64,d=3,k=4", "--out", tmp_path / "model", "--widths", "32,32,16",
        "--activation", "relu", "--rule", "paper", "--labels", "random", "--seed", 3, "--json",
    )  # fmt: skip
    assert seen.code == 0
    assert seen.json["model"]["activation"] == "relu"
    assert seen.json["model"]["widths"] == [32, 32, 16]


def test_the_same_seed_writes_the_same_bits(run: Run, tmp_path: Path) -> None:
    digests = [
        run(
            "memorize", "wine", "--method", "classifier", "--out", tmp_path / name, "--seed", seed, "--json"
        ).json["certificate"]["model_digest"]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_not_certified_is_exit_code_1(run: Run, tmp_path: Path) -> None:
    seen = run("memorize", "diabetes", "--tolerance", 1e-15, "--budget", 0, "--out", tmp_path / "model")
    assert seen.code == 1
    assert "tolerance" in seen.err
    assert not (tmp_path / "model").exists()


def test_doctor(run: Run) -> None:
    seen = run("doctor", "--json")
    assert seen.code == 0
    assert seen.json["versions"]["torch"]


@pytest.mark.parametrize(
    ("option", "choices"), [("method", get_args(Method)), ("minimize", MINIMIZE), ("rule", get_args(Rule))]
)
def test_the_command_offers_what_the_library_does(option: str, choices: tuple[str, ...]) -> None:
    """Spelled out there, so that help needs no torch."""
    hint = get_type_hints(memorize_command)[option]
    offered = [get_args(part) for part in (hint, *get_args(hint))]
    assert choices in offered


@pytest.mark.parametrize(
    ("options", "widths"),
    [
        (("--depth", 6, "--minimize", "width"), 5),
        (("--method", "residual", "--depth", 4), 4),
        (("--method", "zigzag", "--activation", "relu"), 2),
    ],
)
def test_deep_residual_and_zigzag_networks(
    run: Run, tmp_path: Path, options: tuple[object, ...], widths: int
) -> None:
    data = "gaussian:n=60,d=6,k=3"
    built = run("memorize", data, "--out", tmp_path / "model", *options, "--onnx", "--json")
    assert built.code == 0
    assert len(built.json["model"]["widths"]) == widths
    assert built.json["certificate"]["backends"][0]["wrong"] == 0
    for backend in ("numpy", "torch", "onnxruntime", "exact"):
        seen = run("verify", tmp_path / "model", data, "--backend", backend, "--json")
        assert (seen.code, seen.json["wrong"]) == (0, 0)
