"""Prepare a data set: from FASTA, CSV and structure files to Parquet or Arrow files with clusters and splits.

Memory does not grow with the sources but for some tens of bytes per record and, if sequences are clustered here, some
hundred per residue. A preparation that was killed goes on where it was:

1. Read: records are checked and gathered in parts of some megabytes. A part carries how far the sources were read when it
   was complete, and appears whole or not at all. So a killed run goes on after its last part: nothing is lost or doubled.
2. Arrange: among all digests, find repeated records; give every record a cluster; give every cluster a split, which
   depends on the cluster's name and the seed only. This is done again by a run that goes on.
3. Write: each part becomes a file of the data set, with those columns and without repeated records.
4. Close: ``dataset.json`` says what there is, and the working folder disappears.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Bool, Int
from numpy import ndarray
from tqdm import tqdm

from pyrosys.errors import InputError
from pyrosys.hub.files import replacing
from pyrosys.training.data.dataset import MANIFEST, UNFINISHED
from pyrosys.training.data.records import COLUMNS, Label, Record, Rejected, find_sources, label_example, read_records
from pyrosys.training.data.schema import SPLITS, prepared_schema, pyarrow

__all__ = ["prepare"]

PART_BYTES = 32 << 20  # of a part in memory
GROUP_BYTES = 256 << 10  # of a row group: what one random access to a Parquet file reads
DIGESTS_AT_ONCE = 1 << 22
EXAMPLES = 5  # names to give of records that were rejected for a reason
# What may change between reading and writing.
ARRANGING = frozenset(("clusters", "clusters_file", "format", "fractions", "identity", "seed", "sources"))
PATIENCE = 3.0  # seconds before a progress bar appears


def prepare(
    sources: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    clusters: str | Path | None = None,
    identity: float | None = 0.5,
    fractions: tuple[float, float, float] = (0.9, 0.05, 0.05),
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    complexes: bool = False,
    shortest: int = 1,
    longest: int | None = None,
    format: Literal["parquet", "arrow"] = "parquet",
    progress: bool = True,
) -> dict[str, Any]:
    """Turn sequences and structures into a data set.

    A call that was cut short, even by ``kill -9``, is gone on with by the same call again.

    Letters become upper case, a ``*`` at the end is dropped, and of records that are equal in sequence, structure and label
    the first is kept. Records that cannot be used are left out and counted by reason.

    Args:
        sources: Files or folders of them, or addresses that `pyrosys.hub.fetch` takes: FASTA (``.fasta``, ``.fa``,
            ``.faa``, ``.fas``), tables with a header (``.csv``, ``.tsv``), structures (``.cif``, ``.mmcif``, ``.pdb``,
            ``.ent``), each possibly with ``.gz``.
        output: The folder to create.
        clusters: A table without header of cluster and name, separated by a tab, as MMseqs2 writes it.
        identity: Without such a table or column, link sequences that share at least this part of their aligned residues,
            over 80 % of the shorter one; see `pyrosys.training.data.clusters`. ``None`` makes only equal sequences a
            cluster.
        fractions: The share of the clusters for training, validation and test, where the sources do not name a split.
        seed: Another one gives other splits.
        columns: What columns of tables are called, where it is not ``name``, ``sequence``, ``cluster``, ``split``, ``label``.
        complexes: Whether a structure is one item with all its chains, or one for each chain.
        shortest: Smallest number of residues.
        longest: Largest number of residues.
        format: The kind of files to write: Arrow is larger and faster at random access.
        progress: Whether to show progress on a terminal.

    Returns:
        What ``dataset.json`` in the folder says: counts, rejected records, digest and settings.

    Raises:
        InputError: A source or an argument cannot be used, no record is left, or the folder holds something else.
        SourceError: An address could not be fetched.
        MissingExtra: pyarrow is not installed.
    """
    pyarrow()
    options = _Options(
        str(clusters) if clusters is not None else None,
        identity,
        fractions,
        seed,
        dict(columns or {}),
        complexes,
        shortest,
        longest,
        format,
    )
    named = [str(sources)] if isinstance(sources, str | Path) else [str(source) for source in sources]
    files = find_sources(named, progress=progress)
    settings = {**asdict(options), "sources": named, "files": [_describe(file) for file in files]}
    if clusters is not None:
        if not Path(clusters).is_file():
            raise InputError(f"Expected a table of clusters at {clusters}, found none. Check the path.")
        settings["clusters_file"] = _describe(Path(clusters))
    settings = json.loads(json.dumps(settings))  # as it is read again
    folder = Path(output).absolute()
    if any(path.exists() and not path.is_dir() for path in (folder, *folder.parents)):
        raise InputError(f"Expected a folder at {folder}, or a place for one, found a file. Choose another output.")
    manifest = folder / MANIFEST
    if manifest.exists() and json.loads(manifest.read_text(encoding="utf-8"))["settings"] != settings:
        raise InputError(f"Expected no other data set in {folder}, found one. Choose another output.")
    work = folder / UNFINISHED
    if not work.exists() and not manifest.exists() and folder.exists() and any(folder.iterdir()):
        raise InputError(f"Expected an empty or no folder at {folder}, found files in it. Choose another output.")
    if manifest.exists() and not work.exists():
        return json.loads(manifest.read_text(encoding="utf-8"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            if not manifest.exists():
                _enter(work, settings)
                label = _label_type(files, options.columns)
                parts = _read(files, work, options, label, progress=progress)
                arrangement = _arrange(parts, options, work, progress=progress)
                _write(parts, arrangement, folder, options, settings, progress=progress)
    except Timeout as error:
        raise InputError(
            f"Expected {folder} to be prepared once at a time, found another process at it. Wait."
        ) from error
    shutil.rmtree(work)
    return json.loads(manifest.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class _Options:
    """The arguments of `prepare`, which describes them."""

    clusters: str | None
    identity: float | None
    fractions: tuple[float, float, float]
    seed: int
    columns: dict[str, str]
    complexes: bool
    shortest: int
    longest: int | None
    format: str

    def __post_init__(self) -> None:
        if len(self.fractions) != 3 or not (min(self.fractions) >= 0 and abs(sum(self.fractions) - 1) < 1e-6):
            raise InputError(
                f"Expected shares of {', '.join(SPLITS)} that add up to 1, found {self.fractions}. The usual ones are "
                "0.9, 0.05 and 0.05."
            )
        if self.identity is not None and not 0 < self.identity <= 1:
            raise InputError(f"Expected an identity above 0 and up to 1, found {self.identity}. The usual one is 0.5.")
        if self.shortest < 1 or (self.longest is not None and self.longest < self.shortest):
            raise InputError(
                f"Expected lengths from at least 1 up, found {self.shortest} to {self.longest}. Change shortest or longest."
            )
        if self.format not in ("parquet", "arrow"):
            raise InputError(f"Expected the format 'parquet' or 'arrow', found {self.format!r}. Choose one of them.")
        if unknown := set(self.columns) - set(COLUMNS):
            raise InputError(
                f"Expected names for columns among {', '.join(COLUMNS)}, found {', '.join(sorted(unknown))}. "
                "Name what the data set calls a column first, and what the table calls it second."
            )


@dataclass
class _State:
    """How far the sources have been read, and what was left out until there."""

    file: int = 0
    record: int = 0
    done: bool = False
    rejected: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def reject(self, name: str, reason: str) -> None:
        self.rejected[reason] = self.rejected.get(reason, 0) + 1
        names = self.examples.setdefault(reason, [])
        if len(names) < EXAMPLES:
            names.append(name)


@dataclass(frozen=True)
class _Arrangement:
    """What is decided about all records together.

    Args:
        keep: Which records are kept.
        clusters: The cluster of each.
        splits: The split of each, by its number.
    """

    keep: Bool[ndarray, " records"]
    clusters: Any
    splits: Int[ndarray, " records"]


def _describe(file: Path) -> dict[str, Any]:
    """What tells whether a file is still the same, without reading it."""
    status = file.stat()
    return {"path": str(file.absolute()), "size": status.st_size, "modified": status.st_mtime_ns}


def _enter(work: Path, settings: dict[str, Any]) -> None:
    """Begin, or make sure that what was begun is the same."""
    path = work / "settings.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    changed = [name for name in settings if settings[name] != before.get(name)]
    written = any(work.parent.glob("part-*"))
    read = any(work.glob("read-*.arrow")) and not ARRANGING.issuperset(changed)
    if changed and (written or read):
        raise InputError(
            f"Expected the {' and '.join(changed)} that the data set in {work.parent} was begun with, found others. "
            "Go on with the same, or delete the folder and begin again."
        )
    with replacing(path) as file:
        file.write(json.dumps(settings).encode())


def _label_type(files: Sequence[Path], columns: Mapping[str, str]) -> Any:
    arrow = pyarrow()
    for file in files:
        example = label_example(file, columns)
        if example is not None:
            kinds = {float: arrow.float64(), str: arrow.string(), list: arrow.list_(arrow.float32())}
            return kinds[type(example)]
    return None


def _read(files: Sequence[Path], work: Path, options: _Options, label: Any, *, progress: bool) -> list[Path]:
    """Read the sources into parts, after those that there are."""
    parts = sorted(work.glob("read-*.arrow"))
    state = _read_state(parts[-1]) if parts else _State()
    schema = prepared_schema(structures=True, label=label)
    buffer: list[Record] = []
    size = 0

    def flush() -> None:
        nonlocal size
        path = work / f"read-{len(parts):06d}.arrow"
        with replacing(path) as file:
            note = json.dumps(asdict(state)).encode()
            described = schema.with_metadata({"state": note})
            with pyarrow("ipc").new_file(file, described) as writer:
                writer.write_table(_table(buffer, described))
        parts.append(path)
        buffer.clear()
        size = 0

    bar = tqdm(desc="read", unit="record", delay=PATIENCE, disable=None if progress else True, leave=False)
    with bar:
        while state.file < len(files):
            records = read_records(
                files[state.file],
                options.columns,
                complexes=options.complexes,
                shortest=options.shortest,
                longest=options.longest,
            )
            for number, record in enumerate(records):
                if number < state.record:
                    continue  # read before
                state.record += 1
                bar.update()
                if isinstance(record, Record) and not _fits(record.label, label):
                    record = Rejected(record.name, "label of another kind")
                if isinstance(record, Rejected):
                    state.reject(*record)
                    continue
                buffer.append(record)
                size += 100 + len(record.sequence) * (1 if record.coordinates is None else 60)
                if size >= PART_BYTES:
                    flush()
            state.file, state.record = state.file + 1, 0
        if not state.done:
            state.done = True
            flush()
    return parts


def _fits(label: Label, kind: Any) -> bool:
    """Whether a label is of the kind that the column has."""
    if label is None:
        return True
    types = pyarrow("types")
    expected = list if types.is_list(kind) else str if types.is_string(kind) else float
    return isinstance(label, expected)


def _read_state(part: Path) -> _State:
    with pyarrow().memory_map(str(part)) as file:
        return _State(**json.loads(pyarrow("ipc").open_file(file).schema.metadata[b"state"]))


def _table(records: Sequence[Record], schema: Any) -> Any:
    """Records as a table; cluster and split as far as the sources say."""
    arrow = pyarrow()
    values: dict[str, list[Any]] = {
        "name": [record.name for record in records],
        "sequence": [record.sequence for record in records],
        "length": [len(record.sequence) for record in records],
        "mask": [
            None if record.coordinates is None else np.isfinite(record.coordinates).all(axis=(1, 2))
            for record in records
        ],
        "chain": [record.chain for record in records],
        "label": [record.label for record in records],
        "cluster": [record.cluster for record in records],
        "split": [record.split for record in records],
        "digest": [record.digest for record in records],
    }
    columns = []
    for column in schema:
        if column.name == "coordinates":
            columns.append(_coordinates(records, column.type))
        else:
            columns.append(arrow.array(values[column.name], column.type))
    return arrow.Table.from_arrays(columns, schema=schema)


def _coordinates(records: Sequence[Record], kind: Any) -> Any:
    """Coordinates as nested lists, without a Python object for each number."""
    arrow = pyarrow()
    found = [record.coordinates for record in records]
    lengths = [0 if one is None else len(one) for one in found]
    flat = np.concatenate([np.empty(0, np.float32), *(one.ravel() for one in found if one is not None)])
    inner = arrow.FixedSizeListArray.from_arrays(arrow.array(flat, arrow.float32()), 12)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    missing = arrow.array([one is None for one in found], arrow.bool_())
    return arrow.ListArray.from_arrays(arrow.array(offsets), inner, type=kind, mask=missing)


def _arrange(parts: Sequence[Path], options: _Options, work: Path, *, progress: bool) -> _Arrangement:
    """Find repeated records, and give every record a cluster and a split."""
    keep = _first_of_each(parts)
    if not keep.any():
        reasons = ", ".join(_read_state(parts[-1]).rejected) or "there are none"
        raise InputError(f"Expected records that can be used in the sources, found none: {reasons}. Check the sources.")
    clusters = _clusters(parts, keep, options, work, progress=progress)
    given = np.concatenate([_split_numbers(table.column("split")) for table in _tables(parts, ["split"])])
    own = _splits_of(clusters, options)
    return _Arrangement(keep, clusters, np.where(given >= 0, given, own))


def _tables(parts: Sequence[Path], columns: Sequence[str]) -> Iterator[Any]:
    """Go through columns, part by part."""
    for part in parts:
        with pyarrow().memory_map(str(part)) as file:
            yield pyarrow("ipc").open_file(file).read_all().select(list(columns))


def _first_of_each(parts: Sequence[Path]) -> Bool[ndarray, " records"]:
    """Which records are the first of their digest; a share of the digests at a time, so that memory is bounded."""
    count = sum(table.num_rows for table in _tables(parts, ["digest"]))
    shares = -(-count // DIGESTS_AT_ONCE) or 1
    keep = np.zeros(count, dtype=bool)
    for share in range(shares):
        digests, places, start = [np.empty(0, "V16")], [np.empty(0, np.int64)], 0
        for table in _tables(parts, ["digest"]):
            found = np.array([bytes.fromhex(digest) for digest in table.column("digest").to_pylist()], dtype="V16")
            chosen = np.flatnonzero(found.view(np.uint64).reshape(-1, 2)[:, 0] % shares == share)
            digests.append(found[chosen])
            places.append(chosen + start)
            start += len(found)
        _, first = np.unique(np.concatenate(digests).view(np.uint64).reshape(-1, 2), axis=0, return_index=True)
        keep[np.concatenate(places)[first]] = True
    return keep


def _clusters(
    parts: Sequence[Path], keep: Bool[ndarray, " records"], options: _Options, work: Path, *, progress: bool
) -> Any:
    """The cluster of each record: from the table, the sources, or by similarity."""
    arrow = pyarrow()
    tables = _tables(parts, ["name", "sequence", "cluster"])
    if options.clusters is not None:
        with closing(_index_clusters(Path(options.clusters), work)) as look_up:
            found = [
                [_cluster_of(look_up, name) if kept else None for name, kept in zip(names, kept_here, strict=True)]
                for names, kept_here in zip(
                    (table.column("name").to_pylist() for table in tables), _pieces(parts, keep), strict=True
                )
            ]
        return arrow.chunked_array([arrow.array(names, arrow.string()) for names in found])
    given = arrow.chunked_array(
        [chunk for table in tables for chunk in table.column("cluster").chunks], type=arrow.string()
    )
    kept = given.filter(arrow.array(keep))
    if kept.null_count == 0:
        return given
    if kept.null_count < len(kept):
        raise InputError(
            f"Expected a cluster for every record or for none, found {kept.null_count} of {len(kept)} records without. "
            "Fill in the column, or leave it out."
        )
    found = arrow.chunked_array([_sequence_digests(table) for table in _tables(parts, ["sequence"])])
    if options.identity is None:
        return found
    from pyrosys.training.data.clusters import cluster_sequences  # takes a while to import

    places = np.flatnonzero(keep)
    sequences = [
        sequence
        for table, kept_here in zip(_tables(parts, ["sequence"]), _pieces(parts, keep), strict=True)
        for sequence in table.column("sequence").filter(arrow.array(kept_here)).to_pylist()
    ]
    longest = np.arange(len(found))
    longest[places] = places[cluster_sequences(sequences, options.identity, progress=progress)]
    return found.take(arrow.array(longest))


def _sequence_digests(table: Any) -> Any:
    """Names for clusters: digests of the sequences, so that equal ones have the same."""
    sequences = table.column("sequence").to_pylist()
    return pyarrow().array([hashlib.sha256(sequence.encode()).hexdigest()[:16] for sequence in sequences])


def _pieces(parts: Sequence[Path], values: ndarray) -> Iterator[ndarray]:
    """Cut values of all records into those of each part."""
    start = 0
    for table in _tables(parts, ["length"]):
        yield values[start : start + table.num_rows]
        start += table.num_rows


def _index_clusters(path: Path, work: Path) -> sqlite3.Connection:
    """Put a table of clusters into a data base, which finds a name without holding the table in memory."""
    (work / "clusters.sqlite").unlink(missing_ok=True)  # of a run that was killed
    connection = sqlite3.connect(work / "clusters.sqlite")
    connection.executescript(
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
        "CREATE TABLE members (name TEXT PRIMARY KEY, cluster TEXT NOT NULL) WITHOUT ROWID;"
    )
    try:
        with path.open(encoding="utf-8") as file:
            rows = (line.rstrip("\r\n").split("\t") for line in file if line.strip())
            connection.executemany("INSERT INTO members (cluster, name) VALUES (?, ?)", rows)
    except (sqlite3.Error, UnicodeDecodeError, OSError) as error:
        connection.close()
        raise InputError(
            f"Expected lines of a cluster, a tab and a name that no other line has in {path}, found: {error}. "
            "Write the table as MMseqs2 does."
        ) from error
    return connection


def _cluster_of(look_up: sqlite3.Connection, name: str) -> str:
    row = look_up.execute("SELECT cluster FROM members WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise InputError(f"Expected every record in the table of clusters, found {name!r} only in the sources. Add it.")
    return row[0]


def _split_numbers(column: Any) -> Int[ndarray, " records"]:
    found = pyarrow("compute").index_in(column, value_set=pyarrow().array(SPLITS))
    return found.fill_null(-1).to_numpy().astype(np.int8)


def _splits_of(clusters: Any, options: _Options) -> Int[ndarray, " records"]:
    """Give every cluster a split, by a number between 0 and 1 that its name and the seed make."""
    encoded = clusters.combine_chunks().dictionary_encode()
    bounds = np.cumsum(options.fractions)[:-1]
    names = encoded.dictionary.to_pylist()
    drawn = [hashlib.sha256(f"{options.seed}\0{name}".encode()).digest()[:8] for name in names]
    numbers = np.array([int.from_bytes(digest, "big") / 2**64 for digest in drawn])
    splits = np.searchsorted(bounds, numbers, side="right").astype(np.int8)
    return splits[encoded.indices.fill_null(0).to_numpy()]


def _write(
    parts: Sequence[Path],
    arrangement: _Arrangement,
    folder: Path,
    options: _Options,
    settings: dict[str, Any],
    *,
    progress: bool,
) -> None:
    """Write the files of the data set that there are not yet, and say what there is."""
    arrow = pyarrow()
    state = _read_state(parts[-1])
    digest, counts, clusters, residues = hashlib.sha256(), Counter[str](), [], 0
    label = pyarrow("ipc").open_file(arrow.memory_map(str(parts[0]))).schema
    kind = label.field("label").type if "label" in label.names else None
    structures = any(table.column("chain").null_count < table.num_rows for table in _tables(parts, ["chain"]))
    schema = prepared_schema(structures=structures, label=kind)
    columns = [name for name in schema.names if name not in ("cluster", "split")]
    start, written = 0, 0
    for table in tqdm(
        _tables(parts, columns), desc="write", total=len(parts), delay=PATIENCE, disable=None if progress else True
    ):
        here = slice(start, start + table.num_rows)
        start += table.num_rows
        keep = arrow.array(arrangement.keep[here])
        names = arrangement.clusters.slice(here.start, table.num_rows).combine_chunks()
        splits = arrow.array(SPLITS).take(arrow.array(arrangement.splits[here]))
        table = table.append_column("cluster", names).append_column("split", splits).select(schema.names).filter(keep)
        table = table.cast(schema)
        if not table.num_rows:
            continue
        path = folder / f"part-{written:06d}.{options.format}"
        written += 1
        if not path.exists():
            with replacing(path) as file:
                _write_table(table.combine_chunks(), file, options.format)
        for row in zip(*(table.column(name).to_pylist() for name in ("digest", "cluster", "split")), strict=True):
            digest.update("\t".join(row).encode() + b"\n")
        counts.update(table.column("split").to_pylist())
        clusters.append(table.select(["cluster", "split"]))
        residues += pyarrow("compute").sum(table.column("length")).as_py()
    together = arrow.concat_tables(clusters).group_by(["cluster", "split"]).aggregate([])
    number = len(together.column("cluster").unique())
    manifest = {
        "format": 1,
        "digest": digest.hexdigest(),
        "items": sum(counts.values()),
        "residues": residues,
        "splits": {split: counts[split] for split in SPLITS},
        "clusters": number,
        "clusters_in_several_splits": together.num_rows - number,
        "repeated": int((~arrangement.keep).sum()),
        "rejected": state.rejected,
        "rejected_examples": state.examples,
        "files": written,
        "settings": settings,
    }
    for left_behind in folder.glob(".*.tmp"):  # by a run that was killed
        left_behind.unlink()
    with replacing(folder / MANIFEST) as file:
        file.write(json.dumps(manifest, indent=2).encode() + b"\n")


def _write_table(table: Any, file: Any, format: str) -> None:
    rows = max(1, table.num_rows * GROUP_BYTES // max(1, table.nbytes))
    if format == "arrow":
        with pyarrow("ipc").new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    else:
        pyarrow("parquet").write_table(table, file, row_group_size=rows, compression="zstd")
