"""Files and folders on the Hugging Face Hub (``hf://org/repo@revision/file``).

The cache and its locks are those of `huggingface_hub`, so a file that any other tool has fetched is found. That client
compares sizes only; here the digest that the hub has of every file is checked as well, once.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import constants, errors, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from pyrosys.errors import InputError, IntegrityError, SourceError
from pyrosys.hub.cache import Cache
from pyrosys.hub.digest import Expected
from pyrosys.hub.files import require_space
from pyrosys.hub.hub_cache import bring_large_file
from pyrosys.hub.hub_client import LARGE_DIGEST, SMALL_DIGEST, Address, Unreachable, api, ask, endpoint, explained
from pyrosys.hub.manifest import MANIFEST, check_files, read_manifest
from pyrosys.hub.shard_index import INDEX_SUFFIX, read_index

__all__ = ["check_on_hub", "digest_on_hub", "fetch_hugging_face", "found_digest", "locate_on_hub"]

WEIGHTS_FILES = ["model.safetensors", f"model{INDEX_SUFFIX}"]
ENTRY_NAMES = [
    *WEIGHTS_FILES,
    "config.json",
    "structure.json",
    "probe.safetensors",
    "model.sig",
    MANIFEST,
    "README.md",
]
ENTRY_FILES = [*ENTRY_NAMES, "model-*-of-*.safetensors"]

logger = logging.getLogger(__name__)


def fetch_hugging_face(uri: str, *, expected: Expected, offline: bool, progress: bool) -> Path:
    """Fetch one file, or the folder of an entry when the address names no file.

    With a shard index come its shards. A file whose digest is on record, or whose revision is a commit, is taken from
    the cache without asking the hub.

    Args:
        uri: The address; the revision is a branch, a tag or a commit, and ``main`` by default.
        expected: What is on record about the file.
        offline: Whether to use the cache only.
        progress: Whether to show progress bars.

    Raises:
        InputError: The address is malformed.
        SourceError: The file could not be obtained.
        IntegrityError: The file is not the one on record, here or on the hub.
    """
    address = Address.parse(uri)
    with _progress_bars(progress):
        progress = progress and not are_progress_bars_disabled()
        if address.file is not None:
            return _fetch_file(address, expected, offline, progress)
        if expected != Expected():
            raise InputError(f"A digest or size describes one file, and {uri} is a folder. Add the file's name.")
        return _fetch_folder(address, offline, progress)


def check_on_hub(path: Path, source: str) -> None:
    """Check a file in the cache against the digest that it has on the hub, and remove it if it is damaged.

    Raises:
        IntegrityError: The file is damaged.
    """
    expected = digest_on_hub(path)
    found = found_digest(path, expected)
    if found != expected:
        path.resolve().unlink()
        path.unlink()
        raise IntegrityError(
            f"Expected {source} to have the digest {expected}, found {found}: it was damaged on the way or in the cache, "
            "and has been removed. Fetch it again."
        )


def digest_on_hub(path: Path) -> str | None:
    """The digest that a file in the cache has on the hub, where the system allows for links.

    The cache names the content of a file by it, and links to it.
    """
    name = path.resolve().name
    in_cache = path.resolve().is_relative_to(Path(constants.HF_HUB_CACHE).resolve())
    return name if in_cache and (LARGE_DIGEST.fullmatch(name) or SMALL_DIGEST.fullmatch(name)) else None


def found_digest(path: Path, expected: str | None) -> str | None:
    """The digest that a file has, of the kind of the one that is expected."""
    if expected is None:
        return None
    return Cache().sha256(path) if LARGE_DIGEST.fullmatch(expected) else Cache().git_digest(path)


def locate_on_hub(uri: str) -> Path | None:
    """Where a file or the folder of an entry lies in the cache, whatever state it is in."""
    address = Address.parse(uri)
    for name in [address.file] if address.file is not None else ENTRY_NAMES:
        found = try_to_load_from_cache(address.repository, name, revision=address.revision)
        if isinstance(found, str):
            return Path(found) if address.file is not None else Path(found).parent
    return None


def _fetch_file(address: Address, expected: Expected, offline: bool, progress: bool) -> Path:
    assert address.file is not None
    path = _cached_file(address, expected) if address.is_pinned or expected.sha256 is not None or offline else None
    if path is None:
        if offline:
            raise SourceError(_not_in_cache(address))
        path = _download_file(address, progress)
        Cache().check(path, expected, str(address))
    if address.file.endswith(INDEX_SUFFIX):
        commit = address.revision if address.is_pinned else _commit_of(path, address.file)
        for shard in sorted(set(read_index(path).values())):
            file = "/".join([*address.file.split("/")[:-1], shard])
            _fetch_file(Address(address.repository, commit, file), Expected(), offline, progress)
    return path


def _cached_file(address: Address, expected: Expected) -> Path | None:
    """Look for a sound file in the cache; one that is not the one on record may be out of date."""
    assert address.file is not None
    found = try_to_load_from_cache(address.repository, address.file, revision=address.revision)
    if not isinstance(found, str):
        return None
    try:
        check_on_hub(Path(found), str(address))
        Cache().check(Path(found), expected, str(address))
    except IntegrityError as error:
        logger.warning("%s", error)
        return None
    return Path(found)


def _download_file(address: Address, progress: bool) -> Path:
    repository, revision, file = address.repository, address.revision, address.file
    assert file is not None

    def download() -> Path:
        bring_large_file(repository, revision, file, progress=progress)
        return Path(hf_hub_download(repository, file, revision=revision, endpoint=endpoint()))

    return _download_soundly(address, download, lambda: _cached_file(address, Expected()), lambda path: [path])


def _fetch_folder(address: Address, offline: bool, progress: bool) -> Path:
    folder = _cached_folder(address) if address.is_pinned or offline else None
    if folder is None:
        if offline:
            raise SourceError(_not_in_cache(address))
        folder = _download_soundly(
            address, lambda: _download_folder(address, progress), lambda: _cached_folder(address), _files_of
        )
    if not any((folder / name).exists() for name in WEIGHTS_FILES):
        raise SourceError(
            f"Expected {address} to hold {' or '.join(WEIGHTS_FILES)}, found neither. "
            "Look at the repository and add the name of its weights file to the address."
        )
    if (folder / MANIFEST).exists():
        check_files(folder)
    return folder


def _download_folder(address: Address, progress: bool) -> Path:
    repository, revision = address.repository, address.revision
    information = ask(lambda: api().model_info(repository, revision=revision, files_metadata=True))
    assert information.sha is not None
    missing = [
        file
        for file in information.siblings or []
        if _is_wanted(file.rfilename)
        and not isinstance(try_to_load_from_cache(repository, file.rfilename, revision=information.sha), str)
    ]
    Path(constants.HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)
    require_space(Path(constants.HF_HUB_CACHE), sum(file.size or 0 for file in missing))
    for file in missing:
        if file.lfs is not None:
            bring_large_file(repository, information.sha, file.rfilename, progress=progress)
    folder = snapshot_download(repository, revision=revision, allow_patterns=ENTRY_FILES, endpoint=endpoint())
    return Path(folder)


def _cached_folder(address: Address) -> Path | None:
    """Look for a folder in the cache of which every file is there and sound."""
    try:
        folder = Path(
            snapshot_download(
                address.repository,
                revision=address.revision,
                allow_patterns=ENTRY_FILES,
                local_files_only=True,
                endpoint=endpoint(),
            )
        )
        for path in _files_of(folder):
            check_on_hub(path, f"{address}/{path.name}")
    except errors.LocalEntryNotFoundError:
        return None
    except IntegrityError as error:
        logger.warning("%s", error)
        return None
    return folder if _is_complete(folder) else None


def _is_complete(folder: Path) -> bool:
    """Whether all files are there that those which are there speak of; the client knows only of what it listed."""
    index, manifest = folder / WEIGHTS_FILES[1], folder / MANIFEST
    names = {
        *(read_index(index).values() if index.exists() else ()),
        *(read_manifest(folder) if manifest.exists() else ()),
    }
    return all((folder / name).exists() for name in names)


def _download_soundly(
    address: Address,
    download: Callable[[], Path],
    find_cached: Callable[[], Path | None],
    files: Callable[[Path], list[Path]],
) -> Path:
    """Download what is missing and check it; what is damaged is downloaded once more.

    When the hub cannot be reached, what it last gave for a branch or tag is used.
    """
    for last_try in (False, True):
        try:
            with explained(address):
                path = download()
        except Unreachable as error:
            cached = find_cached()
            if cached is None:
                raise
            logger.warning("%s Using what is in the cache.", error)
            return cached
        try:
            for file in files(path):
                check_on_hub(file, str(address) if address.file is not None else f"{address}/{file.name}")
        except IntegrityError as error:
            if last_try:
                raise
            logger.warning("%s", error)
        else:
            return path
    raise AssertionError("the last try returns or raises")


def _files_of(folder: Path) -> list[Path]:
    """The files of an entry, though other tools may have put more into the same snapshot."""
    return sorted(path for path in folder.iterdir() if _is_wanted(path.name))


def _is_wanted(file: str) -> bool:
    return any(fnmatchcase(file, pattern) for pattern in ENTRY_FILES)


def _commit_of(path: Path, file: str) -> str:
    """The commit whose snapshot folder a file lies in."""
    return path.parents[len(file.split("/")) - 1].name


def _not_in_cache(address: Address) -> str:
    return (
        f"{address} is not in the cache of the Hugging Face Hub, or not complete and sound, and offline mode forbids the "
        "network. Fetch it once while online, or pass the path of a copy."
    )


@contextmanager
def _progress_bars(progress: bool) -> Iterator[None]:
    """Show the client's progress bars on terminals only, where its own environment variable does not decide."""
    wanted = progress and sys.stderr.isatty()
    silence = not wanted and constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled()
    if silence:
        disable_progress_bars()
    try:
        yield
    finally:
        if silence:
            enable_progress_bars()
