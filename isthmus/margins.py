"""How far every row is from being wrong, beside what rounding could do to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from isthmus import graph
from isthmus._types import Task
from isthmus.certificate import TOLERANCE
from isthmus.certify import decision_margins, passes
from isthmus.data.dataset import Dataset, as_dataset
from isthmus.errors import UnsupportedModel

QUANTILES: Final = (0.0, 0.01, 0.1, 0.5, 1.0)
TIGHTEST: Final = 10


@dataclass(frozen=True, eq=False, repr=False)
class Margins:
    """One margin per row.

    Attributes:
        task: of the data.
        margin: [N], by how much the own class leads the next, or a value's error stays below the tolerance;
            negative where a row is wrong.
        bound: [N], by how much rounding could change that in any evaluation; infinite if unknown.
        tolerance: of a regression.
    """

    task: Task
    margin: Tensor
    bound: Tensor
    tolerance: float | None

    @property
    def tightest(self) -> list[int]:
        """The rows with the smallest margins, from 1, smallest first."""
        return (torch.argsort(self.margin, stable=True)[:TIGHTEST] + 1).tolist()

    def to_dict(self) -> dict[str, Any]:
        """Quantiles, counts and the tightest rows, ready for JSON."""
        quantiles = torch.quantile(self.margin, torch.tensor(QUANTILES, dtype=self.margin.dtype))
        return {
            "rows": len(self.margin),
            "wrong": int((self.margin <= 0).sum())
            if self.task == "classification"
            else int((self.margin < 0).sum()),
            "proven": int((self.margin > self.bound).sum()),
            "quantiles": dict(zip(map(str, QUANTILES), quantiles.tolist(), strict=True)),
            "tightest": [{"row": row, "margin": float(self.margin[row - 1])} for row in self.tightest],
            "tolerance": self.tolerance,
        }

    def __str__(self) -> str:
        seen = self.to_dict()
        quantiles = ", ".join(f"{100 * float(q):g} % {value:.3g}" for q, value in seen["quantiles"].items())
        return (
            f"margins        {seen['rows']:,} rows, {seen['wrong']:,} wrong, {seen['proven']:,} proven "
            f"against rounding\n"
            f"  quantiles    {quantiles}\n"
            f"  tightest     rows {', '.join(map(str, self.tightest))}"
        )


@torch.no_grad()
def margins(model: nn.Module, data: Any, *, tolerance: float | None = None) -> Margins:
    """Measure every row's margin, in the model's dtype and in evaluation mode.

    Args:
        model: any module that maps ``[N, *shape]`` to [N, K].
        data: a `Dataset` or a pair (x, y).
        tolerance: of a regression; 1e-8 of the target range by default.

    Raises:
        InputError: the model does not take these inputs, or its outputs do not fit the targets.
    """
    data = as_dataset(data)
    if data.task == "regression" and tolerance is None:
        tolerance = TOLERANCE * data.target_range()
    with graph.evaluating(model):
        try:
            stages = graph.stages(model)
        except UnsupportedModel:
            stages = None
        found = [
            _of_rows(data, rows, output.cpu(), error.cpu(), tolerance or 0.0)
            for rows, _, output, error in passes(model, data, stages)
        ]
    margin, bound = (torch.cat(each) for each in zip(*found, strict=True))
    return Margins(data.task, margin, bound, tolerance)


def _of_rows(
    data: Dataset, rows: slice, output: Tensor, error: Tensor, tolerance: float
) -> tuple[Tensor, Tensor]:
    output = output.double()
    if data.task == "regression":
        return tolerance - (output - data.targets(rows)).abs().amax(1), 2 * error.amax(1)
    lead, spread = decision_margins(output, error, data.y[rows])
    # The class that is nearest to taking the row, rounding considered.
    nearest = (lead - spread).nan_to_num(-torch.inf, torch.inf, -torch.inf).argmin(1, keepdim=True)
    nearest = nearest if torch.isfinite(spread).all() else lead.argmin(1, keepdim=True)
    return lead.gather(1, nearest)[:, 0], spread.gather(1, nearest)[:, 0]
