"""`fetch` brings a model or a published entry to this machine, and `where` says where it lies."""

from __future__ import annotations

from pathlib import Path

from pyrosys import catalogue
from pyrosys import hub as sources

__all__ = ["fetch", "where"]


def fetch(
    name: str | Path,
    *,
    with_deps: bool = False,
    hub: str | Path | None = None,
    offline: bool | None = None,
    progress: bool = True,
) -> Path:
    """Bring the weights of a model or a published entry here, check them, and return where they are.

    What is here already and has not changed since it was checked is neither downloaded nor read again.

    Args:
        name: A name that `list_models` gives, a published entry (``organisation/name``), an address or a path.
        with_deps: Also bring what belongs to the weights: with a single file of a published entry, the rest of the entry.
            All else that `load` needs comes with the package or with the entry.
        hub: Where ``organisation/name`` is: the address of a hub, or a directory that serves as one.
        offline: Whether to do without the network; by default as ``PYROSYS_OFFLINE`` or ``HF_HUB_OFFLINE`` say.
        progress: Whether to show a progress bar on a terminal.

    Raises:
        InputError: The address is malformed.
        SourceError: There is no such thing, or it could not be obtained.
        IntegrityError: It is not what is on record.
    """
    path = _fetch(name, hub, offline, progress)
    if with_deps and str(name).startswith("hf://") and path.is_file():
        _fetch_rest(str(name), offline, progress)
    return path


def where(name: str | Path, *, hub: str | Path | None = None) -> Path:
    """Say where a model or a published entry lies on this machine, without the network.

    Args:
        name: As for `fetch`.
        hub: As for `fetch`.

    Raises:
        SourceError: It is not here, or not sound.
    """
    return fetch(name, hub=hub, offline=True, progress=False)


def _fetch(name: str | Path, on: str | Path | None, offline: bool | None, progress: bool) -> Path:
    if on is None and isinstance(name, str) and catalogue.knows(name):
        published = catalogue.published(name)
        if published is None:
            return sources.fetch_first(catalogue.info(name)["sources"], offline=offline, progress=progress)
        from pyrosys.entry import open_first

        return open_first(published, offline=offline).folder
    if on is None and ("://" in str(name) or Path(name).expanduser().exists()):
        return sources.fetch(name, offline=offline, progress=progress)
    if on is None and "/" not in str(name):
        catalogue.info(str(name))  # explains that there is no such model
    from pyrosys.entry import fetch_entry

    return fetch_entry(name, hub=on, offline=offline)


def _fetch_rest(uri: str, offline: bool | None, progress: bool) -> None:
    """Fetch the entry that a file on the hub belongs to; a repository without a manifest is not one."""
    from huggingface_hub.errors import EntryNotFoundError

    from pyrosys.errors import SourceError
    from pyrosys.hub.hub_client import Address
    from pyrosys.hub.manifest import MANIFEST

    file = Address.parse(uri)
    folder = Address(file.repository, file.revision)
    try:
        sources.fetch(f"{folder}/{MANIFEST}", offline=offline, progress=False)
    except SourceError as error:
        if isinstance(error.__cause__, EntryNotFoundError):
            return
        raise
    sources.fetch(str(folder), offline=offline, progress=progress)
