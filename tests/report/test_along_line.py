"""The figure of a network along a line: written whole or not at all, in every format, whatever it shows."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from isthmus.bounds.pieces import linear_pieces
from isthmus.errors import InputError
from isthmus.report.along_line import COLORS, FORMATS, SPARSE, draw_along_line, rows_on_line


def pieces(hidden, outputs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, outputs)).double()
    with torch.no_grad():  # kinks between 0 and 1
        model[0].weight.fill_(1.0)
        model[0].bias.copy_(-torch.linspace(0.001, 0.999, hidden))
    return linear_pieces(model, [0.0], [1.0])


def draw(path, hidden=5, outputs=1, rows=7):
    found = pieces(hidden, outputs)
    places = np.linspace(0, 1, rows)
    draw_along_line(
        path,
        found,
        places,
        found.at(places).astype(float),
        ("row 1", "row 7"),
        [f"class {k}" for k in range(outputs)],
    )
    return path


@pytest.mark.parametrize("form", FORMATS)
def test_every_format(tmp_path, form):
    beginning = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[form]
    assert draw(tmp_path / f"figure.{form}").read_bytes().startswith(beginning)
    assert [file.name for file in tmp_path.iterdir()] == [f"figure.{form}"]


def test_thousands_of_breakpoints_are_one_image_and_an_enlargement(tmp_path):
    few, many = draw(tmp_path / "few.svg"), draw(tmp_path / "many.svg", hidden=20 * SPARSE, rows=20 * SPARSE)
    assert "<image" not in few.read_text()
    assert "<image" in many.read_text()
    assert many.read_text().count('id="axes_') == few.read_text().count('id="axes_') + 1
    assert len(many.read_bytes()) < 500_000


def test_as_many_outputs_as_colors(tmp_path):
    figure = draw(tmp_path / "figure.svg", outputs=len(COLORS) + 3).read_text()
    used = set(re.findall(r"stroke: (#[0-9a-f]{6})", figure))
    assert {color.lower() for color in COLORS} <= used


def test_one_piece_and_two_rows_that_are_equal(tmp_path):
    flat = nn.Linear(1, 1)
    nn.init.zeros_(flat.weight)
    found = linear_pieces(flat, [0.0], [1.0])
    draw_along_line(tmp_path / "flat.svg", found, np.array([0.0, 1.0]), found.at([0, 1]), ("a", "b"), ["y"])


@pytest.mark.parametrize("name", ["figure.jpg", "figure"])
def test_other_formats_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"\.svg, \.png, \.pdf"):
        draw(tmp_path / name)
    with pytest.raises(InputError, match="cannot be written"):
        draw(tmp_path / "nowhere" / "figure.svg")
    assert not any(tmp_path.iterdir())


def test_rows_on_line():
    random = torch.Generator().manual_seed(0)
    start, stop = torch.randn(2, 9, generator=random, dtype=torch.float64)
    t = torch.tensor([0.0, 1.0, -3.7, 0.1, 1e6], dtype=torch.float64)
    on = start + t[:, None] * (stop - start)
    off = on + 1e-5 * torch.randn(5, 9, generator=random, dtype=torch.float64) * (1 + t[:, None].abs())
    rows, places = rows_on_line(torch.cat([off, on]), start, stop)
    assert rows.tolist() == [5, 6, 7, 8, 9]
    np.testing.assert_allclose(places, t, atol=1e-9)
