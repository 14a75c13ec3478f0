"""Files and folders on the Hugging Face Hub (``hf://org/repo@revision/file``).

Downloads, their cache and their locks are `huggingface_hub`'s own, so a file that any other tool has fetched is found.
That client compares sizes only; here the digest that the hub keeps for every large file is checked as well, once.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from pyrosys.errors import InputError, IntegrityError, SourceError
from pyrosys.hub.cache import Cache
from pyrosys.hub.digest import Expected
from pyrosys.hub.shard_index import INDEX_SUFFIX, read_index

__all__ = ["endpoint", "explained", "fetch_hugging_face", "on_hub"]

ADDRESS = re.compile(
    r"hf://(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w.-]*))?(/(?P<file>.+))?", flags=re.ASCII
)
COMMIT = re.compile("[0-9a-f]{40}")
LFS_DIGEST = re.compile("[0-9a-f]{64}")
WEIGHTS_FILES = ["model.safetensors", "model.safetensors.index.json"]
ENTRY_FILES = [
    *WEIGHTS_FILES,
    "model-*-of-*.safetensors",
    "config.json",
    "structure.json",
    "probe.safetensors",
    "README.md",
    "model.sig",
    "manifest.json",
]


_hub: ContextVar[str | None] = ContextVar("hub", default=None)


def endpoint() -> str | None:
    """The address of the hub; the client reads ``HF_ENDPOINT`` when it is imported, here a later change counts."""
    return _hub.get() or os.environ.get("HF_ENDPOINT")


@contextmanager
def on_hub(address: str | None) -> Iterator[None]:
    """Fetch from the hub at another address for a while."""
    token = _hub.set(address)
    try:
        yield
    finally:
        _hub.reset(token)


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
    address = ADDRESS.fullmatch(uri)
    if address is None:
        raise InputError(f"Expected hf://org/repo@revision or hf://org/repo@revision/file, found {uri!r}.")
    repository, revision, file = address["repository"], address["revision"] or "main", address["file"]
    with _progress_bars(progress):
        if file is None:
            if expected != Expected():
                raise InputError(f"A digest or size describes one file, and {uri} is a folder. Add the file's name.")
            return _fetch_folder(uri, repository, revision, offline)
        return _fetch_file(uri, repository, revision, file, expected, offline)


def _fetch_file(uri: str, repository: str, revision: str, file: str, expected: Expected, offline: bool) -> Path:
    path = None
    if not offline and expected.sha256 is not None:
        path = _find_cached(uri, repository, revision, file, expected)
    if path is None:
        with explained(uri, offline):
            path = _download(repository, revision, file, offline)
        _verify(path, uri, expected)
    if file.endswith(INDEX_SUFFIX):
        commit = revision if COMMIT.fullmatch(revision) else _commit_of(path, file)
        for shard in sorted(set(read_index(path).values())):
            shard_file = "/".join([*file.split("/")[:-1], shard])
            _fetch_file(f"hf://{repository}@{commit}/{shard_file}", repository, commit, shard_file, Expected(), offline)
    return path


def _find_cached(uri: str, repository: str, revision: str, file: str, expected: Expected) -> Path | None:
    """Look for a file with a known digest in the cache; anything else there may be out of date."""
    try:
        with explained(uri, offline=True):
            path = _download(repository, revision, file, offline=True)
        _verify(path, uri, expected)
    except (SourceError, IntegrityError):
        return None
    return path


def _fetch_folder(uri: str, repository: str, revision: str, offline: bool) -> Path:
    with explained(uri, offline):
        folder = Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=revision,
                allow_patterns=ENTRY_FILES,
                local_files_only=offline,
                endpoint=endpoint(),
            )
        )
    if not any((folder / name).exists() for name in WEIGHTS_FILES):
        raise SourceError(
            f"Expected {uri} to hold {' or '.join(WEIGHTS_FILES)}, found neither. "
            "Look at the repository and add the name of its weights file to the address."
        )
    for path in sorted(folder.glob("*.safetensors")):
        _verify(path, f"{uri}/{path.name}", Expected())
    return folder


def _download(repository: str, revision: str, file: str, offline: bool) -> Path:
    path = huggingface_hub.hf_hub_download(
        repository, file, revision=revision, local_files_only=offline, endpoint=endpoint()
    )
    return Path(path)


def _verify(path: Path, uri: str, expected: Expected) -> None:
    """Check a file against the digest it has on the hub and the one on record.

    The cache names the content of a large file by its SHA-256 and links to it.
    """
    target = Path(os.readlink(path)).name if path.is_symlink() else ""
    on_hub = Expected(sha256=target if LFS_DIGEST.fullmatch(target) else None)
    expected.check_size(path.stat().st_size, uri)
    if on_hub.sha256 is None and expected.sha256 is None:
        return
    found = Cache().sha256(path)
    try:
        on_hub.check_sha256(found, uri)
        expected.check_sha256(found, uri)
    except IntegrityError:
        if found != on_hub.sha256:  # damaged; a sound file that is merely another version belongs to the cache
            path.resolve().unlink()
            path.unlink(missing_ok=True)
        raise


def _commit_of(path: Path, file: str) -> str:
    """The commit whose snapshot folder a file lies in."""
    return path.parents[len(file.split("/")) - 1].name


@contextmanager
def _progress_bars(progress: bool) -> Iterator[None]:
    """Silence the client's progress bars, where its own environment variable does not decide."""
    silence = not progress and constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled()
    if silence:
        disable_progress_bars()
    try:
        yield
    finally:
        if silence:
            enable_progress_bars()


@contextmanager
def explained(uri: str, offline: bool) -> Iterator[None]:
    """Turn the client's errors into ours.

    Raises:
        SourceError: Anything went wrong; the client raises errors of several libraries.
    """
    try:
        yield
    except errors.GatedRepoError as error:
        advice = "Access is granted by its owners: accept the terms on its page, then log in with `hf auth login`."
        raise SourceError(f"{uri} is gated. {advice}") from error
    except errors.RepositoryNotFoundError as error:
        advice = "Check the name. A private repository looks the same: log in with `hf auth login` if it is yours."
        raise SourceError(f"{uri} was not found. {advice}") from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(f"{uri}: the repository has no such revision. Use a branch, a tag or a commit.") from error
    except errors.LocalEntryNotFoundError as error:
        if offline:
            raise SourceError(
                f"{uri} is not in the cache of the Hugging Face Hub, and offline mode forbids the network. "
                "Fetch it once while online, or pass the path of a copy."
            ) from error
        raise SourceError(
            f"{uri} could not be reached: {error} Check the connection, or use another source."
        ) from error
    except errors.EntryNotFoundError as error:
        raise SourceError(f"{uri}: the repository has no such file at this revision. Check its name.") from error
    except Exception as error:
        raise SourceError(f"{uri} could not be fetched: {type(error).__name__}: {error}") from error
