"""A plain directory as a hub: entries are folders in it, ``organisation/name``."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pyrosys.errors import PublishError
from pyrosys.hub.files import flush
from pyrosys.hub.manifest import MANIFEST, manifest_digest

__all__ = ["move_entry", "present_entry", "staging", "tidy"]


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """An empty folder to write an entry in, hidden in another folder; what killed processes have left there is removed."""
    parent.mkdir(parents=True, exist_ok=True)
    for lock in parent.glob(".pyrosys-*.lock"):
        with suppress(Timeout, OSError), FileLock(lock, timeout=0):
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink()
    folder = parent / f".pyrosys-{uuid.uuid4().hex}"
    lock = folder.with_suffix(".lock")
    with FileLock(lock):
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def tidy(place: Path) -> None:
    """Finish what a process that was killed while it replaced an entry has left undone."""
    for leftover in place.parent.glob(f".{place.name}.old-*"):
        with FileLock(place.parent / f".{place.name}.lock"):
            if place.exists():
                shutil.rmtree(leftover, ignore_errors=True)
            elif leftover.exists():  # it was killed between the two moves
                leftover.rename(place)


def present_entry(place: Path) -> str | None:
    """The digest of the manifest of the entry that is at a place now, or nothing if there is none.

    Raises:
        PublishError: There is something else, which is not to be lost.
    """
    if not place.exists():
        return None
    if not (place / MANIFEST).is_file():
        raise PublishError(
            f"Expected an entry or nothing at {place}, found something else. Choose another name, or move it away."
        )
    return manifest_digest(place)


def move_entry(staged: Path, place: Path, parent: str | None) -> None:
    """Move a complete entry to its place, in one step if there is none yet.

    An entry that is there already is moved aside first and removed afterwards: a reader in between finds no entry, never
    a mixture of both.

    Args:
        staged: The folder, on the same file system.
        place: Where it goes.
        parent: The digest of the manifest of the entry that it replaces.

    Raises:
        PublishError: Another entry is there by now.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.parent / f".{place.name}.lock"):
        if present_entry(place) != parent:
            raise PublishError(
                f"Expected the entry at {place} to be as it was when this began; another process has published meanwhile. "
                "Look at what it published, and publish again to replace it."
            )
        for path in staged.iterdir():
            flush(path)
        flush(staged)
        old = place.parent / f".{place.name}.old-{uuid.uuid4().hex}"
        if parent is not None:
            place.rename(old)
        staged.rename(place)
        flush(place.parent)
        shutil.rmtree(old, ignore_errors=True)
