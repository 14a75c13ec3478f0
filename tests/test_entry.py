"""Entries: what they give, and that hostile ones are refused."""

import base64
import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pyrosys
from pyrosys.entry import CONFIG, PROBE, README, STRUCTURE, Entry
from pyrosys.errors import InputError, PyrosysError, VerificationError, WeightsError
from pyrosys.hub import read_weights, write_weights
from pyrosys.hub.manifest import MANIFEST, write_manifest
from pyrosys.zoo.esm import ESM, ESMConfig
from pyrosys.zoo.proteinmpnn import ProteinMPNN, ProteinMPNNConfig
from tests.hub.processes import small_model

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYROSYS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    model, inputs = small_model(0)
    return Path(pyrosys.publish(model, "lab/small", hub=tmp_path, inputs=inputs).address)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    model = ESM(ESMConfig(layers=1, width=8, heads=2))
    return Path(pyrosys.publish(model, "lab/esm", hub=tmp_path).address)


def edit(folder: Path, name: str, change: Change) -> None:
    """Change a file of an entry the way an attacker would, manifest included."""
    data = json.loads((folder / name).read_bytes())
    change(data)
    (folder / name).write_text(json.dumps(data))
    write_manifest(folder)


@pytest.mark.parametrize("name", [CONFIG, STRUCTURE, PROBE, README, MANIFEST, "model.safetensors"])
def test_a_flipped_byte_in_any_file_is_reported(name: str, entry: Path) -> None:
    content = (entry / name).read_bytes()
    model, _ = small_model(1)
    for place in torch.randint(len(content), (12,)).tolist():
        (entry / name).write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(PyrosysError):
            pyrosys.load(entry, into=model)


@pytest.mark.parametrize("name", [CONFIG, STRUCTURE, PROBE, README, MANIFEST, "model.safetensors"])
def test_a_missing_file_is_reported(name: str, entry: Path) -> None:
    (entry / name).unlink()
    with pytest.raises(WeightsError):
        pyrosys.load(entry, into=small_model(1)[0])


def call(data: dict[str, Any], number: int = 0) -> dict[str, Any]:
    """One of the calls that a card records."""
    return [node for node in data["nodes"] if "call" in node][number]


def unknown_operation(data: dict[str, Any]) -> None:
    call(data)["call"] = "from_file"


def operation_of_another_namespace(data: dict[str, Any]) -> None:
    call(data)["call"] = "prims.add"


def operation_that_writes(data: dict[str, Any]) -> None:
    call(data)["call"] = "add_.Tensor"


def giant_result(data: dict[str, Any]) -> None:
    node = call(data)
    node.update(call="new_zeros", args=[node["args"][0], [1 << 20, 1 << 20]], kwargs={"dict": {}})
    node["shape"] = [1 << 20, 1 << 20]


def another_shape(data: dict[str, Any]) -> None:
    call(data, 1)["shape"] = [1]


def giant_tensor(data: dict[str, Any]) -> None:
    data["tensors"]["0.weight"][0] = [1 << 41, 1 << 41]


def not_a_dtype(data: dict[str, Any]) -> None:
    call(data)["dtype"] = "load"


def bomb(data: dict[str, Any]) -> None:
    constant = next(node for node in data["nodes"] if "constant" in node)["constant"]
    constant["tensor"] = base64.b64encode(gzip.compress(bytes(50_000_000))).decode()


def node_of_the_future(data: dict[str, Any]) -> None:
    call(data)["args"] = [{"node": 10_000}]


def another_format(data: dict[str, Any]) -> None:
    data["format"] = "pyrosys-structure/9"


def without_nodes(data: dict[str, Any]) -> None:
    del data["nodes"]


def another_constant(data: dict[str, Any]) -> None:
    call(data, -1)["kwargs"] = {"dict": {"alpha": 2}}


HOSTILE = [
    unknown_operation,
    operation_of_another_namespace,
    operation_that_writes,
    giant_result,
    another_shape,
    giant_tensor,
    not_a_dtype,
    bomb,
    node_of_the_future,
    another_format,
    without_nodes,
]


