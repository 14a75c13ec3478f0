"""Large files in the cache of the Hugging Face Hub's client, brought there by downloads that can be resumed.

The client begins a download anew in every process and compares sizes only. Here the file is put together under the name
that the client would give it, ``blobs/<digest>``, under the client's own lock, and checked against that digest. The
client, asked afterwards, finds it there and adds the snapshot and reference that any other tool expects.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers

from pyrosys.hub.cache import Cache
from pyrosys.hub.digest import Expected
from pyrosys.hub.files import move_into_place
from pyrosys.hub.hub_client import LARGE_DIGEST, ask, endpoint
from pyrosys.hub.transfer import Answer, Interrupted, transfer
from pyrosys.hub.web import WebFile

if TYPE_CHECKING:
    from huggingface_hub.file_download import HfFileMetadata

__all__ = ["bring_large_file"]

logger = logging.getLogger(__name__)


def bring_large_file(repository: str, revision: str, file: str, *, progress: bool) -> None:
    """Put a file into the cache if the hub keeps it as a large one and it is not there.

    Raises:
        SourceError: The download failed, or the disk is too small.
        IntegrityError: What arrived is not what the hub says it has.
    """
    url = hf_hub_url(repository, file, revision=revision, endpoint=endpoint())
    metadata = ask(lambda: get_hf_file_metadata(url, endpoint=endpoint()))
    sha256, folder = metadata.etag, repo_folder_name(repo_id=repository, repo_type="model")
    if sha256 is None or not LARGE_DIGEST.fullmatch(sha256):
        return
    blob = Path(constants.HF_HUB_CACHE, folder, "blobs", sha256)
    lock = Path(constants.HF_HUB_CACHE, ".locks", folder, f"{sha256}.lock")
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():  # or another process has brought it while this one waited
            return
        partial = blob.with_name(f"{sha256}.incomplete")
        source = _LargeFile(url, metadata)
        transfer(
            source.open,
            partial,
            expected=Expected(sha256, metadata.size),
            source=f"{repository}/{file}",
            progress=progress,
        )
        move_into_place(partial, blob)
        Cache().remember(blob, sha256=sha256)


@dataclass
class _LargeFile:
    """A large file on the hub, from its Xet store if there is one, or over HTTP."""

    url: str
    metadata: "HfFileMetadata"
    without_xet: bool = False

    @contextmanager
    def open(self, start: int) -> Iterator[Answer]:
        headers = build_hf_headers(library_name="pyrosys")
        xet = self.metadata.xet_file_data
        if xet is None or self.without_xet or constants.HF_HUB_DISABLE_XET:
            with WebFile(self.url, headers).open(start) as answer:
                yield answer
            return
        try:
            stream = _open_xet(xet, self.metadata.size, start, headers)
        except Exception as error:  # its client raises errors of many kinds
            raise self._give_up_xet(error) from error
        yield Answer(self._pieces(stream), start, self.metadata.size)

    def _pieces(self, stream: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from stream
        except Exception as error:
            raise self._give_up_xet(error) from error

    def _give_up_xet(self, error: Exception) -> Interrupted:
        self.without_xet = True
        logger.warning("The Xet store cannot give %s (%s); going on over HTTP.", self.url, error)
        return Interrupted(f"the Xet store: {error}")


def _open_xet(file: Any, size: int | None, start: int, headers: dict[str, str]) -> Iterator[bytes]:
    from hf_xet import XetFileInfo, XetSession  # pyright: ignore[reportAttributeAccessIssue] # it comes without types

    group = XetSession().new_download_stream_group(
        token_refresh_url=file.refresh_route, token_refresh_headers=headers, custom_headers={}
    )
    return group.download_stream(XetFileInfo(file.file_hash, size), start=start)
