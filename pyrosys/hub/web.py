"""Files at web addresses (``https://host/path``)."""

from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from pyrosys.errors import InputError, SourceError
from pyrosys.hub.digest import Expected
from pyrosys.hub.files import copy_stream

__all__ = ["download_url"]

TIMEOUT = 60  # seconds without any bytes


def download_url(uri: str, folder: Path, *, expected: Expected, progress: bool) -> Path:
    """Download one file into a folder.

    Args:
        uri: An ``https`` address; plain ``http`` is for this machine only.
        folder: Where the file goes.
        expected: What is on record; a wrong size ends the download at once.
        progress: Whether to show a progress bar.

    Raises:
        InputError: The address is not secure.
        SourceError: The file could not be obtained.
        IntegrityError: The file has another size than the one on record.
    """
    if not _is_secure(uri):
        raise InputError(f"Expected an https address without user name or password, found {_public(uri)!r}.")
    target = folder / "file"
    try:
        request = Request(uri, headers={"User-Agent": "pyrosys"})
        response: HTTPResponse
        with build_opener(_SecureRedirects).open(request, timeout=TIMEOUT) as response:
            announced = response.length
            if announced is not None:
                expected.check_size(announced, _public(uri))
            total = expected.size if announced is None else announced
            size = copy_stream(response, target, total=total, label=_public(uri).rpartition("/")[2], progress=progress)
    except HTTPError as error:
        error.close()
        raise SourceError(
            f"Expected a file at {_public(uri)}, the server answered {error.code} {error.reason}. "
            "Check the address, or use another source."
        ) from error
    except (OSError, HTTPException) as error:
        raise SourceError(
            f"Could not download {_public(uri)}: {error}. Check the connection and try again, or use another source."
        ) from error
    if announced is not None and size != announced:
        raise SourceError(
            f"Expected {announced:,} bytes from {_public(uri)}, the connection ended after {size:,}. Try again."
        )
    return target


class _SecureRedirects(HTTPRedirectHandler):
    """Follows a redirect only to an address that is as secure as the one it came from."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        downgraded = urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https"
        if downgraded or not _is_secure(newurl):
            raise SourceError(f"{_public(req.full_url)} redirects to {_public(newurl)}, which is not secure.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_secure(uri: str) -> bool:
    parts = urlsplit(uri)
    if parts.username is not None or not parts.hostname:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost"))


def _public(uri: str) -> str:
    """The address without what may be a credential."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
