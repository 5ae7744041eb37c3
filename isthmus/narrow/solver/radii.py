"""Loss against radius: what Theorems 1 and 2 say of problem (10), seen on a data set.

Theorem 1 puts a point of loss 0 into every ball around a mirrored start; Theorem 2 bounds the loss of every
KKT point by O(ε^2), and below ε0 it is 0 (`isthmus.narrow.radius`). For each radius this finds such a point,
and says how near it is to a KKT point, and how large its output weights had to become: about ‖J^+ y‖ / ε.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from isthmus.constraints.constraint import norm_of_difference
from isthmus.data.dataset import as_dataset
from isthmus.errors import InputError
from isthmus.narrow.kkt import Kkt, kkt
from isthmus.narrow.solver.solve import solve


@dataclass(frozen=True)
class AtRadius:
    """What was found in one ball.

    Attributes:
        radius: ε.
        loss: ``|y - f|^2 / |y|^2``.
        distance: of the hidden weights from the start, at most ε.
        outer: the largest output weight.
        kkt: residuals of problem (10) at the point, and ε0.
    """

    radius: float
    loss: float
    distance: float
    outer: float
    kkt: Kkt

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self)


def loss_against_radius(
    data: Any, radii: Sequence[float], *, width: int | None = None, bias: bool = True, seed: int = 0
) -> tuple[AtRadius, ...]:
    """Solve problem (10) in balls of several radii around the same mirrored start.

    Args:
        data: a `Dataset` or a pair (x, y), for regression.
        radii: ε, each above 0.
        width: m, as for `isthmus.solve`.
        bias: whether hidden units have one.
        seed: of the start.

    Raises:
        InputError: the data is for classification.
        WidthError: m is less than Theorem 1 asks for.

    Source: Zhang et al. 2021, Theorems 1 and 2.
    """
    data = as_dataset(data)
    if data.task != "regression":
        raise InputError(f"{data.source} is for classification; problem (10) is about values.")
    found = []
    for radius in radii:
        solution = solve(data, width=width, radius=radius, bias=bias, seed=seed, raise_on_failure=False)
        assert solution.constraint is not None
        parameters = dict(solution.model.named_parameters())
        head = parameters.popitem()[1]
        center = {name: tensor for name, tensor in solution.constraint.center.items() if name in parameters}
        moved = norm_of_difference(parameters, center).item()
        outer = float(head.abs().max())
        residuals = kkt(solution.model, data, solution.constraint)
        found.append(AtRadius(radius, solution.loss, moved, outer, residuals))
    return tuple(found)
