"""Verification: whatever byte of whatever file is flipped, it is reported."""

import hashlib
import json
import os
import random
from pathlib import Path

import pytest
import torch

import pyrosys
from pyrosys.cli import main
from pyrosys.errors import IntegrityError, SourceError
from pyrosys.hub import fetch, write_weights
from pyrosys.hub.manifest import MANIFEST
from pyrosys.verifying import inspect
from tests.hub.hub_server import Hub


def flip(path: Path, index: int) -> None:
    """Change one byte and leave no other trace."""
    path = path.resolve()
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[index] ^= 1 << random.Random(index).randrange(8)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def problems(name: str | Path | None = None) -> dict[str, list[str]]:
    return {file.path.name: file.problems for file in inspect(name) if file.problems}


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_every_flipped_byte_is_reported(place: str, published: Hub, entry: Path) -> None:
    name = entry if place == "folder" else "lab/model"
    folder = pyrosys.fetch(name)
    assert problems(name) == {}
    rng = random.Random(0)
    for path in sorted(folder.iterdir()):
        size = path.stat().st_size
        every = range(0, size, 1 if place == "folder" else 20)
        for index in every if path.name == MANIFEST else {0, size - 1, rng.randrange(size)}:
            flip(path, index)
            found = problems(name)
            # A changed digest or name in the manifest shows at the file that it is about.
            assert path.name in found or (path.name == MANIFEST and found), (path.name, index)
            if place == "hub":
                assert set(problems()) == {path.resolve().name}
            flip(path, index)
    assert problems(name) == {}


def test_a_flipped_byte_of_a_fetched_file_is_reported(hub: Hub, cache: Path) -> None:
    content = os.urandom(1000)
    hub.files["/weights.pt"] = content
    uri = f"{hub.url}/weights.pt"
    path = fetch(uri)
    assert problems(uri) == problems() == {}
    flip(path, 500)
    assert set(problems(uri)) == set(problems()) == {path.name}
    assert fetch(uri).read_bytes() == content  # verification has shown what the time of change did not
    assert problems() == {}


def test_the_catalogue_is_compared_with(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"weights" * 10
    hub.files["/weights.pt"] = content
    source = {"uri": f"{hub.url}/weights.pt", "sha256": hashlib.sha256(content).hexdigest(), "size": 70}
    known = pyrosys.info("proteinmpnn-v48-020")
    monkeypatch.setattr("pyrosys.catalogue.info", lambda name: {**known, "sources": [source]})
    with pytest.raises(SourceError, match="found nothing of it. Fetch it first: pyrosys fetch proteinmpnn-v48-020"):
        pyrosys.verify("proteinmpnn-v48-020")
    path = pyrosys.fetch("proteinmpnn-v48-020")
    (checked,) = pyrosys.verify("proteinmpnn-v48-020")
    assert (checked.path, checked.records, checked.state) == (path, ["catalogue", "cache"], "sound")
    flip(path, 0)
    with pytest.raises(IntegrityError, match=f"SHA-256 {source['sha256']}"):
        pyrosys.verify("proteinmpnn-v48-020")


def test_what_is_missing_is_reported(published: Hub, entry: Path) -> None:
    folder = pyrosys.fetch("lab/model")
    (folder / "config.json").resolve().unlink()
    (entry / "config.json").unlink()
    assert set(problems("lab/model")) == set(problems(entry)) == {"config.json"}


def test_shards_are_read_with_their_index(tmp_path: Path) -> None:
    shards = {name: f"model-0000{i}-of-00002.safetensors" for i, name in enumerate("ab", start=1)}
    for name, shard in shards.items():
        write_weights(tmp_path / shard, {name: torch.ones(3)})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    assert {file.state for file in inspect(index)} == {"unknown"}  # nothing is on record
    assert len(inspect(index)) == len(inspect(tmp_path)) == 3
    (tmp_path / shards["a"]).unlink()
    (tmp_path / shards["b"]).write_bytes(b"no header")
    assert set(problems(index)) == set(problems(tmp_path)) == set(shards.values())
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    assert set(problems(index)) == {index.name}


def test_the_command_exits_with_2_when_something_is_damaged(
    published: Hub,
    entry: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["verify", "--all"]) == 0
    assert "Nothing has been fetched yet" in capsys.readouterr().err
    pyrosys.fetch("lab/model")
    assert main(["verify", "lab/model", str(entry)]) == 0
    assert "manifest, hub" in capsys.readouterr().out
    flip(entry / "README.md", 3)
    assert main(["verify", "--json", "lab/model", str(entry)]) == 2
    printed = capsys.readouterr()
    assert [row["file"] for row in json.loads(printed.out) if row["problems"]] == [str(entry / "README.md")]
    assert "README.md to have SHA-256" in printed.err
    for arguments in ([], ["--all", "lab/model"]):
        assert main(["verify", *arguments]) == 2
        assert "either names or --all" in capsys.readouterr().err
