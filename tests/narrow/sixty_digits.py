"""A network of one hidden layer in 60 digits, the theorem's figures there, and the exact fit nearby."""

from __future__ import annotations

from dataclasses import dataclass

import mpmath
from mpmath import mpf
from torch import Tensor, nn

from isthmus.narrow.interpolation import STEEPEST
from isthmus.narrow.radius import CURVATURE
from isthmus.nets.paired import PairedHead

mpmath.mp.dps = 60


def _sigmoid(z: mpf) -> mpf:
    return 1 / (1 + mpmath.exp(-z))


def _density(z: mpf) -> mpf:
    return mpmath.npdf(z)


# σ and σ'
EXACT = {
    nn.Tanh: (mpmath.tanh, lambda z: 1 - mpmath.tanh(z) ** 2),
    nn.Sigmoid: (_sigmoid, lambda z: _sigmoid(z) * _sigmoid(-z)),
    nn.SiLU: (lambda z: z * _sigmoid(z), lambda z: _sigmoid(z) * (1 + z * _sigmoid(-z))),
    nn.GELU: (lambda z: z * mpmath.ncdf(z), lambda z: mpmath.ncdf(z) + z * _density(z)),
}


@dataclass
class Exact:
    """The network in 60 digits, as a function of the parameters that move."""

    model: nn.Sequential
    x: Tensor
    y: Tensor
    head: bool

    def __post_init__(self) -> None:
        hidden, activation, head = self.model
        self.value, self.slope = EXACT[type(activation)]
        self.paired = isinstance(head, PairedHead)
        bias = hidden.bias is not None
        self.rows = [[*map(mpf, row), *[mpf(1)] * bias] for row in self.x.double().tolist()]
        self.targets = [[mpf(each) for each in row] for row in self.y.double().tolist()]
        weight = hidden.weight.double().tolist()
        if bias:
            weight = [[*row, b] for row, b in zip(weight, hidden.bias.double().tolist(), strict=True)]
        self.width, self.inputs, self.outputs = len(weight), len(weight[0]), head.out_features
        self.columns = head.weight.shape[1]
        flat = [*(each for row in weight for each in row), *head.weight.double().flatten().tolist()]
        self.offset = head.bias is not None
        flat += head.bias.double().tolist() if self.offset else []
        self.start = [mpf(each) for each in flat]
        self.hidden_size = self.width * self.inputs
        self.moving = len(self.start) if self.head else self.hidden_size

    def outer(self, theta: list[mpf], output: int, unit: int) -> mpf:
        """U_kj."""
        sign = -1 if self.paired and unit >= self.columns else 1
        return sign * theta[self.hidden_size + output * self.columns + unit % self.columns]

    def before(self, theta: list[mpf], row: list[mpf]) -> list[mpf]:
        return [mpmath.fdot(theta[j * self.inputs : (j + 1) * self.inputs], row) for j in range(self.width)]

    def errors(self, theta: list[mpf]) -> mpmath.matrix:
        """F, all outputs of one row after the other's."""
        found = []
        for row, targets in zip(self.rows, self.targets, strict=True):
            features = [self.value(z) for z in self.before(theta, row)]
            for k in range(self.outputs):
                total = mpmath.fsum(self.outer(theta, k, j) * features[j] for j in range(self.width))
                total += theta[self.hidden_size + self.outputs * self.columns + k] if self.offset else 0
                found.append(total - targets[k])
        return mpmath.matrix(found)

    def jacobian(self, theta: list[mpf]) -> mpmath.matrix:
        found = mpmath.matrix(len(self.rows) * self.outputs, self.moving)
        for i, row in enumerate(self.rows):
            before = self.before(theta, row)
            for k in range(self.outputs):
                for j, z in enumerate(before):
                    part = self.outer(theta, k, j) * self.slope(z)
                    for column, x in enumerate(row, start=j * self.inputs):
                        found[i * self.outputs + k, column] = part * x
                    if self.head:
                        sign = -1 if self.paired and j >= self.columns else 1
                        column = self.hidden_size + k * self.columns + j % self.columns
                        found[i * self.outputs + k, column] += sign * self.value(z)
                if self.head and self.offset:
                    found[i * self.outputs + k, self.hidden_size + self.outputs * self.columns + k] = mpf(1)
        return found

    def nearest(self) -> mpf | None:
        """How far the exact fit is that Newton's iteration finds in W + range J^T; None if it finds none."""
        first = self.jacobian(self.start)
        step = mpmath.zeros(first.cols, 1)
        for _ in range(12):
            theta = [s + (step[i] if i < self.moving else 0) for i, s in enumerate(self.start)]
            errors = self.errors(theta)
            if mpmath.norm(errors) < mpf(10) ** -50:
                return mpmath.norm(step)
            step -= first.T * mpmath.lu_solve(self.jacobian(theta) * first.T, errors)
        return None

    def smallest(self) -> tuple[mpf, mpf]:
        """σ_min(J), and the Frobenius norm of J."""
        jacobian = self.jacobian(self.start)
        least = min(mpmath.eigsy(jacobian * jacobian.T, eigvals_only=True))
        return mpmath.sqrt(max(least, mpf(0))), mpmath.norm(jacobian)

    def figures(self) -> dict[str, mpf]:
        """The theorem's figures, where J has full row rank."""
        jacobian, residual = self.jacobian(self.start), -self.errors(self.start)
        sigma, _ = self.smallest()
        eta = mpmath.norm(jacobian.T * mpmath.lu_solve(jacobian * jacobian.T, residual))
        x = mpmath.matrix(self.rows)
        input_norm = mpmath.sqrt(max(mpmath.eigsy(x.T * x, eigvals_only=True)))
        row_norm = max(mpmath.norm(row) for row in self.rows)
        units = [[self.outer(self.start, k, j) for k in range(self.outputs)] for j in range(self.width)]
        activation = type(self.model[1])
        outer = max(mpmath.norm(unit) for unit in units) + (2 * eta if self.head else 0)
        p = CURVATURE[activation] * outer * row_norm * input_norm
        q = STEEPEST[activation] * input_norm * mpmath.sqrt(1 + self.paired) if self.head else 0
        lipschitz = (p + mpmath.sqrt(p**2 + 4 * q**2)) / 2
        return {
            "sigma_min": sigma,
            "beta": 1 / sigma,
            "eta": eta,
            "lipschitz": lipschitz,
            "product": 2 * lipschitz * eta / sigma,
            "distance": 2 * eta,
            "residual": mpmath.norm(residual),
            "row_norm": row_norm,
            "input_norm": input_norm,
        }
