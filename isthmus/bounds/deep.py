"""Proposition 3.4 and Corollaries A.1-A.3: which pairs of layers of a deep network hold how many rows.

A *block* is a pair of adjacent hidden layers l_j, l_j + 1 that memorizes some of the rows, as Theorem 3.1
does. All other rows pass it unchanged: one unit per layer carries the position t along the line, up to the
last block, and dy units carry what the blocks before have added up. So block j of m has
r_j = dy [j > 1] + [j < m] units less in both layers, and the condition is

    sum_j (rows of a block with widths d_(l_j) - r_j and d_(l_j + 1) - r_j) >= N,    l_(j + 1) >= l_j + 2,

with dy + 1 units in every layer between blocks, dy after them, and 1 before. Classes are fitted as one number
(dy = 1), which a *gate layer* behind the blocks reads off; K units carry the outputs on from there.

Source: Yun, Sra and Jadbabaie 2019 (arXiv 1810.07770). The search for places and widths is an addition, and
so is that blocks may have odd numbers of groups and slots (`isthmus.memorize.deep`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, isqrt
from typing import Literal, get_args

from isthmus._types import Activation, Rule
from isthmus.bounds.theorems import Grid, Widths, decoder_width, dense_parameters, grid
from isthmus.errors import WidthError

Minimize = Literal["units", "parameters", "width"]
MINIMIZE: tuple[Minimize, ...] = get_args(Minimize)


@dataclass(frozen=True)
class Deep:
    """What is to be held: the numbers that the conditions depend on.

    Attributes:
        rows: N.
        inputs: d.
        outputs: dy target columns, or K classes with a gate layer.
        grid: the construction of one block.
        gate: units of the gate layer; 0 for none.
    """

    rows: int
    inputs: int
    outputs: int
    grid: Grid
    gate: int = 0

    @property
    def carried(self) -> int:
        """Dy: the numbers that blocks add up."""
        return 1 if self.gate else self.outputs

    @property
    def fewest_layers(self) -> int:
        """The hidden layers of one block, and the gate layer."""
        return 3 if self.gate else 2


@dataclass(frozen=True)
class Layout:
    """Where the blocks of a deep network stand.

    Attributes:
        starts: l_1, ..., l_m, the first layer of every block, counted from 1.
        gate: the gate layer; 0 for none.
        capacity: the most rows that every block holds.
    """

    starts: tuple[int, ...]
    gate: int
    capacity: tuple[int, ...]

    @property
    def rows(self) -> int:
        """The most rows that all blocks hold."""
        return sum(self.capacity)


def reserved(block: int, blocks: int, carried: int) -> int:
    """r_j: the units of a block's layers that carry t and the sums so far; blocks are counted from 0."""
    return carried * (block > 0) + (block < blocks - 1)


def deep_problem(
    rows: int, inputs: int, outputs: int, activation: Activation, rule: Rule, gates: bool
) -> Deep:
    """The problem that a deep network of `isthmus.memorize` solves.

    Args:
        rows: N.
        inputs: d.
        outputs: target columns, or classes.
        activation: leaky ReLU counts as ReLU.
        rule: ``"paper"`` as stated, ``"tight"`` with any parity and the smaller decoder.
        gates: whether a gate layer reads off classes (A.2, A.3) or the outputs are values (3.4, A.1).
    """
    gate = decoder_width(outputs, activation, rule) if gates else 0
    return Deep(rows, inputs, outputs, grid(activation, rule), gate)


def deep_layout(problem: Deep, widths: Sequence[int]) -> Layout | None:
    """The fewest blocks that hold all rows, of these the ones that hold most; None if none do.

    Args:
        problem: what to hold.
        widths: of all hidden layers.
    """
    return next((layout for layout in _layouts(problem, widths) if layout.rows >= problem.rows), None)


def require_deep_layout(problem: Deep, widths: Sequence[int]) -> Layout:
    """`deep_layout`, or the sentence about widths that are too small.

    Raises:
        WidthError: no blocks hold all rows.
    """
    layout = deep_layout(problem, widths)
    if layout is None:
        raise WidthError(_message(problem, widths))
    return layout


def smallest_deep(problem: Deep, depth: int, minimize: Minimize) -> Widths:
    """Hidden widths of the network of a given depth that has least of something.

    One block is best for units and for parameters: two with G_1 n_1 + G_2 n_2 rows have no fewer of them than
    one with G_1 + G_2 groups. Many blocks make the largest width small.

    Args:
        problem: what to hold.
        depth: L, the number of affine maps; there are L - 1 hidden layers.
        minimize: hidden units, parameters (among as many: the other of the two), or the largest width.

    Raises:
        WidthError: too few layers for one block.
    """
    hidden = depth - 1
    if hidden < problem.fewest_layers:
        what = "a block of two and a gate layer" if problem.gate else "a block of two"
        raise WidthError(
            f"depth {depth} has {hidden} hidden layer(s), but {what} take {problem.fewest_layers}."
        )
    if minimize == "width":
        return _narrowest(problem, hidden)

    def cost(widths: Widths) -> tuple[int, int]:
        units = sum(widths), dense_parameters((problem.inputs, *widths, problem.outputs))
        return units if minimize == "units" else units[::-1]

    return min(_single_blocks(problem, hidden), key=cost)


