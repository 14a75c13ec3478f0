"""Data sets on disk, read by row, with memory that does not grow with their size.

Arrow files are mapped into memory: the operating system brings in what is read. Parquet files are read by row group, and
the groups that were used last are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from pyrosys.errors import InputError
from pyrosys.hub import file_sha256
from pyrosys.training.data.schema import check_columns, pyarrow

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MANIFEST", "UNFINISHED", "Dataset", "Row"]

Row: TypeAlias = "dict[str, Any]"

MANIFEST = "dataset.json"  # beside the files that `prepare` wrote
UNFINISHED = ".prepare"  # the folder that `prepare` works in until it is done
SUFFIXES = (".arrow", ".parquet")


class Dataset:
    """The rows of one or more Parquet or Arrow files, in order.

    What is opened stays behind when a data set goes to another process, which opens the files again.

    Args:
        path: A folder that `prepare` wrote, any folder of files, a file, or several files. Files of a folder are taken by
            name. Those of Arrow are in its file format and not compressed, if they are to be mapped into memory.
        cache: How many bytes of row groups of Parquet files to keep.

    Raises:
        InputError: There are no such files, they are damaged, or their columns are not as `schema` describes them.
        MissingExtra: pyarrow is not installed.
    """

    def __init__(self, path: str | Path | Sequence[str | Path], *, cache: int = 256 << 20) -> None:
        self.paths = _find_files(path)
        self.cache = cache
        self._open()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "cache": self.cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    @cached_property
    def manifest(self) -> dict[str, Any] | None:
        """What `prepare` says of the data set, if it wrote it."""
        folders = {path.parent for path in self.paths}
        file = folders.pop() / MANIFEST
        return json.loads(file.read_text(encoding="utf-8")) if not folders and file.is_file() else None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the contents: of the rows if `prepare` wrote them, else of the files."""
        if self.manifest is not None:
            return self.manifest["digest"]
        return hashlib.sha256(b"".join(bytes.fromhex(file_sha256(path)) for path in self.paths)).hexdigest()

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return self._columns

    @cached_property
    def lengths(self) -> Int[ndarray, " rows"]:
        """The number of residues in each row."""
        if "length" in self.columns:
            return self._column("length").to_numpy().astype(np.int32)
        lengths = [pyarrow("compute").utf8_length(chunk).to_numpy() for chunk in self._chunks("sequence")]
        return np.concatenate(lengths).astype(np.int32)

    def codes(self, column: str) -> tuple[Int[ndarray, " rows"], list[str]]:
        """Numbers for the strings of a column, and the strings by number.

        Raises:
            InputError: There is no such column, or it has missing values.
        """
        self._require(column)
        encoded = self._column(column)
        if encoded.null_count:
            raise InputError(
                f"Expected a value in every row of the column {column!r}, found {encoded.null_count} without. Fill them in."
            )
        if not pyarrow("types").is_dictionary(encoded.type):
            encoded = encoded.dictionary_encode()
        encoded = encoded.unify_dictionaries().combine_chunks()
        if not isinstance(encoded, pyarrow().Array):  # several chunks, or none
            encoded = encoded.chunk(0)
        return encoded.indices.to_numpy().astype(np.int32), encoded.dictionary.to_pylist()

    def read(self, rows: Iterable[int], columns: Sequence[str]) -> list[Row]:
        """Read rows, in the order given.

        Args:
            rows: Their numbers, from 0.
            columns: Which columns to read. ``coordinates`` become an array of shape ``(length, 4, 3)``, other lists
                arrays of one dimension.

        Raises:
            InputError: There is no such column, or a row contradicts itself.
        """
        for name in columns:
            self._require(name)
        with_length = tuple(dict.fromkeys([*columns, *({"length"} & set(self.columns))]))
        return [self._read(row, with_length) for row in rows]

    def _require(self, column: str) -> None:
        if column not in self.columns:
            raise InputError(
                f"Expected a column {column!r} in {self.paths[0]}, found {', '.join(self.columns)}. Add the column, as "
                "`pyrosys prepare` does, or do without what it is for."
            )

    def _read(self, row: int, columns: Sequence[str]) -> Row:
        if not 0 <= row < len(self):
            raise IndexError(f"Expected a row from 0 to {len(self) - 1}, found {row}.")
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        table, place = self._group(group, columns), row - int(self._starts[group])
        found: Row = {"row": row, **{name: _value(table.column(name)[place]) for name in columns}}
        self._check(found)
        return found

    def _check(self, found: Row) -> None:
        """Check that what is listed by residue has one entry for each."""
        sequence = found.get("sequence")
        if "sequence" in found and not sequence:
            raise InputError(
                f"Expected a sequence in row {found['row']} of {self.paths[0].parent}, found none. Leave it out."
            )
        if sequence is None:
            return
        lengths = {name: len(found[name]) for name in ("coordinates", "mask", "chain") if found.get(name) is not None}
        if "length" in found:
            lengths["length"] = found["length"]
        wrong = {name: length for name, length in lengths.items() if length != len(sequence)}
        if wrong:
            name, length = wrong.popitem()
            raise InputError(
                f"Expected {len(sequence)} residues, as in its sequence, in {name!r} of row {found['row']} of "
                f"{self.paths[0].parent}, found {length}. Correct the row."
            )

    def _open(self) -> None:
        self._files: list[Any] = []
        self._places: list[tuple[int, int]] = []  # of each group: its file and its number there
        self._kept: OrderedDict[Any, Any] = OrderedDict()
        self._kept_bytes = 0
        counts: list[int] = []
        for number, path in enumerate(self.paths):
            try:
                file, names, sizes = (_open_arrow if path.suffix == ".arrow" else _open_parquet)(path)
            except (pyarrow().ArrowException, OSError) as error:
                raise InputError(
                    f"Expected a complete {path.suffix[1:]} file at {path}, found: {error}. Write it again."
                ) from error
            if number and set(names) != set(self._columns):
                raise InputError(
                    f"Expected the columns {', '.join(self._columns)} in {path}, as in {self.paths[0]}, found "
                    f"{', '.join(names)}. Give all files the same columns."
                )
            if not number:
                self._columns = tuple(names)
            self._files.append(file)
            self._places += [(number, group) for group in range(len(sizes))]
            counts += sizes
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)

    def _group(self, group: int, columns: Sequence[str]) -> Any:
        """Columns of a row group of Parquet, from memory if they were used lately, or of a part of an Arrow file."""
        file, number = self._places[group]
        if self.paths[file].suffix == ".arrow":
            return self._files[file].get_batch(number)
        key = (group, *columns)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        table = self._files[file].read_row_group(number, columns=list(columns), use_threads=False).combine_chunks()
        self._kept[key] = table
        self._kept_bytes += table.nbytes
        while self._kept_bytes > self.cache and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return table

    def _column(self, name: str) -> Any:
        return pyarrow().chunked_array(list(self._chunks(name)))

    def _chunks(self, name: str) -> Iterable[Any]:
        """Go through a column, without reading the others."""
        for path, file in zip(self.paths, self._files, strict=True):
            if path.suffix == ".arrow":
                for number in range(file.num_record_batches):
                    yield file.get_batch(number).column(name)
            else:
                yield from file.read(columns=[name]).column(name).chunks


