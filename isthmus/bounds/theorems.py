"""The theorems as formulas: how many rows given widths hold, and the smallest widths for given rows.

Letters: N distinct rows, d inputs, K outputs or classes, d1, d2, d3 widths of hidden layers. A *capacity* is
the largest N for which a theorem's condition holds, so widths meet the condition when it is at least N. All
arithmetic is on integers. *Smallest* means fewest hidden units and, among equals, fewest parameters.

Source: Yun, Sra, Jadbabaie, "Small ReLU networks are powerful memorizers" (arXiv 1810.07770), unless named.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from typing import Final

from isthmus._types import Activation, Rule

Widths = tuple[int, ...]


# Sizes ------------------------------------------------------------------------------------------------------


def dense_parameters(sizes: Sequence[int]) -> int:
    """Weights and biases of a fully connected network with these layer sizes, inputs and outputs included."""
    return sum((above + 1) * below for above, below in pairwise(sizes))


def residual_parameters(inputs: int, widths: Sequence[int], outputs: int, *, shifts: bool = True) -> int:
    """Weights and biases of a residual network h + V s(U h + b) + c with these widths, the last block plain.

    Args:
        inputs: d, kept through all blocks.
        widths: hidden units of every block.
        outputs: K.
        shifts: count the biases c (Theorem 4.1 has them, Hardt and Ma 2017 do not).
    """
    ends = [inputs] * (len(widths) - 1) + [outputs]
    with_shifts = sum(dense_parameters((inputs, width, end)) for width, end in zip(widths, ends, strict=True))
    return with_shifts if shifts else with_shifts - sum(ends)


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def _splits(cells: int, group_cost: int, slot_cost: int) -> Iterator[tuple[int, int]]:
    """Factor pairs that cover ``cells``, among them all of least a G + b n (a, b the two costs).

    Any n has G = ceil(cells / n) and so costs at least a cells / n + b n. That is below the cost found near
    the real minimum only between the roots of b n^2 - cost n + a cells: of the order of cells^(1/4) values.

    Yields:
        Groups G and slots n with G n >= cells.
    """
    near = max(1, isqrt(group_cost * cells // slot_cost))
    cost = group_cost * _ceil(cells, near) + slot_cost * near
    root = isqrt(cost**2 - 4 * group_cost * slot_cost * cells) + 1
    for slots in range(max(1, (cost - root) // (2 * slot_cost)), (cost + root) // (2 * slot_cost) + 1):
        yield _ceil(cells, slots), slots


def _fewest(options: Iterator[Widths], inputs: int, outputs: int) -> Widths:
    return min(options, key=lambda widths: (sum(widths), dense_parameters((inputs, *widths, outputs))))


# Three layers: Theorem 3.1 and its improvements -------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """A three-layer construction: layer 1 tells groups of rows apart, layer 2 the slots inside a group.

    The condition is ``cell_rows * floor(d1 / group_units) * floor(d2 / (slot_units * K)) >= N``.

    Attributes:
        cell_rows: rows held by one pair of group and slot.
        group_units: units of layer 1 per group.
        slot_units: units of layer 2 per slot and output.
    """

    cell_rows: int
    group_units: int
    slot_units: int

    def capacity(self, widths: Sequence[int], outputs: int) -> int:
        """The largest N for widths (d1, d2)."""
        groups, slots = widths[0] // self.group_units, widths[1] // (self.slot_units * outputs)
        return self.cell_rows * groups * slots

    def options(self, rows: int, outputs: int) -> Iterator[tuple[int, int]]:
        """Widths that hold ``rows``, among them all with the fewest units.

        Yields:
            Widths (d1, d2).
        """
        slot_units = self.slot_units * outputs
        for groups, slots in _splits(_ceil(rows, self.cell_rows), self.group_units, slot_units):
            yield groups * self.group_units, slots * slot_units

    def smallest(self, rows: int, outputs: int, inputs: int) -> tuple[int, int]:
        """The smallest widths (d1, d2)."""
        first, second = _fewest(self.options(rows, outputs), inputs, outputs)
        return first, second

    def formula(self, outputs: int, d1: object = "d1", d2: object = "d2") -> str:
        """The left side of the condition, for people."""
        factors = [_floor(d1, self.group_units), _floor(d2, self.slot_units * outputs)]
        return "*".join(([str(self.cell_rows)] if self.cell_rows > 1 else []) + factors)


def _floor(numerator: object, denominator: int) -> str:
    return f"{numerator}" if denominator == 1 else f"floor({numerator}/{denominator})"


PAPER_HARDTANH: Final = Grid(4, 2, 2)  # Theorem 3.1, hard-tanh
PAPER_RELU: Final = Grid(4, 4, 4)  # Theorem 3.1, ReLU-like: every hard-tanh is two ReLUs
TIGHT_HARDTANH: Final = Grid(1, 1, 1)  # the same network; odd numbers of groups and slots work too
TIGHT_RELU: Final = Grid(1, 2, 2)  # its twins
SHARED_KNOTS: Final = Grid(1, 1, 2)  # one ReLU kink per gap between groups draws every layer-2 function
ZIGZAG: Final = Grid(1, 1, 1)  # one ReLU per row of a group; exact in theory, fragile in floating point


def grid(activation: Activation, rule: Rule) -> Grid:
    """The construction that `isthmus.memorize` builds for an activation under a rule."""
    if activation == "hardtanh":
        return PAPER_HARDTANH if rule == "paper" else TIGHT_HARDTANH
    return PAPER_RELU if rule == "paper" else TIGHT_RELU


def three_layer_capacity(widths: Widths, outputs: int, activation: Activation, rule: Rule) -> int:
    """The largest number of rows for which Theorem 3.1 holds.

    Args:
        widths: (d1, d2).
        outputs: K, the columns of the target.
        activation: leaky ReLU counts as ReLU.
        rule: ``"paper"`` as stated, ``"tight"`` with any parity of groups and slots.
    """
    return grid(activation, rule).capacity(widths, outputs)


def smallest_three_layer(
    rows: int, outputs: int, activation: Activation, rule: Rule, inputs: int = 1
) -> tuple[int, int]:
    """The smallest widths (d1, d2) by Theorem 3.1; ``inputs`` decides only between equally many units."""
    return grid(activation, rule).smallest(rows, outputs, inputs)


def zigzag_capacity(widths: Widths, outputs: int, *, leaky: bool) -> int:
    """The largest N for a zigzag of widths (d1, d2); leaks take one more unit per output."""
    return ZIGZAG.capacity((widths[0], max(0, widths[1] - leaky * outputs)), outputs)


def smallest_zigzag(rows: int, outputs: int, inputs: int = 1, *, leaky: bool) -> tuple[int, int]:
    """The smallest widths (d1, d2) of a zigzag."""
    groups, slots = ZIGZAG.smallest(rows, outputs, inputs)
    return groups, slots + leaky * outputs


# Four layers: Proposition 3.2 -------------------------------------------------------------------------------


def decoder_width(classes: int, activation: Activation, rule: Rule) -> int:
    """Units of the third layer, which turns a real code into one-hot.

    ``"paper"``: a gate of 2 hard-tanh (4 ReLU) per class. ``"tight"``: a thermometer, one hard-tanh (2 ReLU)
    between any two neighboring codes.
    """
    hardtanh = 2 * classes if rule == "paper" else max(1, classes - 1)
    return hardtanh if activation == "hardtanh" else 2 * hardtanh


def classifier_capacity(widths: Widths, classes: int, activation: Activation, rule: Rule) -> int:
    """The largest number of rows for which Proposition 3.2 holds; 0 when the third layer is too small.

    Args:
        widths: (d1, d2, d3).
        classes: K.
        activation: leaky ReLU counts as ReLU.
        rule: ``"paper"`` or ``"tight"``, see `three_layer_capacity` and `decoder_width`.
    """
    if widths[2] < decoder_width(classes, activation, rule):
        return 0
    return grid(activation, rule).capacity(widths, 1)


def smallest_classifier(
    rows: int, classes: int, activation: Activation, rule: Rule, inputs: int = 1
) -> tuple[int, int, int]:
    """The smallest widths (d1, d2, d3) by Proposition 3.2; ``inputs`` decides only between equals."""
    third = decoder_width(classes, activation, rule)
    options = ((*pair, third) for pair in grid(activation, rule).options(rows, 1))
    first, second, third = _fewest(options, inputs, classes)
    return first, second, third


# Gates: Theorem 4.1, Corollary 4.2 --------------------------------------------------------------------------

HARDTANH_GATE: Final = 2  # units of one gate, open on a slab around a hyperplane through d rows
RELU_GATE: Final = 4
HAT_GATE: Final = 3  # a triangle of ReLUs in place of the trapezoid


def gate_capacity(width: int, inputs: int, classes: int, gate: int) -> int:
    """The largest N with d1 >= gate * (N/d + K), Corollary 4.2."""
    return max(0, (width - gate * classes) * inputs // gate)


def smallest_gates(rows: int, inputs: int, classes: int, gate: int) -> int:
    """The smallest d1 by Corollary 4.2."""
    return _ceil(gate * rows, inputs) + gate * classes


def residual_capacity(widths: Sequence[int], inputs: int, classes: int, gate: int) -> int:
    """The largest N by Theorem 4.1: the last block has gate/2 units per class, the others hold the gates."""
    *blocks, last = widths
    return gate_capacity(sum(blocks), inputs, classes, gate) if last >= gate // 2 * classes else 0


def smallest_residual(rows: int, inputs: int, classes: int, gate: int) -> tuple[int, int]:
    """The smallest widths by Theorem 4.1 with all gates in one block; they may be spread over more."""
    return smallest_gates(rows, inputs, classes, gate), gate // 2 * classes


# Earlier results --------------------------------------------------------------------------------------------


def zhang(rows: int) -> int:
    """ReLUs of one hidden layer, one per row (Zhang, Bengio, Hardt, Recht, Vinyals 2017, Theorem 1)."""
    return rows


def hardt_ma(rows: int, classes: int) -> tuple[int, int]:
    """Residual widths N and K (Hardt and Ma 2017; Yun et al., section 4)."""
    return rows, classes


def baum(rows: int, inputs: int) -> int:
    """Threshold units for two classes, N/d rounded up (Baum 1988)."""
    return _ceil(rows, inputs)


def bubeck(rows: int, inputs: int, outputs: int) -> int:
    """ReLUs for real targets, 4 ceil(N/d) for every output column (Bubeck, Eldan, Lee, Mikulincer 2020)."""
    return RELU_GATE * _ceil(rows, inputs) * outputs


def huang(rows: int, outputs: int) -> tuple[int, int]:
    """Sigmoid widths (N/L + 2L, K L) for the best L, about 2 sqrt((K+2) N) units (Huang 2003)."""
    return min(((g + 2 * n, outputs * n) for g, n in _splits(rows, 1, outputs + 2)), key=sum)


def sontag(rows: int) -> int:
    """The most parameters that are still fewer than (N-1)/2 (Sontag 1997)."""
    return max(0, _ceil(rows - 1, 2) - 1)


# What to say about widths that are too small ----------------------------------------------------------------


def width_message(
    widths: Sequence[int], rows: int, outputs: int, activation: Activation, rule: Rule, inputs: int = 1
) -> str:
    """Why widths (d1, d2) or (d1, d2, d3) do not suffice and which would.

    Args:
        widths: two widths are held to Theorem 3.1, three to Proposition 3.2.
        rows: distinct rows, N.
        outputs: columns of the target, or classes.
        activation: leaky ReLU counts as ReLU.
        rule: ``"paper"`` or ``"tight"``.
        inputs: decides only between equally many units.
    """
    classifier = len(widths) == 3
    columns = 1 if classifier else outputs
    chosen = grid(activation, rule)
    third = decoder_width(outputs, activation, rule)

    def enough(candidate: Sequence[int]) -> bool:
        return chosen.capacity(candidate, columns) >= rows and (not classifier or candidate[2] >= third)

    def widened(layer: int) -> str | None:
        limit = range(4 * rows * outputs + 1)  # no condition asks for more of one layer
        width = bisect_left(limit, True, key=lambda w: enough([*widths[:layer], w, *widths[layer + 1 :]]))
        return f"d{layer + 1} >= {width}" if width < len(limit) else None

    condition, found = f"{chosen.formula(columns)} >= {rows}", chosen.formula(columns, *widths[:2])
    found += f" = {chosen.capacity(widths, columns)}"
    if classifier:
        condition, found = f"{condition} and d3 >= {third}", f"{found} and d3 = {widths[2]}"
    single = " or ".join(filter(None, map(widened, range(len(widths)))))
    smallest = smallest_classifier if classifier else smallest_three_layer
    fewest = "-".join(map(str, smallest(rows, outputs, activation, rule, inputs)))
    theorem = "Proposition 3.2" if classifier else "Theorem 3.1"
    return (
        f"{theorem} ({activation}, rule '{rule}') asks for {condition}, but here {found}. With the other "
        f"widths kept, {single or 'no single layer can be widened enough'}; the fewest units are {fewest}."
    )
