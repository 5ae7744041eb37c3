"""``isthmus inspect``: the count, the bounds, the figure, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import isthmus
from isthmus import _extras
from isthmus.bounds.pieces import linear_pieces
from tests.saved import named_by, random_network, saved

from .conftest import Run
from .test_bad_input import refused

KEYS = {
    "from", "to", "count", "per_output", "by_unit", "by_layer", "exact",
    "breakpoints", "slopes", "intercepts",
}  # fmt: skip


@pytest.fixture
def zigzag(tmp_path: Path) -> Path:
    """A network of ten ReLU through the zigzag of ten rows."""
    data = isthmus.load("zigzag:n=10")
    first, last = nn.Linear(1, 10, dtype=torch.float64), nn.Linear(10, 1, dtype=torch.float64)
    with torch.no_grad():
        first.weight.fill_(1.0)
        first.bias.copy_(-torch.arange(10.0))
        last.weight.copy_(torch.tensor([[0.0, 2.0, *(4.0 * (-1) ** k for k in range(1, 9))]]))
        last.bias.fill_(-1.0)
    return saved(tmp_path / "model", nn.Sequential(first, nn.ReLU(), last), data)


def test_pieces_of_a_zigzag(run: Run, zigzag: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for flags in ((), ("--pieces",), ("--arithmetic", "float64")):
        seen = run("inspect", zigzag, "zigzag:n=10", *flags, "--json")
        assert seen.code == 0
        assert set(seen.json) == ({"pieces"} if flags else {"margins", "kkt", "spectrum", "pieces"})
        found = seen.json["pieces"]
        assert set(found) == KEYS
        assert (found["from"], found["to"], found["count"]) == (1, 10, 10)
        assert (found["by_unit"], found["by_layer"]) == (11, 11)
        assert found["exact"] == ("float64" not in flags)
        np.testing.assert_allclose(found["breakpoints"], np.arange(9) / 9, atol=1e-12)
    monkeypatch.setattr("isthmus.cli.instruments.LISTED", 5)
    assert run("inspect", zigzag, "zigzag:n=10", "--json").json["pieces"]["breakpoints"] is None
    text = run("inspect", zigzag, "zigzag:n=10", "--from", 3, "--to", 2).out
    assert "row 3 (t = 0) to row 2 (t = 1) of zigzag" in text
    assert "10, exactly" in text
    assert "paper's bound  11" in text
    assert "sharper bound  11" in text


def test_the_line_leads_through_the_rows_as_the_model_takes_them(run: Run, tmp_path: Path) -> None:
    model = random_network(0, [3, 8, 4], nn.Hardtanh(), dtype=torch.float32)
    table = tmp_path / "table.csv"
    x = np.random.default_rng(0).normal(size=(6, 3))
    columns = ("a", "b", "c")
    data = named_by(model, torch.from_numpy(x), columns=columns)
    lines = [
        ",".join([*(str(row[k]) for k in (2, 0, 1)), str(int(y))]) for row, y in zip(x, data.y, strict=True)
    ]
    table.write_text("\n".join(["c,a,b,y", *lines]))
    path = saved(tmp_path / "model", model, data)
    seen = run("inspect", path, table, "--from", 2, "--to", 5, "--json", "--draw", tmp_path / "f.svg")
    expected = linear_pieces(model, *torch.from_numpy(x[[1, 4]]).float())
    assert seen.json["pieces"]["breakpoints"] == expected.to_dict()["breakpoints"]
    assert seen.json["pieces"]["file"] == str(tmp_path / "f.svg")


@pytest.mark.parametrize("name", ["figure.svg", "figure.png", "figure.PDF"])
def test_draw(run: Run, zigzag: Path, tmp_path: Path, name: str) -> None:
    seen = run("inspect", zigzag, "zigzag:n=10", "--draw", tmp_path / name)
    assert seen.code == 0
    assert f"drawn          {tmp_path / name}" in seen.out
    assert (tmp_path / name).stat().st_size > 1000


def test_bad_input(run: Run, zigzag: Path, tmp_path: Path) -> None:
    data = "zigzag:n=10"
    refused(run("inspect", tmp_path / "nothing", data), "no such model directory")
    refused(run("inspect", zigzag, "nothing.csv"), "nothing.csv")
    refused(run("inspect", zigzag, "zigzag:n=10,d=2"), "2 inputs in a row, but the model takes 1")
    refused(run("inspect", zigzag, data, "--from", 0), "--from 0", "rows 1 to 10")
    refused(run("inspect", zigzag, data, "--to", 11), "--to 11", "rows 1 to 10")
    refused(run("inspect", zigzag, data, "--from", 10), "same point")
    refused(run("inspect", zigzag, data, "--arithmetic", "float32"), "float32")


def test_figures_that_are_refused(
    run: Run, zigzag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, figure = "zigzag:n=10", tmp_path / "figure.svg"
    named = f"{data},task=classification"
    refused(run("inspect", zigzag, data, "--draw", tmp_path / "figure.bmp"), "figure.bmp", ".svg, .png, .pdf")
    refused(run("inspect", zigzag, data, "--draw", tmp_path / "no" / "figure.svg"), "cannot be written")
    refused(run("inspect", zigzag, named, "--draw", figure), "regression", "choose the task")
    model = random_network(0, [1, 4, 2], nn.ReLU())
    classes = saved(tmp_path / "classes", model, named_by(model, [[0.0], [1.0]], classes=("a", "b")))
    refused(run("inspect", classes, named, "--draw", figure), "no class -1")
    two = saved(tmp_path / "two", model, (torch.zeros(2, 1), torch.rand(2, 2)))
    refused(run("inspect", two, data, "--draw", figure), "1 targets, but the model has 2 outputs")

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(_extras, "import_module", missing)
    refused(run("inspect", zigzag, data, "--draw", figure), "isthmus[plots]")
    assert not figure.exists()


def test_smooth_networks_have_no_pieces(run: Run, tmp_path: Path) -> None:
    model = random_network(0, [1, 4, 1], nn.Tanh())
    x = torch.linspace(0, 1, 5)[:, None].double()
    path = saved(tmp_path / "model", model, (x, model(x)))
    refused(run("inspect", path, "zigzag:n=5", "--pieces"), "no linear pieces")
