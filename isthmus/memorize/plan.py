"""Plans: which networks `memorize` may build for a data set, fewest hidden units first.

A plan is decided by counting alone; whether its network survives rounding is seen when it is certified.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, isqrt
from numbers import Integral
from typing import Any, Literal, get_args

from isthmus._types import Activation, Rule
from isthmus.bounds.theorems import (
    classifier_capacity,
    decoder_width,
    gate_capacity,
    smallest_classifier,
    smallest_gates,
    smallest_three_layer,
    three_layer_capacity,
    width_message,
)
from isthmus.data.dataset import Shape
from isthmus.errors import InputError, WidthError
from isthmus.memorize.classifier import Decoder
from isthmus.memorize.gates import GATE_UNITS, Gate
from isthmus.memorize.three_layer import first_layer_width

Method = Literal["affine", "interpolant", "gates", "three-layer", "classifier"]
First = Literal["ramps", "knots"]

CHAINS = (64, 32, 16, 8, 4, 1)  # groups between separators, after none at all
SLACKS = (0.0, 0.05, 0.25)  # groups more than needed, to cut in wide gaps
STRETCHES = (2, 4)  # more units per group for fewer groups: less rounding in the second layer
DIRECTIONS = (8, 32)  # of the pencil; more for a second try at the same widths
WIDEST = 128  # of the pencil, for further tries of independent groups
LINES = 6  # to try with so large a pencil
MOST_OFFSETS = 1 << 24  # N R up to which that is done
AFFINE_COST = 2 * 10**9  # N d (d + K) up to which a least-squares fit is tried
INTERPOLANT_ROWS = 20_000  # beyond them N - 1 hidden units are no answer
GATES_INPUTS = 4096  # up to which a covariance matrix is factored
GATES_COST = 10**11  # N d G up to which margins are measured for G gates


@dataclass(frozen=True)
class Plan:
    """One network to build.

    Attributes:
        method: which theorem.
        activation: of its hidden layers.
        widths: of its hidden layers.
        groups, size, chain: G, n and groups between separators, of the hard-tanh network of Theorem 3.1.
        first: ramps (two ReLU-like units each), or knots for a ReLU-like first layer on one line.
        decoder: how class outputs are read off; None for regression, and where that is part of the method.
        directions: R, the size of the pencil of directions.
        line: which of the lines that a seed stands for.
        gate: which units a gate is made of; ``groups`` gates of at most ``size`` rows then.
        spare: whether one class goes without gates.
    """

    method: Method
    activation: Activation
    widths: tuple[int, ...]
    groups: int = 0
    size: int = 0
    chain: int = 0
    first: First = "ramps"
    decoder: Decoder | None = None
    directions: int = 0
    line: int = 0
    gate: Gate | None = None
    spare: bool = False

    @property
    def hidden_units(self) -> int:
        """Units in all hidden layers."""
        return sum(self.widths)


@dataclass(frozen=True)
class Wish:
    """What the caller fixed: method and widths are None if the library may choose.

    ``one_hot`` leaves out networks whose class outputs are right but not one-hot.
    """

    activation: Activation
    rule: Rule
    method: Method | None
    widths: tuple[int, ...] | None
    one_hot: bool = False


def plans(shape: Shape, wish: Wish, class_rows: Sequence[int] = ()) -> list[Plan]:
    """The networks to try, in the order to try them.

    Without widths, by hidden units; gates may need more than is planned, as their margins decide. With
    widths there is one size, tried in several ways.

    Args:
        shape: of the distinct rows.
        wish: what the caller fixed.
        class_rows: how many rows every class that occurs has; gates are counted by them.

    Raises:
        InputError: a method or widths that do not suit the task.
        WidthError: widths that miss the theorem's condition.
    """
    method = _method(shape, wish)
    if method == "gates":
        return [_gates(shape, wish, class_rows)]
    if wish.widths is not None and method is not None:
        return list(_at_widths(shape, wish, method))
    found: list[Plan] = []
    if method in {None, "affine"} and (method or _affine_cost(shape) <= AFFINE_COST):
        found.append(Plan("affine", wish.activation, ()))
    if method == "interpolant" or (
        method is None and wish.activation != "hardtanh" and shape.rows <= INTERPOLANT_ROWS
    ):
        found.append(Plan("interpolant", wish.activation, (max(1, shape.rows - 1),)))
    if method is None and len(class_rows) > 1 and shape.inputs <= GATES_INPUTS:
        gates = _gates(shape, wish, class_rows)
        if shape.rows * shape.inputs * gates.groups <= GATES_COST:
            found.append(gates)
    if method in {None, "three-layer", "classifier"}:
        method = method or (
            "classifier" if wish.one_hot and shape.task == "classification" else "three-layer"
        )
        if wish.rule == "paper":
            found.extend(_at_widths(shape, wish, method))
        else:
            found.extend(_ladder(shape, wish.activation, method))
    return sorted(found, key=lambda plan: plan.hidden_units)


def _gates(shape: Shape, wish: Wish, class_rows: Sequence[int]) -> Plan:
    """Gates for as few rows each as the width allows, or for as many as the theorem does.

    Raises:
        WidthError: the width misses the corollary's condition, or is less than any gates take.
    """
    hardtanh, paper = wish.activation == "hardtanh", wish.rule == "paper"
    gate: Gate = "step pair" if hardtanh else "trapezoid" if paper else "hat"
    units, spare = GATE_UNITS[gate], not paper and len(class_rows) > 1

    def count(size: int) -> int:
        if len(class_rows) == 1:  # one slab holds all rows
            return 1
        gates = [ceil(rows / size) for rows in class_rows]
        return sum(gates) - (max(gates) if spare else 0)

    most = min(shape.inputs, shape.rows)
    width = wish.widths[0] if wish.widths else units * count(most)
    if wish.widths:
        fewest = (
            smallest_gates(shape.rows, shape.inputs, shape.outputs, units) if paper else units * count(most)
        )
        enough = (
            gate_capacity(width, shape.inputs, shape.outputs, units) >= shape.rows
            if paper
            else width >= fewest
        )
        if not enough:
            asks = f"{units}*(N/d + K)" if paper else "enough gates for every class but one"
            raise WidthError(
                f"Corollary 4.2 ({wish.activation}, rule '{wish.rule}') asks for {asks}: d1 >= {fewest}, but "
                f"here d1 = {width}."
            )
    size = next(size for size in range(1, most + 1) if size == most or units * count(size) <= width)
    gates = count(size)
    return Plan("gates", wish.activation, (units * gates,), gates, size, gate=gate, spare=spare)


def _method(shape: Shape, wish: Wish) -> Method | None:
    method = wish.method
    if method is not None and method not in get_args(Method):
        raise InputError(f"unknown method '{method}'; choose one of {', '.join(get_args(Method))}.")
    if method is None and wish.widths is not None:
        by_length: dict[int, Method] = {1: "gates", 2: "three-layer", 3: "classifier"}
        method = by_length.get(len(wish.widths))
        if method is None:
            raise InputError(
                f"{len(wish.widths)} widths given; one means Corollary 4.2 (gates), two mean Theorem 3.1 "
                f"(three-layer), three mean Proposition 3.2 (classifier)."
            )
    if method in {"classifier", "gates"} and shape.task == "regression":
        raise InputError(f"the method '{method}' is for class labels; use 'three-layer' with two widths.")
    if method == "interpolant" and wish.activation == "hardtanh":
        raise InputError(
            "the method 'interpolant' is made of ReLUs; choose activation 'relu' or 'leaky_relu'."
        )
    if wish.widths is not None and method is not None:
        expected = {"gates": 1, "three-layer": 2, "classifier": 3}.get(method)
        if expected is None:
            raise InputError(f"the method '{method}' chooses its own width; leave widths out.")
        if len(wish.widths) != expected:
            raise InputError(
                f"the method '{method}' has {expected} hidden layer(s), but {len(wish.widths)} width(s)."
            )
        if not all(isinstance(width, Integral) and width > 0 for width in wish.widths):
            raise InputError("widths are positive integers.")
    return method


def _affine_cost(shape: Shape) -> int:
    return shape.rows * shape.inputs * (shape.inputs + shape.outputs)


def _scalars(shape: Shape, method: Method) -> int:
    """Outputs of the three-layer network: one per target column, or one number for all classes."""
    return shape.outputs if shape.task == "regression" else 1


def _decoder(shape: Shape, rule: Rule, method: Method) -> Decoder | None:
    if shape.task == "regression":
        return None
    if method == "three-layer":
        return "nearest"
    return "gates" if rule == "paper" else "thermometer"


def _at_widths(shape: Shape, wish: Wish, method: Method) -> Iterator[Plan]:
    """Walk over the ways to build one network within given widths, or the smallest that meet the theorem.

    Yields:
        Plans, the most promising first.

    Raises:
        WidthError: the widths miss the theorem's condition.
    """
    outputs = _scalars(shape, method)
    activation, rule = wish.activation, wish.rule
    counted, smallest, capacity = (
        (shape.outputs, smallest_classifier, classifier_capacity)
        if method == "classifier"
        else (outputs, smallest_three_layer, three_layer_capacity)
    )
    widths = wish.widths or smallest(shape.rows, counted, activation, rule, shape.inputs)
    if capacity(widths, counted, activation, rule) < shape.rows:
        raise WidthError(width_message(widths, shape.rows, counted, activation, rule, shape.inputs))

    units = 1 if activation == "hardtanh" else 2  # per hard-tanh unit
    pairs = 2 if rule == "paper" else 1  # the paper's theorem counts groups and rows in pairs
    most_ramps = pairs * (widths[0] // (pairs * units))
    size = min(shape.rows, pairs * (widths[1] // (pairs * units * outputs)))
    groups = ceil(shape.rows / size)
    third = () if method == "three-layer" else (decoder_width(shape.outputs, activation, rule),)

    def plan(groups: int, chain: int, first: First, directions: int, line: int = 0) -> Plan:
        one = 2 * groups - 1 if first == "knots" else units * first_layer_width(groups, chain)
        hidden = (one, units * size * outputs, *third)
        decoder = _decoder(shape, rule, method)
        return Plan(method, activation, hidden, groups, size, chain, first, decoder, directions, line)

    spare = most_ramps - groups
    separated = [(min(shape.rows, (most_ramps + 1) // 2), 1)] if spare >= groups - 1 else []
    chained = [(groups, ceil(groups / (spare + 1)))] if 0 < spare < groups - 1 else []
    coupled = [(min(shape.rows, most_ramps), min(shape.rows, most_ramps))]
    order = separated + chained + coupled if activation == "hardtanh" else coupled + separated + chained
    small, large = DIRECTIONS
    for directions in DIRECTIONS:
        for count, chain in dict.fromkeys(order):
            yield plan(count, chain, "ramps", directions)
            # Independent groups are quickly built: many lines and tilts push a narrow dtype far.
            if chain == 1 and directions == large and WIDEST * shape.rows <= MOST_OFFSETS:
                for line in range(LINES):
                    yield plan(count, chain, "ramps", WIDEST, line)
        if activation != "hardtanh" and directions == small:
            yield plan(min(shape.rows, (widths[0] + 1) // 2), 1, "knots", 0)


def _ladder(shape: Shape, activation: Activation, method: Method) -> Iterator[Plan]:
    """Walk over networks of several sizes; larger ones stand more rounding.

    Yields:
        Plans, in no order.
    """
    outputs = _scalars(shape, method)
    units = 1 if activation == "hardtanh" else 2
    third = () if method == "three-layer" else (decoder_width(shape.outputs, activation, "tight"),)
    decoder = _decoder(shape, "tight", method)
    seen: set[tuple[Any, ...]] = set()

    def plan(groups: int, size: int, chain: int, first: First) -> Iterator[Plan]:
        chain = min(chain, groups)
        if (groups, size, chain, first) in seen:
            return
        seen.add((groups, size, chain, first))
        one = 2 * groups - 1 if first == "knots" else units * first_layer_width(groups, chain)
        widths = (one, units * size * outputs, *third)
        yield Plan(method, activation, widths, groups, size, chain, first, decoder, DIRECTIONS[0])

    rows = shape.rows
    for slack in SLACKS:
        for chain in (rows, *CHAINS):
            size = _best_size(rows, slack, chain, outputs)
            for stretch in (1, *STRETCHES) if chain in {1, rows} else (1,):
                stretched = min(rows, size * stretch)
                groups = min(rows, ceil(rows * (1 + slack) / stretched))
                yield from plan(groups, stretched, chain, "ramps")
        if activation != "hardtanh":
            size = _best_size(rows, slack, rows, outputs)
            yield from plan(min(rows, ceil(rows * (1 + slack) / size)), size, 1, "knots")


def _best_size(rows: int, slack: float, chain: int, outputs: int) -> int:
    """The group size n that gives the fewest hard-tanh units."""

    def units(size: int) -> int:
        return first_layer_width(ceil(rows * (1 + slack) / size), chain) + size * outputs

    near = isqrt(2 * rows // outputs) + 1
    return min(range(1, min(rows, 2 * near) + 1), key=units)
