"""What a repository on a hub holds, without downloading its weights: the headers of its files say names and shapes."""

from dataclasses import dataclass
from pathlib import Path

from pyrosys.errors import InputError
from pyrosys.hub.hub_client import Address, api, explained
from pyrosys.hub.manifest import MANIFEST
from pyrosys.hub.sources import fetch

__all__ = ["Described", "describe_repository"]


@dataclass(frozen=True)
class Described:
    """A repository at one commit.

    Attributes:
        address: With the commit.
        licence: As its card states it.
        entry: A folder with the manifest and the structure card, if it is an entry.
        tensors: Otherwise, the shape of each tensor of its weights.
    """

    address: str
    licence: str | None
    entry: Path | None
    tensors: dict[str, list[int]]


def describe_repository(uri: str, token: str | None = None) -> Described:
    """Look into a repository, asking for parts of files only.

    Raises:
        InputError: The address is not one of a repository.
        SourceError: It cannot be reached, or has no safetensors files.
    """
    address = Address.parse(uri)
    if address.file is not None:
        raise InputError(f"Expected a repository as hf://org/repo@revision, found {uri!r}.")
    client = api(token)
    with explained(address):
        found = client.model_info(address.repository, revision=address.revision)
        pinned = f"hf://{address.repository}@{found.sha}"
        licence = found.card_data.get("license") if found.card_data else None
        if any(file.rfilename == MANIFEST for file in found.siblings or ()):
            fetch(f"{pinned}/structure.json")
            return Described(pinned, licence, fetch(f"{pinned}/{MANIFEST}").parent, {})
        metadata = client.get_safetensors_metadata(address.repository, revision=found.sha)
    tensors = {
        name: [int(side) for side in tensor.shape]
        for file in metadata.files_metadata.values()
        for name, tensor in file.tensors.items()
    }
    return Described(pinned, licence, None, tensors)
