"""Token embedding: tokens ``(B, L)`` to vectors ``(B, L, D)``."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["TokenEmbedding"]


class TokenEmbedding(nn.Embedding):
    """A table of one vector per token, optionally with token dropout.

    Under token dropout a mask token embeds to zero, and the rest are scaled as dropout scales them: by the share of
    tokens that were kept, as it was on average in training (0.15 chosen, 0.8 of those masked) over as it is here.

    Args:
        vocabulary: Number of tokens.
        width: Features per token.
        padding: Index of the padding token, which embeds to zero and is not counted as a token.
        dropped: Index of the mask token, to switch token dropout on.

    Source:
        The models of fair-esm 2.0.0, from ESM-1b on.

    Example:
        >>> embedding = TokenEmbedding(33, 16, padding=1, dropped=32)
        >>> embedding(torch.tensor([[0, 5, 32, 2]])).shape
        torch.Size([1, 4, 16])
    """

    masked_in_training = 0.15 * 0.8

    def __init__(self, vocabulary: int, width: int, *, padding: int, dropped: int | None = None) -> None:
        super().__init__(vocabulary, width, padding_idx=padding)
        self.padding = padding
        self.dropped = dropped

    def reset_parameters(self) -> None:
        """Draw small values: with unit variance, the logits of a head tied to this table start at ±√D."""
        nn.init.normal_(self.weight, std=0.02)
        if self.padding_idx is not None:
            with torch.no_grad():
                self.weight[self.padding_idx].zero_()

    def forward(self, input: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length width"]:
        """Embed tokens."""
        x = super().forward(input)
        if self.dropped is None:
            return x
        dropped = input == self.dropped
        precision = torch.promote_types(x.dtype, torch.float32)  # bfloat16 cannot count beyond 256
        dropped_here = dropped.sum(1).to(precision) / (input != self.padding).sum(1)
        scale = (1 - self.masked_in_training) / (1 - dropped_here)
        return x.masked_fill(dropped[..., None], 0.0) * scale[:, None, None].to(x.dtype)
