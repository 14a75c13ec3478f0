"""The manifest: one flipped byte anywhere in any file of an entry is reported."""

from pathlib import Path

import pytest

from pyrosys.errors import IntegrityError, PyrosysError, WeightsError
from pyrosys.hub.manifest import MANIFEST, check_files, manifest_digest, read_manifest, write_manifest


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    folder = tmp_path / "entry"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(bytes(range(40)))
    write_manifest(folder)
    return folder


def test_files_are_recorded(entry: Path) -> None:
    files = check_files(entry)
    assert list(files) == ["config.json", "model.safetensors"]
    assert files["model.safetensors"].size == 40
    before = manifest_digest(entry)
    write_manifest(entry)
    assert manifest_digest(entry) == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", MANIFEST])
def test_a_flipped_byte_is_reported(name: str, entry: Path) -> None:
    content = (entry / name).read_bytes()
    for place in range(len(content)):
        for bit in (1, 2, 32):
            (entry / name).write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            with pytest.raises(PyrosysError):
                check_files(entry)
    (entry / name).write_bytes(content)
    check_files(entry)


def test_a_missing_file_and_a_missing_manifest_are_reported(entry: Path) -> None:
    (entry / "config.json").unlink()
    with pytest.raises(WeightsError, match="config.json in the entry .* it is missing"):
        check_files(entry)
    (entry / MANIFEST).unlink()
    with pytest.raises(WeightsError, match="is no entry, or an unfinished one"):
        check_files(entry)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("config.json", "../config.json", "its own folder"),
        ("config.json", "/etc/passwd", "its own folder"),
        ("pyrosys-entry/1", "pyrosys-entry/9", "format 'pyrosys-entry/1', found 'pyrosys-entry/9'"),
        ('"size": 2', '"size": null', "found one without"),
        ('"size": 2', '"size": -2', "a digest and a size"),
        ('"size": 2', '"size":  2', "one spelling"),
        ('"size": 2', '"size": 2, "size": 3', "occurs twice"),
        ("44136f", "44136F", "a digest and a size"),
    ],
)
def test_hostile_manifests_are_refused(old: str, new: str, message: str, entry: Path) -> None:
    text = (entry / MANIFEST).read_text()
    assert old in text
    (entry / MANIFEST).write_text(text.replace(old, new, 1))
    with pytest.raises((WeightsError, IntegrityError), match=message):
        read_manifest(entry)
