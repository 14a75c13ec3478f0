"""The safetensors format: read strictly, written canonically.

A file is the length of the header (8 bytes, little-endian), the header (JSON: for each tensor its type, shape and place
in the data, and under ``__metadata__`` free text), and the data. Reading checks the whole header before anything else
uses it, including what the safetensors library lets pass (duplicate keys).

Written files are canonical: the same tensors and metadata always give the same bytes. Data is ordered by element size,
the largest first, so that every tensor is aligned, then by name; the header is JSON with sorted keys and no spaces,
padded with spaces to a multiple of 8 bytes.
"""

import contextlib
import json
import math
import mmap
import os
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pyrosys.errors import InputError, WeightsError
from pyrosys.hub.files import replacing
from pyrosys.hub.strict_json import parse_object
from pyrosys.hub.tensor_bytes import DTYPE_NAMES, DTYPES, byte_count, describe, tensor_bytes

__all__ = ["Header", "SafetensorsFile", "read_header", "write_safetensors"]

LARGEST_HEADER = 100_000_000  # bytes, the format's own limit
LARGEST = 2**63 - 1  # what torch can count to
MOST_DIMENSIONS = 64  # torch's own limit
STRETCHES = 128  # of a file, that are mapped one by one
SHORTEST = 1 << 24  # bytes of a stretch


@dataclass(frozen=True)
class Place:
    """What a tensor is, and where its bytes are."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """The checked header of a safetensors file; places count from the beginning of the file."""

    places: dict[str, Place]
    metadata: dict[str, str]


class SafetensorsFile(Mapping[str, Tensor]):
    """The tensors of one file, mapped into memory and read when asked for.

    A tensor stays in memory for as long as somebody holds it: going through a file does not gather all of it. Changing one in
    place never changes the file.

    Raises:
        WeightsError: The file is not sound.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header = read_header(path)
        self.metadata = header.metadata
        self.shapes = {name: place.shape for name, place in header.places.items()}
        self._places = header.places
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._file)
        try:
            self._map = self._mapped()
        except OSError as error:
            raise WeightsError(
                f"Cannot map {self.path} into memory: {error.strerror}. Free some, or use another machine."
            ) from error
        largest = max((place.end - place.begin for place in self._places.values()), default=0)
        self._stretch = max(largest, len(self._map) // STRETCHES, SHORTEST)
        self._given = 0

    def _mapped(self) -> mmap.mmap:
        return mmap.mmap(self._file, 0, access=mmap.ACCESS_COPY)

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        if place.begin == place.end:
            return torch.empty(place.shape, dtype=place.dtype)
        size = place.end - place.begin
        if self._given and self._given + size > self._stretch:
            with contextlib.suppress(OSError):  # each holds the file open; if no more may be, the present one serves
                self._map, self._given = self._mapped(), 0  # the old one goes with the last of its tensors
        self._given += size
        count = math.prod(place.shape)
        return torch.frombuffer(self._map, dtype=place.dtype, count=count, offset=place.begin).view(place.shape)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def read_header(path: Path) -> Header:
    """Read the header of a file and check it against the file.

    Raises:
        WeightsError: The header is malformed or does not describe the data exactly.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise WeightsError(f"Expected {path} to be a safetensors file, found no header of a possible length.")
        text = file.read(length)
    if not text.startswith(b"{"):
        raise WeightsError(f"Expected the header of {path} to start with a brace, found {text[:1]!r}.")
    entries = parse_object(text, f"the header of {path}")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WeightsError(f"Expected the metadata of {path} to map text to text, found {metadata!r:.100}.")
    for name in [*entries, *metadata, *metadata.values()]:
        if not _is_unicode(name):
            raise WeightsError(f"Expected names and metadata in {path} to be Unicode text, found {name!r:.100}.")
    places = {name: _check_entry(entry, 8 + length, f"{name!r} in {path}") for name, entry in entries.items()}
    _check_coverage(places, 8 + length, size, path)
    return Header(places, metadata)


def _check_entry(entry: object, start: int, where: str) -> Place:
    """Return the place of one tensor, the data beginning at ``start``."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise WeightsError(f"Expected {where} to have dtype, shape and data_offsets, found {entry!r:.100}.")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise WeightsError(f"Expected {where} to have one of the types {', '.join(DTYPES)}, found {dtype!r:.100}.")
    if not _are_sizes(shape) or len(shape) > MOST_DIMENSIONS:
        raise WeightsError(f"Expected the shape of {where} to list sizes, found {shape!r:.100}.")
    if not _are_sizes(span) or len(span) != 2:
        raise WeightsError(f"Expected the offsets of {where} to be two positions, found {span!r:.100}.")
    size = byte_count(DTYPES[dtype], shape)
    if byte_count(DTYPES[dtype], [max(1, extent) for extent in shape]) > LARGEST:
        raise WeightsError(f"Expected {where} to have a shape that torch can count, found {shape!r:.100}.")
    if span[1] - span[0] != size:
        raise WeightsError(f"Expected {where}, {dtype} {shape}, to take {size} bytes, found the offsets {span}.")
    return Place(DTYPES[dtype], tuple(shape), start + span[0], start + span[1])


def _are_sizes(values: object) -> bool:
    """Whether this is a list of whole, non-negative numbers that torch can count to (``True`` is not one)."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= LARGEST for value in values)


def _is_unicode(text: str) -> bool:
    return text == text.encode(errors="replace").decode()


def _check_coverage(places: Mapping[str, Place], start: int, size: int, path: Path) -> None:
    """Check that the tensors cover the data without holes, overlaps or a rest."""
    position = start
    for name, place in sorted(places.items(), key=lambda item: (item[1].begin, item[1].end)):
        if place.begin != position:
            kind = "hole" if place.begin > position else "overlap"
            raise WeightsError(
                f"Expected {name!r} in {path} to start at byte {position - start} of the data, found a {kind}."
            )
        position = place.end
    if position != size:
        raise WeightsError(
            f"Expected {position - start} bytes of data in {path}, found {size - start}: the file is cut or extended."
        )


def write_safetensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors canonically; the file appears complete or not at all.

    Tensors are written one at a time. Those that share memory are each written in full.

    Raises:
        InputError: A name, a tensor or the metadata cannot be written.
    """
    for text in [*state, *metadata, *metadata.values()]:
        if not isinstance(text, str) or not _is_unicode(text):
            raise InputError(f"Expected names and metadata to be Unicode text, found {text!r:.100}.")
    if "__metadata__" in state:
        raise InputError("Expected tensor names other than '__metadata__', which the format reserves. Rename it.")
    descriptions = {name: describe(name, tensor) for name, tensor in state.items()}
    names = sorted(descriptions, key=lambda name: (-state[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for name in names:
        tensor = state[name]
        end = position + byte_count(tensor.dtype, tensor.shape)
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            file.write(tensor_bytes(state[name]))
