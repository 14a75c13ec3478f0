"""The manifest of an entry: the SHA-256 and the size of every other file of it, in ``manifest.json``.

```json
{
 "files": {
  "config.json": {"sha256": "…", "size": 312},
  "model.safetensors": {"sha256": "…", "size": 6631412}
 },
 "format": "pyrosys-entry/1"
}
```

An entry is a flat folder, and a folder without a manifest is no entry. The manifest has one spelling only (sorted keys,
one space of indentation, ASCII, one line feed at the end), so that a changed byte in the manifest itself is noticed as well:
it is another spelling, or another digest, or another file.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from pyrosys.errors import InputError, IntegrityError, WeightsError
from pyrosys.hub.cache import Cache
from pyrosys.hub.digest import Expected, file_sha256
from pyrosys.hub.files import replacing
from pyrosys.hub.shard_index import is_plain_name
from pyrosys.hub.strict_json import parse_object

__all__ = ["FORMAT", "MANIFEST", "check_files", "manifest_digest", "read_manifest", "write_manifest"]

FORMAT = "pyrosys-entry/1"
MANIFEST = "manifest.json"
LARGEST_MANIFEST = 10_000_000  # bytes


def write_manifest(folder: Path) -> dict[str, Expected]:
    """Record every file of a folder; the manifest is written last, so that an entry without one is an unfinished one."""
    files = {
        path.name: Expected(file_sha256(path), path.stat().st_size)
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    with replacing(folder / MANIFEST) as file:
        file.write(_spelling(files))
    return files


def read_manifest(folder: Path) -> dict[str, Expected]:
    """Return what is on record about each file of an entry.

    Raises:
        WeightsError: There is no manifest, or it is malformed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise WeightsError(
            f"Expected the manifest of an entry at {path}, found nothing: the folder is no entry, or an unfinished one. "
            "Publish it again, or name the weights file to load."
        )
    if path.stat().st_size > LARGEST_MANIFEST:
        raise WeightsError(
            f"Expected {path} to have at most {LARGEST_MANIFEST:,} bytes, found {path.stat().st_size:,}."
        )
    return _parse(path.read_bytes(), str(path))


def manifest_digest(folder: Path) -> str:
    """The SHA-256 of the manifest, which stands for all files of the entry."""
    return file_sha256(folder / MANIFEST)


def check_files(folder: Path) -> dict[str, Expected]:
    """Check every file of an entry against its manifest, and return the manifest.

    A file that has not changed since it was checked is not read again.

    Raises:
        WeightsError: There is no manifest, it is malformed, or a file is missing.
        IntegrityError: A file is not the one on record.
    """
    files = read_manifest(folder)
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise WeightsError(
                f"Expected {name} in the entry {folder}, as its manifest says; it is missing. Fetch it again."
            )
        Cache().check(path, expected, str(path))
    return files


def _parse(data: bytes, where: str) -> dict[str, Expected]:
    parsed = parse_object(data, where)
    if parsed.get("format") != FORMAT:
        raise WeightsError(f"Expected {where} to be of format {FORMAT!r}, found {parsed.get('format')!r:.60}.")
    try:
        files = {name: Expected(record["sha256"], record["size"]) for name, record in parsed["files"].items()}
        canonical = _spelling(files)
    except (KeyError, TypeError, AttributeError, InputError) as error:
        raise WeightsError(
            f"Expected {where} to record a digest and a size for each file, found: {error!r}."
        ) from error
    if not all(type(file.sha256) is str and type(file.size) is int for file in files.values()):
        raise WeightsError(f"Expected {where} to record a digest and a size for each file, found one without.")
    strange = [name for name in files if not is_plain_name(name)]
    if strange:
        raise WeightsError(
            f"Expected {where} to name files of its own folder, found {strange[0]!r}. Do not trust this entry."
        )
    if data != canonical:
        raise IntegrityError(
            f"Expected {where} in its one spelling, found another: it is damaged or was edited. Fetch it again."
        )
    return files


def _spelling(files: Mapping[str, Expected]) -> bytes:
    records = {name: {"sha256": file.sha256, "size": file.size} for name, file in files.items()}
    return f"{json.dumps({'files': records, 'format': FORMAT}, indent=1, sort_keys=True)}\n".encode("ascii")
