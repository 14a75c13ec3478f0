"""The local cache of fetched files, addressed by content.

```
objects/<sha256><suffix>    the files; the digest was checked before a file got its name
index/<address key>.json    the digest and size that an address had when it was fetched
digests/<path key>.json     digests that files were found to have, here or elsewhere, valid until the file changes
passed/<name>               checks that need not be made again
partial/, locks/            downloads under way
```

A file appears in ``objects`` by one rename, so a process that is killed leaves at most a partial download, with which
the next download of the same file goes on. Everything here may be deleted at any time when no download is under way.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from pyrosys.errors import IntegrityError
from pyrosys.hub.digest import Expected, file_git_digest, file_sha256
from pyrosys.hub.files import move_into_place, replacing

__all__ = ["Cache"]

IDENTITY = ("path", "size", "modified", "inode")
DIGESTS = {"sha256": file_sha256, "git": file_git_digest}


class Cache:
    """The cache in ``root``; by default ``PYROSYS_CACHE``, or ``pyrosys`` in the user's cache folder."""

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root or os.environ.get("PYROSYS_CACHE") or _user_cache() / "pyrosys").expanduser()

    def find(self, uri: str, expected: Expected) -> Path | None:
        """Return the cached file for an address, or ``None`` if it is not there or not as expected."""
        path = self.locate(uri, expected.sha256)
        try:
            if path is not None:
                self.check(path, Expected(path.stem, expected.size), uri)
        except IntegrityError:
            return None
        return path

    def locate(self, uri: str, sha256: str | None = None) -> Path | None:
        """Return where the cached file for an address lies, or ``None`` if it is not there."""
        sha256 = sha256 or _read_record(self._record(uri)).get("sha256")
        path = None if sha256 is None else self._object(sha256, uri)
        return path if path is not None and path.is_file() else None

    @contextmanager
    def workspace(self, uri: str, expected: Expected) -> Iterator[Path]:
        """Give a folder for one download; other downloads of the same file wait until it is left.

        The folder is removed when it is left without an error, or empty. Otherwise what it holds stays for the next
        download.
        """
        key = expected.sha256 or _key(uri)
        with FileLock(self._folder("locks") / f"{key}.lock"):
            folder = self._folder(f"partial/{key}")
            try:
                yield folder
            except IntegrityError:
                shutil.rmtree(folder)
                raise
            except BaseException:
                with suppress(OSError):  # it is not empty
                    folder.rmdir()
                raise
            shutil.rmtree(folder)

    def store(self, uri: str, file: Path, sha256: str) -> Path:
        """Move a downloaded file with a known digest into the cache and return where it is now."""
        self._folder("objects")
        path = self._object(sha256, uri)
        size = file.stat().st_size
        move_into_place(file, path)
        self.remember(path, sha256=sha256)
        self._folder("index")
        # What follows a question mark may be a credential.
        _write_record(self._record(uri), {"uri": uri.split("?")[0], "sha256": sha256, "size": size})
        return path

    def check(self, path: Path, expected: Expected, source: str) -> None:
        """Compare a file with what is on record.

        Raises:
            IntegrityError: They differ.
        """
        expected.check_size(path.stat().st_size, source)
        if expected.sha256 is not None:
            expected.check_sha256(self.sha256(path), source)

    def sha256(self, path: Path) -> str:
        """Return the SHA-256 of a file, computed again only when the file has changed."""
        return self._digest(path, "sha256")

    def git_digest(self, path: Path) -> str:
        """Return the name that git gives to the content of a file, computed again only when the file has changed."""
        return self._digest(path, "git")

    def _digest(self, path: Path, kind: str) -> str:
        path = path.resolve()
        known = self._remembered(path)
        if kind not in known:
            known[kind] = DIGESTS[kind](path)
            self.remember(path, **known)
        return known[kind]

    def _remembered(self, path: Path) -> dict[str, str]:
        """The digests that a file had when they were computed, unless it has changed since."""
        record = _read_record(self._marker(path))
        if {key: record.get(key) for key in IDENTITY} != _identity(path):
            return {}
        return {kind: record[kind] for kind in DIGESTS if isinstance(record.get(kind), str)}

    def forget(self, path: Path) -> None:
        """Have the digests of a file computed anew when they are next asked for."""
        self._marker(path.resolve()).unlink(missing_ok=True)

    def remember(self, path: Path, **digests: str) -> None:
        """Note the digests of a file that have just been computed."""
        path = path.resolve()
        with suppress(OSError):  # where the cache cannot be written, digests are computed every time
            self._folder("digests")
            _write_record(self._marker(path), {**_identity(path), **digests})

    def _marker(self, path: Path) -> Path:
        return self.root / "digests" / f"{_key(str(path))}.json"

    def has_noted(self, name: str) -> bool:
        """Whether a check of this name was noted as passed."""
        return (self.root / "passed" / name).exists()

    def note(self, name: str) -> None:
        """Note that a check has been passed; its name has to say all that its result depends on."""
        with suppress(OSError):  # where the cache cannot be written, everything is checked every time
            (self._folder("passed") / name).touch()

    @property
    def objects(self) -> list[Path]:
        """Every file that is kept here."""
        return sorted((self.root / "objects").glob("*"))

    @property
    def known_elsewhere(self) -> list[Path]:
        """The files kept elsewhere whose digests were computed once, of those that are still there."""
        recorded = (_read_record(marker).get("path") for marker in sorted((self.root / "digests").glob("*.json")))
        paths = [Path(path) for path in recorded if isinstance(path, str)]
        return [path for path in paths if path.is_file() and path.parent != (self.root / "objects").resolve()]

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


def _identity(path: Path) -> dict[str, str | int]:
    """What changes when a file does."""
    status = path.stat()
    return dict(zip(IDENTITY, (str(path), status.st_size, status.st_mtime_ns, status.st_ino), strict=True))


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
    """Write a record, which need not reach the disk before anything else: a damaged one is written again."""
    with replacing(path, durably=False) as file:
        file.write(json.dumps(record, indent=1).encode())
