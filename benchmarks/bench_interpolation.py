"""The interpolation certificate: exact fits proven near zero-loss points, how sharply, and in what time.

Zero-loss points are made by the chord method from a mirrored start, here written out for itself, on inputs
that are whitened; the weights are folded back, so that what is certified is a network on the inputs as they
are stored. Targets are random.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from table import Table
from torch import Tensor, nn

import isthmus
from isthmus.narrow.interpolation import Interpolation, newton_kantorovich
from isthmus.nets.paired import PairedHead

PRODUCT, DISTANCE = 1e-9, 1e-12  # at the solution
SECONDS = 5.0
SHARP = 0.01  # of σ_min, or of a figure
RIDGE = 1e-3
SCALES = (1e2, 1e3, 1e4, 1e5)
SOLVED = 1e-11  # norm of the residual over that of the targets
FASHION = Path("/usr/share/datasets/fashion-mnist")


def chord(x: Tensor, y: Tensor, width: int) -> tuple[Tensor, float]:
    """Hidden weights [m, d] with which output weights ±s / √m fit targets [n], and s / √m.

    Args:
        x: rows [n, d], whose products with the weights are not far from 1.
        y: targets [n].
        width: m.
    """
    generator = torch.Generator().manual_seed(1)
    half = torch.randn(width // 2, x.shape[1], generator=generator, dtype=torch.float64)
    half *= 1.5 / x.shape[1] ** 0.5
    v = width**-0.5
    slope = v * (1 - torch.tanh(x @ half.T).square())
    factor = torch.linalg.cholesky(x @ x.T * (2 * slope @ slope.T))
    for scale in SCALES:
        upper, lower, r = half, half, y
        for _ in range(40):
            step = (slope * torch.cholesky_solve(r[:, None], factor)).T @ x / scale
            upper, lower = upper + step, lower - step
            r = y - scale * v * (torch.tanh(x @ upper.T) - torch.tanh(x @ lower.T)).sum(1)
            if r.norm() <= SOLVED * y.norm():
                return torch.cat([upper, lower]), scale * v
    raise RuntimeError(f"the chord method finds no fit with {width} units")


def network(weight: Tensor, bias: Tensor | None, v: float) -> nn.Sequential:
    """The network of these weights, with a paired head of equal weights."""
    width, inputs = weight.shape
    hidden, head = nn.Linear(inputs, width, bias is not None), PairedHead(width, 1, bias=False)
    model = nn.Sequential(nn.Flatten(), hidden, nn.Tanh(), head).double()
    with torch.no_grad():
        hidden.weight.copy_(weight)
        head.weight.fill_(v)
        if bias is not None:
            hidden.bias.copy_(bias)
    return model


def folded(x: Tensor, y: Tensor, share: float) -> nn.Sequential:
    """A network with `share` times 2 n / d units that fits targets on rows as they are stored."""
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    kept = values > 1e-6 * values[-1]
    basis = vectors[:, kept] / (values[kept] + RIDGE * values[-1]).sqrt()
    rows = torch.cat([(x - mean) @ basis, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    width = 2 * math.ceil(share * len(x) / rows.shape[1])
    weight, v = chord(rows, y, width)
    raw = weight[:, :-1] @ basis.T
    return network(raw, weight[:, -1] - raw @ mean, v)


def timed(model: nn.Module, x: Tensor, y: Tensor, *, rigorous: bool = True) -> tuple[Interpolation, float]:
    begun = time.perf_counter()
    found = newton_kantorovich(model, (x, y), rigorous=rigorous)
    return found, time.perf_counter() - begun


def acceptance() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 100, generator=generator, dtype=torch.float64)
    y = torch.randn(1000, generator=generator, dtype=torch.float64)
    noise = torch.randn(24, 100, generator=generator, dtype=torch.float64)
    weight, v = chord(x, y, 24)
    table = Table("n = 1000, d = 100, m = 24, Gaussian: 2 beta L eta, proven")
    found, seconds = timed(network(weight, None, v), x, y)
    table.row("at the solution", found.product or math.inf, PRODUCT, found)
    table.row("distance to an exact fit", found.distance or math.inf, DISTANCE)
    table.row("seconds", seconds, SECONDS)
    timed(network(weight, None, v), x, y, rigorous=False)  # PyTorch imports what differentiates, once
    _, seconds = timed(network(weight, None, v), x, y, rigorous=False)
    table.row("seconds in floating point", seconds, SECONDS / 5)
    # At the solution the residual is float64's own rounding errors, which balls do without.
    moved = network(weight + 1e-6 * noise, None, v)
    proven, floating = (timed(moved, x, y, rigorous=each)[0].product or math.inf for each in (True, False))
    table.row(
        "proven over floating point, less 1", proven / floating - 1, SHARP, "weights moved by 1e-6 each"
    )
    for size in (1e-6, 1e-4, 1e-2):
        found, _ = timed(network(weight + size * noise, None, v), x, y)
        product = found.product or math.inf
        if size < 1e-5:
            table.row(f"weights moved by {size:g} each", product, 1.0, found)
        else:
            table.row(f"1 over it, weights moved by {size:g} each", 1 / product, 1.0, found)


def stored() -> None:
    table = Table("Random targets on inputs as they are stored: 2 beta L eta, proven")
    names = ["diabetes", "wine", "digits", *(["fashion-mnist"] if FASHION.exists() else [])]
    for name in names:
        x = isthmus.load(name).flat[:2000].double()
        y = torch.randn(len(x), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        model = folded(x, y, 1.2)
        found, seconds = timed(model, x, y)
        case = f"{name}, {len(x)} rows, {x.shape[1]} inputs, {model[1].out_features} units"
        distance = "" if found.distance is None else f"within {found.distance:.1e}"
        table.row(case, found.product or math.inf, 1.0, f"{distance}, {seconds:.1f} s {found.reason}")


def sharpness() -> None:
    table = Table("n = 600, d = 60: 1 less the proven bound on sigma_min over its value by SVD")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 60, generator=generator, dtype=torch.float64)
    y = torch.randn(600, generator=generator, dtype=torch.float64)
    for width in (20, 22, 24, 40, 80):
        weight, v = chord(x, y, width)
        found, _ = timed(network(weight, None, v), x, y)
        slope = v * (1 - torch.tanh(x @ weight.T).square())
        values = torch.linalg.svdvals((slope[:, :, None] * x[:, None]).flatten(1))
        ratio = (found.sigma_min or 0.0) / float(values[-1])
        note = f"sigma_max / sigma_min {values[0] / values[-1]:.1e}"
        table.row(f"{width} units", 1 - ratio, SHARP, note)


if __name__ == "__main__":
    acceptance()
    stored()
    sharpness()
