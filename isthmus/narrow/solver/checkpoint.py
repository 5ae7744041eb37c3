"""Where Levenberg-Marquardt stands, in a file from which it goes on bit for bit."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from isthmus._types import PathLike
from isthmus.errors import InputError
from isthmus.files import whole_file
from isthmus.narrow.solver.levenberg import Base, Point
from isthmus.narrow.solver.outcome import Step


def write_point(path: PathLike, point: Point, recipe: dict[str, Any]) -> None:
    """Put a point in a file, whole or not at all.

    Args:
        path: the file's place.
        point: the state.
        recipe: of the run that it belongs to.

    Raises:
        InputError: the file cannot be written.
    """
    state = {"damping": point.damping, "history": [asdict(step) for step in point.history], "recipe": recipe}
    tensors = {"weight": point.weight, "outer": point.outer}
    if point.base is not None:
        tensors |= {f"base.{name}": tensor for name, tensor in vars(point.base).items()}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as draft:
        save_file(tensors, draft, metadata={"isthmus-checkpoint": json.dumps(state)})


def read_point(path: PathLike, recipe: dict[str, Any], device: torch.device) -> Point | None:
    """The point in a file; None if there is no file.

    Args:
        path: the file's place.
        recipe: of the run that is to go on.
        device: where to put the tensors.

    Raises:
        InputError: the file is damaged, or of another run.
    """
    if not Path(path).exists():
        return None
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            state = json.loads((file.metadata() or {})["isthmus-checkpoint"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        base = {
            name.removeprefix("base."): tensor for name, tensor in tensors.items() if name.startswith("base.")
        }
        weight, outer = tensors["weight"], tensors["outer"]
        history = tuple(Step(**step) for step in state["history"])
        damping, made = float(state["damping"]), state["recipe"]
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{path} is no checkpoint that isthmus wrote, or is damaged: {error}.") from None
    if made != recipe:
        differing = sorted(key for key in recipe.keys() | made.keys() if recipe.get(key) != made.get(key))
        raise InputError(
            f"{path} is the checkpoint of another run, which differs in {', '.join(differing)}; go on with "
            "the same data and options, or delete it."
        )
    return Point(weight, outer, damping, history, Base(**base) if base else None)
