"""Remembers what has been verified on this machine, so that the same weights are loaded again without running the model.

What was verified is named by everything that the result depends on: the digests of the weights and of what they were
compared with, PyroSys' own source, and torch's version. A change in any of them is a new name, and is verified anew.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from pathlib import Path

from pyrosys.hub.cache import Cache

__all__ = ["note_verified", "was_verified"]


def was_verified(**facts: str) -> bool:
    """Whether what these facts name has been verified before."""
    return Cache().has_noted(_name(facts))


def note_verified(**facts: str) -> None:
    """Note that what these facts name has been verified."""
    Cache().note(_name(facts))


def _name(facts: dict[str, str]) -> str:
    import torch

    known = {**facts, "source": _source_digest(), "torch": torch.__version__, "machine": platform.machine()}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


@functools.cache
def _source_digest() -> str:
    """The digest of PyroSys' own source, as far as models and what compares them are concerned."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for folder in (package, *(package / name for name in ("adapters", "hub", "modules", "zoo"))):
        for path in sorted(folder.glob("*.py")):
            digest.update(f"{path.relative_to(package)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
