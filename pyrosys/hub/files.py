"""Writing files so that a reader sees either all of a file or none of it."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pyrosys.errors import SourceError

__all__ = ["CHUNK", "flush", "move_into_place", "replacing", "require_space"]

CHUNK = 1 << 20  # bytes to read at a time


@contextmanager
def replacing(path: Path, *, durably: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary neighbour of ``path`` that takes its place when the block ends without an error.

    Args:
        path: The file to write.
        durably: Whether its bytes have to be on the disk before its name is, in case the machine stops.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
        if durably:
            move_into_place(temporary, path)
        else:
            temporary.replace(path)
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
            f"Expected {size:,} bytes of free space in {folder}, found {free:,}. Free some space, or set PYROSYS_CACHE "
            "(for files of the Hugging Face Hub HF_HUB_CACHE) to a folder on another disk."
        )
