"""Is every row right? Measured on the very module, and proven against rounding where its stages are known."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isthmus import graph
from isthmus._types import Progress
from isthmus.arithmetic.rounding import ASSUMPTIONS, RunningBound
from isthmus.certificate import TOLERANCE, Certificate, Level, model_digest
from isthmus.data.dataset import Dataset, as_dataset
from isthmus.errors import InputError, UnsupportedModel

WORKSPACE = 1 << 20  # activations held at a time
SHAPE_ERRORS = (RuntimeError, IndexError, TypeError, ValueError)


@dataclass
class _Tally:
    """What has been seen of the rows so far."""

    wrong: int = 0
    proven: int = 0
    bitwise: int = 0
    max_error: float = 0.0
    margin: float = torch.inf
    bound: float = 0.0

    def add(
        self, output: Tensor, error: Tensor, target: Tensor, label: Tensor | None, tolerance: float
    ) -> None:
        """Count rows with outputs [n, K], bounds [n, K], targets [n, K], class indices [n] or None."""
        distance = (output.double() - target).abs().amax(1)
        if label is None:
            right = distance <= tolerance
            spread = 2 * error.amax(1)
            proven = distance + spread <= tolerance
        else:
            lead, spread = decision_margins(output.double(), error, label)
            right = (lead > 0).all(1)
            proven = (lead > spread).all(1)
            spread = spread.where(torch.isfinite(lead), 0.0).amax(1)
            self.margin = min(self.margin, float(lead.nan_to_num(-torch.inf, torch.inf, -torch.inf).amin()))
        right &= torch.isfinite(output).all(1)
        self.wrong += int((~right).sum())
        self.proven += int((right & proven).sum())
        self.bitwise += int((output == target.to(output.dtype)).all(1).sum())
        self.max_error = max(self.max_error, float(distance.nan_to_num(torch.inf, torch.inf).amax()))
        self.bound = max(self.bound, float(spread.amax()))


def decision_margins(output: Tensor, error: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """By how much the right class leads every other, and how much of that rounding could take.

    Args:
        output: [N, K].
        error: bound of every output's rounding error [N, K].
        label: class indices [N].

    Returns:
        The leads [N, K], +inf at the class itself, and twice the errors of both sides [N, K].
    """
    own = label[:, None]
    lead = (output.gather(1, own) - output).scatter(1, own, torch.inf)
    return lead, 2 * (error + error.gather(1, own))


def certify(
    model: nn.Module,
    data: Any,
    *,
    tolerance: float | None = None,
    on_progress: Progress | None = None,
) -> Certificate:
    """Check a model on every row of a data set.

    Args:
        model: any module that maps ``[N, *shape]`` to [N, K]; taken to evaluation mode and back. A row counts
            as right if its class has the strictly largest output, or its values are within the tolerance.
        data: a Dataset or a pair (x, y); inputs are rounded to the model's dtype.
        tolerance: largest error of a regression, in units of the target; 1e-8 of its range by default.
        on_progress: told what is done and which part of it.

    Returns:
        The certificate. Its level is at most ``measured`` if the model has a module outside `isthmus.graph`.

    Raises:
        InputError: the model does not take these inputs, or its outputs do not fit the targets.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"expected a torch.nn.Module, found {type(model).__name__}.")
    data = as_dataset(data)
    with graph.evaluating(model):
        return _certify(model, data, tolerance, on_progress)


