"""Proposition 3.4: a deep and narrow network memorizes the rows block by block.

The rows are sorted along one line and dealt out to the blocks in order. Every block is Theorem 3.1's network
f for its own rows (`three_layer`); all others lie outside its ramps, where f does not depend on the row. So
(f + 1) / 2 adds (y + 1) / 2 to the *sums* of the block's own rows, nothing to those of the rows on the left,
and on the right 1 if both the number of groups and their size n are odd, else nothing. The position t along
the line and the sums lie in [0, 1], where hard-tanh and ReLU-like units are the identity: one unit each
carries them from layer to layer.

Behind a block of odd numbers all sums start from 1. The next block is then built for the targets -y and
negated: -(f + 1) / 2 adds (y - 1) / 2 to its own rows, and takes the 1 back from the rows on its right if its
numbers are odd, too. The paper allows even numbers only.

Source: Yun, Sra and Jadbabaie 2019 (arXiv 1810.07770), Proposition 3.4, Corollaries A.1-A.3 and Appendix E;
blocks of odd numbers are an addition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isthmus._types import Progress
from isthmus.arithmetic.grid import round_to_grid
from isthmus.data.dataset import Dataset
from isthmus.memorize.lines import Line, ascending, exact_bits, project
from isthmus.memorize.ramps import draw_ramps
from isthmus.memorize.three_layer import first_layer, output_layer, second_layer, solve_chains
from isthmus.nets.sequential import Affine

LOWEST = 2.0**-6  # the first row's position along the line that is carried


@dataclass(frozen=True)
class Block:
    """Two layers that memorize some of the rows.

    Attributes:
        start: l_j, the first of its hidden layers, counted from 1.
        rows: how many rows it memorizes.
        groups, size, chain: G, n and groups between separators.
    """

    start: int
    rows: int
    groups: int
    size: int
    chain: int


@dataclass(frozen=True)
class _Fitted:
    """A block's affine maps: into its two layers, and from there to what it adds to the sums."""

    first: Affine
    second: Affine
    added: Affine


def memorize_values_in_blocks(
    data: Dataset,
    line: Line,
    targets: Tensor,
    blocks: Sequence[Block],
    hidden: int,
    on_progress: Progress | None = None,
) -> tuple[list[Affine], list[int]]:
    """The hard-tanh network of Proposition 3.4 that takes the given values on all rows.

    Args:
        data: distinct rows.
        line: the same rows, sorted.
        targets: y in [-1, 1] [N, K].
        blocks: in order, with N rows together.
        hidden: how many hidden layers the network has.
        on_progress: told what is done and which part of it.

    Returns:
        Affine maps, one more than hidden layers; and how many of every hidden layer's units, its first ones,
        only carry numbers in [0, 1].

    Raises:
        PrecisionError: two rows lie together along the line.
    """
    position, line = _carried(data, line)
    along = _along(data, line, position.bias)
    fitted: dict[int, _Fitted] = {}
    row, sign = 0, 1.0
    for block in blocks:
        rows, sorted_rows = (data, line) if block.start == 1 else along
        part = slice(row, row + block.rows)
        fitted[block.start] = _fit(rows, sorted_rows, sign * targets, block, part, sign, on_progress)
        row = part.stop
        if block.groups % 2 and block.size % 2:
            sign = -sign
    return _wire(position, fitted, hidden, targets.shape[1])


def _carried(data: Dataset, line: Line) -> tuple[Affine, Line]:
    """The position along the line, inside (0, 1), as a function of a row; and the line in that scale."""
    low, high = line.position[0], line.position[-1]
    # Half the range is used, so that no rounding leads out of it. Powers of two keep a direction's few bits.
    scale = torch.exp2(-1 - (high - low).clamp_min(torch.finfo(torch.float64).tiny).log2().ceil())
    weight = scale * line.direction
    if line.bits:
        weight = round_to_grid(weight, line.bits, dim=0)
    weight = weight.to(line.dtype).double()
    inner = project(data, weight[:, None]).squeeze(1)
    bias = (LOWEST - inner.amin()).to(line.dtype).double()
    position, order = ascending(inner)
    place = torch.empty_like(line.order).scatter_(0, line.order, torch.arange(data.rows))
    offsets = line.offsets[place[order]]
    carried = replace(line, direction=weight, order=order, position=position, offsets=offsets)
    return Affine(weight[None], bias[None]), carried


