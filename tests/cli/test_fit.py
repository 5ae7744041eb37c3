"""``isthmus fit`` and the instruments of ``isthmus inspect`` that look at what it saved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import isthmus
from isthmus.cli.fit import _bytes
from isthmus.export import load_constraint, load_model

from .conftest import Run
from .test_bad_input import refused

ROWS = "gaussian:n=60,d=6,task=regression"
CLASSES = "gaussian:n=80,d=6,k=3"


def test_fit_saves_what_verify_confirms(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "model"
    seen = run("fit", ROWS, "--out", out, "--onnx", "--json")
    assert seen.code == 0
    assert set(seen.json) >= {"model", "history", "final", "seconds", "certificate"}
    assert set(seen.json["final"]) == {"loss", "accuracy", "sigma_min", "kkt"}
    assert seen.json["final"]["loss"] <= 1e-20
    assert seen.json["certificate"]["backends"][0]["wrong"] == 0
    assert run("verify", out, ROWS).code == 0
    assert not (tmp_path / "model.checkpoint").exists()
    # An oracle of its own: the weights as stored, in NumPy.
    model, data = load_model(out), isthmus.load(ROWS)
    (w, b), (u, c) = ((layer.weight.numpy(), layer.bias.numpy()) for layer in (model[0], model[2]))
    x = data.x.double().numpy()
    np.testing.assert_allclose(np.tanh(x @ w.T + b) @ u.T + c, data.y.numpy(), atol=1e-8)


def test_the_ball_is_saved_and_inspected(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "model"
    seen = run("fit", ROWS, "--out", out, "--radius", 0.1, "--no-bias", "--json")
    assert seen.code == 0
    kkt = seen.json["final"]["kkt"]
    assert kkt["primal"] == 0.0
    assert kkt["loss"] < 1e-15
    constraint = load_constraint(out)
    assert constraint is not None
    center = constraint.center["0.weight"]
    assert torch.equal(*center.chunk(2))
    model = load_model(out)
    assert 0 < float(torch.linalg.vector_norm(model[0].weight - center)) <= 0.1
    looked = run("inspect", out, ROWS, "--kkt", "--json").json
    assert looked["kkt"]["stationarity"] == pytest.approx(kkt["stationarity"], rel=1e-6)
    assert looked["kkt"]["radius"]["sigma_min"] == pytest.approx(seen.json["final"]["sigma_min"])


def test_instruments_by_name_and_all_at_once(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert run("fit", CLASSES, "--out", out, "--width", 13).code == 0
    named = run("inspect", out, CLASSES, "--margins", "--spectrum", "--json").json
    assert set(named) == {"margins", "spectrum"}
    assert named["margins"]["wrong"] == 0
    assert named["margins"]["rows"] == 80
    data, model = isthmus.load(CLASSES), load_model(out)
    output = model(data.x.double()).detach()
    own = output.gather(1, data.y[:, None])[:, 0]
    best = output.scatter(1, data.y[:, None], -torch.inf).amax(1)
    assert named["margins"]["quantiles"]["0.0"] == pytest.approx(float((own - best).min()), rel=1e-12)
    assert named["spectrum"]["rows"] == 80
    every = run("inspect", out, CLASSES, "--json")
    assert every.code == 0
    assert set(every.json) == {"margins", "kkt", "spectrum", "pieces"}
    assert "without a constraint" in every.json["kkt"]["reason"]
    refused(run("inspect", out, CLASSES, "--kkt"), "without a constraint")


def test_smallest_names_every_width_tried(run: Run, tmp_path: Path) -> None:
    seen = run("fit", CLASSES, "--out", tmp_path / "model", "--width", "smallest", "--json")
    assert seen.code == 0
    fitting = [trial["width"] for trial in seen.json["tried"] if trial["solved"]]
    assert seen.json["model"]["hidden_units"] == min(fitting)
    assert seen.json["certificate"]["wrong"] == 0


def test_a_missed_target_loss_is_no(run: Run, tmp_path: Path) -> None:
    seen = run("fit", ROWS, "--out", tmp_path / "m", "--width", 2, "--target-loss", 1e-10, "--iterations", 5)
    assert seen.code == 1
    assert "5 iterations were not enough" in seen.err
    assert not (tmp_path / "m").exists()
    assert (tmp_path / "m.checkpoint").exists()


def test_resume_goes_on(run: Run, tmp_path: Path) -> None:
    options = ("--method", "lm", "--width", 10, "--json")
    whole = run("fit", ROWS, "--out", tmp_path / "whole", *options).json
    assert run("fit", ROWS, "--out", tmp_path / "part", *options, "--iterations", 3).code == 1
    again = run("fit", ROWS, "--out", tmp_path / "part", *options, "--resume").json
    assert [step["loss"] for step in again["history"]] == [step["loss"] for step in whole["history"]]
    one, two = (load_model(tmp_path / name).state_dict() for name in ("whole", "part"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    refused(run("fit", ROWS, "--out", tmp_path / "x", "--radius", 1, "--resume"), "keeps no checkpoint")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--width", "many"), "not a width"),
        (("--width", "0"), "1 or more"),
        (("--width", "7", "--method", "chord"), "even width"),
        (("--width", "2", "--method", "chord"), "at least"),
        (("--radius", "-1"), "above 0"),
        (("--radius", "1", "--method", "lm"), "leave one of them out"),
        (("--targets", "softmax"), "its targets are values"),
        (("--memory", "lots"), "not a size"),
        (("--memory", "1KB"), "too small"),
        (("--device", "nope"), "cannot be used here"),
        (("--target-loss", "2"), "below 1"),
    ],
)
def test_bad_options_are_one_sentence(run: Run, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    refused(run("fit", ROWS, "--out", tmp_path / "model", *options), words)
    assert list(tmp_path.iterdir()) == []


def test_sizes_are_bytes() -> None:
    assert [_bytes(text) for text in ("500MB", "1.5GB", "2gib", "7 KB", None)] == [
        500_000_000, 1_500_000_000, 2**31, 7000, None,
    ]  # fmt: skip


def test_a_damaged_constraint_is_refused(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert run("fit", ROWS, "--out", out, "--radius", 1).code == 0
    (out / "regime.safetensors").write_bytes(b"no tensors")
    refused(run("inspect", out, ROWS, "--kkt"), "does not hold a constraint")
    described = json.loads((out / "model.json").read_text())
    assert described["kind"] == "chord"
