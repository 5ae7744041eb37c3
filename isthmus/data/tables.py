"""Tables as text: CSV and TSV files, plain or gzip, one example a line.

Cells become numbers block by block, so that a table never exists as Python strings.
"""

from __future__ import annotations

import codecs
import csv
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, Literal, NoReturn

import numpy as np

from isthmus._types import Task
from isthmus.data.coerce import LARGEST_INTEGER
from isthmus.data.columns import Target, target_columns
from isthmus.data.dataset import Dataset, from_arrays
from isthmus.data.opened import opened, require_modest
from isthmus.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}

BLOCK_CELLS = 1 << 18  # cells held as Python strings at a time: some 15 MiB
LONGEST_LINE = 1 << 26  # 64 MiB; a longer line is no table

Row = tuple[int, list[str]]  # the number of its last line in the file, and its cells


@dataclass(frozen=True)
class Table:
    """What every row of a text table has in common.

    Attributes:
        path: the file.
        names: its header, or none.
        width: cells in a row.
        chosen: positions of the target columns.
    """

    path: Path
    names: tuple[str, ...]
    width: int
    chosen: list[int]

    def refuse(self, line: int, column: int, problem: str) -> NoReturn:
        """Raise the error that a cell causes.

        Args:
            line: line number in the file.
            column: position in the row, from 0.
            problem: what is wrong with it and what to do.

        Raises:
            DataError: always.
        """
        name = f" ({self.names[column]!r})" if self.names else ""
        raise DataError(f"{self.path}: line {line}, column {column + 1}{name} {problem}")


def read_table(path: Path, target: Target = None, task: Task | Literal["auto"] = "auto") -> Dataset:
    """Read a CSV or TSV file.

    Args:
        path: a name ending in ``.csv`` or ``.tsv``, perhaps with ``.gz`` after it.
        target: see `isthmus.data.columns.target_columns`; the other columns are the inputs.
        task: see `isthmus.data.from_arrays`.

    Raises:
        DataError: the file is no table of finite numbers with a target in every row; names line and column.
    """
    with _table(path, lambda names: target if isinstance(target, str) else None) as (names, width, rows):
        return _convert(
            Table(path, names, width, target_columns(target, width, names, str(path))), rows, task
        )


def read_inputs(path: Path, columns: Sequence[str], size: int) -> np.ndarray:
    """Read the inputs alone out of a CSV or TSV file, which need not hold targets.

    Args:
        path: the file.
        columns: the inputs' names, to find them under a header in any order; without names, or without a
            header, the first ``size`` columns, of as many or one more.
        size: how many inputs there are, d.

    Returns:
        The inputs [N, d].

    Raises:
        DataError: the file is no table, or lacks an input; names line and column.
    """
    with _table(path, lambda names: next((name for name in columns if name in names), None)) as (
        names,
        width,
        rows,
    ):
        if columns and names:
            missing = [name for name in columns if name not in names]
            if missing:  # and not a position that is written the same
                raise DataError(f"{path}: there is no column {missing[0]!r}, which the model takes.")
            kept = [target_columns(name, width, names, str(path))[0] for name in columns]
        elif width in {size, size + 1}:
            kept = list(range(size))
        else:
            raise DataError(f"{path}: {width} columns, but the model takes {size} inputs.")
        table = Table(path, names, width, [])
        return np.concatenate([
            _numbers(table, [(line, [cells[column] for column in kept]) for line, cells in block], kept)
            for block in _blocks(table, rows)
        ])


@contextmanager
def _table(
    path: Path, expected: Callable[[Sequence[str]], str | None]
) -> Iterator[tuple[tuple[str, ...], int, Iterator[Row]]]:
    """Open a table.

    Yields:
        Its header's names (or none), its width, and its rows.

    Raises:
        DataError: there are no rows.
    """
    with opened(path) as file:
        rows = _rows(file, path)
        first = list(islice(rows, 2))
        if not first:
            raise DataError(f"{path}: the file is empty; expected one example per line.")
        names = _header(first, expected([cell.strip() for cell in first[0][1]]))
        data = first[1:] if names else first
        if not data:
            raise DataError(f"{path}: there is a header, but no rows follow it.")
        yield names, len(first[0][1]), chain(data, rows)


def delimiter(path: Path) -> str | None:
    """What separates the cells of a file of this name; ``None`` if it names no table."""
    unpacked = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return DELIMITERS.get(unpacked.suffix.lower())


