"""Signatures of entries, by key, without a network: a thin layer over the OpenSSF's `model-signing`.

The signature covers every file but the manifest, which in turn records the signature's digest. The library's own command
checks it too: ``model_signing verify key --signature model.sig --ignore-paths manifest.json --public-key … FOLDER``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyrosys.errors import InputError, IntegrityError, MissingExtra
from pyrosys.hub.manifest import MANIFEST

__all__ = ["SIGNATURE", "check_signature", "sign"]

SIGNATURE = "model.sig"


def sign(folder: Path, private_key: Path) -> None:
    """Sign the files of an entry.

    Raises:
        MissingExtra: ``pyrosys[sign]`` is not installed.
        InputError: The key cannot be used.
    """
    hashing, signing, _ = _library()
    with _readable(private_key):
        signer = signing.Config().use_elliptic_key_signer(private_key=private_key)
    signer.set_hashing_config(_covered(hashing)).sign(folder, folder / SIGNATURE)


def check_signature(folder: Path, public_key: Path) -> None:
    """Check the signature of an entry.

    Raises:
        IntegrityError: It was not signed, not with this key, or has been changed since.
        MissingExtra: ``pyrosys[sign]`` is not installed.
        InputError: The key cannot be used.
    """
    hashing, _, verifying = _library()
    if not (folder / SIGNATURE).is_file():
        raise IntegrityError(f"Expected {folder} to be signed, found no {SIGNATURE}. Ask the publisher to sign it.")
    with _readable(public_key):
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    try:
        verifier.set_hashing_config(_covered(hashing)).verify(folder, folder / SIGNATURE)
    except Exception as error:  # the library raises whatever a wrong signature leads to
        raise IntegrityError(
            f"Expected {folder} to be signed with the key of {public_key}, found: {error}. Do not use it."
        ) from error


def _library() -> tuple[Any, Any, Any]:
    try:
        from model_signing import hashing, signing, verifying
    except ImportError as error:
        raise MissingExtra(f"Signatures need the extra `sign`: pip install 'pyrosys[sign]' ({error}).") from error
    return hashing, signing, verifying


def _covered(hashing: Any) -> Any:
    """What is signed: all files but these; a hub's cache keeps links to them."""
    return hashing.Config().set_ignored_paths(paths=[MANIFEST, SIGNATURE]).set_allow_symlinks(True)


@contextmanager
def _readable(key: Path) -> Iterator[None]:
    """Raise for a key that cannot be read.

    Raises:
        InputError: It is missing, or not one.
    """
    try:
        yield
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"Expected an elliptic key in PEM at {key}, found: {error}. See `openssl ecparam`.") from error
