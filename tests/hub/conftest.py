"""A cache of their own for the hub's tests, and a server on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from pyrosys.hub import write_weights
from pyrosys.hub.manifest import write_manifest
from tests.hub.hub_server import Hub, running_hub


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the tests out of the user's caches, and the user's settings out of the tests."""
    for name in ("PYROSYS_OFFLINE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("PYROSYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet-cache"))
    for name, folder in {"HF_HUB_CACHE": "hub-cache", "HF_TOKEN_PATH": "token"}.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
        monkeypatch.setattr(constants, name, str(tmp_path / folder))  # the client has read the variables
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hugging Face Hub whose large files are LFS objects."""
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def xet_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hugging Face Hub whose large files are Xet files."""
    monkeypatch.delenv("HF_HUB_DISABLE_XET", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    (tmp_path / "store").mkdir()
    with running_hub(tmp_path / "store") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


ENTRY = {"config.json": b"{}", "structure.json": b"[]", "README.md": b"# Model\n"}


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    """A folder as an entry is, as far as fetching knows."""
    folder = tmp_path / "entry"
    folder.mkdir()
    write_weights(folder / "model.safetensors", {"a": torch.arange(100.0)})
    for name, content in ENTRY.items():
        (folder / name).write_bytes(content)
    write_manifest(folder)
    return folder


@pytest.fixture
def published(hub: Hub, entry: Path) -> Hub:
    hub.repository("lab/model").add({path.name: path.read_bytes() for path in entry.iterdir()})
    return hub
