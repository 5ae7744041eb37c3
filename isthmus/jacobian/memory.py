"""What instruments may hold, stated before they begin."""

from __future__ import annotations

from isthmus.errors import InputError

MEMORY = 8 << 30  # bytes in all
BLOCK = 1 << 30  # bytes of a block of J; larger ones are no faster


def room(memory: int, taken: int, what: str) -> int:
    """Bytes that are left for blocks of J.

    Args:
        memory: that may be taken in all.
        taken: by what is held to the end.
        what: that is.

    Raises:
        InputError: it does not fit.
    """
    if taken > memory:
        raise InputError(
            f"{what} takes {taken / 2**30:.3g} GiB, more than the memory of {memory / 2**30:.3g} GiB; allow "
            "more with memory=BYTES, or take fewer rows or parameters."
        )
    return min(memory - taken, BLOCK)