def _rows(file: BinaryIO, path: Path) -> Iterator[Row]:
    separator = delimiter(path) or ","
    reader = csv.reader(_lines(file, path), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for cells in reader:
            if len(cells) > 1 or (cells and cells[0].strip()):
                yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(
            f"{path}: line {reader.line_num} cannot be split into cells ({error}); check its quotes."
        ) from None


def _lines(file: BinaryIO, path: Path) -> Iterator[str]:
    # Decoded line by line, so that the message about a stray byte can name its line.
    size = 0
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
        size += len(line)
        require_modest(size, path)
        if len(line) > LONGEST_LINE:
            raise DataError(f"{path}: line {number} is longer than {LONGEST_LINE} bytes; this is no table.")
        try:
            yield line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode()
        except UnicodeDecodeError:
            raise DataError(f"{path}: line {number} is not UTF-8; convert the file to UTF-8.") from None


def _header(first: Sequence[Row], target: Target) -> tuple[str, ...]:
    names = tuple(cell.strip() for cell in first[0][1])
    numbers = [name for name in names if _number(name) is not None]
    if not numbers:
        return names
    if isinstance(target, str) and _number(target) is None and target in names:
        return names
    # A name stands above a number. Names that are numbers themselves count the columns, each once;
    # anything else is a row of data in which a cell is missing, and must not vanish as a header.
    above = any(
        _number(a) is None and _number(b) is not None for a, b in zip(names, first[-1][1], strict=False)
    )
    count = len(set(numbers)) == len(numbers) and all(number.isdigit() for number in numbers)
    return names if above and count else ()


def _convert(table: Table, rows: Iterator[Row], task: Task | Literal["auto"]) -> Dataset:
    kept = [column for column in range(table.width) if column not in table.chosen]
    if not kept:
        raise DataError(
            f"{table.path}: {table.width} column(s), none of them an input; expected cells separated by "
            f"{delimiter(table.path)!r}."
        )
    blocks: list[np.ndarray] = []
    targets: list[list[str]] = []
    lines: list[int] = []
    for block in _blocks(table, rows):
        for _, cells in block:
            targets.append([cells[column].strip() for column in table.chosen])
            for column in sorted(table.chosen, reverse=True):
                del cells[column]
        lines.extend(line for line, _ in block)
        blocks.append(_numbers(table, block, kept))
    x = np.concatenate(blocks)
    y = _targets(table, targets, lines, task)
    columns = [table.names[column] for column in kept] if table.names else ()
    return from_arrays(x, y, task=task, columns=columns, source=str(table.path))


def _blocks(table: Table, rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Walk over the rows in blocks that may be held as strings.

    Yields:
        Rows of equal width.

    Raises:
        DataError: a row of another width.
    """
    step = max(1, BLOCK_CELLS // table.width)
    while block := list(islice(rows, step)):
        for line, cells in block:
            if len(cells) != table.width:
                raise DataError(
                    f"{table.path}: line {line} has {len(cells)} cells, but the first row "
                    f"has {table.width}; each needs as many."
                )
        yield block


def _numbers(table: Table, rows: Sequence[Row], columns: Sequence[int]) -> np.ndarray:
    flat = chain.from_iterable(cells for _, cells in rows)
    try:
        x = np.fromiter(map(float, flat), np.float64, len(rows) * len(columns)).reshape(len(rows), -1)
        # Python reads 1_000 as a number, other readers of CSV do not.
        if (
            np.isfinite(x).all()
            and (np.abs(x) <= LARGEST_INTEGER).all()
            and not any("_" in "".join(cells) for _, cells in rows)
        ):
            return x
    except ValueError:
        pass
    for line, cells in rows:
        for column, cell in zip(columns, cells, strict=True):
            _require_number(table, line, column, cell)
    return np.array([[float(cell) for cell in cells] for _, cells in rows])


def _targets(
    table: Table, targets: list[list[str]], lines: list[int], task: Task | Literal["auto"]
) -> np.ndarray | list[str]:
    for line, cells in zip(lines, targets, strict=True):
        for column, cell in zip(table.chosen, cells, strict=True):
            if not cell:
                table.refuse(line, column, "has no target; remove or fill in the row.")
    if len(table.chosen) == 1 and task != "regression":
        cells = [row[0] for row in targets]
        numbers = [_number(cell) for cell in cells]
        if all(number is None for number in numbers):
            return cells
        if task == "classification" and any(n is None or abs(n) >= LARGEST_INTEGER for n in numbers):
            return cells
        if None in numbers:
            odd = numbers.index(None)
            other = next(line for line, number in zip(lines, numbers, strict=True) if number is not None)
            table.refuse(
                lines[odd],
                table.chosen[0],
                f"is {cells[odd]!r}, but line {other} holds a number there; correct it, or choose "
                f"task='classification' if both name classes.",
            )
    return _numbers(table, list(zip(lines, targets, strict=True)), table.chosen)


def _require_number(table: Table, line: int, column: int, cell: str) -> None:
    value = _number(cell)
    if not cell.strip():
        table.refuse(line, column, "is empty; remove or fill in the row.")
    if value is None:
        table.refuse(line, column, f"is {cell!r}, not a number; remove the column, or encode it as numbers.")
    if not math.isfinite(value):
        table.refuse(line, column, f"is {cell.strip()}, not a finite number; remove or fill in the row.")
    if abs(value) > LARGEST_INTEGER and cell.strip().lstrip("+-").isdigit() and int(cell) != value:
        table.refuse(
            line, column, f"is {cell.strip()}, which float64 rounds; subtract a constant, or split it."
        )


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None
