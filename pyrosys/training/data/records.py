"""Records: proteins as they come out of FASTA, CSV and structure files, one after the other."""

from __future__ import annotations

import csv
import gzip
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from pyrosys.errors import InputError
from pyrosys.fasta import read_fasta
from pyrosys.hub import fetch
from pyrosys.structure import Structure, read_structure
from pyrosys.training.data.schema import LETTERS, SPLITS

__all__ = ["Label", "Record", "Rejected", "find_sources", "label_example", "read_records"]

FASTA = (".fasta", ".fa", ".faa", ".fas")
TABLES = {".csv": ",", ".tsv": "\t"}
STRUCTURES = (".pdb", ".ent", ".cif", ".mmcif")
COLUMNS = ("name", "sequence", "cluster", "split", "label")

Label = float | str | list[float] | None


@dataclass(frozen=True)
class Record:
    """A protein.

    Args:
        name: What to call it.
        sequence: One letter per residue.
        cluster: Its cluster, if the source says.
        split: Its split, if the source says.
        label: What to predict, if the source says.
        coordinates: Of the backbone, ``(length, 4, 3)`` in Å, if there is a structure.
        chain: The chain of each residue, counted from 0, if there is a structure.
    """

    name: str
    sequence: str
    cluster: str | None = None
    split: str | None = None
    label: Label = None
    coordinates: ndarray | None = None
    chain: ndarray | None = None

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that are equal for records of equal sequence, structure and label."""
        arrays = [array.tobytes() for array in (self.chain, self.coordinates) if array is not None]
        label = b"" if self.label is None else repr(self.label).encode()
        return hashlib.sha256(b"\0".join([self.sequence.encode(), *arrays, label])).hexdigest()[:32]


class Rejected(NamedTuple):
    """A record that cannot be used, and why."""

    name: str
    reason: str


def find_sources(sources: Sequence[str], *, progress: bool) -> list[Path]:
    """Bring the sources here, and list their files; those of a folder by name.

    Raises:
        InputError: There is no such file, or it is of a kind that is not known.
        SourceError: An address could not be fetched.
    """
    files: list[Path] = []
    for source in sources:
        path = fetch(source, progress=progress)
        found = sorted(file for file in path.rglob("*") if file.is_file() and _kind(file)) if path.is_dir() else [path]
        if not found or not _kind(found[0]):
            kinds = ", ".join((*FASTA, *TABLES, *STRUCTURES))
            raise InputError(f"Expected files that end in one of {kinds}, or these and .gz, in {source}, found none.")
        files += found
    if not files:
        raise InputError("Expected at least one source, found none. Name files, folders or addresses.")
    return files


def read_records(
    path: Path, columns: Mapping[str, str], *, complexes: bool, shortest: int, longest: int | None
) -> Iterator[Record | Rejected]:
    """Read the records of a file.

    Args:
        path: The file.
        columns: For tables, what the columns are called: `COLUMNS` to names.
        complexes: Whether the chains of a structure make one record, or one each.
        shortest: Smallest number of residues.
        longest: Largest number of residues.

    Raises:
        InputError: The file as a whole cannot be read.
    """
    kind = _kind(path)
    if kind in STRUCTURES:
        found = _read_structures(path, complexes=complexes)
    elif kind in TABLES:
        found = _read_table(path, columns)
    else:
        found = (Record(name, sequence) for name, sequence in read_fasta(path))
    for record in found:
        yield record if isinstance(record, Rejected) else _check(record, shortest, longest)


def label_example(path: Path, columns: Mapping[str, str]) -> Label:
    """The first label in a file; ``None`` if it has none."""
    if _kind(path) not in TABLES:
        return None
    records = (record for record in _read_table(path, columns) if isinstance(record, Record))
    return next((record.label for record in records if record.label is not None), None)


def _kind(path: Path) -> str:
    """What ends the name of a file of a kind that is known."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in (*FASTA, *TABLES, *STRUCTURES) else ""


def _check(record: Record, shortest: int, longest: int | None) -> Record | Rejected:
    """Write a record as data sets do, or say why it cannot be used."""
    sequence = "".join(record.sequence.split()).upper().removesuffix("*")  # which stands for the stop codon
    if len(sequence) < shortest:
        return Rejected(record.name, f"shorter than {shortest}")
    if longest is not None and len(sequence) > longest:
        return Rejected(record.name, f"longer than {longest}")
    if unknown := set(sequence) - set(LETTERS):
        return Rejected(record.name, f"letter {min(unknown)!r}")
    if record.split is not None and record.split not in SPLITS:
        return Rejected(record.name, f"split {record.split!r}")
    return replace(record, sequence=sequence)


def _read_table(path: Path, columns: Mapping[str, str]) -> Iterator[Record | Rejected]:
    csv.field_size_limit(sys.maxsize if sys.maxsize < 2**31 else 2**31 - 1)  # a protein may be long
    try:
        with (gzip.open if path.suffix.lower() == ".gz" else open)(
            path, "rt", encoding="utf-8-sig", newline=""
        ) as file:
            rows = csv.DictReader(file, delimiter=TABLES[_kind(path)], strict=True)
            header = list(rows.fieldnames or ())
            names = {column: columns.get(column, column) for column in COLUMNS}
            missing = [
                names[column] for column in COLUMNS if names[column] not in header and column in (*columns, "sequence")
            ]
            if missing:
                raise InputError(
                    f"Expected the columns {', '.join(missing)} in {path}, found {', '.join(header) or 'none'}. "
                    "Say what the columns are called."
                )
            for number, row in enumerate(rows, start=1):
                value = {column: (row.get(name) or "").strip() or None for column, name in names.items()}
                title = value["name"] or f"{path.name}:{number}"
                if None in row or None in row.values():
                    yield Rejected(title, "number of fields")
                else:
                    label = _parse_label(value["label"])
                    yield Record(title, value["sequence"] or "", value["cluster"], value["split"], label)
    except (csv.Error, UnicodeDecodeError, EOFError, OSError) as error:
        raise InputError(f"Expected a table with a header at {path}, found: {error}. Check the file.") from error


def _parse_label(text: str | None) -> Label:
    """A number, several numbers with spaces between them, or words and letters as they are."""
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split()]
    except ValueError:
        return text
    return numbers if len(numbers) > 1 else numbers[0]


def _read_structures(path: Path, *, complexes: bool) -> Iterator[Record | Rejected]:
    try:
        structure = read_structure(path)
    except InputError as error:  # one bad file of many is no reason to stop
        yield Rejected(path.name, f"unreadable: {str(error).partition('.')[0][:200]}")
        return
    if complexes:
        yield _structure_record(structure.name, structure)
        return
    for chain in structure.chains:
        yield _structure_record(f"{structure.name}_{chain}", structure.select(chain))


def _structure_record(name: str, structure: Structure) -> Record:
    chain = structure.chain_index.astype(np.int16)
    return Record(name, structure.sequence, coordinates=structure.coordinates.astype(np.float32), chain=chain)
