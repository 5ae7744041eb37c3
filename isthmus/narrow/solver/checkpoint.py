"""Where a solver stands, in a file from which it goes on bit for bit.

Levenberg-Marquardt writes every point. A search for the smallest width writes every width that is done: what
it does next depends on these alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
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
OTHER = "its weights are not those of this run"


def write_point(path: PathLike, point: Point, recipe: dict[str, Any]) -> None:
    """Put a point in a file, whole or not at all.

    Args:
        path: the file's place.
        point: the state.
        recipe: of the run that it belongs to.

    Raises:
        InputError: the file cannot be written.
    """
    tensors = {name: value for name, value in vars(point).items() if isinstance(value, Tensor)}
    if point.base is not None:
        tensors |= {f"base.{name}": tensor for name, tensor in vars(point.base).items()}
    numbers = {name: value for name, value in vars(point).items() if isinstance(value, int | float)}
    _write(path, tensors, {**numbers, "history": _plain(point.history), "recipe": recipe})


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
            name.removeprefix("base."): tensors.pop(name) for name in [*tensors] if name.startswith("base.")
        }
        kept: dict[str, Any] = {
            name: type(value)(state[name])
            for name, value in vars(start).items()
            if isinstance(value, int | float)
        }
        kept |= {**tensors, "history": _steps(state["history"]), "base": Base(**base) if base else None}
        point = replace(start, **kept)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(_damaged(path, error)) from None
    places = [point] if point.base is None else [point, point.base]
    if not {"weight", "outer"} <= tensors.keys() or not all(
        _fits(place.weight, start.weight.shape) and _fits(place.outer, start.outer.shape) for place in places
    ):
        raise InputError(_damaged(path, OTHER))
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


def read_trials(path: PathLike, recipe: dict[str, Any], rows: Tensor) -> list[tuple[Trial, Outcome]]:
    """The widths in a file; none if there is no file.

    Args:
        path: the file's place.
        recipe: of the run that is to go on.
        rows: [N, p], as hidden units see them; on the device where the outcomes belong.

    Raises:
        InputError: the file is damaged, or of another run.
    """
    read = _read(path, recipe, rows.device)
    if read is None:
        return []
    state, tensors = read
    try:
        done = [
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
    for trial, outcome in done:
        hidden = (trial.width, rows.shape[1])
        outer = (len(outcome.outer), trial.width + (trial.targets == "softmax"))  # and biases
        pairs = ((outcome.weight, hidden), (outcome.center, hidden), (outcome.outer, outer))
        if not all(_fits(found, shape) for found, shape in pairs):
            raise InputError(_damaged(path, OTHER))
    return done


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


def _fits(found: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor can be weights."""
    return found.shape == shape and found.dtype == torch.float64 and bool(found.isfinite().all())


def _damaged(path: PathLike, reason: object) -> str:
    return f"{path} is no checkpoint that isthmus wrote, or is damaged: {reason}."


def _plain(history: Sequence[Step]) -> list[dict[str, Any]]:
    return [asdict(step) for step in history]


def _steps(plain: Sequence[dict[str, Any]]) -> tuple[Step, ...]:
    return tuple(Step(**step) for step in plain)
