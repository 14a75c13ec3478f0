"""Fetching by name, entry, address and path, and finding what is here."""

import hashlib
import json
from pathlib import Path

import pytest

import pyrosys
from pyrosys.cli import main
from pyrosys.errors import SourceError
from pyrosys.hub.manifest import MANIFEST
from tests.hub.hub_server import Hub


@pytest.fixture
def named(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The content of the file of a model of the zoo, with a mirror of which the first is dead."""
    content = b"weights" * 1000
    hub.files["/mirror.pt"] = content
    digest = hashlib.sha256(content).hexdigest()
    sources = [{"uri": f"{hub.url}/{name}.pt", "sha256": digest, "size": len(content)} for name in ("dead", "mirror")]
    known = pyrosys.info("proteinmpnn-v48-020")
    monkeypatch.setattr("pyrosys.catalogue.info", lambda name: {**known, "sources": sources})
    return content


def test_a_name_of_the_zoo(named: bytes, hub: Hub) -> None:
    with pytest.raises(SourceError, match="offline mode"):
        pyrosys.where("proteinmpnn-v48-020")
    path = pyrosys.fetch("proteinmpnn-v48-020")
    assert path.read_bytes() == named
    assert pyrosys.where("proteinmpnn-v48-020") == path
    assert hub.count("GET /mirror.pt") == 1


def test_an_entry_by_name_address_and_path(published: Hub, entry: Path) -> None:
    folder = pyrosys.fetch("lab/model")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in entry.iterdir()
    }
    published.asked.clear()
    assert pyrosys.where("lab/model") == pyrosys.where("hf://lab/model@main") == folder
    assert published.asked == []
    assert pyrosys.fetch(entry) == pyrosys.where(str(entry)) == entry


def test_an_entry_on_another_hub(published: Hub, entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT")
    assert (pyrosys.fetch("lab/model", hub=published.url) / MANIFEST).exists()
    (entry.parent / "hub" / "lab").mkdir(parents=True)
    entry.rename(entry.parent / "hub" / "lab" / "model")
    assert pyrosys.fetch("lab/model", hub=entry.parent / "hub") == entry.parent / "hub" / "lab" / "model"


def test_dependencies_of_a_file_are_the_rest_of_its_entry(published: Hub, entry: Path) -> None:
    uri = "hf://lab/model/model.safetensors"
    alone = pyrosys.fetch(uri)
    assert [path.name for path in alone.parent.iterdir()] == ["model.safetensors"]
    assert pyrosys.fetch(uri, with_deps=True) == alone
    assert sorted(path.name for path in alone.parent.iterdir()) == sorted(path.name for path in entry.iterdir())
    published.repository("lab/bare").add({"x.safetensors": b"x"})
    assert pyrosys.fetch("hf://lab/bare/x.safetensors", with_deps=True).read_bytes() == b"x"
    with pytest.raises(SourceError, match="offline"):
        pyrosys.fetch("hf://lab/bare/x.safetensors", with_deps=True, offline=True)


def test_unknown_names_are_explained(published: Hub) -> None:
    with pytest.raises(SourceError, match="Did you mean esm2-8m"):
        pyrosys.fetch("esm2-8mm")
    with pytest.raises(SourceError, match="was not found"):
        pyrosys.fetch("lab/absent")


def test_the_command_fetches_what_it_can(
    published: Hub, named: bytes, entry: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "--json", "lab/model", "proteinmpnn-v48-02*", "lab/absent", str(entry)]) == 2
    printed = capsys.readouterr()
    rows = json.loads(printed.out)
    assert [row["name"] for row in rows] == ["lab/model", "proteinmpnn-v48-020", str(entry)]
    assert "1 of 4 not fetched" in printed.err
    assert "lab/absent: hf://lab/absent@main was not found" in printed.err
    assert main(["where", "lab/model"]) == 0
    assert capsys.readouterr().out.strip() == rows[0]["path"]
    assert main(["fetch", "--offline", "--with-deps", "lab/model", str(entry)]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["name", "path"]
    assert main(["fetch", "none-*"]) == 2
    assert "pattern of names of the zoo" in capsys.readouterr().err
