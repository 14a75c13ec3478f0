"""ESM-2, ESM-1b and ESM-1v: masked language models of protein sequences.

Papers: ESM-2, Lin et al. 2023, https://doi.org/10.1126/science.ade2574; ESM-1b, Rives et al. 2021,
https://doi.org/10.1073/pnas.2016239118; ESM-1v, Meier et al. 2021, https://doi.org/10.1101/2021.07.09.450648; the
contact head, Rao et al. 2021, https://openreview.net/forum?id=fylclEqgvgd.

Reference implementations: fair-esm 2.0.0 and transformers 5.23. Licence of their code and of all weights: MIT.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pyrosys.alphabet import Alphabet
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
START, PADDING, END, MASK = (ALPHABET.index[token] for token in ("<cls>", "<pad>", "<eos>", "<mask>"))


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
        rotary = config.positions is None
        width = config.width
        self.embedding = TokenEmbedding(len(ALPHABET), width, padding=PADDING, dropped=MASK)
        self.position = None if config.positions is None else LearnedPosition(config.positions, width, padding=PADDING)
        self.embedding_norm = nn.LayerNorm(width) if config.embedding_norm else nn.Identity()
        self.layers = nn.ModuleList(
            PreNormBlock(
                width,
                attention=Attention(
                    width, config.heads, position=RotaryPosition(width // config.heads) if rotary else None
                ),
                feed_forward=FeedForward(width, 4 * width),
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = LanguageModelHead(width, len(ALPHABET))
        self.contact_head = ContactHead(config.layers * config.heads) if config.contacts else None

    def forward(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length vocabulary"]:
        """Predict the token at every position; padding is found from the tokens."""
        return self.head(self.encode(tokens), self.embedding.weight)

    def encode(
        self, tokens: Int[Tensor, "batch length"], layer: int | None = None
    ) -> Float[Tensor, "batch length width"]:
        """Represent tokens by the output of ``layer`` blocks; of all of them, the normalised one."""
        x, mask = self._embed(tokens)
        for block in self.layers[:layer]:
            x = block(x, mask=mask)
        return self.norm(x) if layer is None or layer == len(self.layers) else x

    def contact_probabilities(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch residues residues"]:
        """Predict which residues touch: C-beta atoms within 8 Å."""
        x, mask = self._embed(tokens)
        maps = []
        for block in self.layers:
            x, weights = block.with_weights(x, mask=mask)
            maps.append(weights)
        residues = mask & (tokens != END)
        pairs = residues[:, None, :, None] & residues[:, None, None, :]
        return self.contact_head((torch.cat(maps, dim=1) * pairs)[..., 1:-1, 1:-1])

    def example(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Two sequences, one with a masked residue and one with padding."""
        residues = torch.randint(4, 24, (2, 7), generator=generator)
        residues[0, 2] = MASK
        tokens = nn.functional.pad(nn.functional.pad(residues, (1, 0), value=START), (0, 1), value=END)
        tokens[1, 5:] = torch.tensor([END, PADDING, PADDING, PADDING])
        return (tokens,)

    def _embed(
        self, tokens: Int[Tensor, "batch length"]
    ) -> tuple[Float[Tensor, "batch length width"], Bool[Tensor, "batch length"]]:
        mask = tokens != PADDING
        x = self.embedding(tokens)
        if self.position is not None:
            x = x + self.position(mask)
        return self.embedding_norm(x) * mask[..., None], mask


SIZES = {
    "esm2-8m": ESMConfig(layers=6, width=320, heads=20),
    "esm2-35m": ESMConfig(layers=12, width=480, heads=20),
    "esm2-150m": ESMConfig(layers=30, width=640, heads=20),
    "esm2-650m": ESMConfig(layers=33, width=1280, heads=20),
    "esm2-3b": ESMConfig(layers=36, width=2560, heads=40),
    "esm2-15b": ESMConfig(layers=48, width=5120, heads=40),
    "esm1b-650m": ESMConfig(layers=33, width=1280, heads=20, positions=1024, embedding_norm=True),
    "esm1v-650m-1": ESMConfig(layers=33, width=1280, heads=20, positions=1024, contacts=False),
    "esm1v-650m-2": ESMConfig(layers=33, width=1280, heads=20, positions=1024, contacts=False),
    "esm1v-650m-3": ESMConfig(layers=33, width=1280, heads=20, positions=1024, contacts=False),
    "esm1v-650m-4": ESMConfig(layers=33, width=1280, heads=20, positions=1024, contacts=False),
    "esm1v-650m-5": ESMConfig(layers=33, width=1280, heads=20, positions=1024, contacts=False),
}
