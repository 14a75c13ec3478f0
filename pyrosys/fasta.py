"""FASTA files: names and sequences, one after the other."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

from biotite import InvalidFileError
from biotite.sequence.io.fasta import FastaFile

from pyrosys.errors import InputError

__all__ = ["read_fasta"]


def read_fasta(path: Path) -> Iterator[tuple[str, str]]:
    """Read names, the first words of the headers, and sequences, one after the other.

    Args:
        path: A FASTA file, compressed with gzip if its name ends in ``.gz``.

    Raises:
        InputError: There is no such file, it is no FASTA file, or it has no sequences.
    """
    found = False
    try:
        with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            first = next((line for line in file if line.strip()), "")
            file.seek(0)
            for header, sequence in FastaFile.read_iter(file) if first.lstrip()[:1] in (">", ";") else ():
                found = True
                words = header.split(maxsplit=1)
                if not words:
                    raise InputError(f"Expected a name after each > in {path}, found none. Give each sequence one.")
                yield words[0], sequence
    except (InvalidFileError, UnicodeDecodeError, EOFError, OSError) as error:
        raise InputError(f"Expected a FASTA file at {path}, found: {error}. Check the path.") from error
    if not found:
        raise InputError(f"Expected sequences in {path}, each under a line that begins with >, found none.")
