"""``isthmus patch`` as a person calls it: files in, files out, one sentence when something is wrong."""

import csv

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import isthmus
from isthmus.export import save
from tests.patch.test_onnx import converted, fitted
from tests.saved import result as certified

KEYS = {
    "cases",
    "wrong",
    "repaired",
    "proven",
    "gates",
    "added_units",
    "touched_fraction",
    "measures",
    "model",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An ONNX classifier of digits, a model directory of wine, and tables of cases and others for both."""
    from sklearn.neural_network import MLPClassifier

    folder = tmp_path_factory.mktemp("patch")
    digits = isthmus.load("digits")
    x, y = digits.flat.numpy().astype(np.float32), digits.y.numpy()
    model = fitted(MLPClassifier((12,), max_iter=15, random_state=0), x[:900], y[:900])
    (folder / "net.onnx").write_bytes(converted(model, x, options={"zipmap": False}).SerializeToString())
    write(folder / "cases.csv", x[900:1200], y[900:1200])
    write(folder / "others.csv", x[:900], y[:900])

    wine = isthmus.load("wine")
    torch.manual_seed(0)
    scale = nn.Linear(13, 13).double()
    scale.weight.data = torch.diag(1 / wine.x.std(0))
    scale.bias.data = -wine.x.mean(0) / wine.x.std(0)
    save(folder / "model", certified(nn.Sequential(scale, nn.ReLU(), nn.Linear(13, 3).double()), wine))
    return folder


def write(path, x, y):
    names = ",".join([*(f"p{i}" for i in range(x.shape[1])), "label"])
    np.savetxt(path, np.column_stack([x, y]), delimiter=",", header=names, comments="", fmt="%g")


def test_an_onnx_file(place, tmp_path, run):
    out, table = tmp_path / "out.onnx", tmp_path / "table.csv"
    before = (place / "net.onnx").read_bytes()
    arguments = [place / "net.onnx", place / "cases.csv", "--reference", place / "others.csv", "--out", out]
    result = run("patch", *arguments, "--table", table, "--json").json
    assert KEYS <= set(result)
    assert (result["cases"], result["repaired"]) == (300, result["wrong"])
    assert result["added_units"] == 3 * result["gates"]
    assert (place / "net.onnx").read_bytes() == before
    data = isthmus.load(str(place / "cases.csv"))
    session = onnxruntime.InferenceSession(out.read_bytes(), providers=["CPUExecutionProvider"])
    labels = session.run(["label"], {"X": data.x.numpy().astype(np.float32)})[0]
    assert np.array_equal(labels, np.array(data.classes)[data.y.numpy()])
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 300
    assert sum(row["gate"] != "" for row in rows) == result["wrong"]

    text = run("patch", *arguments, "--force").out
    assert f"saved       {out}" in text
    assert "touched" in text

    wrong = [row["row"] for row in rows if row["gate"]][:2]
    back = tmp_path / "back.onnx"
    fewer = [out, place / "cases.csv", "--reference", place / "others.csv", "--out", back]
    result = run("patch", *fewer, "--remove", ",".join(wrong), "--json").json
    assert result["repaired"] == len([row for row in rows if row["gate"]]) - 2
    for wanted, arguments in (
        ("case 9999", [*fewer, "--force", "--remove", "9999"]),
        ("neither 'all' nor a list", [*fewer, "--force", "--remove", "x"]),
        ("for other cases", [out, place / "others.csv", "--out", back, "--force", "--remove", "1"]),
        ("no patch", [place / "net.onnx", place / "cases.csv", "--out", back, "--force", "--remove", "all"]),
    ):
        refused = run("patch", *arguments)
        assert refused.code == 2
        assert wanted in refused.err
    assert run("patch", out, place / "cases.csv", "--out", back, "--force", "--remove", "all").code == 0
    whole = onnxruntime.InferenceSession(back.read_bytes(), providers=["CPUExecutionProvider"])
    first = onnxruntime.InferenceSession(before, providers=["CPUExecutionProvider"])
    feed = {"X": data.x.numpy().astype(np.float32)}
    for one, two in zip(first.run(None, feed), whole.run(None, feed), strict=True):
        assert np.array_equal(one, two)


def test_a_model_directory(place, tmp_path, run):
    out = tmp_path / "out"
    result = run("patch", place / "model", "wine", "--out", out, "--onnx", "--json").json
    assert result["repaired"] == result["proven"] == result["wrong"] > 20
    assert result["touched_fraction"] is None
    for backend in ("numpy", "torch", "onnxruntime", "exact"):
        assert run("verify", out, "wine", "--backend", backend).code == 0
    assert run("verify", place / "model", "wine").code == 1
    back = tmp_path / "back"
    assert run("patch", out, "wine", "--out", back, "--remove", "all").code == 0
    one, two = isthmus.load_model(place / "model"), isthmus.load_model(back)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert list(one.state_dict()) == list(two.state_dict())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["net.onnx", "cases.csv", "--out", "out"], 2, "is an .onnx file"),
        (["model", "cases.csv", "--out", "out.onnx"], 2, "is a model directory"),
        (["net.onnx", "cases.csv", "--out", "net.onnx"], 2, "exists already"),
        (["net.onnx", "missing.csv", "--out", "out.onnx"], 2, "missing.csv"),
        (["net.onnx", "wine", "--out", "out.onnx"], 2, "13 inputs in a row, but the model takes 64"),
        (["net.onnx", "cases.csv", "--out", "out.onnx", "--max-touched", "0.1"], 2, "needs reference rows"),
        (["net.onnx", "cases.csv", "--out", "out.onnx", "--onnx"], 2, "--onnx is for model directories"),
        (
            ["net.onnx", "cases.csv", "--out", "out.onnx", "--reference", "others.csv", "--max-touched", "0"],
            1,
            "more than the 0 allowed",
        ),
    ],
)
def test_refusals(place, run, monkeypatch, arguments, code, said):
    monkeypatch.chdir(place)
    before = sorted(path.name for path in place.iterdir())
    refused = run("patch", *arguments)
    assert refused.code == code
    assert said in refused.err
    assert refused.err.count("\n") == 1
    assert sorted(path.name for path in place.iterdir()) == before