def _find_files(path: str | Path | Sequence[str | Path]) -> list[Path]:
    """List the files of a data set, as absolute paths: another process may work in another folder."""
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(one) for one in path]
    if len(paths) == 1 and paths[0].is_dir():
        folder = paths[0]
        if (folder / UNFINISHED).exists():
            raise InputError(f"Expected a complete data set in {folder}, found one half prepared. Run prepare again.")
        paths = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    for one in paths:
        if one.suffix not in SUFFIXES or not one.is_file():
            raise InputError(f"Expected a .parquet or .arrow file at {one}, found none. Check the path.")
    if not paths:
        raise InputError(f"Expected .parquet or .arrow files in {path}, found none. Prepare a data set there first.")
    return [one.absolute() for one in paths]


def _open_parquet(path: Path) -> tuple[Any, list[str], list[int]]:
    file = pyarrow("parquet").ParquetFile(path, memory_map=True)
    check_columns(file.schema_arrow, path)
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    return file, file.schema_arrow.names, sizes


def _open_arrow(path: Path) -> tuple[Any, list[str], list[int]]:
    file = pyarrow("ipc").open_file(pyarrow().memory_map(str(path)))
    check_columns(file.schema, path)
    return file, file.schema.names, [file.get_batch(number).num_rows for number in range(file.num_record_batches)]


def _value(scalar: pa.Scalar) -> Any:
    """A scalar as Python's own, a list as an array that shares its memory where it can."""
    types = pyarrow("types")
    if not scalar.is_valid:
        return None
    if not (types.is_list(scalar.type) or types.is_large_list(scalar.type)):
        return scalar.as_py()
    values = scalar.values
    if not types.is_nested(values.type):
        return values.to_numpy(zero_copy_only=False)
    flat = values.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    if len(flat) != 12 * len(values):
        raise InputError(
            f"Expected 12 numbers for each residue in 'coordinates', found {len(flat)} for {len(values)} residues. Give "
            "x, y and z of N, CA, C and O."
        )
    return flat.reshape(-1, 4, 3)
