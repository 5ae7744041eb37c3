"""A figure of a network's outputs along a line, with its breakpoints and the rows of data on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from isthmus._extras import require
from isthmus._types import PathLike
from isthmus.bounds.pieces import Pieces, in_few_digits
from isthmus.errors import InputError
from isthmus.files import whole_file

FORMATS: Final = ("svg", "png", "pdf")
# Okabe and Ito's colors, told apart by the color-blind too; their yellow is too pale for lines.
COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARK: Final = "#555555"
ON_LINE: Final = 1e-9  # a row is on the line if it is this near, relative to the sizes of what is compared
CHUNK_VALUES: Final = 1 << 22  # inputs compared at a time
SPARSE: Final = 150  # so many marks stand apart from each other


def require_format(path: PathLike) -> str:
    """The figure format that a file's name asks for.

    Raises:
        InputError: it is none of `FORMATS`.
    """
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise InputError(f"{path}: figures are written as {', '.join('.' + name for name in FORMATS)} only.")
    return suffix


def rows_on_line(x: Tensor, start: Tensor, stop: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows that lie on a line, up to rounding.

    Args:
        x: rows [N, d].
        start: the point [d] at t = 0.
        stop: the point [d] at t = 1.

    Returns:
        Their numbers, from 0 and ascending [n], and their places t on the line [n].
    """
    start, direction = start.double(), stop.double() - start.double()
    places, near = [], []
    for part in x.split(max(1, CHUNK_VALUES // len(start))):
        away = part.double() - start
        place = away @ (direction / direction.square().sum())
        reach = away.norm(dim=1) + start.norm() + direction.norm()
        near.append((away - place[:, None] * direction).norm(dim=1) <= ON_LINE * reach)
        places.append(place)
    rows = torch.cat(near).nonzero().squeeze(1)
    return rows.numpy(), torch.cat(places)[rows].numpy()


def draw_along_line(
    path: PathLike,
    pieces: Pieces,
    places: np.ndarray,
    targets: np.ndarray,
    ends: tuple[str, str],
    outputs: Sequence[str],
) -> None:
    """Write a figure of the outputs along the part of the line where rows are.

    Args:
        path: the file's place; its ending says the format, one of `FORMATS`.
        pieces: what was counted along the line.
        places: where rows of data are on it, t [n].
        targets: what the outputs should be there [n, K].
        ends: names of the rows at t = 0 and t = 1.
        outputs: names of the outputs.

    Raises:
        InputError: another format, or the file cannot be written.
        MissingExtra: matplotlib is not installed.
    """
    form = require_format(path)
    low, high = min(0.0, *places), max(1.0, *places)
    breaks = pieces.breakpoints.astype(np.float64)
    breaks = breaks[(breaks >= low) & (breaks <= high)]
    dense = len(breaks) > SPARSE
    figure = require("matplotlib.figure", "drawing").Figure(
        figsize=(9, 7.5 if dense else 4.5), layout="constrained", dpi=150
    )
    panels = figure.subplots(2 if dense else 1, squeeze=False)[:, 0]

    values = pieces.at(np.concatenate([[low], breaks, [high]])).astype(np.float64)
    shown = np.sort(np.argsort(-np.ptp(values, axis=0), kind="stable")[: len(COLORS)])
    _panel(panels[0], pieces, (low, high), places, targets, shown)
    for place, name in zip((0.0, 1.0), ends, strict=True):
        panels[0].axvline(place, color=MARK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        panels[0].annotate(
            name, (place, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
            ha="center", va="bottom", color=MARK, fontsize=9,
        )  # fmt: skip
    title = f"{pieces.count:,} linear piece{'s' * (pieces.count > 1)}{'' if pieces.exact else ' in float64'}"
    title += f", at most {in_few_digits(pieces.by_layer)}"
    notes = []
    if len(breaks) < pieces.count - 1:
        notes.append(f"breakpoints beyond the rows: {pieces.count - 1 - len(breaks):,}")
    if len(shown) < len(outputs):
        notes.append(f"the {len(shown)} of {len(outputs)} outputs that vary most")
    title += "\n" * bool(notes) + "; ".join(notes)
    panels[0].set_title(title, fontsize=11, loc="left", pad=18)
    if dense:
        middle = len(breaks) // 2
        part = breaks[middle - SPARSE // 4], breaks[middle + SPARSE // 4]
        _panel(panels[1], pieces, part, places, targets, shown)
        panels[1].set_title(f"enlarged: {SPARSE // 2} breakpoints in the middle", fontsize=10, loc="left")
    panels[-1].set_xlabel("t, the place on the line")
    _legend(figure, [outputs[output] for output in shown] if len(outputs) > 1 else [])
    with whole_file(path) as draft:
        figure.savefig(draft, format=form)


def _panel(
    axes: Any,
    pieces: Pieces,
    part: tuple[float, float],
    places: np.ndarray,
    targets: np.ndarray,
    shown: np.ndarray,
) -> None:
    """Outputs, breakpoints and rows on a part of the line, with a little on both sides of it."""
    low, high = part
    margin = 0.04 * (high - low)
    breaks = pieces.breakpoints.astype(np.float64)
    breaks = breaks[(breaks > low - margin) & (breaks < high + margin)]
    rows = (places >= low - margin) & (places <= high + margin)
    t = np.sort(np.concatenate([[low - margin, low], breaks, [high, high + margin]]))
    values = pieces.at(t).astype(np.float64)[:, shown]
    goals = targets[rows][:, shown]
    dense = max(len(breaks), rows.sum()) > SPARSE
    for color, curve, goal in zip(COLORS, values.T, goals.T, strict=False):
        axes.plot(t, curve, color=color, linewidth=0.3 if dense else 1.1, rasterized=dense)
        size = (
            {"markersize": 2, "markeredgewidth": 0}
            if dense
            else {"markersize": 5, "markerfacecolor": "white"}
        )
        axes.plot(places[rows], goal, "o", color=color, rasterized=dense, zorder=3, **size)
    axes.plot(
        breaks,
        np.full(len(breaks), 0.02),
        "|",
        color=MARK,
        markersize=9,
        markeredgewidth=0.2 if dense else 0.8,
        transform=axes.get_xaxis_transform(),
        rasterized=dense,
    )
    # Outside the rows a ray may be so steep that nothing else would be seen.
    seen = np.concatenate([values[(t >= low) & (t <= high)], goals])
    room = np.ptp(seen) or 1.0
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(seen.min() - 0.12 * room, seen.max() + 0.06 * room)
    axes.set_ylabel("output")
    axes.yaxis.set_major_formatter("{x:g}")  # a common factor would stand where rows are named
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Any, outputs: Sequence[str]) -> None:
    """Below the panels, where it covers nothing."""
    line = require("matplotlib.lines", "drawing").Line2D
    handles = [line([], [], color=color, label=name) for color, name in zip(COLORS, outputs, strict=False)]
    for marker, label in (("|", "breakpoint"), ("o", "row on the line, at its target")):
        style = {"linestyle": "", "markerfacecolor": "white"}
        handles.append(line([], [], color=MARK, marker=marker, label=label, **style))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