def _along(data: Dataset, line: Line, bias: Tensor) -> tuple[Dataset, Line]:
    """The positions that are carried as a data set with one input, and its line."""
    carried = line.position + bias
    x = torch.empty(data.rows, 1, dtype=torch.float64)
    x[line.order, 0] = carried
    positions, alone = replace(data, x=x, columns=()), line.alone()
    one = torch.ones(1, dtype=torch.float64)
    bits = exact_bits(positions)
    return positions, replace(alone, direction=one, position=carried, pencil=alone.pencil[:1], bits=bits)


def _fit(
    data: Dataset,
    line: Line,
    targets: Tensor,
    block: Block,
    part: slice,
    sign: float,
    on_progress: Progress | None,
) -> _Fitted:
    """One block for some of the sorted rows, which adds its values to the sums or takes them off."""
    ramps = draw_ramps(data, line, targets, block.groups, block.size, block.chain, on_progress, part)
    left, right = solve_chains(ramps, targets, block.chain)
    weight, bias = output_layer(block.size, targets.shape[1])
    return _Fitted(
        first_layer(line, ramps, block.chain),
        second_layer(left, right, block.chain),
        Affine(sign * weight / 2, sign * (bias + 1) / 2),
    )


def _wire(
    position: Affine, fitted: dict[int, _Fitted], hidden: int, outputs: int
) -> tuple[list[Affine], list[int]]:
    """The whole network, and how many units of every hidden layer carry.

    Args:
        position: t as a function of a row.
        fitted: the blocks by their first layers.
        hidden: how many hidden layers there are.
        outputs: K.
    """
    network: list[Affine] = []
    carried: list[int] = []
    read = {"position": position}  # what is known so far, as functions of the last layer's values
    for layer in range(1, hidden + 1):
        needed = ("position", "sums") if layer < max(fitted) else ("sums",)
        wanted = {name: read[name] for name in needed if name in read}
        carried.append(sum(len(part.bias) for part in wanted.values()))
        if layer in fitted:
            first = fitted[layer].first
            wanted["units"] = first if layer == 1 else _after(first, read["position"])
        elif layer - 1 in fitted:
            wanted["units"] = _after(fitted[layer - 1].second, read["units"])
        network.append(Affine(*(torch.cat(parts) for parts in zip(*wanted.values(), strict=True))))
        read = _parts(wanted)
        if layer - 1 in fitted:
            added = _after(fitted[layer - 1].added, read["units"])
            before = read.get("sums", Affine(torch.zeros_like(added.weight), torch.zeros_like(added.bias)))
            read["sums"] = Affine(before.weight + added.weight, before.bias + added.bias)
    one = torch.ones(outputs, dtype=torch.float64)
    return [*network, _after(Affine(2 * torch.diag(one), -one), read["sums"])], carried


def _after(outer: Affine, inner: Affine) -> Affine:
    """Two affine maps as one."""
    return Affine(outer.weight @ inner.weight, outer.weight @ inner.bias + outer.bias)


def _parts(layer: dict[str, Affine]) -> dict[str, Affine]:
    """The parts of a layer as functions of all its units' values."""
    sizes = [len(part.bias) for part in layer.values()]
    identity = torch.eye(sum(sizes), dtype=torch.float64)
    return {
        name: Affine(weight, weight.new_zeros(len(weight)))
        for name, weight in zip(layer, identity.split(sizes), strict=True)
    }
