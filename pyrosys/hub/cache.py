"""The local cache of fetched files, addressed by content.

```
objects/<sha256><suffix>    the files; the digest was checked before a file got its name
index/<address key>.json    the digest and size that an address had when it was fetched
digests/<path key>.json     digests of files that are kept elsewhere, valid until the file changes
partial/, locks/            downloads under way
```

A file appears in ``objects`` by one rename, so a process that is killed leaves at most a partial download, which the
next download of the same address removes.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from pyrosys.hub.digest import Expected, file_sha256
from pyrosys.hub.files import move_into_place, replacing

__all__ = ["Cache"]


class Cache:
    """The cache in ``root``; by default ``PYROSYS_CACHE``, or ``pyrosys`` in the user's cache folder."""

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root or os.environ.get("PYROSYS_CACHE") or _user_cache() / "pyrosys").expanduser()

    def find(self, uri: str, expected: Expected) -> Path | None:
        """Return the cached file for an address, or ``None`` if it is not there or not as expected."""
        record = _read_record(self._record(uri))
        sha256 = expected.sha256 or record.get("sha256")
        if sha256 is None:
            return None
        path = self._object(sha256, uri)
        size = record.get("size") if expected.size is None and record.get("sha256") == sha256 else expected.size
        return path if path.is_file() and size in (None, path.stat().st_size) else None

    @contextmanager
    def workspace(self, uri: str) -> Iterator[Path]:
        """Give an empty folder for one download; other downloads of the address wait until it is left."""
        key = _key(uri)
        partial = self._folder("partial")
        with FileLock(self._folder("locks") / f"{key}.lock"):
            for leftover in partial.glob(f"{key}.*"):
                shutil.rmtree(leftover, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f"{key}.", dir=partial) as folder:
                yield Path(folder)

    def store(self, uri: str, file: Path, expected: Expected) -> Path:
        """Move a downloaded file into the cache and return where it is now.

        Raises:
            IntegrityError: The file is not as expected.
        """
        size, sha256 = file.stat().st_size, file_sha256(file)
        expected.check_size(size, uri)
        expected.check_sha256(sha256, uri)
        self._folder("objects")
        path = self._object(sha256, uri)
        move_into_place(file, path)
        self._folder("index")
        # What follows a question mark may be a credential.
        _write_record(self._record(uri), {"uri": uri.split("?")[0], "sha256": sha256, "size": size})
        return path

    def sha256(self, path: Path) -> str:
        """Return the digest of a file that is kept elsewhere, computed again only when the file has changed."""
        path = path.resolve()
        status = path.stat()
        identity = {
            "path": str(path),
            "size": status.st_size,
            "modified": status.st_mtime_ns,
            "inode": status.st_ino,
        }
        marker = self.root / "digests" / f"{_key(str(path))}.json"
        record = _read_record(marker)
        if {key: record.get(key) for key in identity} == identity and isinstance(record.get("sha256"), str):
            return record["sha256"]
        sha256 = file_sha256(path)
        with suppress(OSError):  # where the cache cannot be written, the digest is computed every time
            self._folder("digests")
            _write_record(marker, {**identity, "sha256": sha256})
        return sha256

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _record(self, uri: str) -> Path:
        return self.root / "index" / f"{_key(uri)}.json"

    def _object(self, sha256: str, uri: str) -> Path:
        """Objects keep the suffix of their address, because readers go by it."""
        suffix = re.search(r"\.[A-Za-z0-9]{1,16}$", re.split("[?#]", uri)[0])
        return self.root / "objects" / (sha256 + (suffix.group() if suffix else ""))


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_record(path: Path) -> dict[str, Any]:
    """Read a record; a missing or damaged one is empty, and what it stood for is worked out again."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write_record(path: Path, record: dict[str, Any]) -> None:
    with replacing(path) as file:
        file.write(json.dumps(record, indent=1).encode())
