"""Finding published entries: in a catalogue, a directory, an index; by parts; and files of others by their shapes."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pyrosys
from pyrosys.catalogue import build
from pyrosys.errors import InputError, SourceError, WeightsError
from pyrosys.finding import find, write_index
from pyrosys.hub import write_weights
from tests.hub.processes import small_model
from tests.test_entry import Other, Parent


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYROSYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYROSYS_CATALOGUE", str(tmp_path / "catalogue"))
    monkeypatch.setenv("PYROSYS_OFFLINE", "1")


@pytest.fixture
def entries(tmp_path: Path) -> Path:
    """A directory with two entries in it, and things that are none."""
    place = tmp_path / "entries"
    model, inputs = small_model(0)
    pyrosys.publish(model, "lab/small", hub=place, inputs=inputs, weights_licence="MIT")
    pyrosys.publish(Parent(), "lab/parent", hub=place, inputs=(torch.randn(3, 6),))
    (place / "lab" / "other").mkdir()
    (place / "lab" / "other" / "manifest.json").write_text("{}")
    return place


def found(model: nn.Module, place: object, *inputs: Tensor) -> list[tuple[str, str, str, float]]:
    hits = find(model, place, inputs=inputs)  # type: ignore[arg-type]
    return [(Path(hit.entry).name, hit.part, hit.into, round(hit.coverage, 2)) for hit in hits]


def test_a_whole_is_found(entries: Path) -> None:
    model, (tokens,) = small_model(1)
    assert found(model, entries, tokens) == [("small", "", "", 1.0)]
    hit = find(model, entries, inputs=(tokens,))[0]
    assert (hit.evidence, hit.weights_licence) == ("fingerprint", "MIT")
    assert json.loads(json.dumps(hit.to_json()))["entry"] == hit.entry


def test_a_part_is_found_for_a_model_that_is_written_differently(entries: Path) -> None:
    model = Other()
    assert found(model, entries, torch.randn(2, 6)) == [("parent", "trunk", "", 1.0)]
    hit = find(model, entries, inputs=(torch.randn(2, 6),))[0]
    pyrosys.load(hit.entry, into=model, part=hit.part)


def test_a_whole_is_found_for_a_part_of_a_bigger_model(tmp_path: Path) -> None:
    pyrosys.publish(Other(), "lab/other", hub=tmp_path, inputs=(torch.randn(3, 6),))
    model = Parent()
    assert found(model, tmp_path, torch.randn(2, 6)) == [("other", "", "trunk", 0.66)]
    hit = find(model, tmp_path, inputs=(torch.randn(2, 6),))[0]
    pyrosys.load(hit.entry, into=model.get_submodule(hit.into))


def test_what_is_alike_is_listed_once(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Other(), Other()

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    pyrosys.publish(Other(), "lab/other", hub=tmp_path, inputs=(torch.randn(3, 6),))
    (hit,) = find(Twice(), tmp_path, inputs=(torch.randn(2, 6),))
    assert (hit.into, hit.also) == ("first", ("second",))


def test_nothing_is_found_for_another_structure(entries: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 7))
    assert found(model, entries, torch.randn(2, 6)) == []


def test_the_zoo_is_searched_by_default() -> None:
    with torch.device("meta"):
        model = build("esm2-35m")
    assert [hit.entry for hit in find(model)] == ["esm2-35m"]
    with torch.device("meta"):
        model = build("solublempnn-v48-010")
    assert {"proteinmpnn-v48-020", "solublempnn-v48-030"} <= {hit.entry for hit in find(model)}


def test_an_index_knows_what_a_directory_holds(entries: Path, tmp_path: Path) -> None:
    index = tmp_path / "index.json"
    write_index(index, [entries / "lab" / "small", entries / "lab" / "parent"])
    model, (tokens,) = small_model(1)
    assert found(model, index, tokens) == found(model, entries, tokens)
    assert found(Other(), [index, entries], torch.randn(2, 6)) == [("parent", "trunk", "", 1.0)] * 2


def test_files_without_a_card_are_candidates_by_their_shapes(tmp_path: Path) -> None:
    model, inputs = small_model(1)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    renamed = {f"x.{name}": tensor.mT if tensor.dim() == 2 else tensor for name, tensor in model.state_dict().items()}
    write_weights(theirs / "model.safetensors", renamed)
    write_index(tmp_path / "index.json", [theirs])
    (hit,) = find(model, tmp_path / "index.json", inputs=inputs)
    assert (hit.evidence, hit.fingerprint, hit.coverage) == ("shapes", None, 1.0)
    with pytest.raises(InputError, match="not one that the zoo knows.*source=theirs"):
        pyrosys.load(theirs, into=model)
    with pytest.raises(InputError, match="into=model"):
        pyrosys.load(theirs)


@pytest.mark.parametrize(
    "content",
    ["{}", '{"format": "pyrosys-index/1"}', '{"format": "pyrosys-index/1", "entries": [7]}',
     '{"format": "pyrosys-index/1", "entries": [{"entry": "x", "tensors": {"a": [-1]}}]}',
     '{"format": "pyrosys-index/1", "entries": [{"entry": "x", "fingerprints": {"": [7]}}]}',
     '{"format": "pyrosys-index/1", "entries": [{"entry": "x", "code": "y"}]}', "[" * 100_000],
)  # fmt: skip
def test_what_is_no_index_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(content)
    model, inputs = small_model(0)
    with pytest.raises(WeightsError):
        find(model, tmp_path / "index.json", inputs=inputs)


def test_places_that_are_not_there_and_models_without_inputs(tmp_path: Path) -> None:
    model, inputs = small_model(0)
    with pytest.raises(SourceError, match="directory of entries"):
        find(model, tmp_path / "absent", inputs=inputs)
    with pytest.raises(InputError, match="inputs to run"):
        find(model, tmp_path)


def test_entries_that_are_damaged_are_left_out(entries: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = entries / "lab" / "small" / "structure.json"
    path.write_text(path.read_text().replace("psf1", "psf9", 1))
    model, (tokens,) = small_model(1)
    assert found(model, entries, tokens) == []
    assert "was left out" in caplog.text
