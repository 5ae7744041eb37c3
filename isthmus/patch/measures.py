"""What a patch does to other inputs, by the field's own measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.patch.cases import Cases, Others, is_right
from isthmus.patch.regions import Regions, touching
from isthmus.patch.running import outputs
from isthmus.patch.shares import Share, share

NOISE = 0.05  # standard deviation of the noise on similar inputs, as a part of the range of all values
STEPS = 13  # half-widths at which the touched part is counted, each half of the one before


@dataclass(frozen=True)
class Measures:
    """What was gained, and what it cost elsewhere. None where there was nothing to measure it on.

    Attributes:
        efficacy: the part of the wrong cases that are right now.
        drawdown: accuracy lost on held-out rows with labels (below 0: gained); for values, by how much their
            root mean square error grew.
        generalization: of inputs similar to a wrong case that the model gets wrong, too, the part that the
            repaired one gets right, by kind of similarity.
        locality: the mean Euclidean norm of the change of the outputs on held-out rows.
        largest_change: the largest of these norms.
        touched: held-out rows whose outputs changed.
        changed: held-out rows whose predicted class changed, or a value by more than the tolerance.
        curve: half-widths, and the part of the held-out rows that gates of at most this width touch.
        added_units: ReLUs, three per gate.
        added_parameters: numbers that the gates hold.
        seconds: what it took to draw and check the patch, before these measures.
    """

    efficacy: float
    drawdown: float | None
    generalization: dict[str, float]
    locality: float | None
    largest_change: float | None
    touched: Share | None
    changed: Share | None
    curve: tuple[tuple[float, float], ...]
    added_units: int
    added_parameters: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The measures, ready for JSON."""
        result = asdict(self)
        for name, part in (("touched", self.touched), ("changed", self.changed)):
            result[name] = part and asdict(part) | {"fraction": part.fraction}
        return result


def elsewhere(base: nn.Module, patched: nn.Module, cases: Cases, held_out: Others | None) -> dict[str, Any]:
    """How the outputs on rows that had no part in the patch changed: part of the fields of `Measures`."""
    if held_out is None or not len(held_out.x):
        return dict.fromkeys(("drawdown", "locality", "largest_change", "touched", "changed"))
    before, after = outputs(base, held_out.x), outputs(patched, held_out.x)
    norm = torch.linalg.vector_norm(after.double() - before.double(), dim=1)
    differs = (after != before) & ~(after.isnan() & before.isnan())
    moved = after.argmax(1) != before.argmax(1)
    if cases.tolerance is not None:
        moved = (after.double() - before.double()).abs().amax(1) > cases.tolerance
    return {
        "drawdown": _drawdown(before, after, held_out.y),
        "locality": float(norm.mean()),
        "largest_change": float(norm.max()),
        "touched": share(int(differs.any(1).sum()), len(norm)),
        "changed": share(int(moved.sum()), len(norm)),
    }


def _drawdown(before: Tensor, after: Tensor, target: Tensor | None) -> float | None:
    if target is None:
        return None
    if target.dtype == torch.int64:
        accuracy = [float((output.argmax(1) == target).double().mean()) for output in (before, after)]
        return accuracy[0] - accuracy[1]
    error = [float((output.double() - target).square().mean().sqrt()) for output in (before, after)]
    return error[1] - error[0]


def touched_curve(regions: Regions, x: Tensor, half_width: Tensor) -> tuple[tuple[float, float], ...]:
    """The part of rows [N, *shape] that gates touch, for half-widths from the largest one [G] downwards."""
    nearest = touching(regions, x)
    widths = [float(half_width.max()) / 2**step for step in range(STEPS)]
    return tuple((width, float((nearest < width).double().mean())) for width in widths)


def similar_cases(cases: Cases, generator: torch.Generator) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs like the wrong cases, with their classes: under noise, and images shifted by one pixel."""
    x, y = cases.data.x[cases.wrong], cases.data.y[cases.wrong]
    values = cases.data.x.double()
    spread = NOISE * float(values.max() - values.min())
    noise = spread * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    kinds = {"noise": ((x.double() + noise).to(x.dtype), y)}
    if x.ndim > 2:
        moved = [x.roll(step, axis) for axis in (-1, -2) for step in (1, -1)]
        kinds["shift"] = (torch.cat(moved), y.repeat(len(moved)))
    return kinds


def generalization(
    base: nn.Module, patched: nn.Module, cases: Cases, kinds: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Of the similar inputs that the model gets wrong, the part that the patched one gets right, by kind."""
    found = {}
    for kind, (x, y) in kinds.items():
        similar = replace(cases.data, x=x, y=y)
        wrong = ~is_right(outputs(base, x), similar, cases.tolerance)
        if wrong.any():
            right = is_right(outputs(patched, x), similar, cases.tolerance)
            found[kind] = float(right[wrong].double().mean())
    return found
