"""Plans for networks of two hidden layers, and a decoder: Theorem 3.1, Proposition 3.2 and the zigzag."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, isqrt
from typing import Any

import torch

from isthmus._types import Rule
from isthmus.bounds.theorems import (
    classifier_capacity,
    decoder_width,
    smallest_classifier,
    smallest_three_layer,
    smallest_zigzag,
    three_layer_capacity,
    width_message,
    zigzag_capacity,
)
from isthmus.data.dataset import Shape
from isthmus.errors import WidthError
from isthmus.memorize.classifier import Decoder
from isthmus.memorize.plan import First, Method, Plan, Wish
from isthmus.memorize.respacing import FREEDOM
from isthmus.memorize.three_layer import first_layer_width

CHAINS = (64, 32, 16, 8, 4, 1)  # groups between separators, after none at all
SLACKS = (0.0, 0.05, 0.25)  # groups more than needed, to cut in wide gaps
STRETCHES = (2, 4)  # more units per group for fewer groups: less rounding in the second layer
DIRECTIONS = (8, 32)  # of the pencil; more for a second try at the same widths
WIDEST = 128  # of the pencil, for further tries of independent groups
LINES = 6  # to try with so large a pencil
MOST_OFFSETS = 1 << 24  # N R up to which that is done
RESPACING_COST = 10**11  # N d G up to which groups are re-spaced


def scalars(shape: Shape) -> int:
    """Outputs of the network before a decoder: one per target column, or one number for all classes."""
    return shape.outputs if shape.task == "regression" else 1


def decoder_for(shape: Shape, rule: Rule, method: Method) -> Decoder | None:
    """How a method reads classes off."""
    if shape.task == "regression":
        return None
    if method not in {"classifier", "deep-classifier"}:
        return "nearest"
    return "gates" if rule == "paper" else "thermometer"


def at_widths(shape: Shape, wish: Wish, method: Method) -> Iterator[Plan]:
    """Walk over the ways to build one network within given widths, or the smallest that meet the theorem.

    Yields:
        Plans, the most promising first.

    Raises:
        WidthError: the widths miss the theorem's condition.
    """
    outputs = scalars(shape)
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
        decoder = decoder_for(shape, rule, method)
        return Plan(method, activation, hidden, groups, size, chain, first, decoder, directions, line)

    spare = most_ramps - groups
    separated = [(min(shape.rows, (most_ramps + 1) // 2), 1)] if spare >= groups - 1 else []
    chained = [(groups, ceil(groups / (spare + 1)))] if 0 < spare < groups - 1 else []
    coupled = [(min(shape.rows, most_ramps), min(shape.rows, most_ramps))]
    order = separated + chained + coupled if activation == "hardtanh" else coupled + separated + chained
    small, large = DIRECTIONS
    for directions in DIRECTIONS:
        for count, chain in dict.fromkeys(order):
            for first in _first_layers(shape, wish, count, size, chain):
                if first == "ramps" or directions == small:
                    yield plan(count, chain, first, directions)
            # Independent groups are quickly built: many lines and tilts push a narrow dtype far.
            if chain == 1 and directions == large and WIDEST * shape.rows <= MOST_OFFSETS:
                for line in range(LINES):
                    yield plan(count, chain, "ramps", WIDEST, line)
        if activation != "hardtanh" and directions == small:
            yield plan(min(shape.rows, (widths[0] + 1) // 2), 1, "knots", 0)


def ladder(shape: Shape, wish: Wish, method: Method) -> Iterator[Plan]:
    """Walk over networks of several sizes; larger ones stand more rounding.

    Yields:
        Plans, in no order.
    """
    outputs, activation = scalars(shape), wish.activation
    units = 1 if activation == "hardtanh" else 2
    third = () if method == "three-layer" else (decoder_width(shape.outputs, activation, "tight"),)
    decoder = decoder_for(shape, "tight", method)
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
                for first in _first_layers(shape, wish, groups, stretched, chain):
                    yield from plan(groups, stretched, chain, first)
        if activation != "hardtanh":
            size = _best_size(rows, slack, rows, outputs)
            yield from plan(min(rows, ceil(rows * (1 + slack) / size)), size, 1, "knots")


def _first_layers(shape: Shape, wish: Wish, groups: int, size: int, chain: int) -> tuple[First, ...]:
    """How ramps may be drawn, the more promising way first.

    Re-spacing takes time, but its weights are small. So it comes first for long chains and in narrow dtypes.
    """
    free = shape.inputs >= FREEDOM * size and size > 1
    if not free or shape.rows * shape.inputs * groups > RESPACING_COST:
        return ("ramps",)
    return ("respaced", "ramps") if chain > 1 or wish.dtype != torch.float64 else ("ramps", "respaced")


def zigzag_plan(shape: Shape, wish: Wish) -> Plan:
    """A zigzag within given widths, or the smallest; two rows need no third kink.

    Raises:
        WidthError: the widths hold fewer rows.
    """
    outputs = scalars(shape)
    leaky = wish.activation == "leaky_relu"
    widths = wish.widths or smallest_zigzag(shape.rows, outputs, shape.inputs, leaky=leaky)
    capacity = zigzag_capacity(widths, outputs, leaky=leaky)
    if capacity < shape.rows:
        fewest = "-".join(map(str, smallest_zigzag(shape.rows, outputs, shape.inputs, leaky=leaky)))
        asks = f"d1*(floor(d2/{outputs}) - 1)" if leaky else f"d1*floor(d2/{outputs})"
        raise WidthError(
            f"The zigzag ({wish.activation}) asks for {asks} >= {shape.rows}, but here it is {capacity}; the "
            f"fewest units are {fewest}."
        )
    slots = widths[1] // outputs - leaky
    size = min(shape.rows, slots)
    groups = ceil(shape.rows / size)  # no more than needed: slopes grow with every group
    used = (groups, (size + leaky) * outputs)
    decoder = decoder_for(shape, wish.rule, "zigzag")
    return Plan("zigzag", wish.activation, used, groups, size, decoder=decoder)


def _best_size(rows: int, slack: float, chain: int, outputs: int) -> int:
    """The group size n that gives the fewest hard-tanh units."""

    def units(size: int) -> int:
        return first_layer_width(ceil(rows * (1 + slack) / size), chain) + size * outputs

    near = isqrt(2 * rows // outputs) + 1
    return min(range(1, min(rows, 2 * near) + 1), key=units)
