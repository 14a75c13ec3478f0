"""ESM-2, ESM-1b and ESM-1v: masked language models of protein sequences.

Papers: ESM-2, Lin et al. 2023, https://doi.org/10.1126/science.ade2574; ESM-1b, Rives et al. 2021,
https://doi.org/10.1073/pnas.2016239118; ESM-1v, Meier et al. 2021, https://doi.org/10.1101/2021.07.09.450648; the
contact head, Rao et al. 2021, https://openreview.net/forum?id=fylclEqgvgd.

Reference implementations: fair-esm 2.0.0 (MIT) and transformers 5.23 (Apache-2.0). Licence of all weights: MIT.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pyrosys.alphabet import Alphabet
from pyrosys.errors import InputError
from pyrosys.language import MaskedLanguageModel
from pyrosys.modules import (
    Attention,
    ContactHead,
    FeedForward,
    LanguageModelHead,
    LearnedPosition,
    PreNormBlock,
    RotaryPosition,
    TokenEmbedding,
)

__all__ = ["ALPHABET", "ESM", "SIZES", "ESMConfig"]

RESIDUES = "LAGVSERTIDPKQNFYMHWCXBUZO.-"
ALPHABET = Alphabet(
    ("<cls>", "<pad>", "<eos>", "<unk>", *RESIDUES, "<null_1>", "<mask>"), RESIDUES, start="<cls>", end="<eos>"
)
PADDING, END, MASK = (ALPHABET.index[token] for token in ("<pad>", "<eos>", "<mask>"))


@dataclass(frozen=True)
class ESMConfig:
    """What distinguishes the members of the family.

    Args:
        layers: Number of blocks.
        width: Features per token.
        heads: Attention heads per block.
        positions: Largest number of tokens, for learned positions; ``None`` for rotary ones, which have no largest.
        embedding_norm: Whether the embedding is normalised before the first block.
        contacts: Whether the model was released with a contact head.
    """

    layers: int
    width: int
    heads: int
    positions: int | None = None
    embedding_norm: bool = False
    contacts: bool = True


class ESM(MaskedLanguageModel[ESMConfig]):
    """A transformer encoder with a language model head, and a contact head on its attention maps.

    Example:
        >>> model = ESM(ESMConfig(layers=2, width=16, heads=4))
        >>> model(model.alphabet.encode(["MKTAYI", "GS"])).shape
        torch.Size([2, 8, 33])
    """

    alphabet = ALPHABET

    def __init__(self, config: ESMConfig) -> None:
        super().__init__(config)
        width = config.width
        self.embedding = TokenEmbedding(len(ALPHABET), width, padding=PADDING, dropped=MASK)
        self.position = LearnedPosition(config.positions, width, padding=PADDING) if config.positions else None
        self.embedding_norm = nn.LayerNorm(width) if config.embedding_norm else nn.Identity()
        self.layers = nn.ModuleList(esm_block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.head = LanguageModelHead(width, len(ALPHABET))
        self.contact_head = ContactHead(config.layers * config.heads) if config.contacts else None

    def forward(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length vocabulary"]:
        """Predict the token at every position; padding is found from the tokens."""
        return self.head(self.encode(tokens), self.embedding.weight)

    def encode(
        self, tokens: Int[Tensor, "batch length"], layer: int | None = None
    ) -> Float[Tensor, "batch length width"]:
        """Represent tokens by the output of the first ``layer`` blocks, or of all of them, normalised."""
        x, mask = self._embed_tokens(tokens)
        for block in self.layers[:layer]:
            x = block(x, mask=mask)
        return self.norm(x) if layer in (None, len(self.layers)) else x

    def logits_and_contacts(
        self, tokens: Int[Tensor, "batch length"]
    ) -> tuple[Float[Tensor, "batch length vocabulary"], Float[Tensor, "batch residues residues"]]:
        """What ``forward`` and ``contact_probabilities`` give, in one pass."""
        if self.contact_head is None:
            raise InputError("Expected a model with a contact head, found one released without. Use ESM-2 or ESM-1b.")
        x, mask = self._embed_tokens(tokens)
        maps = []
        for block in cast("Iterable[PreNormBlock]", self.layers):
            x, weights = block.with_weights(x, mask=mask)
            maps.append(weights)
        residues = mask & (tokens != END)
        pairs = residues[:, None, :, None] & residues[:, None, None, :]
        contacts = self.contact_head((torch.cat(maps, dim=1) * pairs)[..., 1:-1, 1:-1])
        return self.head(self.norm(x), self.embedding.weight), contacts

    @property
    def complete_method(self) -> str:
        """The contact head is no part of ``forward``."""
        return "forward" if self.contact_head is None else "logits_and_contacts"

    def contact_probabilities(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch residues residues"]:
        """The same as ``contacts``, for a batch of tokens; start and end are left out, padding is not."""
        return self.logits_and_contacts(tokens)[1]

    def contacts(self, sequences: Iterable[str], *, batch_tokens: int = 1024) -> list[Tensor] | Iterator[Tensor]:
        """Predict which residues have their C-beta atoms within 8 Å: probabilities ``(length, length)`` per sequence.

        The head was fitted to residues at least 6 apart. Memory grows with ``batch_tokens`` times the longest sequence.

        Raises:
            InputError: A sequence cannot be used, or the model was released without a contact head.
        """
        return self._run(sequences, self.contact_probabilities, lambda x, length: x[:length, :length], batch_tokens)

    @property
    def longest(self) -> int | None:
        """Largest number of residues, for learned positions: those less the start and end tokens."""
        return self.config.positions and self.config.positions - 2

    def _embed_tokens(
        self, tokens: Int[Tensor, "batch length"]
    ) -> tuple[Float[Tensor, "batch length width"], Bool[Tensor, "batch length"]]:
        mask = tokens != PADDING
        x = self.embedding(tokens)
        if self.position is not None:
            x = x + self.position(mask)
        return self.embedding_norm(x) * mask[..., None], mask


def esm_block(config: ESMConfig) -> PreNormBlock:
    """Build one layer, with rotary positions in its attention if there are no learned ones."""
    rotary = RotaryPosition(config.width // config.heads) if config.positions is None else None
    return PreNormBlock(
        config.width,
        attention=Attention(config.width, config.heads, position=rotary),
        feed_forward=FeedForward(config.width, 4 * config.width),
    )


SIZES = {
    "esm2-8m": ESMConfig(layers=6, width=320, heads=20),
    "esm2-35m": ESMConfig(layers=12, width=480, heads=20),
    "esm2-150m": ESMConfig(layers=30, width=640, heads=20),
    "esm2-650m": ESMConfig(layers=33, width=1280, heads=20),
    "esm2-3b": ESMConfig(layers=36, width=2560, heads=40),
    "esm2-15b": ESMConfig(layers=48, width=5120, heads=40),
    "esm1b-650m": ESMConfig(layers=33, width=1280, heads=20, positions=1024, embedding_norm=True),
    **{f"esm1v-650m-{n}": ESMConfig(33, 1280, 20, positions=1024, contacts=False) for n in (1, 2, 3, 4, 5)},
}