def used_widths(problem: Deep, widths: Sequence[int], layout: Layout) -> Widths:
    """The units of every hidden layer that a layout makes use of."""
    used = []
    slot = problem.grid.slot_units * problem.carried
    for layer, width in enumerate(widths, 1):
        block = sum(start <= layer for start in layout.starts) - 1
        into = layer - layout.starts[block] if block >= 0 else -1
        if block < 0:
            used.append(1)
        elif into < 2:
            carry, unit = (
                reserved(block, len(layout.starts), problem.carried),
                (problem.grid.group_units, slot)[into],
            )
            used.append(carry + (width - carry) // unit * unit)
        elif layout.gate and layer >= layout.gate:
            used.append(problem.gate if layer == layout.gate else problem.outputs)
        else:
            used.append(problem.carried + (block < len(layout.starts) - 1))
    return tuple(used)


def _layouts(problem: Deep, widths: Sequence[int]) -> Iterator[Layout]:
    """Walk over the best places of every number of blocks, ascending.

    Yields:
        Layouts, whether they hold all rows or not.
    """
    gate = _gate_layer(problem, widths) if problem.gate else 0
    if gate is None:
        return
    front = widths[: gate - 1] if gate else widths
    for blocks in range(1, len(front) // 2 + 1):
        starts = _largest(problem, front, blocks)
        capacity = (
            _held(problem, front, start, reserved(block, blocks, problem.carried))
            for block, start in enumerate(starts)
        )
        yield Layout(starts, gate, tuple(capacity))


def _gate_layer(problem: Deep, widths: Sequence[int]) -> int | None:
    """The last layer that can be the gate layer: the more layers are before it, the more rows they hold."""
    for layer in range(len(widths), problem.fewest_layers - 1, -1):
        if widths[layer - 1] >= problem.gate:
            return layer
        if widths[layer - 1] < problem.outputs:  # too few to carry the outputs on
            break
    return None


def _held(problem: Deep, widths: Sequence[int], start: int, carry: int) -> int:
    pair = [max(0, width - carry) for width in widths[start - 1 : start + 1]]
    return problem.grid.capacity(pair, problem.carried)


def _largest(problem: Deep, widths: Sequence[int], blocks: int) -> tuple[int, ...]:
    """The places of that many blocks that hold most rows; none if there are no such places.

    Goes through the blocks from the last to the first: ``tail`` has, for every layer, the most rows held by
    this block and those behind it if none of them starts before that layer, and where they start.
    """
    carried, layers = problem.carried, len(widths)
    nothing: tuple[float, tuple[int, ...]] = (-inf, ())
    tail = [nothing] * (layers + 2)  # by layer from 1; no block starts at the last layer or behind it
    for block in reversed(range(blocks)):
        below, tail = tail, [nothing] * (layers + 2)
        room = True  # whether the layers behind a last block can carry its sums
        for layer in range(layers - 1, 0, -1):
            room &= layer + 2 > layers or widths[layer + 1] >= carried
            held = _held(problem, widths, layer, reserved(block, blocks, carried))
            behind = (0 if room else -inf, ()) if block == blocks - 1 else below[layer + 2]
            here = (held + behind[0], (layer, *behind[1])) if held else nothing
            passes = (
                block == 0 or widths[layer - 1] > carried
            )  # one unit for t, and the sums if there are any
            later = tail[layer + 1] if passes else nothing
            tail[layer] = max(here, later, key=lambda place: place[0])
    return tail[1][1] if tail[1][0] > 0 else ()


def _single_blocks(problem: Deep, hidden: int) -> Iterator[Widths]:
    """Walk over networks of one block, among them all of least units and parameters.

    Yields:
        Hidden widths.
    """
    chosen, carried = problem.grid, problem.carried
    spare = hidden - problem.fewest_layers
    gate = (problem.gate,) if problem.gate else ()
    for groups, slots in _pairs(-(-problem.rows // chosen.cell_rows)):
        block = (groups * chosen.group_units, slots * chosen.slot_units * carried)
        for before in {0, 1, spare - 1, spare}:
            if 0 <= before <= spare:
                yield (*(1,) * before, *block, *(carried,) * (spare - before), *gate)


def _pairs(cells: int) -> Iterator[tuple[int, int]]:
    """Walk over groups G and slots n with G n >= cells, of which neither can be less.

    Yields:
        Both, about 2 sqrt(cells) times.
    """
    for few in range(1, isqrt(cells) + 1):
        many = -(-cells // few)
        yield few, many
        if many != few:
            yield many, few


def _narrowest(problem: Deep, hidden: int) -> Widths:
    def layout(width: int) -> Layout | None:
        return deep_layout(problem, (width,) * hidden)

    enough = problem.grid.slot_units * problem.carried * problem.rows + problem.gate + problem.outputs
    width = bisect_left(range(enough), True, key=lambda width: layout(width) is not None)
    found = layout(width)
    assert found is not None  # a single block with one group holds all rows at the limit
    return used_widths(problem, (width,) * hidden, found)


def _message(problem: Deep, widths: Sequence[int]) -> str:
    name = "Corollary A.2/A.3" if problem.gate else "Proposition 3.4/Corollary A.1"
    carried = problem.carried
    condition = problem.grid.formula(carried, "(d_l - r)", "(d_(l+1) - r)")
    most = max((layout.rows for layout in _layouts(problem, widths)), default=0)
    asks = f"the sum of {condition} over blocks to reach {problem.rows}"
    if problem.gate:
        asks += (
            f", and a later layer of at least {problem.gate} units with at least {problem.outputs} after it"
        )
    advice = "more hidden layers"
    if len(widths) >= problem.fewest_layers:
        advice = f"widths {'-'.join(map(str, _narrowest(problem, len(widths))))}, say"
    return (
        f"{name} asks for {asks}; the best blocks of {'-'.join(map(str, widths))} hold {most}. Give {advice}."
    )
