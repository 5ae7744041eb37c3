"""Plans for deep and narrow networks: Proposition 3.4 and Corollaries A.1-A.3."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from math import ceil, isqrt

from isthmus.bounds.deep import (
    Deep,
    Layout,
    deep_problem,
    require_deep_layout,
    reserved,
    smallest_deep,
    used_widths,
)
from isthmus.data.dataset import Shape
from isthmus.memorize.deep import Block
from isthmus.memorize.plan import Method, Plan, Wish
from isthmus.memorize.plan_layers import DIRECTIONS, SLACKS, decoder_for, scalars
from isthmus.memorize.three_layer import first_layer_width

LINES = 8  # to try: in all blocks but one at the first layer the rows lie on one line


def deep_plans(shape: Shape, wish: Wish, method: Method) -> Iterator[Plan]:
    """Walk over deep networks within given widths, or of a given depth and several sizes.

    Yields:
        Plans, the most promising first.

    Raises:
        WidthError: no blocks of these widths hold all rows, or the depth has no room for one.
    """
    gates = method == "deep-classifier"
    outputs = shape.outputs if gates else scalars(shape)
    problem = deep_problem(shape.rows, shape.inputs, outputs, wish.activation, wish.rule, gates)
    if wish.widths is not None:
        yield from _at_widths(shape, wish, method, problem, wish.widths)
        return
    assert wish.depth is not None
    for slack in SLACKS:
        roomy = replace(problem, rows=ceil(problem.rows * (1 + slack)))
        yield from _at_widths(shape, wish, method, problem, smallest_deep(roomy, wish.depth, wish.minimize))


def _at_widths(
    shape: Shape, wish: Wish, method: Method, problem: Deep, widths: tuple[int, ...]
) -> Iterator[Plan]:
    layout = require_deep_layout(problem, widths)
    ways = [_ways(problem, widths, layout, block, rows) for block, rows in enumerate(_deal(problem, layout))]
    if wish.activation != "hardtanh":  # twins add up errors: the fewest units with large weights are best
        ways = [list(reversed(way)) for way in ways]
    decoder = decoder_for(shape, wish.rule, method)
    for line in range(LINES):
        for choice in range(max(map(len, ways))):
            blocks = tuple(way[min(choice, len(way) - 1)] for way in ways)
            hidden = _hidden(problem, widths, layout, blocks)
            yield Plan(
                method,
                wish.activation,
                hidden,
                decoder=decoder,
                directions=DIRECTIONS[min(line, 1)],
                line=line,
                blocks=blocks,
                gate_layer=layout.gate,
            )


def _deal(problem: Deep, layout: Layout) -> list[int]:
    """How many rows every block gets, in proportion to what it holds."""
    ends, before = [], 0
    for capacity in layout.capacity:
        before += capacity
        ends.append(problem.rows * before // layout.rows)
    return [end - start for start, end in pairwise([0, *ends])]


def _ways(problem: Deep, widths: tuple[int, ...], layout: Layout, block: int, rows: int) -> list[Block]:
    """How a block may use its units: for as many separators as there is room for, or more groups."""
    start = layout.starts[block]
    carry = reserved(block, len(layout.starts), problem.carried)
    grid = problem.grid
    pairs = isqrt(grid.cell_rows)  # the paper's theorem counts groups and rows in pairs
    most = pairs * ((widths[start - 1] - carry) // grid.group_units)
    size = min(rows, pairs * ((widths[start] - carry) // (grid.slot_units * problem.carried)))
    groups = ceil(rows / size)
    spare = most - groups
    found = [Block(start, rows, min(rows, most), size, min(rows, most))]
    if 0 < spare < groups - 1:
        found.insert(0, Block(start, rows, groups, size, ceil(groups / (spare + 1))))
    if spare >= groups - 1 > 0:
        found.insert(0, Block(start, rows, min(rows, (most + 1) // 2), size, 1))
    return found


def _hidden(
    problem: Deep, widths: tuple[int, ...], layout: Layout, blocks: tuple[Block, ...]
) -> tuple[int, ...]:
    """The widths of the network that these blocks make."""
    units = problem.grid.group_units // isqrt(problem.grid.cell_rows)  # per hard-tanh unit
    hidden = list(used_widths(problem, widths, layout))
    for index, block in enumerate(blocks):
        carry = reserved(index, len(blocks), problem.carried)
        hidden[block.start - 1] = carry + units * first_layer_width(block.groups, block.chain)
        hidden[block.start] = carry + units * block.size * problem.carried
    return tuple(hidden)
