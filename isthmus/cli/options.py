"""Options that several commands share, each with its meaning written once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from isthmus.data import Dataset

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A file (.csv, .tsv, idx, also gzipped; .parquet, .feather, .arrow, .npz, CIFAR's .bin), a "
        "folder (idx files, cifar-10-batches-bin:split=test, cifar-100-binary:labels=coarse, or a folder of "
        "images per class, photos:size=32,channels=gray), or a name: digits, wine, breast-cancer, diabetes, "
        "fashion-mnist, sphere:n=1000,d=100, gaussian:..., friedman:..., zigzag:...",
        show_default=False,
    ),
]
ModelDirectory = Annotated[
    Path, typer.Argument(metavar="DIR", help="A model directory that memorize wrote.", show_default=False)
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="The model directory to write.", show_default=False)]
Onnx = Annotated[bool, typer.Option("--onnx", help="Write model.onnx too, and run it on every row.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an older model directory.")]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN", help="Target column of a table, by name or number from 0; last by default."
    ),
]
Task = Annotated[
    Literal["auto", "classification", "regression"],
    typer.Option(
        help="What the target is; auto: non-integers, or over 100 distinct numbers, are regression."
    ),
]
Rows = Annotated[
    int | None, typer.Option(metavar="N", help="Take the first N rows only.", show_default=False)
]
Labels = Annotated[
    Literal["true", "random"], typer.Option(help="Keep the targets, or put random ones in their place.")
]
Conflicts = Annotated[
    Literal["error", "drop", "majority"],
    typer.Option(
        help="Equal inputs with different targets: refuse, drop them, or take the most frequent target."
    ),
]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Processor threads; all by default.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
Tolerance = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="Largest error of a regression, in units of the target; 1e-8 of its range by default.",
        show_default=False,
    ),
]


def set_threads(threads: int | None) -> None:
    """Limit PyTorch to this many threads, if a number is given."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def load_rows(
    source: str,
    target: str | None,
    task: Literal["auto", "classification", "regression"],
    rows: int | None,
    labels: Literal["true", "random"],
    conflicts: Literal["error", "drop", "majority"],
    seed: int,
) -> Dataset:
    """Load what the data options describe; if conflicts are an error, that is for the command to say."""
    from isthmus.data import load

    return load(
        source,
        target=target,
        task=task,
        rows=rows,
        labels=labels,
        conflicts=None if conflicts == "error" else conflicts,
        seed=seed,
    )
