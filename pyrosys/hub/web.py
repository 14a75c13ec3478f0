"""Files at web addresses (``https://host/path``)."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from pyrosys.errors import InputError, SourceError
from pyrosys.hub.digest import Expected
from pyrosys.hub.files import CHUNK, replacing
from pyrosys.hub.transfer import Answer, Interrupted, Unreachable, transfer

__all__ = ["WebFile", "download_url", "public_address"]

TIMEOUT = 60  # seconds without any bytes
PARTIAL, BEYOND_THE_END = 206, 416
PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that may be others a moment later


def download_url(uri: str, folder: Path, *, expected: Expected, progress: bool) -> tuple[Path, str]:
    """Download one file into a folder, and return its path and SHA-256.

    Args:
        uri: An ``https`` address; plain ``http`` is for this machine only.
        folder: Where the file goes, and where its beginning may lie.
        expected: What is on record; a wrong size ends the download at once.
        progress: Whether to show a progress bar.

    Raises:
        InputError: The address is not secure.
        SourceError: The file could not be obtained.
        IntegrityError: The file is not the one on record.
    """
    if not _is_secure(uri):
        raise InputError(f"Expected an https address without user name or password, found {public_address(uri)!r}.")
    # Where the digest is on record, it decides whether pieces belong together.
    version = None if expected.sha256 is not None else folder / "version"
    source = WebFile(uri, version=version)
    sha256 = transfer(source.open, folder / "file", expected=expected, source=public_address(uri), progress=progress)
    return folder / "file", sha256


@dataclass
class WebFile:
    """A file at a web address, which can be read from any byte on if the server allows it.

    Attributes:
        uri: The address.
        headers: Sent along with requests. A redirect to another host does not get the authorisation.
        version: A file that keeps which version of the file has been begun, for servers to compare; without one,
            versions are not told apart.
    """

    uri: str
    headers: Mapping[str, str] = field(default_factory=dict)
    version: Path | None = None

    @contextmanager
    def open(self, start: int) -> Iterator[Answer]:
        """Ask for the file from a byte on.

        Raises:
            Interrupted: The server cannot be reached, or cannot answer now.
            SourceError: The server refuses.
        """
        response = self._request(start)
        if isinstance(response, HTTPError) and _total(response) != start:  # what is here belongs to something longer
            response.close()
            start, response = 0, self._request(0)
        with response:
            yield self._answer(response, start)

    def _request(self, start: int) -> HTTPResponse | HTTPError:
        """Ask; an error is returned if it says that the file ends before ``start``."""
        request = Request(self.uri, headers={"User-Agent": "pyrosys", **self.headers, **self._range(start)})
        try:
            return build_opener(_Redirects).open(request, timeout=TIMEOUT)
        except HTTPError as error:
            if error.code == BEYOND_THE_END and start:
                return error
            error.close()
            reason = f"the server answered {error.code} {error.reason}"
            if error.code in PASSING:
                raise Interrupted(reason) from error
            raise SourceError(
                f"Expected a file at {public_address(self.uri)}, {reason}. Check the address, or use another source."
            ) from error
        except (OSError, HTTPException) as error:
            raise Unreachable(str(error)) from error

    def _range(self, start: int) -> dict[str, str]:
        """The part to ask for: none if nobody could tell whether it belongs to what is here."""
        if not start or (self.version is not None and not self.version.exists()):
            return {}
        wanted = {"Range": f"bytes={start}-"}
        return wanted if self.version is None else {**wanted, "If-Range": self.version.read_text()}

    def _answer(self, response: HTTPResponse | HTTPError, start: int) -> Answer:
        if isinstance(response, HTTPError):  # there is nothing beyond what is here
            return Answer(iter(()), start, start)
        if response.status == PARTIAL:
            if not (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
                raise SourceError(
                    f"{public_address(self.uri)} gives another part than was asked for. Use another source."
                )
            return Answer(_pieces(response), start, _total(response))
        if self.version is not None:
            self._note_version(response.headers)
        length = response.headers.get("Content-Length")
        return Answer(_pieces(response), 0, int(length) if length and length.isdecimal() else None)

    def _note_version(self, headers: Message) -> None:
        assert self.version is not None
        etag = headers.get("ETag", "")
        found = headers.get("Last-Modified") if not etag or etag.startswith("W/") else etag
        self.version.unlink(missing_ok=True)
        if found:
            with replacing(self.version) as file:
                file.write(found.encode())


class _Redirects(HTTPRedirectHandler):
    """Follows a redirect only to an address that is as secure, and leaves the authorisation behind at another host."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if (old.scheme == "https" and new.scheme != "https") or not (_is_secure(newurl) or old[:2] == new[:2]):
            raise SourceError(
                f"{public_address(req.full_url)} redirects to {public_address(newurl)}, which is not secure."
            )
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and old[:2] != new[:2]:
            request.remove_header("Authorization")
        return request


def public_address(uri: str) -> str:
    """The address without what may be a credential."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _pieces(response: HTTPResponse) -> Iterator[bytes]:
    try:
        while piece := response.read1(CHUNK):  # what there is, so that it is on the disk if this process is killed
            yield piece
    except (OSError, HTTPException) as error:
        raise Interrupted(f"the connection broke: {error}") from error


def _total(response: HTTPResponse | HTTPError) -> int | None:
    """The size of the whole file, when the server has answered about a part."""
    found = re.search(r"/(\d+)$", response.headers.get("Content-Range") or "")
    return int(found[1]) if found else None


def _is_secure(uri: str) -> bool:
    parts = urlsplit(uri)
    if parts.username is not None or not parts.hostname:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost"))
