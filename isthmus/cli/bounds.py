"""``isthmus bounds``: widths that suffice for a data set, and widths that cannot."""

from __future__ import annotations

from isthmus.cli import options
from isthmus.cli.output import emit


def command(
    data: options.Data,
    target: options.Target = None,
    task: options.Task = "auto",
    rows: options.Rows = None,
    labels: options.Labels = "true",
    conflicts: options.Conflicts = "error",
    seed: options.Seed = 0,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Say which widths suffice to memorize DATA, which cannot, and which assumptions it meets.

    DATA may also be shape:n=50000,d=3072,k=10, a size without rows: assumptions then stay unchecked.
    """
    options.set_threads(threads)
    from isthmus.bounds import bounds
    from isthmus.data import load_shape

    table = bounds(load_shape(data) or options.load_rows(data, target, task, rows, labels, conflicts, seed))
    emit(table.to_dict(), str(table), json)
