"""ESM in three implementations: the engine carries weights from each to each, contact head included."""

import argparse
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import esm
import pytest
import torch
from esm.model.esm1 import ProteinBertModel
from esm.model.esm2 import ESM2
from torch import Tensor, nn
from transformers import EsmConfig, EsmForMaskedLM

import pyrosys
from pyrosys import Inputs
from pyrosys.adapters.fingerprint import of_structure
from pyrosys.adapters.structure import Structure
from pyrosys.catalogue import Layout, build
from pyrosys.zoo.esm import ALPHABET, ESM, PADDING, SIZES, ESMConfig

CONFIGS = {
    "esm2": ESMConfig(layers=2, width=24, heads=4),
    "esm1b": ESMConfig(layers=2, width=24, heads=4, positions=50, embedding_norm=True),
}
TOKENS = torch.full((2, 29), PADDING)
LETTERS = [token for token in range(len(ALPHABET)) if token not in (0, PADDING, 2, 32)]
TOKENS[0] = torch.tensor([0, *LETTERS[:26], 32, 2])
TOKENS[1, :20] = torch.tensor([0, *LETTERS[2:15], *LETTERS[25:], 32, 2])


class Ours(ESM):
    def forward(self, tokens: Tensor) -> Any:
        return self.logits_and_contacts(tokens)


class Transformers(EsmForMaskedLM):
    def forward(self, *args: Any, **inputs: Any) -> Any:
        output: Any = super().forward(*args, **inputs, output_attentions=True)
        mask = inputs["attention_mask"]
        pairs = mask[:, None, None, :, None] * mask[:, None, None, None, :]
        return output.logits, self.esm.contact_head(inputs["input_ids"], torch.stack(output.attentions, 1) * pairs)


def transformers(config: ESMConfig) -> nn.Module:
    settings = EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=PADDING,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=(config.positions or 50) + 2,
        layer_norm_eps=1e-5,
        position_embedding_type="absolute" if config.positions else "rotary",
        emb_layer_norm_before=config.embedding_norm,
        token_dropout=True,
    )
    settings._attn_implementation = "eager"
    return Transformers(settings)


def fair(config: ESMConfig) -> nn.Module:
    alphabet = esm.data.Alphabet.from_architecture("ESM-1b")
    if config.positions is None:
        return ESM2(config.layers, config.width, config.heads, alphabet, token_dropout=True)
    arguments = argparse.Namespace(
        arch="roberta_large",
        layers=config.layers,
        embed_dim=config.width,
        ffn_embed_dim=4 * config.width,
        attention_heads=config.heads,
        max_positions=config.positions,
        token_dropout=True,
        emb_layer_norm_before=config.embedding_norm,
    )
    return ProteinBertModel(arguments, alphabet)


@dataclasses.dataclass(frozen=True)
class Implementation:
    build: Callable[[ESMConfig], nn.Module]
    inputs: Inputs
    output: Callable[[Any], Any] | None = None


IMPLEMENTATIONS = {
    "ours": Implementation(Ours, Inputs(TOKENS)),
    "transformers": Implementation(transformers, Inputs(input_ids=TOKENS, attention_mask=(TOKENS != PADDING).long())),
    "fair": Implementation(
        fair, Inputs(tokens=TOKENS, return_contacts=True), lambda output: (output["logits"], output["contacts"])
    ),
}


def outputs(kind: str, model: nn.Module) -> tuple[Tensor, Tensor]:
    implementation = IMPLEMENTATIONS[kind]
    with torch.no_grad():
        output = model(*implementation.inputs.args, **implementation.inputs.kwargs)
    return implementation.output(output) if implementation.output else output


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(IMPLEMENTATIONS, 2)))
def test_weights_go_from_each_implementation_to_each(family: str, source: str, target: str) -> None:
    theirs, ours = (IMPLEMENTATIONS[kind].build(CONFIGS[family]).eval() for kind in (source, target))
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter.requires_grad_(False).normal_(std=0.3, generator=generator)
    plan = pyrosys.match(
        theirs,
        ours,
        IMPLEMENTATIONS[source].inputs,
        IMPLEMENTATIONS[target].inputs,
        source_output=IMPLEMENTATIONS[source].output,
        target_output=IMPLEMENTATIONS[target].output,
    )
    ours.load_state_dict(plan.apply(theirs.state_dict()))
    for expected, found in zip(outputs(source, theirs.double()), outputs(target, ours.double()), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in SIZES if not name.startswith("esm1v") or name.endswith("-1")])
def test_every_official_size_has_the_structure_of_the_reference(name: str) -> None:
    layout = Layout.of(name)
    with torch.device("meta"):
        model = build(name).eval()
    structure = Structure(layout.side(model).capture())
    assert of_structure(structure).whole == layout.card.fingerprint
