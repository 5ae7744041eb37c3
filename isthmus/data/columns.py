"""Which columns of a table are its targets."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from isthmus.errors import DataError

Target = str | int | None

MOST_LISTED = 20  # column names in a message


def target_columns(target: Target, width: int, names: Sequence[str], source: str) -> list[int]:
    """Positions of the target columns, from 0.

    Args:
        target: a column's name, or its position from 0 (negative: from the end), or several of either with
            commas between them; ``None`` means the last column.
        width: number of columns.
        names: the columns' names, or none if they have none. A name wins over a position written the same.
        source: where the table comes from; opens every message.

    Raises:
        DataError: there is no such column, more than one of that name, or one is asked for twice.
    """
    if target is None:
        return [width - 1]
    whole = isinstance(target, int) or target in names
    chosen = [
        _position(piece, width, names, source) for piece in ([target] if whole else str(target).split(","))
    ]
    if len(set(chosen)) < len(chosen):
        raise DataError(f"{source}: target {target!r} names a column twice; name each once.")
    return chosen


def _position(target: str | int, width: int, names: Sequence[str], source: str) -> int:
    name = target.strip() if isinstance(target, str) else None
    matches = [position for position, other in enumerate(names) if other == name]
    if len(matches) > 1:
        raise DataError(
            f"{source}: {len(matches)} columns are named {name!r}; give the target's position, "
            f"for example {matches[-1]}."
        )
    if matches:
        return matches[0]
    try:
        position = int(target)
    except ValueError:
        position = width
    if not -width <= position < width:
        listed = ", ".join(map(repr, islice(names, MOST_LISTED))) + (", ..." if width > MOST_LISTED else "")
        there = f"the columns are {listed}" if names else f"there is no header, and {width} columns"
        raise DataError(
            f"{source}: there is no column {target!r}; {there}. Give a name, or a position "
            f"from 0 to {width - 1}."
        )
    return position % width
