"""`verify` reads files again from the first byte to the last and compares them with everything that is on record.

| On record | What |
|---|---|
| catalogue | the digest of the file that a model of the zoo is loaded from, or of the manifest of an entry |
| hub | the digest that the Hugging Face Hub has of each file |
| manifest | the digests of all files of a published entry |
| cache | the digest that a file from elsewhere had when it was fetched |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pyrosys import catalogue
from pyrosys.errors import InputError, IntegrityError, SourceError, WeightsError
from pyrosys.hub.cache import Cache
from pyrosys.hub.digest import Expected
from pyrosys.hub.manifest import MANIFEST, read_manifest
from pyrosys.hub.shard_index import INDEX_SUFFIX, read_index
from pyrosys.hub.sources import locate

__all__ = ["Checked", "check_signatures", "inspect", "verify"]


@dataclass
class Checked:
    """A file that was read again.

    Attributes:
        path: Where it is.
        records: What it was compared with.
        problems: What is wrong with it.
    """

    path: Path
    records: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """``damaged``, ``sound``, or ``unknown`` where nothing is on record."""
        if self.problems:
            return "damaged"
        return "sound" if self.records else "unknown"


def verify(
    name: str | Path | None = None, *, hub: str | Path | None = None, signed_by: str | Path | None = None
) -> list[Checked]:
    """Check every file of a model or a published entry again, or of all that has been fetched to this machine.

    Args:
        name: As for `pyrosys.fetch`; by default everything in the caches.
        hub: As for `pyrosys.fetch`.
        signed_by: A public key (PEM); an entry that was not signed with it is refused. Needs ``pyrosys[sign]``.

    Returns:
        What was checked, and against what. A file without any record can only be checked for its form.

    Raises:
        SourceError: There is nothing of this name on this machine.
        IntegrityError: Files are damaged, missing, or not the ones on record; the message names all of them.
    """
    checked = inspect(name, hub=hub)
    if signed_by is not None:
        check_signatures(checked, signed_by)
    problems = [problem for file in checked for problem in file.problems]
    if problems:
        raise IntegrityError("\n".join([f"Expected {len(checked)} sound files, found these problems:", *problems]))
    return checked


def check_signatures(checked: Iterable[Checked], public_key: str | Path) -> None:
    """Check the signatures of the entries that files belong to.

    Raises:
        IntegrityError: An entry was not signed with the key, or has been changed since.
        InputError: The key cannot be used, or there is no entry among the files.
    """
    from pyrosys.hub.signature import check_signature

    folders = sorted({file.path.parent for file in checked if file.path.name == MANIFEST})
    if not folders:
        raise InputError("Expected a published entry, which may be signed, found none.")
    for folder in folders:
        check_signature(folder, Path(public_key))


def inspect(name: str | Path | None = None, *, hub: str | Path | None = None) -> list[Checked]:
    """As `verify`, but with the problems in what is returned.

    Raises:
        SourceError: There is nothing of this name on this machine.
    """
    if name is None:
        return [_check(path, {}) for path in _everything()]
    found: list[Checked] = []
    for path, expected in _located(name, hub):
        if path.is_dir():
            found += _check_folder(path, expected)
        elif path.name.endswith(INDEX_SUFFIX):
            found += [_check(path, {"catalogue": expected}), *_check_shards(path)]
        else:
            found.append(_check(path, {"catalogue": expected}))
    if not found:
        raise SourceError(f"Expected {name} on this machine, found nothing of it. Fetch it first: pyrosys fetch {name}")
    return found


def _located(name: str | Path, hub: str | Path | None) -> Iterator[tuple[Path, Expected]]:
    """Where a name's files lie, with the digest that the catalogue has of the file, or of the folder's manifest."""
    if hub is None and isinstance(name, str) and catalogue.knows(name):
        sources = [(source["uri"], source.get("sha256")) for source in catalogue.info(name)["sources"]]
    elif hub is None and ("://" in str(name) or Path(name).expanduser().exists()):
        sources = [(str(name), None)]
    else:
        from pyrosys.entry import entry_address

        sources = [(entry_address(name, hub), None)]
    for uri, sha256 in sources:
        whole = uri.removesuffix(f"/{MANIFEST}")  # the catalogue pins an entry by its manifest
        path = locate(whole, sha256=sha256)
        if path is not None:
            yield path, Expected(sha256)


def _everything() -> list[Path]:
    """All that was fetched: files of our own cache, and of the Hugging Face Hub's what has once been checked."""
    from huggingface_hub import constants

    cache, hub_cache = Cache(), Path(constants.HF_HUB_CACHE).resolve()
    return [*cache.objects, *(path for path in cache.known_elsewhere if path.is_relative_to(hub_cache))]


def _check_folder(folder: Path, manifest_digest: Expected) -> list[Checked]:
    """Check an entry, or a folder with weights."""
    manifest = folder / MANIFEST
    listed: dict[str, Expected] = {}
    checked: list[Checked] = []
    if manifest.exists():
        checked.append(_check(manifest, {"catalogue": manifest_digest}))
        if not checked[0].problems:
            listed = read_manifest(folder)
    index = folder / f"model{INDEX_SUFFIX}"
    if index.exists() and not listed:
        checked += _check_shards(index)
    done = {file.path for file in checked}
    for path in sorted({*folder.iterdir(), *(folder / name for name in listed)} - done):
        if path.is_file() or path.is_symlink() or path.name in listed:  # a link may lead nowhere
            checked.append(_check(path, {"manifest": listed.get(path.name, Expected())}))
    return checked


def _check_shards(index: Path) -> list[Checked]:
    try:
        shards = sorted(set(read_index(index).values()))
    except WeightsError:
        return []  # reported with the index itself
    return [_check(index.parent / shard, {}) for shard in shards]


def _check(path: Path, records: dict[str, Expected]) -> Checked:
    """Read one file again."""
    checked = Checked(path, [name for name, expected in records.items() if expected != Expected()])
    if not path.is_file():
        checked.problems.append(f"Expected a file at {path}, found nothing. Fetch it again.")
        return checked
    cache = Cache()
    cache.forget(path)
    if path.parent.resolve() == (cache.root / "objects").resolve():
        checked.records.append("cache")
        records = {**records, "cache": Expected(path.stem)}
    for check in (
        lambda: _check_records(path, records.values()),
        lambda: _check_hub(path, checked),
        lambda: _read(path),
    ):
        try:
            check()
        except WeightsError as error:
            checked.problems.append(str(error))
            break
    return checked


def _check_records(path: Path, records: Iterable[Expected]) -> None:
    for expected in records:
        Cache().check(path, expected, str(path))


def _check_hub(path: Path, checked: Checked) -> None:
    from pyrosys.hub.hugging_face import digest_on_hub, found_digest

    expected = digest_on_hub(path)
    if expected is None:
        return
    checked.records.append("hub")
    found = found_digest(path, expected)
    if found != expected:
        raise IntegrityError(f"Expected {path} to have the digest {expected}, found {found}. Fetch it again.")


def _read(path: Path) -> None:
    """Check the form of a file."""
    if path.name.endswith(INDEX_SUFFIX):
        read_index(path)
    elif path.name == MANIFEST:
        read_manifest(path.parent)
    elif path.suffix == ".safetensors":
        from pyrosys.hub.safetensors_file import read_header

        read_header(path)
