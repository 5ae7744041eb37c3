"""One plan as a network."""

from __future__ import annotations

import torch
from torch import nn

from isthmus._types import Progress
from isthmus.data.dataset import Dataset
from isthmus.memorize.baselines import affine_map, interpolant
from isthmus.memorize.classifier import codes, decode
from isthmus.memorize.gates import memorize_labels
from isthmus.memorize.knots import memorize_values_on_knots
from isthmus.memorize.lines import draw_line
from isthmus.memorize.plan import Plan
from isthmus.memorize.three_layer import memorize_values
from isthmus.memorize.twins import twins
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
    affine = _affine(data, plan, dtype, torch.Generator().manual_seed(seed + plan.line), on_progress)
    return sequential(affine, plan.activation, dtype, flatten=data.x.ndim > 2)


def _affine(
    data: Dataset,
    plan: Plan,
    dtype: torch.dtype,
    generator: torch.Generator,
    on_progress: Progress | None,
) -> list[Affine]:
    leak = LEAK if plan.activation == "leaky_relu" else 0.0
    if plan.method == "affine":
        return affine_map(data, data.targets())
    if plan.gate is not None:
        return memorize_labels(
            data, plan.size, plan.gate, leak, dtype, generator, spare=plan.spare, on_progress=on_progress
        )
    line = draw_line(data, plan.directions, generator, dtype)
    if plan.method == "interpolant":
        return interpolant(line, data.targets(), leak)
    values = data.targets() if plan.decoder is None else codes(data.outputs)[data.y][:, None]
    low, high = values.amin(0), values.amax(0)
    center, half = high / 2 + low / 2, ((high - low) / 2).where(high > low, 1.0)
    if plan.decoder is None:
        values = ((values - center) / half).clamp(-1, 1)
    if plan.first == "knots":
        network = memorize_values_on_knots(data, line, values, plan.groups, plan.size, leak, on_progress)
    else:
        network = memorize_values(data, line, values, plan.groups, plan.size, plan.chain, on_progress)
    if plan.decoder is None:
        *hidden, (weight, bias) = network
        network = [*hidden, Affine(half[:, None] * weight, half * bias + center)]
    else:
        network = decode(network, data.outputs, plan.decoder)
    if plan.activation == "hardtanh":
        return network
    return twins(network, leak, first=1 if plan.first == "knots" else 0)
