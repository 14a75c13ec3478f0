"""Digests: of a file's bytes, and of tensors whatever file, shard or name they are kept under.

The tensor digest is the root of a binary Merkle tree over the tensors in order:

- leaf: SHA-256 of ``0x00``, then the ASCII text ``F32[2,3]`` and a line feed (the type as safetensors spells it, the
  shape), then the elements in row-major order, little-endian;
- node: SHA-256 of ``0x01`` and the digests of its two children; on each level, an odd last one moves up as it is;
- no tensors at all: SHA-256 of nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyrosys.errors import InputError, IntegrityError
from pyrosys.hub.files import CHUNK

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Expected", "file_git_digest", "file_sha256", "tensor_digest"]


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_git_digest(path: str | Path) -> str:
    """Return the name that git gives to a file with this content, as 40 hexadecimal digits."""
    path = Path(path)
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def tensor_digest(state: Mapping[str, Tensor], order: Iterable[str] | None = None) -> str:
    """Return one digest for all tensors of a state, as 64 hexadecimal digits.

    Names enter through the order only: two states that list equal tensors in the same order have the same digest.

    Args:
        state: The tensors.
        order: Every name of ``state`` once. Names are sorted by default.

    Raises:
        InputError: ``order`` is not a permutation of the names, or a tensor has no plain bytes.

    Example:
        >>> import torch
        >>> one = tensor_digest({"a": torch.zeros(2), "b": torch.ones(3)})
        >>> one == tensor_digest({"x": torch.ones(3), "y": torch.zeros(2)}, order=["y", "x"])
        True
    """
    from pyrosys.hub.tensor_bytes import describe, tensor_bytes  # torch is not needed to hash files

    names = sorted(state) if order is None else list(order)
    if sorted(names) != sorted(state):
        difference = sorted(set(names) ^ set(state)) or "repeated names"
        raise InputError(f"Expected the order to list each of {len(state)} names once; it differs in {difference}.")
    level = []
    for name in names:
        leaf = hashlib.sha256(b"\x00")
        leaf.update(f"{describe(name, state[name])}\n".encode("ascii"))
        leaf.update(tensor_bytes(state[name]))
        level.append(leaf.digest())
    return _merkle_root(level).hex()


def _merkle_root(level: list[bytes]) -> bytes:
    if not level:
        return hashlib.sha256().digest()
    while len(level) > 1:
        evens = range(0, len(level) - 1, 2)
        pairs = [hashlib.sha256(b"\x01" + level[left] + level[left + 1]).digest() for left in evens]
        level = pairs + level[2 * len(pairs) :]
    return level[0]


@dataclass(frozen=True)
class Expected:
    """What is on record about a file; ``None`` where nothing is.

    Raises:
        InputError: The record itself is malformed.
    """

    sha256: str | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise InputError(f"Expected a SHA-256 of 64 lower-case hexadecimal digits, found {self.sha256!r}.")
        if self.size is not None and self.size < 0:
            raise InputError(f"Expected a size in bytes, found {self.size}.")

    def check_size(self, size: int, source: str) -> None:
        """Compare a size with the one on record.

        Raises:
            IntegrityError: They differ.
        """
        if self.size is not None and size != self.size:
            raise IntegrityError(_mismatch(source, f"{self.size:,} bytes", f"{size:,}"))

    def check_sha256(self, sha256: str, source: str) -> None:
        """Compare a digest with the one on record.

        Raises:
            IntegrityError: They differ.
        """
        if self.sha256 is not None and sha256 != self.sha256:
            raise IntegrityError(_mismatch(source, f"SHA-256 {self.sha256}", sha256))


def _mismatch(source: str, expected: str, found: str) -> str:
    return (
        f"Expected {source} to have {expected}, found {found}. The file is damaged, or it is not the one on record: "
        "do not use it; try again, or another source."
    )
