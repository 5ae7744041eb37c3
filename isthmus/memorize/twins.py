"""Twins: a hard-tanh network as a ReLU or leaky ReLU network of twice the hidden widths, same depth.

    H(t) = [r(t + 1) - r(t - 1) - (s+ + s-)] / (s+ - s-)   for r(t) = s+ t (t >= 0), s- t (t < 0)

Source: Yun, Sra and Jadbabaie 2019 (arXiv 1810.07770), Theorem 3.1 for ReLU-like activations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from isthmus.nets.sequential import Affine


def twins(affine: Sequence[Affine], leak: float, first: int = 0) -> list[Affine]:
    """The same function with r in place of H, for s+ = 1 and s- = ``leak``.

    Args:
        affine: a hard-tanh network's affine maps.
        leak: slope of r below 0, less than 1; 0 for ReLU.
        first: the first hidden layer to change; those before it are ReLU-like already.
    """
    network = list(affine)
    for index in range(first, len(network) - 1):
        weight, bias = network[index]
        # Twins stand side by side: where both are on, their large terms cancel before they pile up in a sum.
        network[index] = Affine(
            weight.repeat_interleave(2, 0), torch.stack([bias + 1, bias - 1], 1).flatten()
        )
        weight, bias = network[index + 1]
        weight = weight / (1 - leak)
        network[index + 1] = Affine(
            torch.stack([weight, -weight], 2).flatten(1), bias - (1 + leak) * weight.sum(1)
        )
    return network
