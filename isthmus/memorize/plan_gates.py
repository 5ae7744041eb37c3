"""Plans for networks of gates: Corollary 4.2, real targets from gates, and Theorem 4.1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from isthmus.bounds.theorems import gate_capacity, residual_capacity, smallest_gates
from isthmus.data.dataset import Shape
from isthmus.errors import InputError, WidthError
from isthmus.memorize.gates import GATE_UNITS, Gate
from isthmus.memorize.plan import Plan, Wish
from isthmus.memorize.real_gates import gate_units
from isthmus.memorize.residual import HALF

PARTS = (1, 0.5, 0.25)  # of the rows that a gate could take: with fewer, margins are wide
LINES = 3  # draws of the planes of a residual network


@dataclass(frozen=True)
class _Gates:
    """What gates a data set takes.

    Attributes:
        units: of one gate.
        class_rows: how many rows share gates, for every pool of such rows.
        spare: whether the largest pool goes without.
    """

    units: int
    class_rows: Sequence[int]
    spare: bool

    def count(self, size: int) -> int:
        """Gates of at most so many rows each."""
        gates = [ceil(rows / size) for rows in self.class_rows]
        return sum(gates) - (max(gates) if self.spare else 0)

    def largest(self, most: int, room: int) -> int:
        """The fewest rows per gate with which all gates find room, or ``most``."""
        fits = (size for size in range(1, most) if self.count(size) <= room)
        return next(fits, most)


def gates_plan(shape: Shape, wish: Wish, class_rows: Sequence[int]) -> Plan:
    """One layer of gates for as few rows each as the width allows, or for as many as the corollary does.

    Raises:
        WidthError: the width misses the corollary's condition, or is less than any gates take.
    """
    gate, spare = _gate(wish), wish.rule == "tight" and len(class_rows) > 1
    gates = _Gates(GATE_UNITS[gate], class_rows, spare)
    most = min(shape.inputs, shape.rows)
    fewest = 1 if len(class_rows) == 1 else gates.count(most)  # one slab holds all rows of one class
    width = wish.widths[0] if wish.widths else gates.units * fewest
    if wish.widths:
        paper = wish.rule == "paper"
        needed = (
            smallest_gates(shape.rows, shape.inputs, shape.outputs, gates.units)
            if paper
            else gates.units * fewest
        )
        enough = (
            gate_capacity(width, shape.inputs, shape.outputs, gates.units) >= shape.rows
            if paper
            else width >= needed
        )
        if not enough:
            asks = f"{gates.units}*(N/d + K)" if paper else "enough gates for every class but one"
            raise WidthError(
                f"Corollary 4.2 ({wish.activation}, rule '{wish.rule}') asks for {asks}: d1 >= {needed}, but "
                f"here d1 = {width}."
            )
    size = most if len(class_rows) == 1 else gates.largest(most, width // gates.units)
    count = 1 if len(class_rows) == 1 else gates.count(size)
    return Plan("gates", wish.activation, (gates.units * count,), count, size, gate=gate, spare=spare)


def real_gates_plans(shape: Shape, wish: Wish) -> Iterator[Plan]:
    """Walk over layers of gates for real targets: within a width, or with fewer and fewer rows per gate.

    Yields:
        Plans, the fewest units first.

    Raises:
        WidthError: the width is less than any gates take.
    """
    units = gate_units(shape.outputs) * (1 if wish.activation == "hardtanh" else 2)
    gates = _Gates(units, (shape.rows,), spare=False)
    most = min(shape.inputs, shape.rows)
    if wish.widths is None:
        sizes = [ceil(most * part) for part in PARTS]
    elif wish.widths[0] >= units * gates.count(most):
        sizes = [gates.largest(most, wish.widths[0] // units)]
    else:
        raise WidthError(
            f"Gates for real targets ({wish.activation}) ask for {units}*ceil(N/d): d1 >= "
            f"{units * gates.count(most)}, but here d1 = {wish.widths[0]}."
        )
    for size in dict.fromkeys(sizes):
        yield Plan("gates", wish.activation, (units * gates.count(size),), gates.count(size), size)


def residual_plans(shape: Shape, wish: Wish, class_rows: Sequence[int]) -> Iterator[Plan]:
    """Walk over residual blocks of gates, and a last layer: within widths, or of a given depth.

    Yields:
        Plans: for given widths with several draws, else with fewer and fewer rows per gate.

    Raises:
        InputError: fewer inputs than classes.
        WidthError: the widths miss the theorem's condition, or the depth has no room for gates.
    """
    gate, spare = _gate(wish), wish.rule == "tight" and len(class_rows) > 1
    gates = _Gates(GATE_UNITS[gate], class_rows, spare)
    read = shape.outputs - spare
    last = read * (1 if wish.activation == "hardtanh" else 2)
    if shape.inputs < read:
        raise InputError(
            f"Theorem 4.1 asks for a coordinate per class, but there are {shape.inputs} inputs and "
            f"{shape.outputs} classes; choose the method 'gates' or 'classifier'."
        )
    most = min(shape.inputs, shape.rows)
    if wish.widths is None:
        for size in dict.fromkeys(ceil(most * part) for part in PARTS):
            widths = _even_blocks(
                gates.count(size), gates.units, 2 if wish.depth is None else wish.depth, last
            )
            yield Plan("residual", wish.activation, widths, gates.count(size), size, gate=gate, spare=spare)
        return
    *blocks, end = wish.widths
    # Where a gate cannot be cut, what is left over in a block is lost.
    piece = HALF.get(gate, gates.units) if shape.inputs > read else gates.units
    rounded = [width - width % piece for width in blocks]
    needed = gates.units * gates.count(most)
    enough = sum(rounded) >= needed and end >= last
    if wish.rule == "paper":
        needed = smallest_gates(shape.rows, shape.inputs, shape.outputs, gates.units)
        capacity = residual_capacity(wish.widths, shape.inputs, shape.outputs, gates.units)
        enough = enough and capacity >= shape.rows
    if not enough:
        raise WidthError(
            f"Theorem 4.1 ({wish.activation}, rule '{wish.rule}') asks for d1 + ... + d(L-1) >= {needed}, in "
            f"multiples of {piece}, and dL >= {last}; but here they are {sum(rounded)} and {end}."
        )
    size = gates.largest(most, sum(rounded) // gates.units)
    widths = (*rounded, last)
    for line in range(LINES):
        yield Plan(
            "residual", wish.activation, widths, gates.count(size), size, line=line, gate=gate, spare=spare
        )


def _even_blocks(gates: int, units: int, depth: int, last: int) -> tuple[int, ...]:
    """The widths of that many blocks with about as many gates each, and of the last layer.

    Raises:
        WidthError: there is no block for the gates.
    """
    if depth < 2:
        raise WidthError(f"a residual network of depth {depth} has no layer for gates; give at least 2.")
    blocks = depth - 1
    ends = [gates * block // blocks for block in range(blocks + 1)]
    return (*(units * (end - start) for start, end in pairwise(ends)), last)


def _gate(wish: Wish) -> Gate:
    if wish.activation == "hardtanh":
        return "step pair"
    return "trapezoid" if wish.rule == "paper" else "hat"
