"""The command line: what each command prints and writes, and how it fails."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import pyrosys
from pyrosys.cli import main
from pyrosys.errors import SourceError
from pyrosys.zoo.esm import ESM, ESMConfig
from pyrosys.zoo.proteinmpnn import ProteinMPNN, ProteinMPNNConfig

DATA = Path(__file__).parent / "data"
BACKBONE = str(DATA / "1ubq.pdb")
COMMANDS = (
    "list",
    "info",
    "load",
    "embed",
    "score",
    "design",
    "port",
    "diff",
    "export",
    "fingerprint",
    "fetch",
    "where",
    "verify",
    "publish",
    "find",
    "catalogue",
    "prepare",
    "train",
    "analyse",
    "demo",
)


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> dict[str, nn.Module]:
    """Two tiny models in place of the zoo."""
    models = {
        "language": ESM(ESMConfig(layers=2, width=16, heads=4)).eval(),
        "folding": ProteinMPNN(ProteinMPNNConfig(width=16, neighbours=8)).eval(),
    }

    def load(name: str) -> nn.Module:
        if name not in models:
            raise SourceError(f"Expected a name in the zoo, found {name!r}. Names are: language, folding.")
        return models[name]

    def info(name: str) -> dict[str, object]:
        load(name)
        source = {"uri": f"https://example.org/{name}.safetensors", "sha256": None, "size": 7}
        return {"name": name, "parameters": 1234, "weights_licence": "MIT", "task": ["score"], "sources": [source]}

    monkeypatch.setitem(vars(pyrosys), "load", load)
    monkeypatch.setitem(vars(pyrosys), "info", info)
    monkeypatch.setitem(
        vars(pyrosys), "list_models", lambda pattern: [name for name in models if pattern in ("*", name)]
    )
    return models


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "proteins.fasta"
    path.write_text(">first a protein\nMKTA\nYI\n>second\nGS\n")
    return path


def read(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that succeeds, and return what it prints."""
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def fail(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that fails, and return what it says of that, in one paragraph."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pyrosys: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="^0$"):
        main(["--help"])
    assert tuple(re.findall(r"^    (\w+)", capsys.readouterr().out, re.MULTILINE)) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="^0$"):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert f"  pyrosys {command}" in text.partition("example:")[2]
    assert max(map(len, text.splitlines())) <= 120


def test_help_imports_nothing_heavy() -> None:
    script = "import sys; from pyrosys.cli import main\ntry: main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"biotite", "networkx", "numpy", "torch"} & set(result.stdout.split())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"pyrosys {pyrosys.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["absent"], ["info"], ["design", "folding", "x.pdb", "--fixed", "A"]])
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="^2$"):
        main(arguments)
    assert "usage: pyrosys" in capsys.readouterr().err


@pytest.mark.usefixtures("zoo")
def test_errors_are_explained_in_a_paragraph(capsys: pytest.CaptureFixture[str]) -> None:
    assert "found 'absent'" in fail(capsys, "load", "absent")


