"""The user's own catalogue: names for published entries, beside those of the zoo.

A catalogue is a folder of JSON files in the format of ``zoo/*.json``, one for each name that `add` has given. The folders
that ``PYROSYS_CATALOGUE`` lists are read (as in ``PATH``; the first goes first, and is written to); without it, ``catalogue``
in the user's data folder for PyroSys. The zoo's own names are never replaced.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrosys.errors import InputError, PyrosysError, WeightsError
from pyrosys.hub.files import replacing

if TYPE_CHECKING:
    from pyrosys.hub.sources import Source

__all__ = ["add", "check", "folders", "read"]

NAME = re.compile("[a-z0-9]+(-[a-z0-9]+)*")
REQUIRED = {"family", "class", "task", "paper", "doi", "reference", "code_licence", "parameters", "weights_licence"}


def folders() -> list[Path]:
    """The folders of the catalogue, the one to write to first."""
    listed = [
        Path(folder).expanduser() for folder in os.environ.get("PYROSYS_CATALOGUE", "").split(os.pathsep) if folder
    ]
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return listed or [Path(data) / "pyrosys" / "catalogue"]


def read() -> dict[str, dict[str, Any]]:
    """Every entry by name.

    Raises:
        WeightsError: A file is not one of a catalogue.
    """
    from pyrosys.catalogue import read_family

    entries: dict[str, dict[str, Any]] = {}
    for folder in reversed(folders()):
        for path in sorted(folder.glob("*.json")):
            try:
                found = read_family(path)
                complete = all({*REQUIRED, "layout", "sources"} <= entry.keys() for entry in found.values())
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise WeightsError(
                    f"Expected a catalogue file at {path}, found {error!r}. Repair or remove it."
                ) from error
            if not complete:
                raise WeightsError(
                    f"Expected {path} to say {', '.join(sorted(REQUIRED))} of each entry. Repair or remove it."
                )
            entries |= found
    return entries


def add(name: str, address: str | Path, *, hub: str | Path | None = None, offline: bool | None = None) -> Path:
    """Give a published entry a name in the user's own catalogue, pinned to what it is now.

    Args:
        name: Lower-case letters, digits and dashes.
        address: The entry, as `pyrosys.load` takes it.
        hub: Where ``organisation/name`` is.
        offline: Whether to do without the network.

    Returns:
        The file of the catalogue that was written.

    Raises:
        InputError: The name cannot be used or is taken by the zoo.
        SourceError: The entry could not be obtained.
        WeightsError: It is not a sound one.
    """
    from pyrosys.catalogue import knows
    from pyrosys.entry import Entry
    from pyrosys.hub.manifest import MANIFEST, manifest_digest

    if not NAME.fullmatch(name):
        raise InputError(
            f"Expected a name of lower-case letters, digits and dashes, such as my-model-8m, found {name!r}."
        )
    if knows(name) and name not in read():
        raise InputError(f"Expected a name of your own, found {name!r}, a model of the zoo. Choose another.")
    entry = Entry.open(address, hub=hub, offline=offline)
    entry.check()
    structure, weights = entry.structure, entry.weights()
    licences = structure["licences"]
    described = {
        "family": name,
        "class": entry.config["class"],
        "task": [],
        "paper": "",
        "doi": structure["doi"] or "",
        "reference": entry.pinned_address,
        "code_licence": licences["code"] or "not stated",
        "entries": {
            name: {
                "parameters": sum(weights[n].numel() for n in weights if n not in structure["buffers"]),
                "weights_licence": licences["weights"] or "not stated",
                "layout": None,
                "fingerprint": structure["fingerprint"],
                "sources": [
                    {
                        "uri": f"{entry.pinned_address}/{MANIFEST}",
                        "sha256": manifest_digest(entry.folder),
                        "size": (entry.folder / MANIFEST).stat().st_size,
                    }
                ],
            }
        },
    }
    path = folders()[0] / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(f"{json.dumps(described, indent=2, ensure_ascii=False)}\n".encode())
    return path


def check(name: str, *, offline: bool | None = None) -> list[str]:
    """What is wrong with an entry of a catalogue, the zoo's included; nothing if all is well.

    Licences have to be stated, digests and sizes be on record, and each source has to be there. With ``offline``, sources
    are taken from the cache, and those that are not in it are left out.

    Raises:
        SourceError: There is no entry of this name.
    """
    from pyrosys.catalogue import info, published

    entry = info(name)
    problems = [f"{label} is not stated" for label in ("weights_licence", "code_licence") if _unstated(entry[label])]
    if not entry["sources"]:
        problems.append("there are no sources")
    for source in entry["sources"]:
        for key in ("sha256", "size"):
            if source.get(key) is None:
                problems.append(f"{source['uri']}: no {key} on record")
        problems += _check_source(source, offline, is_entry=published(name) is not None)
    return problems


def _unstated(licence: str) -> bool:
    return licence.strip().lower() in ("", "unknown", "not stated")


def _check_source(source: Source, offline: bool | None, *, is_entry: bool) -> list[str]:
    try:
        if is_entry:
            from pyrosys.entry import open_first

            open_first([source], offline=offline)
        else:
            from pyrosys.hub.reach import reach

            reach(source, offline=offline)
    except PyrosysError as error:
        return [f"{source['uri']}: {error}"]
    return []
