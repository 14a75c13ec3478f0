"""Analyses and comparisons: what they find, and what they write."""

import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import pyrosys
from pyrosys.analysis import Comparison, analyse, calibrate, compare, save
from pyrosys.cli import main
from pyrosys.errors import InputError
from pyrosys.zoo.esm import ESM, ESMConfig
from pyrosys.zoo.proteinmpnn import ProteinMPNN, ProteinMPNNConfig

SEQUENCES = ["MKTAYIAKQR", "GSHMWWL"]


def tiny(layers: int = 2) -> ESM:
    return ESM(ESMConfig(layers=layers, width=16, heads=4)).eval()


@pytest.fixture(scope="module")
def stages() -> tuple[ESM, ESM]:
    """A model, and the same with one layer changed by a known amount."""
    torch.manual_seed(0)
    before = tiny()
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.layers[1].feed_forward.up.weight.mul_(1.5)  # pyright: ignore[reportCallIssue,reportAttributeAccessIssue]
    return before, after


@pytest.fixture(scope="module")
def comparison(stages: tuple[ESM, ESM]) -> Comparison:
    return compare(*stages, sequences=SEQUENCES, names=("<before> & 'it'", "after"))


def test_two_stages_differ_where_training_changed_them(comparison: Comparison) -> None:
    changed = {name: change for name, change in comparison.changes.items() if change.relative > 0}
    assert list(changed) == ["layers.1.feed_forward.up.weight"]
    (change,) = changed.values()
    assert (change.relative, change.cosine) == pytest.approx((0.5, 1.0))
    assert comparison.difference is not None
    assert comparison.difference.equal
    assert comparison.similarity is not None
    matrix = comparison.similarity.values
    assert matrix[0][0] == pytest.approx(1)  # what is below the change is the same
    assert matrix[1][1] < 1 - 1e-6
    assert {first == second for first, second in comparison.shared} == {True}


def test_numbers_of_each_side_are_its_own(comparison: Comparison, stages: tuple[ESM, ESM]) -> None:
    numbers = comparison.numbers()
    for side, model in zip(("first", "second"), stages, strict=True):
        found = calibrate(model, SEQUENCES)
        assert numbers[f"{side}_perplexity"] == found.perplexity
        assert numbers[f"{side}_calibration_error"] == found.error
        assert numbers[f"{side}_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert comparison.first.fingerprint == pyrosys.fingerprint(stages[0]).whole


def test_models_of_different_sizes_are_compared_layer_by_layer() -> None:
    found = compare(tiny(1), tiny(3), sequences=SEQUENCES)
    assert found.difference is not None
    assert not found.difference.equal
    assert found.similarity is not None
    assert [len(row) for row in found.similarity.values] == [3]
    assert ("embedding", "embedding") in found.shared
    assert "layers.0.attention.query.weight" in found.changes


class Renamed(nn.Module):
    """The same function as ``nn.Sequential``, by other names and with its weight transposed."""

    def __init__(self, other: nn.Sequential) -> None:
        super().__init__()
        self.out = copy.deepcopy(other[2])
        self.into = nn.Parameter(other[0].weight.detach().T.clone())  # pyright: ignore[reportCallIssue,reportArgumentType]
        self.shift = nn.Parameter(other[0].bias.detach() + 1)  # pyright: ignore[reportOperatorIssue]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out((x @ self.into + self.shift).relu())


def test_counterparts_are_found_by_structure() -> None:
    first = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    found = compare(first, Renamed(first), (torch.randn(9, 5),))
    assert set(found.changes) == {"into", "shift", "out.weight", "out.bias"}
    assert {name for name, change in found.changes.items() if change.relative > 1e-6} == {"shift"}


def test_other_models_are_analysed_on_their_example() -> None:
    found = analyse(ProteinMPNN(ProteinMPNNConfig(width=16, neighbours=8)).eval())
    assert found.calibration is None
    assert found.attention == {}
    assert found.name == "ProteinMPNN"
    assert "edge_embedding" in found.activations


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="twice"):
        compare(tiny(), tiny(), names=("a", "a"))


class Page(HTMLParser):
    """Text and links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.links = "", []
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if name in ("href", "src")]


def test_a_folder_holds_data_figures_and_a_page(comparison: Comparison, tmp_path: Path) -> None:
    page = Page(save(comparison, tmp_path / "new").read_text(encoding="utf-8"))
    assert "<before> & 'it'" in page.text
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert set(page.links) == names - {"index.html"}
    for name in names:
        if name.endswith(".svg"):
            assert ElementTree.parse(tmp_path / "new" / name).getroot().tag.endswith("svg")
    data = json.loads((tmp_path / "new" / "analysis.json").read_text())
    assert data["first"]["numbers"] == comparison.first.numbers()
    assert data["difference"]["equal"]
    assert data["changes"]["layers.1.feed_forward.up.weight"]["relative"] == pytest.approx(0.5)
    assert data["changes"]["layers.0.attention_norm.bias"]["relative"] is None  # of zeros


def test_the_same_analysis_is_written_the_same(tmp_path: Path) -> None:
    found = analyse(tiny())
    files = [{path.name: path.read_bytes() for path in save(found, tmp_path / name).parent.iterdir()} for name in "ab"]
    assert files[0]["index.html"] == files[1]["index.html"]
    assert files[0]["analysis.json"] == files[1]["analysis.json"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    with pytest.raises(InputError, match="Choose another"):
        save(analyse(tiny()), tmp_path)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sequences, and two models under names that `pyrosys.load` knows."""
    models = {"small": tiny(1), "large": tiny(2)}
    monkeypatch.setitem(vars(pyrosys), "load", models.__getitem__)
    (tmp_path / "proteins.fasta").write_text("".join(f">{n}\n{s}\n" for n, s in enumerate(SEQUENCES)))
    return tmp_path


def test_command_writes_an_analysis(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["analyse", "small", "--sequences", str(files / "proteins.fasta"), "--output", str(files / "out")]
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert Path(printed["page"]).read_text().startswith("<!doctype html>")
    data = json.loads((files / "out" / "analysis.json").read_text())
    assert printed["numbers"] == data["numbers"]
    assert main(arguments) == 2
    assert "found one. Choose another --output." in capsys.readouterr().err


def test_command_compares_and_names_two_of_one_name(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--sequences", str(files / "proteins.fasta"), "--no-structure", "--output"]
    assert main(["analyse", "small", "large", *arguments, str(files / "two")]) == 0
    assert "second_perplexity" in capsys.readouterr().out
    assert json.loads((files / "two" / "analysis.json").read_text())["difference"] is None
    assert main(["analyse", "small", "small", *arguments, str(files / "same")]) == 0
    assert json.loads((files / "same" / "analysis.json").read_text())["second"]["name"] == "small (second)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small", "small", "small"], "found 3"),
        (["small", "--sequences", "x.fasta", "--inputs", "a:b"], "found both"),
        (["small", "--sequences", "absent.fasta"], "absent.fasta"),
    ],
)
def test_command_explains_what_it_cannot_do(
    files: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyse", *arguments, "--output", str(files / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (files / "out").exists()
