"""Figure 4 in miniature: KKT points of the paper's regime fit the data, those of regular training do not.

Both problems are given to SLSQP, a solver for constrained problems that knows nothing of networks: square
loss, tanh, hidden weights in a ball around where they start, output weights within B (floor 1e-3, ratio 4).
The paper's regime starts mirrored and is paired; regular training starts from LeCun's weights, and its output
weights keep their signs. Printed are mean squared errors of 4 seeds, and what `isthmus.kkt` says of the
points.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import LinearConstraint, minimize
from table import Table

import isthmus
from isthmus.narrow.kkt import Kkt
from isthmus.nets.mlp import mlp

SEEDS = range(4)
CASES = ((24, 4, 12), (60, 6, 20))  # rows, inputs, width
RADII = (0.1, 0.5)
B = isthmus.FloorAndRatio(floor=1e-3, ratio=4.0)
MOST = 1e-12  # mean squared error in the paper's regime
LEAST = 0.3  # and in regular training, on the same seeds
STATIONARY = 1e-6
SECONDS = 60.0


@dataclass(frozen=True)
class Point:
    """Where SLSQP ended."""

    mse: float
    kkt: Kkt


def rows(n: int, d: int, seed: int) -> isthmus.Dataset:
    """Inputs on a sphere of radius sqrt(d), and targets that have nothing to do with them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x *= d**0.5 / torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return isthmus.from_arrays(x, torch.randn(n, generator=generator, dtype=torch.float64))


def solved(data: isthmus.Dataset, width: int, radius: float, *, paired: bool, seed: int) -> Point:
    """Start a network as the regime says, and let SLSQP move hidden and output weights."""
    model = mlp(data.inputs, [width], 1, paired=paired, bias=False, seed=seed).double()
    if paired:
        isthmus.mirror(model.get_submodule("layer1"))
    hidden, head = model.get_parameter("layer1.weight"), model.get_parameter("fc.weight")
    product = isthmus.Product({"layer1.weight": isthmus.Ball(radius), "fc.weight": B})
    constraint = product.at({"layer1.weight": hidden, "fc.weight": head})
    start = constraint.project({"layer1.weight": hidden, "fc.weight": head})["fc.weight"]
    x, y = data.x.numpy(), data.y.numpy().ravel()
    center, sign = hidden.detach().numpy().copy(), np.sign(start.numpy().ravel())
    size = center.size
    half = len(sign)

    def split(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return z[:size].reshape(center.shape), sign * np.exp(z[size : size + half])

    def objective(z: np.ndarray) -> tuple[float, np.ndarray]:
        weight, v = split(z)
        value = np.tanh(x @ weight.T)
        features = value[:, :half] - value[:, half:] if paired else value
        r = features @ v - y
        outer = np.concatenate([v, -v]) if paired else v
        slope = (1 - value**2) * outer * r[:, None]
        gradient = np.concatenate([(slope.T @ x).ravel(), v * (features.T @ r), [0.0]])
        return float(r @ r) / 2, gradient

    def room(z: np.ndarray) -> float:
        return radius**2 - np.square(z[:size] - center.ravel()).sum()

    def room_slope(z: np.ndarray) -> np.ndarray:
        return np.concatenate([-2 * (z[:size] - center.ravel()), np.zeros(half + 1)])

    # log v lies between s and s + log κ, and s is the last variable.
    q = np.hstack([np.zeros((half, size)), np.eye(half), -np.ones((half, 1))])
    start_q = np.log(np.abs(start.numpy().ravel()))
    z = np.concatenate([center.ravel(), start_q, [start_q.min()]])
    found = minimize(
        objective,
        z,
        jac=True,
        method="SLSQP",
        bounds=[(None, None)] * (size + half) + [(np.log(B.floor), None)],
        constraints=[
            {"type": "ineq", "fun": room, "jac": room_slope},
            LinearConstraint(q, 0, np.log(B.ratio)),
        ],
        options={"maxiter": 2000, "ftol": 1e-30},
    )
    weight, v = split(found.x)
    with torch.no_grad():
        hidden.copy_(torch.from_numpy(weight))
        head.copy_(torch.from_numpy(v)[None])
    return Point(2 * found.fun / data.rows, isthmus.kkt(model, data, constraint))


def main() -> None:
    table = Table("KKT points that SLSQP finds: worst mean squared error, paper's regime")
    begun = time.perf_counter()
    regular: dict[str, list[Point]] = {}
    for n, d, width in CASES:
        for radius in RADII:
            found = {
                paired: [solved(rows(n, d, seed), width, radius, paired=paired, seed=seed) for seed in SEEDS]
                for paired in (True, False)
            }
            case = f"n={n}, d={d}, m={width}, radius {radius}"
            bounds = [point.kkt.radius for point in found[True]]
            least, most = min(b.at_point or 0 for b in bounds), max(b.at_point or 0 for b in bounds)
            note = f"eps0 at these points {least:.1e} to {most:.1e}"
            table.row(case, max(point.mse for point in found[True]), MOST, note)
            regular[case] = found[False]
    seconds = time.perf_counter() - begun

    table = Table(
        f"the same data, regular start and ball: required over least mean squared error of {len(SEEDS)} seeds"
    )
    for case, points in regular.items():
        errors = ", ".join(f"{point.mse:.2g}" for point in points)
        table.row(case, LEAST, min(point.mse for point in points), f"all: {errors}")
    table = Table("are these KKT points? stationarity over the gradient's norm, worst")
    for case, points in regular.items():
        worst = max(points, key=lambda point: point.kkt.stationarity / point.kkt.gradient)
        note = f"gradient {worst.kkt.gradient:.2g}, infeasible by {worst.kkt.primal:.0e}"
        table.row(case, worst.kkt.stationarity / worst.kkt.gradient, STATIONARY, note)
    Table("time").row("all of it, seconds", seconds, SECONDS)


if __name__ == "__main__":
    main()
