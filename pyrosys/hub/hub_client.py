"""The client of the Hugging Face Hub: which hub it asks, how patiently, and what its errors mean."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from huggingface_hub import HfApi, errors

import pyrosys
from pyrosys.errors import InputError, IntegrityError, SourceError
from pyrosys.hub.web import PASSING

__all__ = ["LARGE_DIGEST", "SMALL_DIGEST", "Address", "Unreachable", "api", "ask", "endpoint", "explained", "on_hub"]

ADDRESS = re.compile(
    r"hf://(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w.-]*))?(/(?P<file>.+))?", flags=re.ASCII
)
LARGE_DIGEST = re.compile("[0-9a-f]{64}")  # the SHA-256 of large files
SMALL_DIGEST = re.compile("[0-9a-f]{40}")  # git's digest of small files, and of commits
ATTEMPTS = 4
FIRST_WAIT = 0.5  # seconds, doubled each time

Given = TypeVar("Given")

_hub: ContextVar[str | None] = ContextVar("hub", default=None)


@dataclass(frozen=True)
class Address:
    """Where a file or a folder is on the hub.

    Attributes:
        repository: Its name, as in ``org/name``.
        revision: A branch, a tag or a commit.
        file: The file, or ``None`` for the folder of an entry.
    """

    repository: str
    revision: str = "main"
    file: str | None = None

    @classmethod
    def parse(cls, uri: str) -> "Address":
        """Read an address.

        Raises:
            InputError: It is malformed.
        """
        match = ADDRESS.fullmatch(uri)
        if match is None or {"", ".", ".."} & set((match["file"] or "file").split("/")):
            raise InputError(f"Expected hf://org/repo@revision or hf://org/repo@revision/file, found {uri!r}.")
        return cls(match["repository"], match["revision"] or "main", match["file"])

    def __str__(self) -> str:
        return f"hf://{self.repository}@{self.revision}{'' if self.file is None else f'/{self.file}'}"

    @property
    def is_pinned(self) -> bool:
        """Whether it can never stand for something else."""
        return SMALL_DIGEST.fullmatch(self.revision) is not None


class Unreachable(SourceError):
    """The hub did not answer."""


def endpoint() -> str | None:
    """The address of the hub; the client reads ``HF_ENDPOINT`` when it is imported, here a later change counts."""
    return _hub.get() or os.environ.get("HF_ENDPOINT")


@contextmanager
def on_hub(address: str | None) -> Iterator[None]:
    """Ask the hub at another address for a while."""
    token = _hub.set(address)
    try:
        yield
    finally:
        _hub.reset(token)


def api(token: str | None = None) -> HfApi:
    """The hub's interface, for the user who is logged in or whose token it is."""
    return HfApi(endpoint=endpoint(), token=token, library_name="pyrosys", library_version=pyrosys.__version__)


def ask(question: Callable[[], Given]) -> Given:
    """Ask the hub, again when it cannot answer now."""
    for attempt in range(ATTEMPTS):
        try:
            return question()
        except errors.HfHubHTTPError as error:
            if error.response is None or error.response.status_code not in PASSING or attempt == ATTEMPTS - 1:
                raise
        time.sleep(FIRST_WAIT * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def explained(address: object) -> Iterator[None]:
    """Turn the client's errors into ours.

    Raises:
        SourceError: Anything went wrong; the client raises errors of several libraries.
    """
    try:
        yield
    except (SourceError, IntegrityError):
        raise
    except errors.GatedRepoError as error:
        advice = "Access is granted by its owners: accept the terms on its page, then log in with `hf auth login`."
        raise SourceError(f"{address} is gated. {advice}") from error
    except errors.RepositoryNotFoundError as error:
        advice = "Check the name. A private repository looks the same: log in with `hf auth login` if it is yours."
        raise SourceError(f"{address} was not found. {advice}") from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(
            f"{address}: the repository has no such revision. Use a branch, a tag or a commit."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise Unreachable(f"{address} could not be reached: {error} Check the connection.") from error
    except errors.EntryNotFoundError as error:
        raise SourceError(f"{address}: the repository has no such file at this revision. Check its name.") from error
    except errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code == 401:
            raise SourceError(
                f"{address} could not be fetched: the hub does not know your token. Log in with `hf auth login`, or check "
                "the environment variable HF_TOKEN."
            ) from error
        raise SourceError(f"{address} could not be fetched: {error}") from error
    except Exception as error:  # the hub has not answered
        raise Unreachable(
            f"{address} could not be reached: {type(error).__name__}: {error}. "
            "Check the connection, or use another source."
        ) from error
