"""Block: attention and feed-forward with residuals, ``(B, L, D)`` to the same."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn

from pyrosys.modules.attention import Attention

__all__ = ["PreNormBlock"]


class PreNormBlock(nn.Module):
    """A transformer layer that normalises what goes into attention and feed-forward, not what comes out.

    Args:
        width: Features per token.
        attention: A member of the attention family.
        feed_forward: A member of the feed-forward family.

    Source:
        Xiong et al. 2020, https://arxiv.org/abs/2002.04745, figure 1b.

    Example:
        >>> import torch
        >>> from pyrosys.modules import FeedForward
        >>> block = PreNormBlock(16, attention=Attention(16, 4), feed_forward=FeedForward(16, 64))
        >>> block(torch.randn(2, 9, 16)).shape
        torch.Size([2, 9, 16])
    """

    def __init__(self, width: int, *, attention: Attention, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = attention
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = feed_forward

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        bias: Float[Tensor, "batch heads length length"] | None = None,
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """Attend, then transform."""
        x = x + self.attention(self.attention_norm(x), bias, mask)
        return x + self.feed_forward(self.feed_forward_norm(x))

    def with_weights(
        self,
        x: Float[Tensor, "batch length width"],
        bias: Float[Tensor, "batch heads length length"] | None = None,
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length width"], Float[Tensor, "batch heads length length"]]:
        """The same as ``forward``, and the attention weights."""
        attended, weights = self.attention.with_weights(self.attention_norm(x), bias, mask)
        x = x + attended
        return x + self.feed_forward(self.feed_forward_norm(x)), weights
