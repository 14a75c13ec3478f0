"""Signatures by key, made and checked without a network."""

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import pyrosys
from pyrosys.errors import InputError, IntegrityError
from pyrosys.hub.manifest import write_manifest
from tests.hub.processes import small_model


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private key and its public key, as `openssl` would write them."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    encoding = serialization.Encoding.PEM
    private.write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def signed(keys: tuple[Path, Path], tmp_path: Path) -> Path:
    model, inputs = small_model(0)
    return Path(pyrosys.publish(model, "lab/signed", hub=tmp_path, inputs=inputs, sign_key=keys[0]).address)


def test_a_signed_entry_loads_with_its_key(signed: Path, keys: tuple[Path, Path]) -> None:
    model = small_model(1)[0]
    assert pyrosys.load(signed, into=model, signed_by=keys[1]) is model
    assert "model.sig" in {path.name for path in signed.iterdir()}
    assert pyrosys.verify(signed, signed_by=keys[1])


def test_the_library_s_own_command_checks_it_too(signed: Path, keys: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(signed), "--signature"]
    command += [str(signed / "model.sig"), "--public_key", str(keys[1])]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_another_key_no_signature_and_changed_files_are_refused(
    signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    model, inputs = small_model(0)
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    public = tmp_path / "other.pub"
    public.write_bytes(other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    for check in (
        lambda: pyrosys.load(signed, into=model, signed_by=public),
        lambda: pyrosys.verify(signed, signed_by=public),
    ):
        with pytest.raises(IntegrityError, match="signed with the key of"):
            check()
    plain = pyrosys.publish(model, "lab/plain", hub=tmp_path, inputs=inputs).address
    with pytest.raises(IntegrityError, match="found no model.sig"):
        pyrosys.load(plain, into=model, signed_by=keys[1])
    readme = signed / "README.md"
    readme.write_text(readme.read_text().replace("not stated", "MIT"))
    write_manifest(signed)  # whoever changes a file can write a manifest, but not sign
    pyrosys.load(signed, into=model)
    with pytest.raises(IntegrityError, match="signed with the key of"):
        pyrosys.load(signed, into=model, signed_by=keys[1])


def test_what_is_no_key_is_refused(signed: Path, tmp_path: Path) -> None:
    model, inputs = small_model(0)
    for key in (tmp_path / "absent.pem", signed / "config.json"):
        with pytest.raises(InputError, match="elliptic key in PEM"):
            pyrosys.load(signed, into=model, signed_by=key)
        with pytest.raises(InputError, match="elliptic key in PEM"):
            pyrosys.publish(model, "lab/x", hub=tmp_path, inputs=inputs, sign_key=key)
