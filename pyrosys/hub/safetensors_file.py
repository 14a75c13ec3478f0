"""The safetensors format: read strictly, written canonically.

A file is the length of the header (8 bytes, little-endian), the header (JSON: for each tensor its type, shape and place
in the data, and under ``__metadata__`` free text), and the data. Reading checks the whole header before anything else
uses it, including what the safetensors library lets pass (duplicate keys).

Written files are canonical: the same tensors and metadata always give the same bytes. Data is ordered by element size,
the largest first, so that every tensor is aligned, then by name; the header is JSON with sorted keys and no spaces,
padded with spaces to a multiple of 8 bytes.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pyrosys.errors import InputError, WeightsError
from pyrosys.hub.files import replacing
from pyrosys.hub.strict_json import parse_object
from pyrosys.hub.tensor_bytes import DTYPE_NAMES, DTYPES, byte_count, describe, tensor_bytes

__all__ = ["Header", "SafetensorsFile", "read_header", "write_safetensors"]

LARGEST_HEADER = 100_000_000  # bytes, the format's own limit
LARGEST = 2**63 - 1  # what torch can count to
MOST_DIMENSIONS = 64  # torch's own limit


@dataclass(frozen=True)
class Header:
    """The checked header of a safetensors file."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]


class SafetensorsFile(Mapping[str, Tensor]):
    """The tensors of one file, mapped into memory and read when asked for.

    Changing a tensor in place changes what this mapping gives, never the file.

    Raises:
        WeightsError: The file is not sound.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header = read_header(path)
        self.metadata = header.metadata
        self.shapes = header.shapes
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(f"Expected {path} to be a safetensors file, found: {error}.") from error

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


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
    spans = {}
    shapes = {}
    for name, entry in entries.items():
        spans[name], shapes[name] = _check_entry(entry, f"{name!r} in {path}")
    _check_coverage(spans, size - 8 - length, path)
    return Header(shapes, metadata)


def _check_entry(entry: object, where: str) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Return the place of one tensor in the data, and its shape."""
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
    return (span[0], span[1]), tuple(shape)


def _are_sizes(values: object) -> bool:
    """Whether this is a list of whole, non-negative numbers that torch can count to (``True`` is not one)."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= LARGEST for value in values)


def _check_coverage(spans: Mapping[str, tuple[int, int]], size: int, path: Path) -> None:
    """Check that the tensors cover the data without holes, overlaps or a rest."""
    position = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != position:
            kind = "hole" if begin > position else "overlap"
            raise WeightsError(f"Expected {name!r} in {path} to start at byte {position} of the data, found a {kind}.")
        position = end
    if position != size:
        raise WeightsError(f"Expected {position} bytes of data in {path}, found {size}: the file is cut or extended.")


def write_safetensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors canonically; the file appears complete or not at all.

    Tensors are written one at a time. Those that share memory are each written in full.

    Raises:
        InputError: A name, a tensor or the metadata cannot be written.
    """
    for text in [*state, *metadata, *metadata.values()]:
        if not isinstance(text, str) or text != text.encode(errors="replace").decode():
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
