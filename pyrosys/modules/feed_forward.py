"""Feed-forward: ``(…, D)`` to the same, each token on its own."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["FeedForward"]


class FeedForward(nn.Module):
    """Two linear layers with a GELU (the exact one, by the error function) between them.

    Args:
        width: Features per token.
        hidden: Features between the two layers.

    Example:
        >>> import torch
        >>> FeedForward(16, 64)(torch.randn(2, 9, 16)).shape
        torch.Size([2, 9, 16])
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Transform every token."""
        return self.down(F.gelu(self.up(x)))
