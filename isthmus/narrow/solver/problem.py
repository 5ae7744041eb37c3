"""A data set as a system of equations, and the solution as a network on the rows as they are stored."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal

import torch
from torch import Tensor, nn

from isthmus.data.dataset import Dataset
from isthmus.errors import DataError, PrecisionError
from isthmus.narrow.solver.codes import codes, decoder
from isthmus.narrow.solver.outcome import Outcome
from isthmus.narrow.solver.whiten import LARGEST, Coordinates, as_stored, whitened
from isthmus.nets.paired import PairedHead
from isthmus.nets.sequential import LEAK, finished

Targets = Literal["values", "codes", "dead-zone", "one-hot", "softmax"]
CODED: Final = frozenset({"codes", "dead-zone"})
SolverActivation = Literal["tanh", "sigmoid", "relu", "leaky_relu"]

ACTIVATIONS: Final[dict[SolverActivation, nn.Module]] = {
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(LEAK),
}
SHARP: Final[frozenset[SolverActivation]] = frozenset({
    "relu",
    "leaky_relu",
})  # not differentiable: no theorem speaks of them


@dataclass(frozen=True)
class Problem:
    """N K equations f_k(x_i) = y_ik.

    Attributes:
        data: distinct rows.
        targets: what the outputs are to be.
        coordinates: the rows as the solver sees them.
        target: Y [N, K], with mean 0 where the network has an output bias, and root mean square 1; one-hot
            for softmax.
        offset: the means [K].
        scale: the root mean square.
        centered: whether inputs were whitened, and the network has an output bias.
    """

    data: Dataset
    targets: Targets
    coordinates: Coordinates
    target: Tensor
    offset: Tensor
    scale: float
    centered: bool

    @property
    def equations(self) -> int:
        """N K."""
        return self.target.numel()

    @property
    def inputs(self) -> int:
        """p, the weights of a hidden unit."""
        return self.coordinates.rows.shape[1]

    @cached_property
    def rank(self) -> int:
        """Of Z, as far as float64 can tell."""
        rows = self.coordinates.rows
        size = min(rows.shape)
        gram = rows.T @ rows if rows.shape[1] == size else rows @ rows.T
        values = torch.linalg.eigvalsh(gram)
        return max(1, int((values > len(rows) * torch.finfo(rows.dtype).eps * values[-1]).sum()))

    def aimed(self, targets: Targets) -> Problem:
        """The same rows with other targets."""
        return _aimed(self.data, targets, self.coordinates, centered=self.centered)

    def network(
        self, outcome: Outcome, activation: nn.Module, dtype: torch.dtype, *, paired: bool
    ) -> nn.Sequential:
        """What the solver found, on rows as they are stored.

        Args:
            outcome: in the solver's coordinates.
            activation: σ.
            dtype: of the weights.
            paired: with the head as a pair, U = [V, -V], and without an output bias.
        """
        weight, bias = self.coordinates.fold(outcome.weight)
        outer, offset = self.scale * outcome.outer, self.offset
        if self.targets == "softmax":
            outer, offset = outer[:, :-1], outer[:, -1]
        layers: list[nn.Module] = [_linear(weight, bias), deepcopy(activation)]
        if paired:
            head = PairedHead(outer.shape[1], len(outer), bias=False, device="meta")
            head.weight = nn.Parameter(outer.chunk(2, 1)[0].cpu())
            layers.append(head)
        else:
            biased = self.centered or self.targets == "softmax"
            layers.append(_linear(outer, offset if biased else None))
        if self.targets in CODED:
            layers.append(decoder(self.data.outputs))
        return finished([nn.Flatten()] * (self.data.x.ndim > 2) + layers).to(dtype)


def pose(
    data: Dataset,
    targets: Targets,
    activation: nn.Module,
    device: torch.device,
    *,
    bias: bool,
    centered: bool,
    paired: bool,
) -> Problem:
    """Write the equations down.

    Args:
        data: without conflicts.
        targets: what the outputs are to be.
        activation: σ.
        device: where to solve.
        bias: whether hidden units have one.
        centered: whether inputs are whitened and outputs have a bias; else both are taken as they are.
        paired: whether output weights come in pairs [V, -V], to which a constant added to σ is nothing.

    Raises:
        DataError: targets that no network without biases takes.
    """
    numbers = (data.first_rows + 1).tolist()
    data = data.take(data.first_rows)
    coordinates = whitened(data, device) if centered else as_stored(data, device, bias=bias)
    problem = _aimed(data, targets, coordinates, centered=centered)
    if not bias and targets != "softmax":
        _require_possible(data, problem.target, activation, numbers, paired=paired)
    return problem


def _aimed(data: Dataset, targets: Targets, coordinates: Coordinates, *, centered: bool) -> Problem:
    """The equations for rows whose coordinates are known.

    Raises:
        PrecisionError: targets that float64 cannot work with.
    """
    target = codes(data.outputs)[data.y][:, None] if targets in CODED else data.targets()
    target = target.to(coordinates.rows.device)
    # Taken off the first row, so that a constant target leaves exactly 0.
    mean = target[0] + (target - target[0]).mean(0)
    offset = mean if centered and targets != "softmax" else torch.zeros_like(mean)
    target = target - offset
    if targets == "softmax":
        return Problem(data, targets, coordinates, target, offset, 1.0, centered)
    largest = float(target.abs().max())
    if largest > LARGEST:
        raise PrecisionError(f"{data.source}: targets reach {largest:.1e}; rescale them.")
    scale = largest * float((target / largest).square().mean().sqrt()) if largest else 1.0
    return Problem(data, targets, coordinates, target / scale, offset, scale, centered)


def _require_possible(
    data: Dataset, target: Tensor, activation: nn.Module, numbers: list[int], *, paired: bool
) -> None:
    """Refuse what f(0) = 0 and, for odd σ, f(-x) = -f(x) rule out without biases.

    Args:
        data: distinct rows.
        target: Y [N, K].
        activation: σ.
        numbers: of the rows, as their source counts them.
        paired: whether a constant added to σ is nothing.

    Raises:
        DataError: names the rows.
    """
    sample = torch.linspace(-2, 2, 9, dtype=torch.float64)
    value = activation(sample)
    if paired:
        value = value - value[4]
    if value[4] != 0:
        return
    x, advice = data.flat.double(), "Let hidden units have a bias (bias=True)."
    zero = torch.nonzero((x == 0).all(1) & (target != 0).any(1).cpu()).flatten()
    if len(zero):
        raise DataError(
            f"{data.source}: row {numbers[int(zero[0])]} is 0, where a network without biases is 0, too, but "
            f"its target is {data.target_name(int(zero[0]))}. {advice}"
        )
    if not torch.allclose(value, -value.flip(0), rtol=1e-14):
        return
    both = replace(data, x=torch.cat([x, -x]), y=torch.cat([data.y, data.y])).groups
    own, opposite = both.chunk(2)
    place = torch.full((int(both.max()) + 1,), -1)
    place[own] = torch.arange(len(own))
    partner = place[opposite]
    wrong = torch.nonzero((partner >= 0) & (target.cpu()[partner] != -target.cpu()).any(1)).flatten()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{data.source}: row {numbers[int(partner[row])]} is the opposite of row {numbers[row]}, but its "
            f"target is not: without biases, and with an odd activation, f(-x) = -f(x). {advice}"
        )


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.cpu())
    if bias is not None:
        linear.bias = nn.Parameter(bias.cpu())
    return linear
