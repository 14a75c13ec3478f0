"""Downloads that go on where they stopped, in this run or in a later one.

What has arrived is kept in a partial file. When the connection breaks, the rest is asked for; when the process ends,
the next one that wants the file does the same. The whole is hashed at the end: a file that was put together from pieces
that do not belong together is noticed and downloaded anew.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from pyrosys.errors import IntegrityError, SourceError
from pyrosys.hub.digest import Expected, file_sha256
from pyrosys.hub.files import require_space

__all__ = ["Answer", "Interrupted", "Open", "Unreachable", "transfer"]

ATTEMPTS = 5  # in a row that bring nothing new
FIRST_WAIT = 0.5  # seconds, doubled each time


class Interrupted(Exception):
    """A download broke off, and it is worth while to ask for the rest."""


class Unreachable(Interrupted):
    """There is no connection; a source that has given nothing so far is not asked again."""


@dataclass
class Answer:
    """What a source gives.

    Attributes:
        pieces: The content, from ``start`` on.
        start: Where it starts; 0 when the source cannot give the part that was asked for.
        size: Of the whole file, where the source says it.
    """

    pieces: Iterator[bytes]
    start: int
    size: int | None


# From the number of bytes that are here already to what the source gives.
Open = Callable[[int], AbstractContextManager[Answer]]


def transfer(open_source: Open, partial: Path, *, expected: Expected, source: str, progress: bool) -> str:
    """Bring a file here, and return its SHA-256.

    Args:
        open_source: Asks the source for the file from a byte on. Raises `Interrupted` for what may pass.
        partial: Where the file goes; what is there already is its beginning.
        expected: What is on record.
        source: The address, for messages.
        progress: Whether to show a progress bar, on a terminal.

    Raises:
        SourceError: The source failed, or the disk is too small.
        IntegrityError: The file is not the one on record; it has been removed.
    """
    resumed = _length(partial) > 0
    _receive_patiently(open_source, partial, expected, source, progress)
    sha256 = file_sha256(partial)
    if resumed and sha256 != (expected.sha256 or sha256):
        partial.unlink()  # its beginning came from somewhere else
        _receive_patiently(open_source, partial, expected, source, progress)
        sha256 = file_sha256(partial)
    try:
        expected.check_sha256(sha256, source)
    except IntegrityError:
        partial.unlink()
        raise
    return sha256


def _receive_patiently(open_source: Open, partial: Path, expected: Expected, source: str, progress: bool) -> None:
    at_first = before = _length(partial)
    attempts = 0
    while True:
        try:
            return _receive(open_source, partial, expected, source, progress)
        except Interrupted as error:
            here = _length(partial)
            attempts = 1 if here > before else attempts + 1
            if attempts == ATTEMPTS or (isinstance(error, Unreachable) and here == at_first):
                kept = f" The first {here:,} bytes are kept." if here else ""
                raise SourceError(
                    f"Could not download {source}: {error}.{kept} Check the connection and try again, "
                    "or use another source."
                ) from error
            before = here
        time.sleep(FIRST_WAIT * 2 ** (attempts - 1))


def _receive(open_source: Open, partial: Path, expected: Expected, source: str, progress: bool) -> None:
    """Ask for what is missing, once."""
    here = _length(partial)
    if here and here == expected.size:
        return
    require_space(partial.parent, max(0, (expected.size or 0) - here))
    with open_source(here) as answer:
        size = expected.size if answer.size is None else answer.size
        if size is not None:
            expected.check_size(size, source)
            require_space(partial.parent, size - answer.start)
        label = source.rpartition("/")[2]
        bar = tqdm(
            total=size, initial=answer.start, desc=label, unit="B", unit_scale=True, disable=None if progress else True
        )
        with partial.open("r+b" if here else "wb") as file, bar:
            file.truncate(answer.start)
            file.seek(answer.start)
            for piece in answer.pieces:
                file.write(piece)
                bar.update(len(piece))
                if size is not None and file.tell() > size:
                    break
            arrived = file.tell()
    if size is not None and arrived < size:
        raise Interrupted(f"expected {size:,} bytes, the connection ended after {arrived:,}")
    if size is not None and arrived > size:
        partial.unlink()
        Expected(size=size).check_size(arrived, source)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
