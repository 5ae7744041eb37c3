"""Real data, one core: digits, diabetes, a regression of 10,000 rows, and all 60,000 images of Fashion-MNIST.

Building is set against a limit, and against what nothing can do without: one projection of the rows and one
sort.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from table import Table

import isthmus
from isthmus.certificate import Level
from isthmus.memorize.lines import column_reach


def project_and_sort(data: isthmus.Dataset) -> float:
    """Seconds for one random projection of the rows and one sort."""
    direction = torch.randn(data.inputs, dtype=torch.float64) * (column_reach(data) > 0)
    start = time.perf_counter()
    torch.sort(torch.cat([x @ direction for _, x in data.chunks()]))
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(1)
    table = Table("Rows that are not certified as required")

    fashion = {"labels": "true", "seed": 0}, {"labels": "random", "seed": 1}
    cases: list[tuple[str, dict[str, Any], dict[str, Any], Level, float | None]] = [
        ("digits", {}, {}, "proven", None),
        ("diabetes", {}, {}, "proven", None),
        ("friedman:n=10000,d=10", {}, {}, "proven", None),
        *(("fashion-mnist", how, {"widths": (519, 245, 9)}, "bitwise", 10.0) for how in fashion),
        *(("fashion-mnist", how, {"method": "classifier"}, "bitwise", 10.0) for how in fashion),
    ]
    lines = []
    for name, how, options, level, limit in cases:
        data = isthmus.load(name, **how)
        found = isthmus.memorize(data, level=level, raise_on_failure=False, **options)
        seen = found.certificate
        right = seen.bitwise_rows if level == "bitwise" else seen.proven_rows
        case = f"{name} {how.get('labels', '')} {options.get('widths', 'smallest')}"
        shape = "-".join(map(str, found.widths))
        note = f"{shape} {seen.level}, {seen.wrong} wrong, bound {seen.bound:.1e}"
        if seen.tolerance is not None:
            note += f", error {(seen.max_error or 0.0) / seen.tolerance:.2g} of 1e-8 of the range"
        table.row(case, seen.rows - right, 0, note)
        if limit is not None:
            base = project_and_sort(data)
            lines.append((
                case,
                found.seconds["build"],
                limit,
                f"{found.seconds['build'] / base:.1f} x ({base:.2f} s)",
            ))
    times = Table("Building on one core, seconds; in the note: as a multiple of one projection and one sort")
    for line in lines:
        times.row(*line)


if __name__ == "__main__":
    main()
