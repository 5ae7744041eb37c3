"""Twins: a hard-tanh network as a ReLU or leaky ReLU network of twice the hidden widths, same depth.

    H(t) = [r(t + 1) - r(t - 1) - (s+ + s-)] / (s+ - s-)   for r(t) = s+ t (t >= 0), s- t (t < 0)

Source: Yun, Sra and Jadbabaie 2019 (arXiv 1810.07770), Theorem 3.1 for ReLU-like activations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from isthmus.nets.sequential import Affine


def twins(affine: Sequence[Affine], leak: float, kept: Sequence[int] = ()) -> list[Affine]:
    """The same function with r in place of H, for s+ = 1 and s- = ``leak``.

    Args:
        affine: a hard-tanh network's affine maps.
        leak: slope of r below 0, less than 1; 0 for ReLU.
        kept: how many units of every hidden layer, its first ones, are ReLU-like already; none
            where a layer is not listed.
    """
    network = list(affine)
    for index in range(len(network) - 1):
        same = kept[index] if index < len(kept) else 0
        weight, bias = network[index]
        # Twins stand side by side: where both are on, their large terms cancel before they pile up in a sum.
        pairs = torch.stack([bias[same:] + 1, bias[same:] - 1], 1).flatten()
        network[index] = Affine(
            torch.cat([weight[:same], weight[same:].repeat_interleave(2, 0)]), torch.cat([bias[:same], pairs])
        )
        weight, bias = network[index + 1]
        changed = weight[:, same:] / (1 - leak)
        network[index + 1] = Affine(
            torch.cat([weight[:, :same], torch.stack([changed, -changed], 2).flatten(1)], 1),
            bias - (1 + leak) * changed.sum(1),
        )
    return network
