"""A network of one hidden layer in ball arithmetic: real numbers with bounds, and nothing taken from libm.

Every number is a ball, a midpoint and a radius, that contains the exact value; an operation gives a ball that
contains all that it could give. Weights and rows are balls of radius 0. With 128 bits, what is left of a
residual after the targets cancel is right to many digits, where float64 would leave noise.

Source: Johansson 2017, Arb: efficient arbitrary-precision midpoint-radius interval arithmetic; in FLINT.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from isthmus._extras import require

BITS: Final = 128
AT_A_TIME: Final = 1 << 16  # balls; each is an object of Python
SMALLEST: Final = 2.0**-1074


@dataclass(frozen=True)
class Enclosed:
    """Real numbers, each within ``error`` of ``value``; both float64, of one shape."""

    value: Tensor
    error: Tensor

    def to(self, device: torch.device) -> Enclosed:
        """The same on another device."""
        return Enclosed(self.value.to(device), self.error.to(device))


@dataclass(frozen=True)
class Evaluated:
    """A network of one hidden layer on rows.

    Attributes:
        feature: σ of every hidden unit [N, m].
        slope: σ' of it [N, m].
        residual: targets minus outputs [N, K].
    """

    feature: Enclosed
    slope: Enclosed
    residual: Enclosed


def evaluate(
    x: Tensor, weight: Tensor, outer: Tensor, offset: Tensor, y: Tensor, activation: type[nn.Module]
) -> Evaluated:
    """Enclose what Σ_j U_:j σ(w_j · x) + c is; all tensors are float64, on the processor, taken as exact.

    Args:
        x: rows [N, d].
        weight: W [m, d].
        outer: U [K, m].
        offset: c [K].
        y: targets [N, K].
        activation: one of `ACTIVATIONS`.

    Raises:
        MissingExtra: python-flint is not installed.
    """
    flint = require("flint", "ball arithmetic")
    function, parts = ACTIVATIONS[activation], []
    step = max(1, AT_A_TIME // len(weight))
    with flint.ctx.workprec(BITS):
        hidden, head = _matrix(flint, weight.T), _matrix(flint, outer.T)
        for rows, targets in zip(x.split(step), y.split(step), strict=True):
            before = (_matrix(flint, rows) * hidden).entries()
            features, slopes = zip(*map(function, before), strict=True)
            outputs = flint.arb_mat(len(rows), len(weight), features) * head
            residual = _matrix(flint, targets) - _matrix(flint, offset.expand_as(targets)) - outputs
            parts.append([_nearest(balls) for balls in (features, slopes, residual.entries())])
    whole = (torch.cat(each).reshape(len(x), -1, 2) for each in zip(*parts, strict=True))
    return Evaluated(*(Enclosed(*each.unbind(-1)) for each in whole))


def _matrix(flint: Any, values: Tensor) -> Any:
    return flint.arb_mat(*values.shape, values.flatten().tolist())


def _nearest(balls: Sequence[Any]) -> Tensor:
    """Of every ball a float64 number near it, and at least how far from that number it reaches [balls, 2]."""
    found = []
    for ball in balls:
        value = float(ball)
        # The conversion of the bound may round it down, to 0 at worst.
        found.append((value, float(abs(ball - value).upper()) * (1 + 2.0**-20) + SMALLEST))
    return torch.tensor(found, dtype=torch.float64)


def _tanh(z: Any) -> tuple[Any, Any]:
    return z.tanh(), z.sech() ** 2


def _sigmoid(z: Any) -> tuple[Any, Any]:
    # Without cancellation or overflow: 1 - s is d / (1 + d) where s is 1 / (1 + d).
    decay = (-abs(z)).exp()
    near, far = 1 / (1 + decay), decay / (1 + decay)
    return (near if z > 0 else far), near * far


def _silu(z: Any) -> tuple[Any, Any]:
    value, slope = _sigmoid(z)
    return z * value, value + z * slope


def _gelu(z: Any) -> tuple[Any, Any]:
    arb = type(z)
    share = (-z / arb(2).sqrt()).erfc() / 2
    density = (-(z**2) / 2).exp() / (2 * arb.pi()).sqrt()
    return z * share, share + z * density


# z to σ(z) and σ'(z)
ACTIVATIONS: Final[dict[type[nn.Module], Callable[[Any], tuple[Any, Any]]]] = {
    nn.Tanh: _tanh,
    nn.Sigmoid: _sigmoid,
    nn.SiLU: _silu,
    nn.GELU: _gelu,
}
