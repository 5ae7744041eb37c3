"""Where a solver stands, in a file from which it goes on bit for bit.

Levenberg-Marquardt writes every point. A search for the smallest width writes every width that is done: what
it does next depends on these alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from isthmus._types import PathLike
from isthmus.errors import InputError
from isthmus.files import whole_file
from isthmus.narrow.solver.levenberg import Base, Point
from isthmus.narrow.solver.outcome import Outcome, Step, Trial

KEY = "isthmus-checkpoint"


def write_point(path: PathLike, point: Point, recipe: dict[str, Any]) -> None:
    """Put a point in a file, whole or not at all.

    Args:
        path: the file's place.
        point: the state.
        recipe: of the run that it belongs to.

    Raises:
        InputError: the file cannot be written.
    """
    tensors = {"weight": point.weight, "outer": point.outer}
    if point.base is not None:
        tensors |= {f"base.{name}": tensor for name, tensor in vars(point.base).items()}
    _write(path, tensors, {"damping": point.damping, "history": _plain(point.history), "recipe": recipe})


def read_point(path: PathLike, recipe: dict[str, Any], start: Point) -> Point | None:
    """The point in a file; None if there is no file.

    Args:
        path: the file's place.
        recipe: of the run that is to go on.
        start: where the run would begin, which the point has its shapes and device of.

    Raises:
        InputError: the file is damaged, or of another run.
    """
    read = _read(path, recipe, start.weight.device)
    if read is None:
        return None
    state, tensors = read
    try:
        base = {
            name.removeprefix("base."): tensor for name, tensor in tensors.items() if name.startswith("base.")
        }
        point = Point(
            tensors["weight"],
            tensors["outer"],
            float(state["damping"]),
            _steps(state["history"]),
            Base(**base) if base else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(_damaged(path, error)) from None
    pairs = [(point.weight, start.weight), (point.outer, start.outer)]
    if point.base is not None:
        pairs += [(point.base.weight, start.weight), (point.base.outer, start.outer)]
    for found, expected in pairs:
        fits = found.shape == expected.shape and found.dtype == expected.dtype
        if not (fits and found.isfinite().all()):
            raise InputError(_damaged(path, "its weights are not those of this run"))
    return point


def write_trials(path: PathLike, done: Sequence[tuple[Trial, Outcome]], recipe: dict[str, Any]) -> None:
    """Put all widths that were tried in a file, whole or not at all.

    Args:
        path: the file's place.
        done: in order.
        recipe: of the run that they belong to.

    Raises:
        InputError: the file cannot be written.
    """
    tensors = {}
    for number, (_, outcome) in enumerate(done):
        named = {"weight": outcome.weight, "outer": outcome.outer, "center": outcome.center}
        tensors |= {f"{number}.{name}": tensor for name, tensor in named.items()}
    trials = [
        {
            "trial": asdict(trial),
            "loss": outcome.loss,
            "history": _plain(outcome.history),
            "failure": outcome.failure,
        }
        for trial, outcome in done
    ]
    _write(path, tensors, {"trials": trials, "recipe": recipe})


def read_trials(path: PathLike, recipe: dict[str, Any], device: torch.device) -> list[tuple[Trial, Outcome]]:
    """The widths in a file; none if there is no file.

    Args:
        path: the file's place.
        recipe: of the run that is to go on.
        device: where to put the tensors.

    Raises:
        InputError: the file is damaged, or of another run.
    """
    read = _read(path, recipe, device)
    if read is None:
        return []
    state, tensors = read
    try:
        return [
            (
                Trial(**each["trial"]),
                Outcome(
                    tensors[f"{number}.weight"],
                    tensors[f"{number}.outer"],
                    tensors[f"{number}.center"],
                    float(each["loss"]),
                    _steps(each["history"]),
                    each["failure"],
                ),
            )
            for number, each in enumerate(state["trials"])
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(_damaged(path, error)) from None


def _write(path: PathLike, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    tensors = {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as draft:
        save_file(tensors, draft, metadata={KEY: json.dumps(state)})


def _read(
    path: PathLike, recipe: dict[str, Any], device: torch.device
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """State and tensors; None if there is no file.

    Raises:
        InputError: the file is damaged, or of another run.
    """
    if not Path(path).exists():
        return None
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            state = json.loads((file.metadata() or {})[KEY])
            # Copies lie as tensors that were computed do; products of others round differently.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        made = dict(state["recipe"])
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(_damaged(path, error)) from None
    if made != recipe:
        differing = sorted(key for key in recipe.keys() | made.keys() if recipe.get(key) != made.get(key))
        raise InputError(
            f"{path} is the checkpoint of another run, which differs in {', '.join(differing)}; go on with "
            "the same data and options, or delete it."
        )
    return state, tensors


def _damaged(path: PathLike, reason: object) -> str:
    return f"{path} is no checkpoint that isthmus wrote, or is damaged: {reason}."


def _plain(history: Sequence[Step]) -> list[dict[str, Any]]:
    return [asdict(step) for step in history]


def _steps(plain: Sequence[dict[str, Any]]) -> tuple[Step, ...]:
    return tuple(Step(**step) for step in plain)
