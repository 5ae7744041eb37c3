"""Tables of Apache Arrow: Parquet, Feather and Arrow IPC files, read batch by batch into one matrix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from isthmus import _extras
from isthmus._types import Task
from isthmus.data import coerce
from isthmus.data.columns import Target, target_columns
from isthmus.data.dataset import Dataset, from_arrays
from isthmus.data.opened import opened, require_modest
from isthmus.errors import DataError

FORMATS = {".parquet": "Parquet", ".feather": "Feather", ".arrow": "Arrow IPC"}

BATCH_VALUES = 1 << 17  # values copied at a time: as many as stay in a processor's cache
IPC_FILE = b"ARROW1"  # opens an IPC file; without it the same messages are a stream


@dataclass(frozen=True)
class Column:
    """A column and what can be read from it.

    Attributes:
        name: its name.
        type: its type in Arrow's words.
        dtype: NumPy's type for its numbers; ``None`` if it does not hold numbers.
        whole: whether these are integers that float64 may be too short for.
        named: whether it holds strings.
    """

    name: str
    type: str
    dtype: np.dtype | None
    whole: bool
    named: bool


@dataclass(frozen=True)
class Table:
    """A table of which only the description has been read.

    Attributes:
        path: the file.
        columns: all but the row index that pandas may have stored.
        rows: their number, as the file declares it.
        batches: the rows in order, as Arrow's record batches.
    """

    path: Path
    columns: list[Column]
    rows: int
    batches: Iterable[Any]


def is_arrow(path: Path) -> bool:
    """Whether a file of this name is Parquet, Feather or Arrow IPC."""
    return path.suffix.lower() in FORMATS


def read_arrow(path: Path, target: Target = None, task: Task | Literal["auto"] = "auto") -> Dataset:
    """Read a Parquet, Feather or Arrow IPC file.

    Args:
        path: a name ending in ``.parquet``, ``.feather`` or ``.arrow``.
        target: see `isthmus.data.columns.target_columns`; the other columns are the inputs.
        task: see `isthmus.data.from_arrays`.

    Raises:
        DataError: the file is no table of finite numbers with a target in every row; names row and column.
    """
    with _opened(path) as table:
        names = [column.name for column in table.columns]
        chosen = target_columns(target, len(names), names, str(path)) if names else []
        inputs = [column for position, column in enumerate(table.columns) if position not in chosen]
        targets = [table.columns[position] for position in chosen]
        if not inputs:
            raise DataError(f"{path}: {len(names)} column(s), none of them an input.")
        x, y = _read(table, inputs, targets)
    return from_arrays(x, y, task=task, columns=[column.name for column in inputs], source=str(path))


def read_arrow_inputs(path: Path, columns: Sequence[str], size: int) -> np.ndarray:
    """The inputs alone of a Parquet, Feather or Arrow IPC file, which need not hold targets [N, d].

    Args:
        path: the file.
        columns: the inputs' names, or none for the first ``size`` columns, of as many or one more.
        size: how many inputs there are, d.

    Raises:
        DataError: the file is no such table, or lacks an input.
    """
    with _opened(path) as table:
        there = {column.name: column for column in table.columns}
        if not columns and len(there) not in {size, size + 1}:
            raise DataError(f"{path}: {len(there)} columns, but the model takes {size} inputs.")
        names = columns or list(there)[:size]
        missing = [name for name in names if name not in there]
        if missing:
            raise DataError(f"{path}: there is no column {missing[0]!r}, which the model takes.")
        return _read(table, [there[name] for name in names], [])[0]


@contextmanager
def _opened(path: Path) -> Iterator[Table]:
    """Open a table.

    Yields:
        The table. Whatever pyarrow finds wrong with its bytes, now or later, is reported as one sentence.

    Raises:
        DataError: the file is missing or damaged, or two columns have one name.
    """
    kind = FORMATS[path.suffix.lower()]
    _extras.require("pyarrow.parquet", f"reading {kind}")  # makes it an attribute of pyarrow
    arrow = _extras.require("pyarrow", f"reading {kind}")
    with opened(path) as file:
        try:
            table = _parquet(path, arrow, file) if kind == "Parquet" else _ipc(path, arrow, file)
            repeated = [name for name, n in Counter(column.name for column in table.columns).items() if n > 1]
            if repeated:
                raise DataError(
                    f"{path}: {len(repeated)} column name(s) occur twice, first {repeated[0]!r}; rename one."
                )
            yield table
        except DataError:
            raise
        except Exception as error:  # damaged bytes make pyarrow raise nearly anything
            reason = str(error).partition("\n")[0].rstrip(".")
            raise DataError(
                f"{path}: not a sound {kind} file ({type(error).__name__}: {reason}); write it anew."
            ) from None


def _parquet(path: Path, arrow: Any, file: BinaryIO) -> Table:
    source = arrow.parquet.ParquetFile(file, pre_buffer=False)  # a buffer would hold the file once more
    metadata = source.metadata
    require_modest(
        sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)), path
    )
    batches = source.iter_batches(max(1, BATCH_VALUES // max(1, metadata.num_columns)))
    return Table(path, _columns(arrow, source.schema_arrow), metadata.num_rows, batches)


def _ipc(path: Path, arrow: Any, file: BinaryIO) -> Table:
    whole = file.read(len(IPC_FILE)) == IPC_FILE
    file.seek(0)
    if whole:
        source = arrow.ipc.open_file(file)
        batches = map(source.get_batch, range(source.num_record_batches))
        return Table(path, _columns(arrow, source.schema), source.count_rows(), batches)
    source = arrow.ipc.open_stream(file)
    held, size = [], 0
    for batch in _sound(source):  # a stream does not say how many rows it has
        held.append(batch)
        size += batch.nbytes
        require_modest(size, path)
    return Table(path, _columns(arrow, source.schema), sum(batch.num_rows for batch in held), held)


def _sound(batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        batch.validate(full=True)  # offsets and indices in a damaged file may point anywhere
        yield batch


def _columns(arrow: Any, schema: Any) -> list[Column]:
    index = (schema.pandas_metadata or {}).get("index_columns", ())
    return [_column(arrow.types, field) for field in schema if field.name not in index]


def _column(types: Any, field: Any) -> Column:
    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    dtype = None
    if types.is_decimal(kind) or types.is_null(kind):
        dtype = np.dtype(np.float64)
    elif types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind):
        dtype = np.dtype(kind.to_pandas_dtype())
    whole = types.is_int64(kind) or types.is_uint64(kind) or (types.is_decimal(kind) and kind.scale <= 0)
    named = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return Column(field.name, str(field.type), dtype, whole, named)


def _read(table: Table, inputs: Sequence[Column], targets: Sequence[Column]) -> tuple[np.ndarray, np.ndarray]:
    """The inputs [N, d] and the targets [N, K], which are numbers or one column of names.

    Raises:
        DataError: a column holds neither, a value is missing, or there are more or fewer rows than declared.
    """
    x, y = _matrix(table, inputs, False), _matrix(table, targets, len(targets) == 1 and targets[0].named)
    start = 0
    for batch in _sound(table.batches):
        stop = start + batch.num_rows
        _require_rows(table, stop <= table.rows)
        for matrix, columns in ((x, inputs), (y, targets)):
            for place, column in enumerate(columns):
                array = batch.column(column.name)
                if array.null_count:
                    row = start + array.is_null().index(True).as_py() + 1
                    what = "has no target" if matrix is y else "is missing"
                    raise DataError(
                        f"{table.path}: row {row}, column {column.name!r} {what}; remove or fill in the row."
                    )
                values = _values(array)
                if column.whole and matrix.dtype.kind == "f":
                    coerce.require_exact(values, column.name, start, str(table.path))
                matrix[start:stop, place] = values
        start = stop
    _require_rows(table, start == table.rows)
    return x, y


def _values(array: Any) -> np.ndarray:
    if hasattr(array, "dictionary"):
        return _values(array.dictionary)[_values(array.indices)]
    array = array.cast("float64") if str(array.type).startswith("decimal") else array
    return array.to_numpy(zero_copy_only=False)


def _matrix(table: Table, columns: Sequence[Column], names: bool) -> np.ndarray:
    """Room for what some columns hold [N, n].

    Raises:
        DataError: they do not hold numbers, or more than can be read.
    """
    if names:
        return np.empty((table.rows, len(columns)), object)
    for column in columns:
        if column.dtype is None:
            raise DataError(
                f"{table.path}: column {column.name!r} holds {column.type}, not numbers; remove or encode it."
            )
    dtype = np.result_type(*(column.dtype for column in columns)) if columns else np.dtype(np.float64)
    require_modest(table.rows * len(columns) * dtype.itemsize, table.path)
    return np.empty((table.rows, len(columns)), dtype)


def _require_rows(table: Table, agree: bool) -> None:
    if not agree:
        raise DataError(f"{table.path}: declares {table.rows} rows but holds another number; write it anew.")
