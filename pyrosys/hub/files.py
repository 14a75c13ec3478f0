"""Writing files so that a reader sees either all of a file or none of it."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from tqdm import tqdm

from pyrosys.errors import SourceError

__all__ = ["Readable", "copy_stream", "flush", "move_into_place", "replacing", "require_space"]

CHUNK = 1 << 20


class Readable(Protocol):
    """Anything bytes can be read from: a response, a member of an archive."""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes, and none at the end."""
        ...


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary neighbour of ``path`` that takes its place when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
        move_into_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move_into_place(source: Path, target: Path) -> None:
    """Rename a finished file, with its bytes on disk before its name is (both on the same file system)."""
    flush(source)
    source.replace(target)
    flush(target.parent)


def flush(path: Path) -> None:
    """Bring what was written to a file, or to the list of files of a folder, to the disk."""
    if os.name != "posix" and path.is_dir():  # there folders cannot be opened
        return
    # Windows flushes only what is open for writing, and a folder opens only for reading.
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_space(folder: Path, size: int) -> None:
    """Check that ``size`` more bytes fit.

    Raises:
        SourceError: They do not.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        raise SourceError(
            f"Expected {size:,} bytes of free space in {folder}, found {free:,}. "
            "Free some space, or set PYROSYS_CACHE to a folder on another disk."
        )


def copy_stream(source: Readable, target: Path, *, total: int | None, label: str, progress: bool) -> int:
    """Copy a stream into a new file and return the number of bytes.

    Args:
        source: What to read until its end, or until it has given more than ``total``.
        target: The file to create.
        total: The number of bytes to expect, if known; the caller compares.
        label: The name of the progress bar.
        progress: Whether to show one, on a terminal.

    Raises:
        SourceError: The disk is too small.
    """
    require_space(target.parent, total or 0)
    copied = 0
    bar = tqdm(total=total, desc=label, unit="B", unit_scale=True, disable=None if progress else True)
    with target.open("xb") as file, bar:
        while chunk := source.read(CHUNK):
            file.write(chunk)
            copied += len(chunk)
            bar.update(len(chunk))
            if total is not None and copied > total:
                break
    return copied
