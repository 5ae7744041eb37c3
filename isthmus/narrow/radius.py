"""The radius ε0 below which every KKT point of problem (10) has loss 0, for one paired layer and one output.

Let f(W) = Σ_j u_j σ(w_j·x) with the paired u = [v, -v] and f(W0) = 0, J~ its Jacobian in W with all |u_j| =
1, and κ a bound on max v / min v. With L = sup |σ''|, X the rows (with a column of ones if there is a bias)
and X_max their largest norm,

    at the point:   ε < 2 σ_min(J~(W)) / (κ L X_max ‖X‖)            then the loss at this KKT point is 0
    a priori:       ε < 2 σ_min(J~(W0)) / ((κ + 2) L X_max ‖X‖)     then it is 0 at every KKT point

Scaling v up is feasible, and v is trained, so <r, f> <= 0 for the residual r. Stationarity says J^T r = μ (W
- W0) with μ >= 0, and ‖W - W0‖ = ε unless μ = 0 and r = 0. By Taylor from W to W0, f = J (W - W0) - R with
‖R‖ <= ½ v_max L X_max ‖X‖ ε². So μ ε² <= <r, R>, and v_min σ_min(J~) ‖r‖ <= μ ε <= ‖r‖ ‖R‖ / ε, which r ≠ 0
allows only for ε at or beyond the bound. The bound a priori adds that J~ is Lipschitz in W with constant L
X_max ‖X‖. Both are sufficient, not necessary.

Source: sharpens Zhang et al. 2021, Theorem 2, which says that the loss is O(ε²).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from isthmus import graph
from isthmus.constraints import Ball, Constraint, FloorAndRatio, Product
from isthmus.data.dataset import Dataset
from isthmus.nets.mirrored import MirroredLinear
from isthmus.nets.paired import PairedHead

# sup |σ''|
CURVATURE: Final[dict[type[nn.Module], float]] = {
    nn.Tanh: 4 / 27**0.5,
    nn.Sigmoid: 1 / 108**0.5,
    nn.SiLU: 0.5,
    nn.GELU: (2 / math.pi) ** 0.5,
}
LARGEST: Final = 1 << 25  # entries of a Jacobian whose singular values are computed: 256 MiB


@dataclass(frozen=True)
class Radius:
    """What is known of ε0.

    Attributes:
        at_point: ε0 at these weights, if they are a KKT point; None if unknown, 0 if J~ is singular.
        a_priori: ε0 for all KKT points, from the center alone; None if unknown.
        sigma_min: the smallest singular value of J~ at these weights.
        sigma_min_center: likewise at the center.
        reason: why something is unknown; empty if nothing is.
    """

    at_point: float | None
    a_priori: float | None
    sigma_min: float | None
    sigma_min_center: float | None
    reason: str

    @classmethod
    def unknown(cls, reason: str) -> Radius:
        """Nothing is known, for a reason."""
        return cls(None, None, None, None, reason)


def global_radius(model: nn.Module, data: Dataset, constraint: Constraint) -> Radius:
    """ε0 of a model that ends in Linear, a smooth activation and a paired head, for the squared loss.

    Args:
        model: a nested Sequential; layers before the last hidden one make the rows X, and are taken as they
            are.
        data: the rows.
        constraint: on model's parameters, with its center.

    Returns:
        With a reason where the theorem's assumptions are not met.
    """
    read = _read(model)
    if isinstance(read, str):
        return Radius.unknown(read)
    name, hidden, activation, head_name, head = read
    if not head.weight.requires_grad and f"{head_name}.weight" not in constraint.center:
        return Radius.unknown(
            "the output weights are not trained, but the theorem asks for a KKT point in these, too"
        )
    ball, ratio = _sets(constraint, name, hidden, head_name)
    if isinstance(ball, str):
        return Radius.unknown(ball)
    x = _rows(model, hidden, data)
    weight = _augmented(hidden.weight, hidden.bias)
    center = _augmented(ball.center[f"{name}.weight"], ball.center.get(f"{name}.bias"))
    if not torch.equal(*center.chunk(2)):
        return Radius.unknown("the center is not mirrored, so the output there is not 0")
    rows, entries = len(x), x.shape[1] * len(weight)
    if rows * entries > LARGEST:
        return Radius.unknown(
            f"a Jacobian of {rows} x {entries} is too large; take at most {LARGEST // entries} rows"
        )

    size = head.weight.detach().double().abs()
    scale = CURVATURE[type(activation)] * float(torch.linalg.vector_norm(x, dim=1).max())
    scale *= float(torch.linalg.matrix_norm(x, ord=2))
    sigma, sigma_center = (_sigma_min(x, each, activation) for each in (weight, center))
    own = float(size.max() / size.min()) if size.min() > 0 else math.inf
    limited = math.isfinite(ratio)
    return Radius(
        at_point=2 * sigma / (own * scale),
        a_priori=2 * sigma_center / ((ratio + 2) * scale) if limited else None,
        sigma_min=sigma,
        sigma_min_center=sigma_center,
        reason="" if limited else "a priori: nothing limits the ratio of output weights; FloorAndRatio does",
    )


def _read(model: nn.Module) -> tuple[str, nn.Linear, nn.Module, str, PairedHead] | str:
    """The last hidden layer, its activation and the head, with names; or what is missing."""
    leaves = []
    for name, module in model.named_modules():
        if type(module) is nn.Sequential:
            continue
        if next(module.children(), None) is not None:
            return f"a {type(module).__name__} is not one layer after another"
        leaves.append((name, module))
    if len(leaves) < 3:
        return "the model does not end in Linear, activation and paired head"
    (name, hidden), (_, activation), (head_name, head) = leaves[-3:]
    if type(hidden) not in {nn.Linear, MirroredLinear} or not isinstance(head, PairedHead):
        return "the model does not end in Linear, activation and paired head"
    if type(activation) not in CURVATURE or getattr(activation, "approximate", "none") != "none":
        return f"{type(activation).__name__} has no bounded second derivative that is known here"
    if head.out_features != 1:
        return f"it is known for one output, not {head.out_features}"
    assert isinstance(hidden, nn.Linear)
    return name, hidden, activation, head_name, head


def _sets(constraint: Constraint, name: str, hidden: nn.Linear, head: str) -> tuple[Ball | str, float]:
    """The ball around the hidden layer's weights and the ratio of the output weights, or what is amiss."""
    parts = list(constraint.parts.values()) if isinstance(constraint, Product) else [constraint]
    wanted = {f"{name}.{each}" for each, _ in hidden.named_parameters()}
    ratio, ball = math.inf, None
    for part in parts:
        names = part.center.keys()
        if isinstance(part, Ball) and names == wanted and (part.joint or len(names) == 1):
            ball = part
        elif isinstance(part, FloorAndRatio) and names == {f"{head}.weight"}:
            ratio = part.ratio
        elif names & (wanted | {f"{head}.weight"}):
            return f"{type(part).__name__} is on {', '.join(sorted(names))}, not one ball on {name}", ratio
    if ball is None:
        return f"there is no ball around {', '.join(sorted(wanted))} alone", ratio
    return ball, ratio


