"""What was verified is not verified again, until anything that the result depends on changes."""

from pathlib import Path

import pytest
import torch

from pyrosys import verified
from pyrosys.verified import note_verified, was_verified


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYROSYS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_check_is_remembered_with_all_that_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not was_verified(weights="a", model="m")
    note_verified(weights="a", model="m")
    assert was_verified(model="m", weights="a")
    assert not was_verified(weights="b", model="m")
    assert not was_verified(weights="a")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "0.0")
        assert not was_verified(weights="a", model="m")
    with monkeypatch.context() as patch:
        patch.setattr(verified, "_source_digest", lambda: "edited")
        assert not was_verified(weights="a", model="m")
    assert was_verified(weights="a", model="m")


def test_the_source_is_that_of_the_whole_package(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    keep = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path), keep(path))[1])
    verified._source_digest.__wrapped__()
    names = {path.name for path in read}
    assert {"verified.py", "esm.py", "match.py", "attention.py", "safetensors_file.py"} <= names


def test_without_a_cache_everything_is_verified_every_time(cache: Path) -> None:
    cache.write_text("not a folder")
    note_verified(weights="a")
    assert not was_verified(weights="a")
