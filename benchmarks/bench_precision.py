"""Narrow dtypes: predicted error against measured, and rows wrong in float32 where gaps are narrow.

The measured error should stay below the predicted one (four standard deviations); the note says by how much.
"""

from __future__ import annotations

from typing import Any

import torch
from table import Table

import isthmus


def main() -> None:
    errors = Table("Error of float64 weights in a narrower dtype: measured against predicted")
    cases: tuple[tuple[str, dict[str, Any]], ...] = (
        ("wine", {}),
        ("digits", {}),
        ("digits", {"activation": "relu"}),
        ("digits", {"method": "three-layer"}),
        ("gaussian:n=1000,d=16,k=10", {"method": "classifier"}),
        ("gaussian:n=1000,d=16,k=2", {"method": "three-layer"}),
        ("sphere:n=1000,d=100", {"activation": "relu"}),
        ("friedman:n=200,d=10", {}),
    )
    for name, options in cases:
        found = isthmus.memorize(isthmus.load(name), **options)
        for narrow in found.precision:
            case = f"{name} {' '.join(options.values())} {found.hidden_units} units, {narrow.dtype}"
            predicted, measured = (
                torch.inf if error is None else error
                for error in (narrow.predicted_error, narrow.measured_error)
            )
            errors.row(case, measured, predicted, f"{narrow.wrong} of {narrow.rows} wrong, {narrow.level}")

    wrong = Table("float32, N = 60,000, K = 10, Gaussian d = 16: rows wrong")
    data = isthmus.load("gaussian:n=60000,d=16,k=10")
    ways: tuple[tuple[str, dict[str, Any]], ...] = (
        ("one hidden layer of gates", {"method": "gates"}),
        ("two hidden layers and thermometer, 2499-50-9", {"widths": (2499, 50, 9)}),
    )
    for case, options in ways:
        found = isthmus.memorize(data, dtype=torch.float32, raise_on_failure=False, **options)
        full = isthmus.certify(found.model, data)
        wrong.row(case, full.wrong, 0, f"{found.hidden_units} units; {full}")


if __name__ == "__main__":
    main()
