"""Gates drawn near their edges, evaluated in every order, and by hand in fractions."""

from fractions import Fraction

import numpy as np
import torch

from isthmus.graph import Gated
from isthmus.nets.patched import Gates
from tests.arithmetic.evaluations import ORDERS

FIELDS = ("normal", "center", "curvature", "plateau", "slope", "shift")
NO_BIAS = np.zeros(())


def gates_near(rng, rows, gates, outputs, tilted, scale=1.0):
    """A `Gates` module of planes and spheres whose edges pass near rows [N, d], with a frame or without."""
    directions = int(rng.integers(1, 4)) if rng.random() < 0.3 else 0
    made = Gates(rows.shape[1], gates, outputs, tilted, directions)
    inputs, rows = rows.shape[1], rows.astype(np.float64)
    if directions:
        made.frame.copy_(torch.from_numpy(rng.normal(size=(directions, inputs))))
        rows = rows @ made.frame.numpy().T
    normal = rng.normal(size=(gates, rows.shape[1])) * scale
    curvature = np.where(rng.random(gates) < 0.5, 0.0, rng.normal(size=gates) * scale)
    sphere = rng.random(gates) < 0.3
    point = rows[rng.integers(len(rows), size=gates)]
    curvature[sphere], normal[sphere] = 1.0, -2 * point[sphere]
    level = (normal * point).sum(1) + curvature * np.square(point).sum(1)
    size = np.abs(level) + 1e-30
    near = rng.choice([0.0, 1e-15, 1e-12, 1e-6, 1.0], gates)
    plateau = np.where(rng.random(gates) < 0.2, 0.0, size * rng.choice([1e-15, 1e-9, 0.1, 1.0], gates))
    values = {
        "normal": normal,
        "center": level + near * size * rng.normal(size=gates),
        "curvature": curvature,
        "plateau": plateau,
        "slope": rng.choice([0.5, 3.0, 1e3, 1e9, 1e15], gates) / size,
        "shift": rng.normal(size=(gates, outputs)),
    }
    if rng.random() < 0.3:
        values["shift"] = np.round(4 * values["shift"])
    if tilted:
        values["tilt"] = rng.normal(size=(gates, outputs, inputs)) * (rng.random(outputs) < 0.7)[:, None]
    for name, value in values.items():
        getattr(made, name).copy_(torch.from_numpy(value))
    return made


def stage_of(module):
    """The module as a stage."""
    return Gated(module.frame, *(getattr(module, name) for name in FIELDS), module.tilt)


def openings_in_fractions(stage, row):
    """How far every gate is open at one row of fractions."""
    u, b, k, a, s = (getattr(stage, name).tolist() for name in FIELDS[:5])
    if stage.frame is not None:
        row = [
            sum((Fraction(w) * v for w, v in zip(each, row, strict=True)), Fraction(0))
            for each in stage.frame.tolist()
        ]
    opened = []
    for gate in range(len(b)):
        linear = sum((Fraction(w) * v for w, v in zip(u[gate], row, strict=True)), Fraction(0))
        level = Fraction(k[gate]) * sum(v * v for v in row) + linear - Fraction(b[gate])
        past = max(Fraction(0), abs(level) - Fraction(a[gate]))
        opened.append(max(Fraction(0), 1 - Fraction(s[gate]) * past))
    return opened


def in_fractions(stage, row):
    """What the gates add at one row of fractions."""
    total = [Fraction(0)] * stage.shift.shape[1]
    for gate, opened in enumerate(openings_in_fractions(stage, row)):
        for output, constant in enumerate(stage.shift[gate].tolist()):
            given = Fraction(constant)
            if stage.tilt is not None:
                tilt = stage.tilt[gate, output].tolist()
                given += sum((Fraction(w) * v for w, v in zip(tilt, row, strict=True)), Fraction(0))
            total[output] += opened * given
    return total


def evaluate_gates(stage, value, rng):
    """The gates in NumPy and float64, every sum in an order of its own, q in any of three."""
    u, b, k, a, s, c = (getattr(stage, name).numpy() for name in FIELDS)
    x = value.astype(np.float64)

    def total(terms):
        return ORDERS[rng.integers(len(ORDERS))](rng.permuted(terms, axis=-1), NO_BIAS)

    place = x if stage.frame is None else total(stage.frame.numpy() * x[:, None, :])
    linear, square = total(u * place[:, None, :]), k * total(np.square(place))[:, None]
    if rng.random() < 0.3:
        square = total(k[:, None] * np.square(place)[:, None, :])
    level = [(linear - b) + square, (square - b) + linear, (linear + square) - b][rng.integers(3)]
    opening = np.maximum(0, 1 - s * np.maximum(0, np.abs(level) - a))
    given = np.broadcast_to(c, (len(x), *c.shape))
    if stage.tilt is not None:
        given = total(stage.tilt.numpy() * x[:, None, None, :]) + c
    return total((opening[:, :, None] * given).transpose(0, 2, 1))
