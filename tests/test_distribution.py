"""What is distributed: the wheel, built from the source distribution as an installer builds it, without a network."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import pyrosys

ROOT = Path(__file__).parents[1]
PACKAGES = {"pyrosys": ROOT / "pyrosys", "pyrosys/adapters": ROOT / "adapters", "pyrosys/zoo": ROOT / "zoo"}


def build(kind: str, source: Path, target: Path) -> Path:
    script = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(target)!r}))"
    result = subprocess.run([sys.executable, "-c", script], cwd=source, capture_output=True, text=True, check=True)
    return target / result.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    directory = tmp_path_factory.mktemp("distribution")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, directory / "checkout", symlinks=True, ignore=ignored)
    with tarfile.open(build("sdist", directory / "checkout", directory)) as archive:
        archive.extractall(directory / "source", filter="data")
    return zipfile.ZipFile(build("wheel", next((directory / "source").iterdir()), directory))


def test_wheel_holds_exactly_the_tree(wheel: zipfile.ZipFile) -> None:
    tree = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == tree


def test_wheel_carries_licence_command_and_version(wheel: zipfile.ZipFile) -> None:
    notes = {name.partition(".dist-info/")[2]: name for name in wheel.namelist() if ".dist-info/" in name}
    assert wheel.read(notes["licenses/LICENSE"]) == (ROOT / "LICENSE").read_bytes()
    assert b"pyrosys = pyrosys.cli:main" in wheel.read(notes["entry_points.txt"])
    assert f"\nVersion: {pyrosys.__version__}\n".encode() in wheel.read(notes["METADATA"])
