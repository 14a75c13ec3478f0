"""Publishing into a directory: what is written, that it is reproducible, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor, nn

import pyrosys
from pyrosys.errors import InputError, PublishError, WeightsError
from pyrosys.hub import read_weights, tensor_digest
from pyrosys.hub.model_card import fingerprint_tag
from pyrosys.porting import calling
from pyrosys.zoo.esm import ESM, ESMConfig
from tests.hub.processes import small_model
from tests.test_entry import Parent

SCHEMA = json.loads((Path(__file__).parents[1] / ".github" / "docs" / "structure.schema.json").read_text())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYROSYS_CACHE", str(tmp_path / "cache"))


def publish(place: Path, model: nn.Module, *inputs: Tensor, **choices: Any) -> pyrosys.Published:
    return pyrosys.publish(model, "lab/model", hub=place / "entries", inputs=inputs or None, **choices)


def content(published: pyrosys.Published) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(published.address).iterdir()}


def test_an_entry_is_complete_and_described_by_the_schema(tmp_path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    model = ESM(ESMConfig(layers=1, width=8, heads=2))
    published = publish(tmp_path, model, weights_licence="MIT", doi="10.1/x", provenance={"seed": 3})
    assert set(published.files) == {
        "README.md", "config.json", "manifest.json", "model.safetensors", "probe.safetensors", "structure.json",
    }  # fmt: skip
    structure = json.loads(content(published)["structure.json"])
    jsonschema.validate(structure, SCHEMA)
    assert structure["fingerprint"] == published.fingerprint == pyrosys.fingerprint(calling(model)).whole
    assert structure["alphabet"] == list(model.alphabet.tokens)
    assert structure["provenance"] == {"base_model": None, "description": "", "seed": 3}
    weights = read_weights(published.address)
    assert structure["digest"] == tensor_digest(weights, structure["order"])
    assert structure["signature"]["inputs"] == [{"shape": [2, 29], "dtype": "int64"}]
    assert json.loads(content(published)["config.json"]) == {
        "class": "pyrosys.zoo.esm:ESM",
        "config": {
            "layers": 1, "width": 8, "heads": 2, "positions": None, "embedding_norm": False, "contacts": True,
        },
    }  # fmt: skip
    readme = content(published)["README.md"].decode()
    assert "license: mit" in readme
    assert "https://doi.org/10.1/x" in readme
    assert all(fingerprint_tag(value) in readme for value in (published.fingerprint, *published.parts.values()))


def test_the_schema_refuses_what_is_no_card() -> None:
    for wrong in ({}, {"format": "pyrosys-structure/2"}, []):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMA)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (publish(tmp_path / place, *_model()) for place in "ab")
    assert content(first) == content(second)
    assert first.digest == second.digest


def _model() -> tuple[nn.Module, Tensor]:
    model, (tokens,) = small_model(0)
    return model, tokens


def test_a_counter_and_a_tied_tensor_come_along(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm = nn.Embedding(7, 6), nn.BatchNorm1d(6)
            self.decoder = nn.Linear(6, 7, bias=False)
            self.decoder.weight = self.table.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.decoder(self.norm(self.table(tokens).mT).mT)

    model = Tied()
    model.state_dict()["norm.num_batches_tracked"].fill_(9)
    tokens = torch.arange(14).reshape(2, 7) % 7
    published = publish(tmp_path, model, tokens)
    structure = json.loads(content(published)["structure.json"])
    assert list(structure["integers"]) == ["norm.num_batches_tracked"]
    assert structure["ties"] == {"decoder.weight": "table.weight"}
    other = Tied()
    with torch.no_grad():
        other.table.weight.normal_()
    pyrosys.load(published.address, into=other)
    assert torch.equal(other.table.weight, model.table.weight)
    assert other.decoder.weight is other.table.weight


def test_what_no_output_depends_on_is_listed(tmp_path: Path) -> None:
    model = Parent()
    model.spare = nn.Linear(2, 2)
    published = publish(tmp_path, model, torch.randn(3, 6))
    assert published.unreached == ("spare.bias", "spare.weight")
    assert "not placed by structure: spare.bias, spare.weight" in str(published)


def test_an_entry_is_replaced_by_another(tmp_path: Path) -> None:
    first = publish(tmp_path, *_model())
    before = Path(first.address).stat().st_ino
    assert publish(tmp_path, *_model()) == first
    assert Path(first.address).stat().st_ino == before
    second = publish(tmp_path, small_model(1)[0], _model()[1])
    assert second.digest != first.digest
    assert pyrosys.verify(second.address)


def test_a_dry_run_leaves_nothing(tmp_path: Path) -> None:
    planned = publish(tmp_path, *_model(), dry_run=True)
    assert planned.files["model.safetensors"] > 0
    assert [path for path in (tmp_path / "entries").rglob("*") if path.is_file()] == []


def test_what_is_no_entry_is_not_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "entries" / "lab" / "model"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("the only copy")
    with pytest.raises(PublishError, match="found something else"):
        publish(tmp_path, *_model())
    assert (mine / "thesis.txt").read_text() == "the only copy"


class Noisy(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + float(next(self.noise))

    noise = iter(range(1000))


def test_what_does_not_load_back_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="does not load back equal to Noisy, and nothing was published"):
        publish(tmp_path, Noisy(3, 2), torch.randn(2, 3))
    assert not (tmp_path / "entries" / "lab").exists()


def test_a_probe_that_does_not_show_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="pass inputs on which they differ"):
        publish(tmp_path, nn.Linear(4, 2), torch.zeros(2, 4))


@pytest.mark.parametrize("name", ["", "a/b/c", "../up", "a b/c", "/abs", "lab/"])
def test_names_that_cannot_be_used(name: str, tmp_path: Path) -> None:
    model, tokens = _model()
    with pytest.raises(InputError, match="organisation/name"):
        pyrosys.publish(model, name, hub=tmp_path, inputs=(tokens,))


def test_what_cannot_be_published_says_why(tmp_path: Path) -> None:
    model, tokens = _model()
    with pytest.raises(InputError, match="Expected inputs to show"):
        publish(tmp_path, model)
    with pytest.raises(InputError, match="plain data"):
        publish(tmp_path, model, tokens, provenance={"when": object()})
    with torch.no_grad():
        next(model.parameters())[0, 0] = torch.nan
    with pytest.raises(WeightsError, match=re.escape("NaN or infinity in 1 tensors: '0.weight'")):
        publish(tmp_path, model, tokens)


def test_parts_have_cards_of_their_own(tmp_path: Path) -> None:
    published = publish(tmp_path, Parent(), torch.randn(3, 6))
    assert {"trunk", "out"} <= set(published.parts)
    assert published.parts["trunk"] == pyrosys.fingerprint(Parent().trunk, (torch.randn(2, 6),)).whole
