"""One plan as a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isthmus._types import Progress
from isthmus.data.dataset import Dataset
from isthmus.memorize.baselines import affine_map, interpolant
from isthmus.memorize.classifier import codes, decode
from isthmus.memorize.deep import memorize_values_in_blocks
from isthmus.memorize.gates import memorize_labels
from isthmus.memorize.knots import memorize_values_on_knots
from isthmus.memorize.lines import draw_line
from isthmus.memorize.plan import Plan
from isthmus.memorize.real_gates import memorize_values_on_gates
from isthmus.memorize.residual import memorize_labels_in_blocks
from isthmus.memorize.three_layer import memorize_values
from isthmus.memorize.twins import twins
from isthmus.memorize.zigzag import memorize_values_on_zigzag
from isthmus.nets.residual import residual_network
from isthmus.nets.sequential import LEAK, Affine, sequential


def build(
    data: Dataset,
    plan: Plan,
    seed: int,
    dtype: torch.dtype = torch.float64,
    on_progress: Progress | None = None,
) -> nn.Sequential:
    """Build one planned network; the same seed gives the same bits.

    Args:
        data: distinct rows, as the dtype holds them.
        plan: what to build.
        seed: of the random directions.
        dtype: of the parameters; margins and slopes are chosen to hold in it.
        on_progress: told what is done and which part of it.

    Raises:
        PrecisionError: rows that float64, or for gates the dtype, cannot tell apart.
    """
    generator = torch.Generator().manual_seed(seed + plan.line)
    leak = LEAK if plan.activation == "leaky_relu" else 0.0
    flatten = data.x.ndim > 2
    if plan.method == "residual":
        assert plan.gate is not None
        blocks, read = memorize_labels_in_blocks(
            data,
            plan.widths[:-1],
            plan.size,
            plan.gate,
            leak,
            dtype,
            generator,
            spare=plan.spare,
            on_progress=on_progress,
        )
        last = read if plan.activation == "hardtanh" else twins(read, leak)
        return residual_network(blocks, last, plan.activation, dtype, flatten=flatten)
    affine = _affine(data, plan, leak, dtype, generator, on_progress)
    return sequential(affine, plan.activation, dtype, flatten=flatten)


def _affine(
    data: Dataset,
    plan: Plan,
    leak: float,
    dtype: torch.dtype,
    generator: torch.Generator,
    on_progress: Progress | None,
) -> list[Affine]:
    if plan.method == "affine":
        return affine_map(data, data.targets())
    if plan.gate is not None:
        return memorize_labels(
            data, plan.size, plan.gate, leak, dtype, generator, spare=plan.spare, on_progress=on_progress
        )
    relu = plan.activation != "hardtanh"
    if plan.method == "gates":
        network = memorize_values_on_gates(
            data, data.targets(), plan.size, dtype, generator, adding=relu, on_progress=on_progress
        )
        return twins(network, leak) if relu else network
    if plan.method == "interpolant":
        return interpolant(draw_line(data, 0, generator, dtype), data.targets(), leak)
    values = data.targets() if plan.decoder is None else codes(data.outputs)[data.y][:, None]
    low, high = values.amin(0), values.amax(0)
    center, half = high / 2 + low / 2, ((high - low) / 2).where(high > low, 1.0)
    if plan.decoder is None:
        values = ((values - center) / half).clamp(-1, 1)
    network, kept = _fit(data, plan, values, leak, dtype, generator, on_progress)
    if plan.decoder is None:
        *hidden, (weight, bias) = network
        network = [*hidden, Affine(half[:, None] * weight, half * bias + center)]
    else:
        network = decode(network, data.outputs, plan.decoder)
    if plan.gate_layer:
        network, kept = _carried_on(network, kept, len(plan.widths))
    if not relu or plan.method == "zigzag":
        return network
    return twins(network, leak, kept)


def _fit(
    data: Dataset,
    plan: Plan,
    values: Tensor,
    leak: float,
    dtype: torch.dtype,
    generator: torch.Generator,
    on_progress: Progress | None,
) -> tuple[list[Affine], list[int]]:
    """The network that takes values in [-1, 1] on all rows, and how many units per layer need no twins."""
    if plan.method == "zigzag":
        network = memorize_values_on_zigzag(
            data, values, plan.groups, plan.size, leak, generator, on_progress
        )
        return network, []
    line = draw_line(data, plan.directions, generator, dtype)
    if plan.blocks:
        layers = plan.gate_layer - 1 if plan.gate_layer else len(plan.widths)
        return memorize_values_in_blocks(data, line, values, plan.blocks, layers, on_progress)
    if plan.first == "knots":
        network = memorize_values_on_knots(data, line, values, plan.groups, plan.size, leak, on_progress)
        return network, [len(network[0].bias)]
    network = memorize_values(
        data,
        line,
        values,
        plan.groups,
        plan.size,
        plan.chain,
        on_progress,
        respacing=plan.first == "respaced",
    )
    return network, []


def _carried_on(network: list[Affine], kept: list[int], hidden: int) -> tuple[list[Affine], list[int]]:
    """The network with its outputs, 0 and 1, carried on by as many layers as it has too few."""
    outputs = len(network[-1].bias)
    more = hidden + 1 - len(network)
    same = Affine(torch.eye(outputs, dtype=torch.float64), torch.zeros(outputs, dtype=torch.float64))
    return [*network, *[same] * more], [*kept, *[0] * (len(network) - 1 - len(kept)), *[outputs] * more]
