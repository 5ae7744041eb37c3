"""Plans: what a network is to be made of, decided by counting alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from isthmus._types import Activation, Rule
from isthmus.bounds.deep import Minimize
from isthmus.memorize.classifier import Decoder
from isthmus.memorize.deep import Block
from isthmus.memorize.gates import Gate

Method = Literal[
    "affine",
    "interpolant",
    "gates",
    "residual",
    "three-layer",
    "zigzag",
    "classifier",
    "deep",
    "deep-classifier",
]
First = Literal["ramps", "respaced", "knots"]


@dataclass(frozen=True)
class Plan:
    """One network to build.

    Attributes:
        method: which theorem.
        activation: of its hidden layers.
        widths: of its hidden layers.
        groups, size, chain: G, n and groups between separators, of the hard-tanh network of Theorem 3.1.
        first: ramps (two ReLU-like units each), ramps along re-spaced lines, or knots for a ReLU-like first
            layer on one line.
        decoder: how class outputs are read off; None for regression, and where that is part of the method.
        directions: R, the size of the pencil of directions.
        line: which of the lines that a seed stands for.
        gate: which units a gate is made of; ``groups`` gates of at most ``size`` rows then.
        spare: whether one class goes without gates.
        blocks: of a deep network; ``gate_layer`` is the hidden layer that its decoder stands in, if any.
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
    blocks: tuple[Block, ...] = ()
    gate_layer: int = 0

    @property
    def hidden_units(self) -> int:
        """Units in all hidden layers."""
        return sum(self.widths)


@dataclass(frozen=True)
class Wish:
    """What the caller fixed: method, widths and depth are None if the library may choose.

    ``one_hot`` leaves out networks whose class outputs are right but not one-hot.
    """

    activation: Activation
    rule: Rule
    method: Method | None
    widths: tuple[int, ...] | None
    depth: int | None = None
    minimize: Minimize = "units"
    one_hot: bool = False
    dtype: torch.dtype = torch.float64