@torch.no_grad()
def _rows(model: nn.Module, hidden: nn.Linear, data: Dataset) -> Tensor:
    """What the hidden layer gets, in float64, with a column of ones if it has a bias [N, d]."""
    given: list[Tensor] = []
    hook = hidden.register_forward_pre_hook(lambda _, args: given.append(args[0].double()))
    try:
        with graph.evaluating(model):
            model(data.x.to(graph.device_of(model), graph.dtype_of(model)))
    finally:
        hook.remove()
    (x,) = given
    return x if hidden.bias is None else torch.cat([x, torch.ones_like(x[:, :1])], 1)


def _augmented(weight: Tensor, bias: Tensor | None) -> Tensor:
    weight = weight.detach().double()
    return weight if bias is None else torch.cat([weight, bias.detach().double()[:, None]], 1)


def _sigma_min(x: Tensor, weight: Tensor, activation: nn.Module) -> float:
    """The n-th singular value of J~ [n, m d], less what its computation may be wrong by; 0 if n > m d."""
    before = x @ weight.T
    slope = torch.func.grad(lambda z: activation(z).sum())(before)
    jacobian = (slope[:, :, None] * x[:, None, :]).flatten(1)
    if len(jacobian) > jacobian.shape[1]:
        return 0.0
    values = torch.linalg.svdvals(jacobian)
    return max(0.0, float(values[-1] - len(values) * torch.finfo(values.dtype).eps * values[0]))
