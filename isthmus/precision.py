"""What a network's error would be in a narrower dtype: predicted from its float64 weights, and measured.

The running bound (`isthmus.arithmetic.rounding`) holds for every order of summation; errors as they occur are
smaller, because they have random signs. With unit roundoff u, a sum of n terms w h meets two roundings of
every term, of the weight and of the product, and those of its partial sums, which grow like a random walk and
are kept in a few lanes side by side: n / 6 more of every term. The variances add up:

    e'^2 = W^2 e^2 + u^2 / 3 * ((2 + n / 6) W^2 h^2 + b^2), and 0 where a unit stays clipped by 4 e or more.

For f(x) + g(x) those of both add up as if they had nothing in common, with u^2 / 3 (f + g)^2 of the sum.

Source: after Higham and Mary 2019 (SIAM J. Sci. Comput. 41, A2815), probabilistic rounding error analysis.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from isthmus import graph
from isthmus.certificate import Level
from isthmus.certify import certify
from isthmus.data.dataset import Dataset
from isthmus.errors import UnsupportedModel

LANES = 6  # measured: 3 to 12, for sums of 10 to 3,000 terms
SIGMAS = 4  # beyond which an error is not expected


@dataclass(frozen=True)
class Precision:
    """A float64 network's weights in another dtype.

    Attributes:
        dtype: its name.
        predicted_error: largest such difference to expect; None if not finite.
        measured_error: largest difference seen from the float64 network's outputs; None if not finite.
        rows, wrong: counts of the rows looked at.
        level: of the certificate for these rows.
    """

    dtype: graph.DtypeName
    predicted_error: float | None
    measured_error: float | None
    rows: int
    wrong: int
    level: Level

    def to_dict(self) -> dict[str, Any]:
        """The comparison, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        errors = [
            "none" if error is None else f"{error:.1e}"
            for error in (self.predicted_error, self.measured_error)
        ]
        return (
            f"{self.dtype}: error predicted {errors[0]}, measured {errors[1]}; {self.wrong} of {self.rows:,} "
            f"rows wrong, {self.level}"
        )


@torch.no_grad()
def compare_precision(
    model: nn.Sequential, data: Dataset, dtype: graph.DtypeName, tolerance: float | None = None
) -> Precision:
    """Predict the error of a float64 network in another dtype, and measure it.

    Args:
        model: in float64.
        data: rows to look at.
        dtype: which other one.
        tolerance: of a regression.
    """
    narrow = graph.DTYPES[dtype]
    cast = graph.cast(model, narrow)
    x = data.x.double()
    predicted = SIGMAS * float(expected_error(graph.stages(model), x, narrow).amax())
    difference = (cast(x.to(narrow)).double() - model(x)).abs().nan_to_num(torch.inf, torch.inf)
    seen = certify(cast, data, tolerance=tolerance)
    return Precision(
        dtype, _finite(predicted), _finite(float(difference.amax())), data.rows, seen.wrong, seen.level
    )


def _finite(error: float) -> float | None:
    return error if isfinite(error) else None


@torch.no_grad()
def expected_error(stages: list[graph.Stage], x: Tensor, dtype: torch.dtype) -> Tensor:
    """The standard deviation of every output's rounding error in ``dtype`` [N, K], +inf where it overflows.

    Args:
        stages: the network in float64.
        x: inputs [N, *shape], float64.
        dtype: in which it is to be evaluated.

    Raises:
        UnsupportedModel: a network with gates beside it.
    """
    info = torch.finfo(dtype)
    spread = _variance(info) * x.square()  # inputs are rounded to the dtype, too
    spread = spread.where(x != x.to(dtype).double(), 0.0)
    return _chain(stages, x, spread, info)[1].nan_to_num(nan=torch.inf, posinf=torch.inf).sqrt()


def _variance(info: torch.finfo) -> float:
    """Of a rounding's relative error."""
    return (info.eps / 2) ** 2 / 3


def _chain(
    stages: Iterable[graph.Stage], value: Tensor, spread: Tensor, info: torch.finfo
) -> tuple[Tensor, Tensor]:
    """The last stage's values and the variances of their errors, from the first one's inputs.

    Raises:
        UnsupportedModel: a stage with gates.
    """
    variance = _variance(info)
    for stage in stages:
        match stage:
            case graph.Dense(weight, bias):
                squares, magnitude = weight.square(), value.square()
                roundings = 2 + weight.shape[1] / LANES
                spread = (spread + roundings * variance * magnitude) @ squares.T
                largest = value.abs() @ weight.abs().T
                value = value @ weight.T
                if bias is not None:
                    spread, largest, value = spread + variance * bias**2, largest + bias.abs(), value + bias
                spread = spread.masked_fill(~(largest < info.max), torch.inf)
            case graph.Paired(weight, bias):
                (first, second), (own, other) = value.chunk(2, 1), spread.chunk(2, 1)
                difference = first - second
                spread = own + other + variance * difference.square()
                spread = spread.masked_fill(~(difference.abs() < info.max), torch.inf)
                value, spread = _chain([graph.Dense(weight, bias)], difference, spread, info)
            case graph.Clip(low, high):
                reach = SIGMAS * spread.sqrt()
                spread = spread.masked_fill((value - reach >= high) | (value + reach <= low), 0.0)
                value = value.clamp(low, high)
            case graph.Leaky(slope):
                value = torch.nn.functional.leaky_relu(value, slope)
            case graph.Smooth(function):
                value = torch.tanh(value) if function == "tanh" else torch.sigmoid(value)
                spread = spread + variance * value.square()
            case graph.Flatten():
                value, spread = value.flatten(1), spread.flatten(1)
            case graph.Gated():
                raise UnsupportedModel("gates compute in float64, whatever the dtype of the rest.")
            case graph.Sum(branches):
                (total, errors), *others = [_chain(branch, value, spread, info) for branch in branches]
                for added, own in others:
                    nothing = (total == 0) | (added == 0)
                    total = total + added
                    errors = errors + own + (variance * total.square()).masked_fill(nothing, 0.0)
                    errors = errors.masked_fill(~(total.abs() < info.max), torch.inf)
                value, spread = total, errors
    return value, spread
