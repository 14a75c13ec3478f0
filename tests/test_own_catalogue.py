"""The user's own catalogue: names for published entries."""

import json
from pathlib import Path

import pytest
import torch

import pyrosys
from pyrosys import own_catalogue
from pyrosys.errors import InputError, IntegrityError, SourceError, WeightsError
from pyrosys.zoo.esm import ESM, ESMConfig
from tests.hub.processes import small_model


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYROSYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYROSYS_CATALOGUE", str(tmp_path / "catalogue"))
    monkeypatch.setenv("PYROSYS_OFFLINE", "1")
    return tmp_path / "catalogue"


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    model = ESM(ESMConfig(layers=1, width=8, heads=2))
    return Path(pyrosys.publish(model, "lab/esm", hub=tmp_path, weights_licence="MIT", code_licence="MIT").address)


def test_a_name_loads_what_was_added(entry: Path) -> None:
    own_catalogue.add("my-esm", entry)
    assert "my-esm" in pyrosys.list_models()
    card = pyrosys.info("my-esm")
    assert (card["weights_licence"], card["layout"]) == ("MIT", None)
    model = pyrosys.load("my-esm")
    assert card["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert pyrosys.fetch("my-esm") == entry
    with torch.device("meta"):
        twin = ESM(ESMConfig(layers=1, width=8, heads=2))
    assert [hit.entry for hit in pyrosys.find(twin)] == ["my-esm"]
    assert own_catalogue.check("my-esm") == []


def test_a_name_stands_for_one_state_of_an_entry(entry: Path, tmp_path: Path) -> None:
    own_catalogue.add("my-esm", entry)
    pyrosys.publish(ESM(ESMConfig(layers=1, width=8, heads=2)), "lab/esm", hub=tmp_path)
    with pytest.raises(IntegrityError, match="the manifest of"):
        pyrosys.load("my-esm")
    (problem,) = own_catalogue.check("my-esm")
    assert "the manifest of" in problem


def test_what_is_not_stated_is_reported(tmp_path: Path) -> None:
    model, inputs = small_model(0)
    own_catalogue.add("small", pyrosys.publish(model, "lab/small", hub=tmp_path, inputs=inputs).address)
    assert own_catalogue.check("small") == ["weights_licence is not stated", "code_licence is not stated"]
    with pytest.raises(InputError, match="not a class of the zoo"):
        pyrosys.load("small")
    assert pyrosys.load("small", into=small_model(1)[0])


def test_the_zoo_is_checked_by_the_same_rules() -> None:
    assert own_catalogue.check("proteinmpnn-v48-020", offline=True) == []
    assert any("no sha256 on record" in problem for problem in own_catalogue.check("esm2-8m", offline=True))


@pytest.mark.parametrize("name", ["esm2-8m", "My Model", "../up", ""])
def test_names_that_cannot_be_used(name: str, entry: Path) -> None:
    with pytest.raises(InputError):
        own_catalogue.add(name, entry)


def test_what_is_no_entry_is_not_added(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(SourceError):
        own_catalogue.add("absent", tmp_path / "absent")
    with pytest.raises(WeightsError):
        own_catalogue.add("empty", tmp_path)
    assert not folder.exists()


def test_the_zoo_s_names_are_never_replaced(entry: Path, folder: Path) -> None:
    path = own_catalogue.add("my-esm", entry)
    data = json.loads(path.read_text())
    data["entries"]["esm2-8m"] = data["entries"]["my-esm"]
    path.write_text(json.dumps(data))
    assert pyrosys.info("esm2-8m")["layout"] is not None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"entries": {"x": {}}}', '{"entries": 7}'])
def test_broken_files_are_named(content: str, folder: Path) -> None:
    folder.mkdir()
    (folder / "broken.json").write_text(content)
    with pytest.raises(WeightsError, match=r"broken.json.*Repair or remove it"):
        pyrosys.list_models()


def test_folders_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYROSYS_CATALOGUE", f"{tmp_path / 'a'}:{tmp_path / 'b'}")
    assert own_catalogue.folders() == [tmp_path / "a", tmp_path / "b"]
    monkeypatch.delenv("PYROSYS_CATALOGUE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert own_catalogue.folders() == [tmp_path / "pyrosys" / "catalogue"]
