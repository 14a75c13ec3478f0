"""Position: where each token stands in its sequence.

A learned position is added to the tokens, ``mask (B, L)`` to ``(B, L, D)``. A rotary one acts inside attention, on
``query`` and ``key`` ``(B, H, L, d)``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pyrosys.errors import InputError

__all__ = ["LearnedPosition", "RotaryPosition"]


class LearnedPosition(nn.Embedding):
    """A table of one vector per position, counted over the real tokens only.

    The first position is at row ``padding + 1``. The row before it is for padding, and any before that are unused: the
    layout of RoBERTa, which counts positions on from the index of the padding token.

    Args:
        positions: Largest number of tokens.
        width: Features per token.
        padding: Index of the padding token.

    Example:
        >>> position = LearnedPosition(1024, 16, padding=1)
        >>> position(torch.tensor([[True, True, True, False]])).shape
        torch.Size([1, 4, 16])
    """

    def __init__(self, positions: int, width: int, *, padding: int) -> None:
        super().__init__(positions + padding + 1, width, padding_idx=padding)
        self.positions = positions
        self.padding = padding

    def forward(self, input: Bool[Tensor, "batch length"]) -> Float[Tensor, "batch length width"]:
        """Look up the position of every token that ``input``, the mask, says is real.

        Raises:
            InputError: There are more tokens than positions.
        """
        if input.shape[1] > self.positions:
            raise InputError(
                f"Expected at most {self.positions} tokens, the positions this model has learned, found "
                f"{input.shape[1]}. Cut the sequence, or use a model with rotary positions."
            )
        real = input.long()
        return super().forward(real.cumsum(1) * real + self.padding)


class RotaryPosition(nn.Module):
    """Turn feature pairs of query and key by angles that grow with the position, so that attention sees distances.

    Feature ``i`` of the first half is paired with feature ``i`` of the second half.

    Args:
        width: Features per head, an even number.
        base: The slowest pair turns by about ``1 / base`` radians a position, the fastest by one.

    Attributes:
        frequencies: Radians per position of each pair, shape ``(width / 2,)``. They are kept with the weights, because
            checkpoints trained in half precision hold rounded ones.

    Source:
        Su et al. 2021, RoFormer, https://arxiv.org/abs/2104.09864, section 3.4.

    Example:
        >>> query, key = torch.randn(2, 1, 4, 9, 8)
        >>> turned, _ = RotaryPosition(8)(query, key)
        >>> torch.allclose(turned.norm(dim=-1), query.norm(dim=-1))  # a rotation
        True
    """

    frequencies: Tensor

    def __init__(self, width: int, base: float = 10000.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", 1 / base ** (torch.arange(0, width, 2) / width))

    def forward(
        self, query: Float[Tensor, "batch heads length width"], key: Float[Tensor, "batch heads length width"]
    ) -> tuple[Float[Tensor, "batch heads length width"], Float[Tensor, "batch heads length width"]]:
        """Turn every query and key by its position."""
        positions = torch.arange(query.shape[-2], device=query.device, dtype=self.frequencies.dtype)
        angles = torch.outer(positions, self.frequencies)
        cosine, sine = angles.cos().to(query.dtype), angles.sin().to(query.dtype)
        return _turn(query, cosine, sine), _turn(key, cosine, sine)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryPosition:
        # In bfloat16 the angle of position 1000 would be wrong by radians: follow a cast no lower than float32.
        exact = self.frequencies
        super()._apply(fn, recurse)
        if self.frequencies.dtype.itemsize < torch.float32.itemsize:
            self.frequencies = exact.to(self.frequencies.device)
        return self


def _turn(
    x: Float[Tensor, "*batch length width"], cosine: Float[Tensor, "length half"], sine: Float[Tensor, "length half"]
) -> Float[Tensor, "*batch length width"]:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
