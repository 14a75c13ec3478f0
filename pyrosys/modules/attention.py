"""Attention: ``x (B, L, D)`` to the same, with an optional ``bias (B, H, L, L)`` and ``mask (B, L)``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pyrosys.errors import InputError

__all__ = ["Attention"]


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        width: Features per token.
        heads: Number of heads; divides ``width``.
        position: Acts on query and key before they meet, for instance a rotary position.

    Source:
        Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.2.

    Raises:
        InputError: ``heads`` does not divide ``width``.

    Example:
        >>> attention = Attention(16, 4)
        >>> attention(torch.randn(2, 9, 16), mask=torch.ones(2, 9, dtype=torch.bool)).shape
        torch.Size([2, 9, 16])
    """

    def __init__(self, width: int, heads: int, *, position: nn.Module | None = None) -> None:
        super().__init__()
        if width % heads:
            raise InputError(f"Expected a width that {heads} heads divide, found {width}. Change one of the two.")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.position = position
        self.output = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        bias: Float[Tensor, "batch heads length length"] | None = None,
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """Let every token attend to the tokens that ``mask`` says are real."""
        query, key, value = self._project(x)
        attended = F.scaled_dot_product_attention(query, key, value, _add_mask(bias, mask, x.dtype))
        return self.output(attended.transpose(1, 2).flatten(2))

    def with_weights(
        self,
        x: Float[Tensor, "batch length width"],
        bias: Float[Tensor, "batch heads length length"] | None = None,
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length width"], Float[Tensor, "batch heads length length"]]:
        """The same as ``forward``, and how much each token (row) attends to each other (column)."""
        query, key, value = self._project(x)
        scores = query @ key.mT * query.shape[-1] ** -0.5
        bias = _add_mask(bias, mask, x.dtype)
        weights = (scores if bias is None else scores + bias).softmax(-1)
        return self.output((weights @ value).transpose(1, 2).flatten(2)), weights

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # batch heads length width/heads
            for project in (self.query, self.key, self.value)
        )
        if self.position is not None:
            query, key = self.position(query, key)
        return query, key, value


def _add_mask(bias: Tensor | None, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Let a bias on the scores shut out what the mask says is not real."""
    if mask is None:
        return bias
    padding = ~mask[:, None, None, :]  # batch 1 1 length
    return (torch.zeros_like(padding, dtype=dtype) if bias is None else bias).masked_fill(padding, -torch.inf)
