"""Files opened for reading, plain or gzip: a failure is one sentence, nothing expands without bound."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from isthmus.errors import DataError

MOST_BYTES = 1 << 34  # 16 GiB: data sets are held in memory as a whole
FREE_BYTES = 1 << 28  # 256 MiB: so much may be read however small the file is
MOST_EXPANSION = 100  # beyond that, at most so many bytes for every byte of the file


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, through gzip if its name ends in ``.gz``.

    Args:
        path: the file.

    Yields:
        The bytes, unpacked. An error that occurs while they are read is reported as one of this file.

    Raises:
        DataError: the file is missing, unreadable, or its gzip stream is damaged or ends early.
    """
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path, "rb") as unpacked:
                yield cast(BinaryIO, unpacked)
        else:
            with path.open("rb") as file:
                yield file
    except EOFError:
        raise DataError(f"{path}: the gzip file ends early; it is truncated, so fetch it again.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a sound gzip file ({error}); fetch it again.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None


def require_modest(size: int, path: Path) -> None:
    """Refuse to unpack a file into more memory than its own size makes plausible.

    Args:
        size: bytes that its contents declare, or have reached so far.
        path: the file.

    Raises:
        DataError: more than 16 GiB, or more than 256 MiB and a hundred times the size of the file.
    """
    if size > MOST_BYTES:
        raise DataError(
            f"{path}: holds {size} bytes of data, more than the {MOST_BYTES >> 30} GiB that are read; "
            f"split it."
        )
    if size > FREE_BYTES and size > MOST_EXPANSION * path.stat().st_size:
        raise DataError(
            f"{path}: declares {size} bytes of data, more than {MOST_EXPANSION} times the size of the file; "
            f"this is refused as a decompression bomb. If the data are sound, store them uncompressed."
        )
