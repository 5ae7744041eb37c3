"""The result of `isthmus.spectrum`: singular values of a Jacobian, as an object, as JSON, as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from isthmus.jacobian.singular import EPSILON, Method, Singular

_TITLES: Final = ("layer", "parameters", "sigma_max", "sigma_min", "condition", "rank", "method", "error")


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a Jacobian [N K, P], and those of its columns in each layer.

    Attributes:
        rows: N.
        outputs: K.
        parameters: P.
        sigma_max: the largest singular value.
        sigma_min: the (N K)-th one; 0 if there are fewer parameters.
        condition: their quotient; infinite if sigma_min is 0.
        rank: how many singular values are above the tolerance; None where J J^T is too coarse to tell.
        tolerance: max(N K, P) times sigma_max and the rounding error of J's dtype.
        method: ``"dense"``, ``"gram"`` or ``"qr"``.
        error: relative error of sigma_min, estimated; 0 if there are fewer parameters than equations.
        singular_values: all min(N K, P) of them, descending, if they were computed.
        layers: the same for the parameters of each layer, by the name of the module that owns them; "" is
            the model itself.
    """

    rows: int
    outputs: int
    parameters: int
    sigma_max: float
    sigma_min: float
    condition: float
    rank: int | None
    tolerance: float
    method: Method
    error: float
    singular_values: tuple[float, ...] | None = None
    layers: dict[str, Spectrum] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        found: Singular,
        rows: int,
        outputs: int,
        parameters: int,
        layers: Mapping[str, Spectrum] | None = None,
    ) -> Spectrum:
        """What the singular values of a matrix [N K, P] say of it."""
        equations = rows * outputs
        sigma_min = found.smallest if parameters >= equations else 0.0
        tolerance = max(equations, parameters) * found.epsilon * found.largest
        if found.values is not None:
            rank = sum(value > tolerance for value in found.values)
        elif found.method == "qr" or found.smallest > math.sqrt(equations * EPSILON) * found.largest:
            rank = min(equations, parameters)
        else:
            rank = None
        return cls(
            rows=rows,
            outputs=outputs,
            parameters=parameters,
            sigma_max=found.largest,
            sigma_min=sigma_min,
            condition=found.largest / sigma_min if sigma_min else math.inf,
            rank=rank,
            tolerance=tolerance,
            method=found.method,
            error=found.error if parameters >= equations else 0.0,
            singular_values=found.values,
            layers=dict(layers or {}),
        )

    @property
    def equations(self) -> int:
        """N K."""
        return self.rows * self.outputs

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data; infinite numbers are None."""
        found = asdict(replace(self, layers={}))
        found |= {key: None for key in ("condition", "error") if math.isinf(found[key])}
        if self.singular_values is not None:
            found["singular_values"] = list(self.singular_values)
        return found | {"layers": {name: layer.to_dict() for name, layer in self.layers.items()}}

    def __str__(self) -> str:
        named = {"all": self} | {name or "(model)": layer for name, layer in self.layers.items()}
        cells = [_TITLES, *(_cells(name, each) for name, each in named.items())]
        width = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            f"Jacobian of {self.equations:,} equations ({self.rows:,} rows, {self.outputs:,} output(s)) in "
            f"{self.parameters:,} parameters"
        ]
        for first, *others in cells:
            padded = [f"{first:{width[0]}}"]
            padded += [f"{cell:>{size}}" for cell, size in zip(others, width[1:], strict=True)]
            lines.append("  ".join(padded).rstrip())
        return "\n".join(lines)


def _cells(name: str, found: Spectrum) -> tuple[str, ...]:
    return (
        name,
        f"{found.parameters:,}",
        f"{found.sigma_max:.6g}",
        f"{found.sigma_min:.6g}",
        f"{found.condition:.3g}",
        "-" if found.rank is None else f"{found.rank:,}",
        found.method,
        f"{found.error:.0e}",
    )