@pytest.mark.parametrize("change", HOSTILE)
def test_hostile_structure_cards_are_refused(change: Change, entry: Path) -> None:
    edit(entry, STRUCTURE, change)
    model, _ = small_model(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError):
        pyrosys.load(entry, into=model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_duplicate_keys_in_a_structure_card_are_refused(entry: Path) -> None:
    text = (entry / STRUCTURE).read_text()
    (entry / STRUCTURE).write_text(text.replace("{", '{"name":"x",', 1))
    write_manifest(entry)
    with pytest.raises(WeightsError, match="occurs twice"):
        pyrosys.load(entry, into=small_model(1)[0])


def test_weights_of_another_model_are_refused(entry: Path) -> None:
    state = {name: tensor + 1e-3 for name, tensor in read_weights(entry).items()}
    write_weights(entry / "model.safetensors", state)
    write_manifest(entry)
    with pytest.raises(VerificationError, match="the outputs on record.*Do not use it"):
        pyrosys.load(entry, into=small_model(1)[0])


def test_a_probe_of_another_model_is_refused(entry: Path, tmp_path: Path) -> None:
    model, inputs = small_model(3)
    other = pyrosys.publish(model, "lab/other", hub=tmp_path, inputs=inputs)
    (entry / PROBE).write_bytes(Path(other.address, PROBE).read_bytes())
    write_manifest(entry)
    with pytest.raises(VerificationError):
        pyrosys.load(entry, into=small_model(1)[0])


@pytest.mark.parametrize("value", [1 << 40, -1, 5000])
def test_a_configuration_of_another_size_is_refused(value: int, ours: Path) -> None:
    edit(ours, CONFIG, lambda data: data["config"].update(layers=value))
    with pytest.raises(WeightsError, match="of the size of its weights"):
        pyrosys.load(ours)


@pytest.mark.parametrize(
    "config", [None, [], {}, {"layers": "1", "width": 8, "heads": 2}, {"layers": 1, "width": 8, "heads": 2, "x": 0}]
)
def test_what_is_no_configuration_is_refused(config: object, ours: Path) -> None:
    edit(ours, CONFIG, lambda data: data.update(config=config))
    with pytest.raises(WeightsError):
        pyrosys.load(ours)


@pytest.mark.parametrize("name", ["os:system", "pyrosys.zoo.esm:os", "pyrosys.model:Model", None, 7])
def test_only_classes_of_the_zoo_are_built(name: object, ours: Path) -> None:
    edit(ours, CONFIG, lambda data: data.update({"class": name}))
    with pytest.raises(InputError, match="not a class of the zoo.*into=model"):
        pyrosys.load(ours)


def test_another_configuration_of_the_same_shapes_is_noticed(ours: Path) -> None:
    edit(ours, CONFIG, lambda data: data["config"].update(heads=4))
    with pytest.raises(PyrosysError):
        pyrosys.load(ours)


def test_names_of_an_older_version_are_matched_by_structure(ours: Path) -> None:
    model = pyrosys.load(ours)

    def rename(name: str) -> str:
        return name.replace("layers.", "blocks.").replace("norm", "normalisation")

    write_weights(ours / "model.safetensors", {rename(n): t for n, t in read_weights(ours).items()})
    data = json.loads((ours / STRUCTURE).read_bytes())
    data["tensors"] = {rename(name): value for name, value in data["tensors"].items()}
    for key in ("buffers", "derived"):
        data[key] = [rename(name) for name in data[key]]
    for node in data["nodes"]:
        if "parameter" in node:
            node["parameter"] = rename(node["parameter"])
    (ours / STRUCTURE).write_text(json.dumps(data))
    write_manifest(ours)
    again = pyrosys.load(ours)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_of_the_zoo_come_back_as_they_were(dtype: torch.dtype, tmp_path: Path) -> None:
    model = ProteinMPNN(ProteinMPNNConfig(width=16)).to(dtype).eval()
    address = pyrosys.publish(model, "lab/mpnn", hub=tmp_path).address
    back = pyrosys.load("lab/mpnn", hub=tmp_path)
    assert isinstance(back, ProteinMPNN)
    assert back.config == model.config
    assert {name: (t.dtype, t.tolist()) for name, t in back.state_dict().items()} == {
        name: (t.dtype, t.tolist()) for name, t in model.state_dict().items()
    }
    assert Entry(Path(address)).probe.tolerances


class Parent(nn.Module):
    """A model of one's own with a published part in it."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 6))
        self.out = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2, bias=False))
        self.register_buffer("steps", torch.tensor(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.trunk(x))


class Other(nn.Module):
    """The part, written differently."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Parameter(torch.randn(5, 6))
        self.there = nn.Parameter(torch.randn(6, 5))
        self.shifts = nn.ParameterList([torch.randn(6), torch.randn(5)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(x @ self.there + self.shifts[1]) @ self.back + self.shifts[0]


def test_parts_go_into_models_of_their_own(tmp_path: Path) -> None:
    model, x = Parent(), torch.randn(3, 6)
    published = pyrosys.publish(model, "lab/parent", hub=tmp_path, inputs=(x,))
    assert set(published.parts) >= {"trunk", "out"}
    part = Other()
    pyrosys.load("lab/parent", hub=tmp_path, into=part, part="trunk")
    torch.testing.assert_close(part(x), model.trunk(x))
    ported = pyrosys.port(published.address, Other(), part="trunk")
    assert ported.coverage == 1.0
    with pytest.raises(InputError, match="found 'middle'. It has: .*trunk"):
        pyrosys.load("lab/parent", hub=tmp_path, into=part, part="middle")
    with pytest.raises(InputError, match="together with into"):
        pyrosys.load("lab/parent", hub=tmp_path, part="trunk")  # type: ignore[call-overload]


def test_what_keeps_its_values_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Extended(Parent):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(6, 6)

    x = torch.randn(3, 6)
    pyrosys.publish(Parent(), "lab/parent", hub=tmp_path, inputs=(x,))
    pyrosys.load("lab/parent", hub=tmp_path, into=Extended())
    assert "covers 71.8 % of Extended; these keep their values: unused.weight, unused.bias" in caplog.text


def test_entries_are_data(entry: Path) -> None:
    structure = Entry(entry).structure
    assert {"licences", "doi", "provenance", "digest", "order", "signature", "versions"} <= set(structure)
    assert [dataclasses.asdict(Entry(entry).probe)["tolerances"]] != [[]]