@torch.no_grad()
def _certify(
    model: nn.Module, data: Dataset, tolerance: float | None, on_progress: Progress | None
) -> Certificate:
    notes: list[str] = []
    try:
        stages = graph.stages(model)
        architecture = graph.describe(model)
    except UnsupportedModel as reason:
        stages = None
        architecture = graph.foreign(model)
        notes.append(f"Not proven: {reason}")
    if data.task == "regression":
        tolerance = TOLERANCE * data.target_range() if tolerance is None else tolerance
    elif tolerance is not None:
        raise InputError("a tolerance is for regression; a class is right or wrong.")

    batch = _batch(data, stages)
    other = max(1, batch // 2 - 1)
    tally, second = _Tally(), _Tally()
    for rows, x, output, error in passes(model, data, stages):
        label = None if data.task == "regression" else data.y[rows].to(x.device)
        target = data.targets(rows).to(x.device)
        tally.add(output, error, target, label, tolerance or 0.0)
        parts = [_outputs(model, part, target) for part in x.split(other)]
        second.add(torch.cat(parts), error, target, label, tolerance or 0.0)
        if on_progress is not None:
            on_progress("certifying", rows.stop / data.rows)

    proven = min(tally.proven, second.proven)
    wrong = max(tally.wrong, second.wrong)
    bitwise = min(tally.bitwise, second.bitwise)
    largest = max(tally.max_error, second.max_error)
    state = model.state_dict().items()
    tensors = {name: _array(value) for name, value in state if isinstance(value, Tensor)}
    return Certificate(
        level=_level(data.rows, wrong, proven, bitwise),
        task=data.task,
        dtype=graph.dtype_name(graph.dtype_of(model)),
        rows=data.rows,
        wrong=wrong,
        proven_rows=proven,
        bitwise_rows=bitwise,
        max_error=_finite(largest),
        margin=_finite(min(tally.margin, second.margin)) if data.task == "classification" else None,
        bound=_finite(tally.bound),
        tolerance=tolerance,
        merged=data.rows - len(data.first_rows),
        batch_sizes=(batch, other),
        arithmetic=ASSUMPTIONS,
        notes=tuple(notes),
        data_digest=data.digest,
        model_digest=model_digest(architecture, tensors),
        versions=versions(),
    )


def passes(
    model: nn.Module, data: Dataset, stages: list[graph.Stage] | None
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Run a model on all rows, some at a time.

    Args:
        model: in evaluation mode.
        data: the rows.
        stages: the model as stages; None if they are not known.

    Yields:
        Which rows, their inputs [n, *shape] as the model holds them, its outputs [n, K], and the bounds of
        their rounding errors [n, K], infinite if unknown.
    """
    dtype, device = graph.dtype_of(model), graph.device_of(model)
    bound = None if stages is None else RunningBound(stages)
    unknown = torch.full((1, 1), torch.inf, dtype=torch.float64, device=device)
    batch = _batch(data, stages)
    for start in range(0, data.rows, batch):
        rows = slice(start, min(start + batch, data.rows))
        x = data.x[rows].to(device, dtype)
        output = _outputs(model, x, data.targets(rows))
        yield rows, x, output, unknown.expand(output.shape) if bound is None else _bound(bound, x, output)


def _batch(data: Dataset, stages: list[graph.Stage] | None) -> int:
    widest = max(data.inputs, data.outputs, graph.widest(stages or ()))
    return max(2, min(data.rows, WORKSPACE // widest))


def versions() -> dict[str, str]:
    """Of what the weights and the measurements depend on."""
    return {"python": platform.python_version(), "torch": torch.__version__}


def _outputs(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    try:
        output = model(x.clone())  # its first layer may work in place
    except SHAPE_ERRORS as error:
        raise InputError(f"the model does not take inputs of shape {tuple(x.shape[1:])}: {error}") from None
    expected = (len(x), *target.shape[1:])
    if not isinstance(output, Tensor):
        raise InputError(
            f"the model returns {type(output).__name__}, but should a tensor of shape {expected}."
        )
    if output.shape != expected:
        raise InputError(f"the model's outputs have shape {tuple(output.shape)}, but the targets {expected}.")
    return output


def _bound(bound: RunningBound, x: Tensor, output: Tensor) -> Tensor:
    value, error = bound(x)
    # Any two evaluations are this close; where they are not, a hook made the module something else.
    return error.where((output.double() - value.double()).abs() <= 2 * error, torch.inf)


def _array(tensor: Tensor) -> np.ndarray:
    # NumPy has no bfloat16; float32 holds its values.
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()


def _level(rows: int, wrong: int, proven: int, bitwise: int) -> Level:
    if wrong:
        return "none"
    if proven < rows:
        return "measured"
    return "bitwise" if bitwise == rows else "proven"


def _finite(value: float) -> float | None:
    return value if abs(value) < torch.inf else None
