"""Bring an entry to a Hugging Face Hub: one commit on top of what was there, then a tag."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, errors
from huggingface_hub.hf_api import ModelInfo

from pyrosys.errors import PublishError
from pyrosys.hub.hub_client import api
from pyrosys.hub.manifest import MANIFEST, manifest_digest, read_manifest
from pyrosys.hub.shard_index import INDEX_SUFFIX

__all__ = ["Uploaded", "upload_entry"]

ADVICE = {
    401: "It does not know who you are, or does not accept your token: log in with `hf auth login`, or set HF_TOKEN.",
    403: "Your account may not write there: choose a name under your own account, or a token with write access.",
    404: "It was not found, or it is private and your account may not see it: check the name, and log in.",
    412: "Another process has published there meanwhile, and nothing of this is visible. Look at what it published, and "
    "publish again to replace it.",
    413: "A file is too large for this hub: publish with a smaller shard_size.",
    429: "The hub asks for fewer requests: try again later.",
}


@dataclass(frozen=True)
class Uploaded:
    """Where an entry is on a hub."""

    commit: str
    tag: str


def upload_entry(
    folder: Path,
    repository: str,
    *,
    token: str | None = None,
    private: bool = False,
    tag: str | None = None,
    message: str,
) -> Uploaded:
    """Upload the folder of an entry.

    The branch goes from the old entry to the new one in a single commit. If another process has published meanwhile,
    nothing changes. What is there already is not uploaded again.

    Args:
        folder: The entry, complete.
        repository: Its name on the hub; it is created if need be.
        token: By default that of ``hf auth login`` or ``HF_TOKEN``.
        private: Whether a repository that is created is private.
        tag: By default one made of the entry's digest.
        message: Of the commit.

    Raises:
        PublishError: It is not permitted, the hub cannot be reached, or another process was first.
    """
    client = api(token)
    tag = tag or f"entry-{manifest_digest(folder)[:16]}"
    with _explained(repository, client.endpoint):
        client.create_repo(repository, private=private, exist_ok=True)
        head = client.model_info(repository, files_metadata=True)
        tagged = {ref.name: ref.target_commit for ref in client.list_repo_refs(repository).tags}
        if _holds(head, folder):
            commit = str(head.sha)
        else:
            _require_free(tag, tagged, None, repository)
            commit = _commit(client, folder, repository, head, message)
        if tag not in tagged:
            client.create_tag(repository, tag=tag, revision=commit, exist_ok=True)
            tagged = {ref.name: ref.target_commit for ref in client.list_repo_refs(repository).tags}
        _require_free(tag, tagged, commit, repository)
    return Uploaded(commit, tag)


def _commit(client: HfApi, folder: Path, repository: str, head: ModelInfo, message: str) -> str:
    names = [*sorted(read_manifest(folder)), MANIFEST]
    stale = [CommitOperationDelete(name) for name in _files(head) if _is_weights(name) and name not in names]

    def additions() -> list[CommitOperationAdd]:
        return [CommitOperationAdd(name, str(folder / name)) for name in names]

    files = additions()
    try:
        client.preupload_lfs_files(repository, files, free_memory=False)
    except Exception:
        if constants.HF_HUB_DISABLE_XET:
            raise
        files = additions()
        with _without_xet():  # a hub that has no route to Xet's store takes large files in the older way
            client.preupload_lfs_files(repository, files, free_memory=False)
    committed = client.create_commit(
        repository, [*files, *stale], commit_message=message, parent_commit=head.sha, num_threads=2
    )
    return str(committed.oid)


def _holds(head: ModelInfo, folder: Path) -> bool:
    """Whether the branch has this entry: a manifest stands for all files, and one commit brings them all."""
    content = (folder / MANIFEST).read_bytes()
    blob = hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()
    return any(file.rfilename == MANIFEST and file.blob_id == blob for file in head.siblings or ())


def _files(head: ModelInfo) -> list[str]:
    return [file.rfilename for file in head.siblings or ()]


def _is_weights(name: str) -> bool:
    """Whether a file would be taken for weights of the entry if it stayed."""
    return name == f"model{INDEX_SUFFIX}" or (name.startswith("model") and name.endswith(".safetensors"))


def _require_free(tag: str, tagged: dict[str, str], commit: str | None, repository: str) -> None:
    if tag in tagged and tagged[tag] != commit:
        raise PublishError(
            f"Expected the tag {tag!r} of {repository} to be free, found it at commit {tagged[tag]}. Choose another tag."
        )


@contextmanager
def _without_xet() -> Iterator[None]:
    before = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


@contextmanager
def _explained(repository: str, endpoint: str) -> Iterator[None]:
    """Turn the client's errors into ours.

    Raises:
        PublishError: Anything went wrong.
    """
    where = f"{repository} on {endpoint}"
    try:
        yield
    except PublishError:
        raise
    except errors.GatedRepoError as error:
        raise PublishError(f"{where} is gated, and this account has no access. Ask its owners for it.") from error
    except errors.HFValidationError as error:
        raise PublishError(f"Expected a repository as organisation/name, found {repository!r}: {error}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        answer = f"the hub answered {status} ({error.server_message or error})"
        raise PublishError(f"Could not publish {where}: {answer}. {ADVICE.get(status, 'Try again later.')}") from error
    except Exception as error:  # the client raises errors of several libraries
        raise PublishError(
            f"Could not publish {where}: {type(error).__name__}: {error}. Check the connection and try again."
        ) from error