def test_interruption_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(name: str) -> nn.Module:
        raise KeyboardInterrupt

    monkeypatch.setitem(vars(pyrosys), "load", interrupt)
    assert main(["load", "language"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.usefixtures("zoo")
def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    header, *rows = read(capsys, "list").splitlines()
    assert header.split() == ["name", "parameters", "weights", "tasks"]
    assert [row.split() for row in rows] == [[name, "1,234", "MIT", "score"] for name in ("language", "folding")]
    assert list(json.loads(read(capsys, "list", "folding", "--json"))) == ["folding"]


@pytest.mark.usefixtures("zoo")
def test_list_of_no_match_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'absent'" in fail(capsys, "list", "absent")


@pytest.mark.usefixtures("zoo")
def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    text = read(capsys, "info", "language")
    assert "MIT" in text
    assert "https://example.org/language.safetensors" in text
    assert json.loads(read(capsys, "info", "language", "--json")) == pyrosys.info("language")


def test_load(zoo: dict[str, nn.Module], capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(read(capsys, "load", "folding", "--json"))
    assert facts["class"] == "pyrosys.zoo.proteinmpnn:ProteinMPNN"
    assert facts["parameters"] == sum(parameter.numel() for parameter in zoo["folding"].parameters())
    assert f"{facts['parameters']:,} parameters" in read(capsys, "load", "folding")


def test_embed_writes_what_the_model_gives(
    zoo: dict[str, nn.Module], fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = zoo["language"]
    assert isinstance(model, ESM)
    output = tmp_path / "new" / "embeddings.npz"
    assert read(capsys, "embed", "language", str(fasta), "--output", str(output)) == ""
    with np.load(output) as arrays:
        for (name, array), expected in zip(arrays.items(), model.embed(["MKTAYI", "GS"]), strict=True):
            assert name in ("first", "second")
            np.testing.assert_array_equal(array, expected.numpy())
    read(capsys, "embed", "language", str(fasta), "--pool", "mean", "--layer", "1", "--output", str(output))
    with np.load(output) as arrays:
        expected = model.embed(["MKTAYI", "GS"], pool="mean", layer=1).numpy()
        np.testing.assert_array_equal(np.stack([arrays["first"], arrays["second"]]), expected)
    assert [path.name for path in output.parent.iterdir()] == ["embeddings.npz"]


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (">a\nMK\n>a\nGS\n", "found 'a' more than once"),
        (">a\nMK\n>b\nM?\n", "'?'"),
        ("", "found none"),
        ("> \nMK\n", "a name"),
    ],
)
def test_embed_leaves_nothing_behind_when_it_fails(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fasta = tmp_path / "proteins.fasta"
    fasta.write_text(text)
    assert message in fail(capsys, "embed", "language", str(fasta), "--output", str(tmp_path / "embeddings.npz"))
    assert list(tmp_path.iterdir()) == [fasta]


@pytest.mark.usefixtures("zoo")
def test_embed_needs_a_language_model(fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fail(capsys, "embed", "folding", str(fasta), "--output", str(tmp_path / "embeddings.npz"))
    assert "embeds sequences" in message


@pytest.mark.usefixtures("zoo")
def test_missing_file_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "absent.fasta" in fail(capsys, "score", "language", str(tmp_path / "absent.fasta"))


def test_score_of_sequences(zoo: dict[str, nn.Module], fasta: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = zoo["language"]
    assert isinstance(model, ESM)
    rows = json.loads(read(capsys, "score", "language", str(fasta), "--json"))
    assert [row["name"] for row in rows] == ["first", "second"]
    assert rows[0]["pseudo_perplexity"] == pytest.approx(model.pseudo_perplexity("MKTAYI"))
    assert f"first   {rows[0]['pseudo_perplexity']:.4f}" in read(capsys, "score", "language", str(fasta))


def test_score_of_variants(zoo: dict[str, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = zoo["language"]
    assert isinstance(model, ESM)
    fasta = tmp_path / "wild-type.fasta"
    fasta.write_text(">wild\nMKTAYI\n")
    arguments = ("score", "language", str(fasta), "--method", "wildtype-marginal", "--mutations", "K2R", "K2R:A4G")
    rows = json.loads(read(capsys, *arguments, "--json"))
    assert [row["variant"] for row in rows] == ["K2R", "K2R:A4G"]
    assert [row["score"] for row in rows] == model.score("MKTAYI", ["K2R", "K2R:A4G"], "wildtype-marginal")


def test_score_on_a_backbone(zoo: dict[str, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = zoo["folding"]
    assert isinstance(model, ProteinMPNN)
    structure = pyrosys.read_structure(BACKBONE)
    arguments = ("score", "folding", BACKBONE, "--chains", "A", "--samples", "2", "--seed", "5", "--fixed", "A:1-3,7")
    (row,) = json.loads(read(capsys, *arguments, "--json"))
    expected = model.score(structure, chains=["A"], fixed={"A": [1, 2, 3, 7]}, samples=2, seed=5)
    assert row["average_log_probability"] == pytest.approx(expected.average)
    fasta = tmp_path / "sequences.fasta"
    fasta.write_text(f">alanines\n{'A' * len(structure)}\n>native\n{structure.sequence}\n")
    rows = json.loads(read(capsys, *arguments, "--sequences", str(fasta), "--json"))
    assert [row["name"] for row in rows] == ["alanines", "native"]
    assert rows[1]["average_log_probability"] == pytest.approx(expected.average)


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize(
    "arguments", [["folding", BACKBONE, "--mutations", "K2R"], ["language", BACKBONE, "--seed", "1"]]
)
def test_score_refuses_options_of_other_models(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert f"Expected no {arguments[2]} for {arguments[0]}" in fail(capsys, "score", *arguments)


def test_design(zoo: dict[str, nn.Module], capsys: pytest.CaptureFixture[str]) -> None:
    model = zoo["folding"]
    assert isinstance(model, ProteinMPNN)
    structure = pyrosys.read_structure(BACKBONE)
    arguments = ("design", "folding", BACKBONE, "--samples", "2", "--seed", "3", "--fixed", "A:1-9", "--omit", "CX")
    designs = model.design(structure, fixed={"A": range(1, 10)}, samples=2, seed=3, omit="CX")
    lines = read(capsys, *arguments).splitlines()
    assert lines[1::2] == [design.sequence for design in designs]
    assert [line.split()[-1] for line in lines[::2]] == ["seed=3", "seed=4"]
    rows = json.loads(read(capsys, *arguments, "--json"))
    assert [row["recovery"] for row in rows] == [design.recovery for design in designs]
    assert [row["chains"]["A"][:9] for row in rows] == [structure.sequence[:9]] * 2


@pytest.mark.usefixtures("zoo")
def test_unknown_device_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'abacus'" in fail(capsys, "design", "folding", BACKBONE, "--device", "abacus")


@pytest.mark.parametrize(
    "reference", ["absent_module:build", "pyrosys:absent", ":build", "pyrosys:", "pyrosys:__all__"]
)
def test_references_that_cannot_be_imported_are_explained(reference: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert reference in fail(capsys, "fingerprint", reference)


IMPLEMENTATIONS = """
import torch
from torch import nn


class Theirs(nn.Module):
    def __init__(self):
        super().__init__()
        self.both = nn.Linear(4, 10)
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        gate, value = self.both(x).chunk(2, dim=-1)
        return self.out(torch.sigmoid(gate) * value)


class Ours(nn.Module):
    def __init__(self):
        super().__init__()
        self.output = nn.Linear(5, 3)
        self.value, self.gate = nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x):
        return self.output(self.value(x) * self.gate(x).sigmoid())


class Other(Ours):
    def forward(self, x):
        return self.output(self.value(x) * self.gate(x).tanh())


def inputs():
    return (torch.randn(2, 3, 4),)
"""


@pytest.fixture
def implementations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two implementations of one model in a module of the current directory, and a checkpoint of the first."""
    (tmp_path / "implementations.py").write_text(IMPLEMENTATIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("implementations")
    pyrosys.hub.write_weights(tmp_path / "theirs.safetensors", module.Theirs().state_dict())
    yield tmp_path
    del sys.modules["implementations"]


@pytest.mark.usefixtures("implementations")
def test_fingerprint_is_the_same_for_both_implementations(capsys: pytest.CaptureFixture[str]) -> None:
    prints = [
        json.loads(
            read(capsys, "fingerprint", f"implementations:{name}", "--inputs", "implementations:inputs", "--json")
        )
        for name in ("Theirs", "Ours")
    ]
    assert prints[0]["whole"] == prints[1]["whole"]
    assert prints[0]["parts"]["out"] == prints[1]["parts"]["output"]
    text = read(capsys, "fingerprint", "implementations:Theirs", "--inputs", "implementations:inputs")
    assert text.splitlines()[1].split() == [prints[0]["whole"], "(whole)"]


PORT = ("port", "theirs.safetensors", "--source", "implementations:Theirs", "--inputs", "implementations:inputs")


def test_port_writes_weights_plan_and_certificate(implementations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = read(capsys, *PORT, "--target", "implementations:Ours", "--output", "ported/ours")
    assert "real parameters" in text
    output = implementations / "ported" / "ours"
    assert sorted(path.name for path in output.iterdir()) == ["certificate.json", "model.safetensors", "plan.json"]
    assert json.loads((output / "certificate.json").read_text())["comparisons"]
    module = sys.modules["implementations"]
    theirs, ours = module.Theirs(), module.Ours()
    theirs.load_state_dict(pyrosys.hub.read_weights(implementations / "theirs.safetensors"))
    ours.load_state_dict(pyrosys.hub.read_weights(output))
    (x,) = module.inputs()
    torch.testing.assert_close(ours(x), theirs(x))
    plan = pyrosys.Plan.load(output / "plan.json")
    torch.testing.assert_close(plan.apply(theirs.state_dict()), dict(ours.state_dict()), rtol=0, atol=0)


def test_a_plan_is_exported_as_a_function(implementations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read(capsys, *PORT, "--target", "implementations:Ours", "--output", "ours")
    text = read(capsys, "export", "ours/plan.json")
    assert read(capsys, "export", "ours/plan.json", "--output", "convert.py") == ""
    assert (implementations / "convert.py").read_text(encoding="utf-8") == text
    space: dict[str, object] = {}
    exec(text, space)
    convert = space["convert"]
    assert callable(convert)
    made = convert(pyrosys.hub.read_weights(implementations / "theirs.safetensors"))
    torch.testing.assert_close(made, dict(pyrosys.hub.read_weights(implementations / "ours")), rtol=0, atol=0)


DIFF = ("--inputs", "implementations:inputs")


def test_diff_of_equal_models_exits_with_0(implementations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = read(capsys, "diff", "implementations:Theirs", "implementations:Ours", *DIFF, "--html", "page.html")
    assert "compute the same function" in text
    assert (implementations / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    data = json.loads(read(capsys, "diff", "implementations:Theirs", "implementations:Ours", *DIFF, "--json"))
    assert pyrosys.Plan.from_json(data["plan"]).checked == "real weights"


def test_diff_of_other_models_exits_with_1(implementations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "implementations:Theirs", "implementations:Other", *DIFF, "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["equal"] is False
    assert data["reason"]


def test_diff_without_inputs_exits_with_2(implementations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--inputs" in fail(capsys, "diff", "implementations:Theirs", "implementations:Ours")


def test_port_of_a_part(implementations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = vars(sys.modules["implementations"])
    module["Classifier"] = lambda: nn.Sequential(module["Ours"](), nn.Linear(3, 2))
    arguments = (*PORT, "--target", "implementations:Classifier", "--output")
    fail(capsys, *arguments, "whole")
    assert not (implementations / "whole").exists()
    assert "part of the models only: Theirs; Sequential (0)" in read(capsys, *arguments, "part", "--part")
    read(capsys, *arguments, "named", "--target-part", "0")
    for name in ("part", "named"):
        plan = pyrosys.Plan.load(implementations / name / "plan.json")
        assert plan.unreached == ("1.weight", "1.bias")


def test_port_without_a_source(implementations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = vars(sys.modules["implementations"])
    theirs, x = module["Theirs"](), torch.randn(2, 3, 4)
    theirs.load_state_dict(pyrosys.hub.read_weights(implementations / "theirs.safetensors"))
    module |= {"given": lambda: (x,), "expected": lambda: theirs(x)}
    arguments = ("port", "theirs.safetensors", "--target", "implementations:Ours", "--inputs", "implementations:given")
    assert "What would settle it" in fail(capsys, *arguments, "--output", "ours")
    assert not (implementations / "ours").exists()
    read(capsys, *arguments, "--expected", "implementations:expected", "--output", "ours")
    ours = module["Ours"]()
    ours.load_state_dict(pyrosys.hub.read_weights(implementations / "ours"))
    torch.testing.assert_close(ours(x), theirs(x))


def test_port_reads_the_names_that_it_is_told(implementations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = sys.modules["implementations"]
    plain, averaged = module.Theirs().state_dict(), module.Theirs().state_dict()
    both = plain | {f"ema.{name}": tensor for name, tensor in averaged.items()}
    pyrosys.hub.write_weights(implementations / "theirs.safetensors", both)
    arguments = (*PORT, "--target", "implementations:Ours", "--output", "ours")
    assert "--prefix" in fail(capsys, *arguments)
    read(capsys, *arguments, "--prefix", "ema.")
    found = pyrosys.hub.read_weights(implementations / "ours")
    assert torch.equal(found["output.weight"], averaged["out.weight"])


def test_port_that_is_refused_writes_nothing(implementations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PORT, "--target", "implementations:Other", "--output", "other"]) == 2
    assert capsys.readouterr().err.startswith("pyrosys: ")
    assert not (implementations / "other").exists()


def test_port_does_not_overwrite(implementations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (implementations / "ours").mkdir()
    message = fail(capsys, *PORT, "--target", "implementations:Ours", "--output", "ours")
    assert "Choose another --output" in message


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A directory with an entry that the command has published, and a module `mine` that builds its model."""
    monkeypatch.setenv("PYROSYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYROSYS_CATALOGUE", str(tmp_path / "catalogue"))
    monkeypatch.setenv("PYROSYS_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mine", None)
    monkeypatch.delitem(sys.modules, "mine")
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def build():\n    torch.manual_seed(3)\n    return nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2))\n\n"
        "def inputs():\n    return (torch.randn(4, 3),)\n"
    )
    arguments = ["publish", "mine:build", "lab/mine", "--inputs", "mine:inputs", "--hub", "hub"]
    assert main([*arguments, "--dry-run", "--weights-licence", "MIT"]) == 0
    assert "would publish" in capsys.readouterr().out
    assert not (tmp_path / "hub" / "lab").exists()
    assert main([*arguments, "--weights-licence", "MIT", "--code-licence", "MIT", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["files"]) >= {"manifest.json", "structure.json"}
    return tmp_path / "hub"


def test_find_lists_what_was_published(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["find", "mine:build", "--inputs", "mine:inputs", "--hub", str(published)]
    assert main(arguments) == 0
    assert re.search(r"lab/mine +\(whole\) +\(whole\) +100.0 % +fingerprint +MIT", capsys.readouterr().out)
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["coverage"] == 1.0


def test_catalogue_names_and_checks_entries(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalogue", "add", "my-model", str(published / "lab" / "mine")]) == 0
    assert main(["list", "my-*"]) == 0
    assert main(["catalogue", "check", "my-model"]) == 0
    assert "my-model: in order" in capsys.readouterr().out
    (published / "lab" / "mine" / "README.md").write_text("")
    assert main(["catalogue", "check", "my-model", "--json"]) == 2
    assert "README.md" in json.loads(capsys.readouterr().out)["my-model"][0]


def test_catalogue_writes_an_index(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalogue", "index", "index.json", str(published / "lab" / "mine")]) == 0
    assert main(["find", "mine:build", "--inputs", "mine:inputs", "--hub", "index.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2])[0]["part"] == ""


def test_weights_from_a_file_are_published(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["publish", "mine:build", "lab/again", "--inputs", "mine:inputs", "--hub", str(published)]
    weights = str(published / "lab" / "mine" / "model.safetensors")
    assert main([*arguments, "--weights", weights]) == 0
    again = published / "lab" / "again" / "model.safetensors"
    assert again.read_bytes() == Path(weights).read_bytes()
    assert main([*arguments, "--weights", str(published / "lab" / "mine" / "probe.safetensors")]) == 2
    assert "missing" in capsys.readouterr().err


def test_train_writes_an_entry_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"sequence": "MKTAYIAKQR" * (1 + n % 2), "split": ("train", "validation")[n % 2]} for n in range(8)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    configuration = tmp_path / "configuration.yaml"
    configuration.write_text(
        "model: {family: esm, config: {layers: 1, width: 8, heads: 2, contacts: false}}\n"
        "task: {kind: masked-language}\n"
        f"data: {{path: {tmp_path / 'data.parquet'}, tokens: 64}}\n"
        f"trainer: {{directory: {tmp_path / 'run'}, steps: 2, accelerator: cpu}}\n"
    )
    facts = json.loads(read(capsys, "train", str(configuration), "--json"))
    assert facts["steps"] == 2
    assert isinstance(pyrosys.load(facts["entries"][0]), ESM)
    assert "found one. Resume it" in fail(capsys, "train", str(configuration))
    assert "--resume" in fail(capsys, "train", str(configuration))
    assert "2 steps" in read(capsys, "train", str(configuration), "--resume")
    message = fail(capsys, "train", str(configuration), "--resume", "--set", "optimiser.warmup=1")
    assert "optimiser.warmup 0 then and 1 now." in message
