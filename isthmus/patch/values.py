"""What an open gate adds: enough for a class to lead, or an affine function of what values miss."""

from __future__ import annotations

import torch
from torch import Tensor

from isthmus.patch.cases import Cases, leads
from isthmus.patch.regions import Regions

LEAST_VARIANCE = 1e-10  # of a singular value, relative to the largest, that affine functions make use of


def typical_lead(output: Tensor) -> float:
    """The median lead of the largest output over the second [N, K]; 1 if it is 0."""
    if output.shape[1] < 2:
        return 1.0
    lead = leads(output, output.argmax(1))
    return float(lead[torch.isfinite(lead)].median()) or 1.0


def class_shifts(cases: Cases, regions: Regions, lead: float) -> Tensor:
    """What every gate adds to the outputs [G, K]: the wanted class comes to lead by ``lead`` or more."""
    shift = torch.zeros(regions.gates.gates, cases.before.shape[1], dtype=torch.float64)
    behind = -leads(cases.before, cases.data.y)
    for gate, own in enumerate(regions.members()):
        shift[gate, cases.data.y[own[0]]] = behind[own].max().clamp_min(0.0) + lead
    return shift.to(cases.before.dtype).double()


def residuals(cases: Cases, regions: Regions) -> tuple[Tensor, Tensor, Tensor]:
    """Affine functions c + V x through what the values of every gate's cases miss.

    Returns:
        c [G, K], V [G, K, d], and the largest error of every gate at its own cases [G].
    """
    missing = cases.data.y - cases.before.double()
    outputs, inputs = missing.shape[1], cases.data.inputs
    shift = torch.zeros(regions.gates.gates, outputs, dtype=torch.float64)
    tilt = torch.zeros(regions.gates.gates, outputs, inputs, dtype=torch.float64)
    error = torch.zeros(regions.gates.gates, dtype=torch.float64)
    for gate, own in enumerate(regions.members()):
        x, wanted = cases.data.flat[own].double(), missing[own]
        middle, mean = x.mean(0), wanted.mean(0)
        if not (wanted == wanted[0]).all():
            tilt[gate] = (torch.linalg.pinv(x - middle, rtol=LEAST_VARIANCE) @ (wanted - mean)).T
            mean = mean - tilt[gate] @ middle
        else:
            mean = wanted[0]
        shift[gate] = mean
        error[gate] = (x @ tilt[gate].T + mean - wanted).abs().max()
    return shift, tilt, error
