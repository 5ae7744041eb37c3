"""Theorem 4.1: a residual network of gates moves the rows of every class apart, some at a time.

    h^l = h^(l-1) + V^l H(U^l h^(l-1) + b^l) + c^l for l < L,   outputs V^L H(U^L h^(L-1) + b^L) + c^L

A gate is a pair of steps around a hyperplane through at most d rows of one class that no gate has chosen
before (`slabs`). It moves these rows, and no others, along the coordinate of their class beyond all other
rows. Gates of one block act on the same h; the planes of the next block are found for the rows as they then
lie. In the end coordinate k tells class k from the rest, and one unit each makes that one-hot.

Where a block has room for half a gate, one is cut in two: its first step moves all rows on one side, too, and
its second step, in the next such block, moves them back. Until then everything that is added must be parallel
to the gate's plane, by entries beyond the coordinates of the K classes; so that takes d > K.

Source: Yun, Sra and Jadbabaie 2019 (arXiv 1810.07770), Theorem 4.1 and Appendix F.1; gates cut in two, hats,
and the class that goes without gates are additions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from isthmus._types import Progress
from isthmus.data.dataset import Dataset
from isthmus.memorize.gates import GATE_UNITS, Gate, class_pools, gate_profile
from isthmus.memorize.slabs import Slabs, affine_hull, all_rows, find_slabs
from isthmus.nets.residual import ResidualBlock
from isthmus.nets.sequential import Affine

HALF: Final[dict[Gate, int]] = {"step pair": 1, "trapezoid": 2}  # units of one step, where a gate is two
PUSH = 2  # extents of its class's column that a row is moved by, or up to twice that
STRAY = 1 / 8  # of a push, in other columns: rows must not come to lie on a plane together
STEEPNESS = 4  # of the last layer: a ramp takes half of the gap between a class and the rest


@dataclass(frozen=True)
class _Cut:
    """A gate whose first step stands in one block, and its second in a later one.

    Attributes:
        normal: of its plane [d].
        beyond: the rows that the first step has moved and the second must move back [N].
        push: by what [d].
    """

    normal: Tensor
    beyond: Tensor
    push: Tensor


def memorize_labels_in_blocks(
    data: Dataset,
    widths: Sequence[int],
    most: int,
    gate: Gate,
    leak: float,
    dtype: torch.dtype,
    generator: torch.Generator,
    *,
    spare: bool,
    on_progress: Progress | None = None,
) -> tuple[list[ResidualBlock], list[Affine]]:
    """The residual network of Theorem 4.1, outputs one-hot.

    Args:
        data: distinct rows with class labels; d >= K.
        widths: the most units of every block of gates; the last takes as many as are needed.
        most: m, the most rows per gate; no more than the dimension of the rows' affine hull are used.
        gate: which units a gate is made of.
        leak: slope of the activation below 0, for gates that are made of ReLU-like units.
        dtype: of the network, in whose rounding the margins must hold.
        generator: source of the directions.
        spare: leave out the gates of the class that has most.
        on_progress: told what is done and which part of it.

    Returns:
        The blocks, and two affine maps around hard-tanh units that read the classes off.

    Raises:
        PrecisionError: two rows of different classes are closer than this dtype tells apart.
    """
    pools = [pool[torch.randperm(len(pool), generator=generator)] for pool in class_pools(data)]
    spared = max(range(len(pools)), key=lambda k: len(pools[k])) if spare else None
    if spared is not None:
        pools[spared] = pools[spared][:0]
    read = [k for k in range(data.outputs) if k != spared]  # class read[j] has the coordinate j
    column = torch.zeros(data.outputs, dtype=torch.int64)
    column[read] = torch.arange(len(read))
    h = data.flat.double()
    extent = h.amax(0) - h.amin(0)
    beside = bool((extent[len(read) :] > 0).any())  # whether there are columns beyond those of the classes
    extent = extent.where(extent > 0, float(extent.amax()) or 1.0)
    most = min(most, len(affine_hull(data)[1]))
    opening, closing = _cut_blocks(widths, gate) if beside else (set(), set())
    blocks: list[ResidualBlock] = []
    cut: _Cut | None = None
    for index, width in enumerate(widths):
        pieces: list[ResidualBlock] = []
        if cut is not None and index in closing:
            pieces.append(_second_step(cut, h, gate, leak))
            cut = None
        # What is planned may not be enough; the last block takes as many gates as there are left to make.
        count = sum(map(len, pools)) if index + 1 == len(widths) else width // GATE_UNITS[gate]
        here = replace(data, x=h, columns=())
        slabs, pools = _choose(here, pools, count + (index in opening), most, gate, dtype, generator)
        pushes = _draw_pushes(column[slabs.pool], extent, len(read), generator)
        if len(pushes) > count:
            beyond = h @ slabs.normal[-1] > slabs.center[-1]
            beyond[slabs.rows[-1]] = False
            cut = _Cut(slabs.normal[-1], beyond, pushes[-1])
        if cut is not None:
            pushes = _parallel(pushes, cut.normal, extent, len(read))
            cut = replace(cut, push=pushes[-1]) if len(pushes) > count else cut
        steps = [0 if number >= count else None for number in range(len(pushes))]
        planes = zip(slabs.normal, slabs.center, slabs.margin, pushes, steps, strict=True)
        pieces += [_piece(*plane, gate, leak) for plane in planes]
        if pieces:
            block = _held(_side_by_side(pieces), dtype)
            blocks.append(block)
            h = h + _value(block, h, gate, leak)
        if on_progress is not None:
            on_progress("moving rows", (index + 1) / len(widths))
    return blocks, _read(replace(data, x=h, columns=()), extent, read)


def _cut_blocks(widths: Sequence[int], gate: Gate) -> tuple[set[int], set[int]]:
    """The blocks in which gates are cut, and those in which they are finished, in pairs."""
    half, units = HALF.get(gate), GATE_UNITS[gate]
    odd = [index for index, width in enumerate(widths) if half is not None and width % units >= half]
    paired = odd[: len(odd) // 2 * 2]
    return set(paired[::2]), set(paired[1::2])


def _choose(
    data: Dataset,
    pools: list[Tensor],
    gates: int,
    most: int,
    gate: Gate,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> tuple[Slabs, list[Tensor]]:
    """Planes for some of the rows that no gate has chosen yet, and the rows that are left in every pool."""
    wanted: list[Tensor] = []
    room = gates
    for pool in pools:
        taken = min(room, ceil(len(pool) / most)) if most else min(room, len(pool))
        wanted.append(pool[: taken * max(1, most)])
        room -= taken
    if not any(map(len, wanted)):
        none = torch.empty(0, dtype=torch.int64)
        empty = torch.empty(0, dtype=torch.float64)
        return Slabs(empty[:, None].expand(0, data.inputs), empty, empty, none, none[:, None]), pools
    if len(pools[int(data.y[0])]) == data.rows:  # no other class: no row is to be kept off
        slabs = all_rows(data, int(data.y[0]))
    else:
        slabs = find_slabs(data, wanted, most, gate != "step pair", dtype, generator)
        slabs = slabs.where(torch.arange(len(slabs.pool)) < gates)
    return slabs, [pool[~torch.isin(pool, slabs.rows)] for pool in pools]


def _draw_pushes(column: Tensor, extent: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """What every gate moves its rows by: far along their class's coordinate, a little back along the others.

    Args:
        column: the coordinates of their classes [G].
        extent: of the rows in every column [d].
        classes: how many have a coordinate.
        generator: source of the stray parts.

    Returns:
        The pushes [G, d].
    """
    far = torch.exp2((PUSH * extent).log2().ceil())
    stray = torch.rand(len(column), len(extent), generator=generator, dtype=torch.float64)
    stray[:, classes:] -= 0.5
    pushes = -STRAY * stray * far
    pushes[torch.arange(len(column)), column] = far[column]
    return pushes


def _parallel(pushes: Tensor, normal: Tensor, extent: Tensor, classes: int) -> Tensor:
    """Pushes [G, d] made parallel to a plane by their entries beyond the coordinates of the classes."""
    free = (extent.square() * normal)[classes:]
    moved = pushes.clone()
    moved[:, classes:] -= (pushes @ normal / (normal[classes:] @ free))[:, None] * free
    return moved


def _piece(
    normal: Tensor, center: Tensor, margin: Tensor, push: Tensor, step: int | None, gate: Gate, leak: float
) -> ResidualBlock:
    """A gate, or one of its two steps, as a block of its own.

    Args:
        normal: u [d].
        center: b.
        margin: mu.
        push: what it adds where it is open [d].
        step: 0 or 1 for one of the steps; None for both.
        gate: which units it is made of.
        leak: slope of the activation below 0, for ReLU-like units.
    """
    scale, shift, coefficient = gate_profile(margin[None], gate, leak)
    units, constant = slice(None), torch.zeros_like(push)
    if step is not None:
        half = HALF[gate]
        units = slice(step * half, (step + 1) * half)
        # A step is to be 0 on the far side, where its units are as low as they get.
        lowest = -0.5 if gate == "step pair" else leak / (1 - leak)
        constant = (-lowest if step == 0 else lowest) * push
    shift, coefficient = shift[0, units], coefficient[units]
    inner = Affine((scale * normal).expand(len(shift), -1), shift - scale * center)
    return ResidualBlock(inner, Affine(push[:, None] * coefficient, constant))


def _second_step(cut: _Cut, h: Tensor, gate: Gate, leak: float) -> ResidualBlock:
    """The step that moves the rows beyond a plane back, from between them and all others as they now lie."""
    z = h @ cut.normal
    low = z[~cut.beyond].amax()
    high = z[cut.beyond].amin() if cut.beyond.any() else low + low.abs() + 1
    return _piece(cut.normal, low, high - low, cut.push, 1, gate, leak)


def _side_by_side(pieces: Sequence[ResidualBlock]) -> ResidualBlock:
    inner, outer = zip(*pieces, strict=True)
    return ResidualBlock(
        Affine(torch.cat([part.weight for part in inner]), torch.cat([part.bias for part in inner])),
        Affine(
            torch.cat([part.weight for part in outer], 1), torch.stack([part.bias for part in outer]).sum(0)
        ),
    )


def _held(block: ResidualBlock, dtype: torch.dtype) -> ResidualBlock:
    """The block with weights that the dtype holds."""
    inner, outer = (Affine(*(tensor.to(dtype).double() for tensor in part)) for part in block)
    return ResidualBlock(inner, outer)


def _value(block: ResidualBlock, h: Tensor, gate: Gate, leak: float) -> Tensor:
    units = functional.linear(h, *block.inner)
    units = units.clamp(-1, 1) if gate == "step pair" else functional.leaky_relu(units, leak)
    return functional.linear(units, *block.outer)


def _read(data: Dataset, extent: Tensor, read: Sequence[int]) -> list[Affine]:
    """Two affine maps around one hard-tanh unit per class: 1 beyond the middle of the gap before its rows.

    Args:
        data: the rows as they lie in the end.
        extent: of the rows in every column, as they came [d].
        read: the class of every coordinate; one class may be left out, whose output is 1 minus all others.
    """
    weight = torch.zeros(len(read), data.inputs, dtype=torch.float64)
    bias = torch.zeros(len(read), dtype=torch.float64)
    outputs = torch.zeros(data.outputs, len(read), dtype=torch.float64)
    constant = torch.zeros(data.outputs, dtype=torch.float64)
    for unit, k in enumerate(read):
        along, own = data.flat[:, unit], data.y == k
        low = along[~own].amax() if (~own).any() else along.amin() - extent[unit]
        high = along[own].amin() if own.any() else low + extent[unit]
        steepness = torch.exp2((STEEPNESS / (high - low)).log2().ceil())
        weight[unit, unit], bias[unit] = steepness, -steepness * (low / 2 + high / 2)
        outputs[k, unit], constant[k] = 0.5, 0.5
    for spared in set(range(data.outputs)) - set(read):
        outputs[spared], constant[spared] = -0.5, 1 - len(read) / 2
    return [Affine(weight, bias), Affine(outputs, constant)]
