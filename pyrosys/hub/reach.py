"""Whether a source is there and is what is on record, for a file on a hub without downloading it."""

from huggingface_hub import get_hf_file_metadata, hf_hub_url

from pyrosys.errors import InputError, SourceError
from pyrosys.hub.digest import Expected
from pyrosys.hub.hub_client import LARGE_DIGEST, Address, ask, endpoint, explained
from pyrosys.hub.sources import Source, fetch

__all__ = ["reach"]


def reach(source: Source, *, offline: bool | None = None) -> None:
    """Check one source: a file on a hub by what the hub says about it, any other by fetching it.

    Args:
        source: The address, and the digest and size on record.
        offline: Whether to do without the network; then a file that is not in the cache is passed over.

    Raises:
        SourceError: It is not there.
        IntegrityError: It is not the one on record.
    """
    expected = Expected(source.get("sha256"), source.get("size"))
    if offline:
        try:
            fetch(source["uri"], sha256=expected.sha256, size=expected.size, offline=True)
        except SourceError:
            return
    elif source["uri"].startswith("hf://"):
        _ask_hub(source["uri"], expected)
    else:
        fetch(source["uri"], sha256=expected.sha256, size=expected.size)


def _ask_hub(uri: str, expected: Expected) -> None:
    address = Address.parse(uri)
    if address.file is None:
        raise InputError(f"Expected hf://org/repo@revision/file, found {uri!r}.")
    with explained(address):
        url = hf_hub_url(address.repository, address.file, revision=address.revision, endpoint=endpoint())
        found = ask(lambda: get_hf_file_metadata(url, endpoint=endpoint()))
    if found.size is not None:
        expected.check_size(found.size, uri)
    if found.etag and LARGE_DIGEST.fullmatch(found.etag):
        expected.check_sha256(found.etag, uri)
