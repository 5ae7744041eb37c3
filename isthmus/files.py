"""Files and directories that appear whole or not at all, whatever interrupts their writing.

A file is written beside its place and moved in. A directory is replaced in three moves: the new one is
written as a sibling, the old one moved aside, the new one moved in; then the old one is deleted. Whoever
opens the directory after a crash between the moves finds the old one aside, and `recover` puts it back.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isthmus._types import PathLike
from isthmus.errors import InputError


@contextmanager
def whole_file(path: PathLike) -> Iterator[Path]:
    """Write a file that replaces ``path`` only once it is complete.

    Args:
        path: the file's place; its folder must exist.

    Yields:
        Where to write it meanwhile, in the same folder.

    Raises:
        InputError: the folder does not exist, cannot be written to, or is full.
    """
    path = _place(path)
    with _writing(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        draft = Path(name)
        try:
            draft.chmod(0o666 & ~_umask())
            yield draft
            _flush(draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


@contextmanager
def whole_directory(path: PathLike, marker: str, *, replace: bool) -> Iterator[Path]:
    """Write a directory that takes the place of ``path`` only once it is complete.

    Args:
        path: the directory's place; its parent must exist.
        marker: a file that every directory of this kind holds: without it nothing is ever replaced.
        replace: whether an older directory of this kind may be replaced.

    Yields:
        Where to write it meanwhile, a sibling.

    Raises:
        InputError: ``path`` exists and may not be replaced, or its parent cannot be written to, or is full.
    """
    path = _place(path)
    with _writing(path):
        recover(path)
        require_free(path, marker, replace=replace)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
        try:
            yield draft
            require_free(path, marker, replace=replace)  # it may have been taken meanwhile
            draft.chmod(0o777 & ~_umask())
            for file in draft.iterdir():
                _flush(file)
            aside = _aside(path)
            if _occupied(path):
                shutil.rmtree(aside, ignore_errors=True)  # left by a crash after the new one was in
                path.rename(aside)
            draft.rename(path)
            shutil.rmtree(aside, ignore_errors=True)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            recover(path)


def require_free(path: PathLike, marker: str, *, replace: bool) -> None:
    """Refuse a place that is taken, before any work is spent on what should go there.

    Args:
        path: the place.
        marker: a file that every directory of this kind holds.
        replace: whether an older directory of this kind may be replaced.

    Raises:
        InputError: the place is taken, or its parent folder does not exist.
    """
    path = _place(path)
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: the folder {path.parent} does not exist.")
    with _writing(path):
        if not path.exists():
            return
    if not path.is_dir():
        raise InputError(f"{path} is a file; give the name of a directory to write to.")
    if not _occupied(path):
        return
    if not (path / marker).is_file():
        raise InputError(
            f"{path} holds other files and no {marker}; it is never replaced. Give another name."
        )
    if not replace:
        raise InputError(f"{path} exists already; give another name, or --force (force=True) to replace it.")


def recover(path: PathLike) -> None:
    """Put back a directory that was moved aside when its replacement was interrupted."""
    path = _place(path)
    aside = _aside(path)
    if aside.is_dir() and not path.is_file() and not _occupied(path):
        aside.rename(path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from None


def _place(path: PathLike) -> Path:
    """Where a path leads: of a symbolic link not the link is replaced, but what it stands for."""
    return Path(os.path.realpath(path))


def _aside(path: Path) -> Path:
    return path.parent / f".{path.name}.aside"


def _occupied(path: Path) -> bool:
    return path.is_dir() and any(path.iterdir())


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
