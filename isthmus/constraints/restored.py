"""Sets as plain data and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from isthmus.constraints.ball import Ball
from isthmus.constraints.box import Box
from isthmus.constraints.constraint import Constraint
from isthmus.constraints.floor_ratio import FloorAndRatio
from isthmus.constraints.product import Product
from isthmus.errors import InputError

KINDS: Final = {kind.__name__: kind for kind in (Ball, Box, FloorAndRatio)}


def restored(described: Mapping[str, Any]) -> Constraint:
    """A set, without a center, from what `Constraint.to_dict` made of it.

    Raises:
        InputError: it describes none.
    """
    options = dict(described)
    kind = options.pop("set", None)
    try:
        if kind == Product.__name__:
            return Product({name: restored(part) for name, part in options["parts"].items()})
        return KINDS[kind](**options)
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"this describes no constraint: {dict(described)}.") from None
