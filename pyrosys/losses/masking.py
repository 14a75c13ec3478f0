"""What a masked language model is trained on: which tokens are hidden, and what stands in their place."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from pyrosys.errors import InputError

__all__ = ["Hidden", "hide_tokens"]


class Hidden(NamedTuple):
    """Tokens as a model sees them, and where it has to predict the original ones."""

    tokens: Int[Tensor, "batch length"]
    chosen: Bool[Tensor, "batch length"]


def hide_tokens(
    tokens: Int[Tensor, "batch length"],
    mask: Bool[Tensor, "batch length"],
    *,
    hidden: int,
    others: Int[Tensor, " letters"],
    fraction: float = 0.15,
    generator: torch.Generator | None = None,
) -> Hidden:
    """Choose tokens to be predicted: 80 % of them are hidden, 10 % replaced by a random letter, 10 % kept.

    Args:
        tokens: The original tokens.
        mask: Tokens that may be chosen: residues, not start, end or padding.
        hidden: The token that stands for a hidden one.
        others: The tokens that a random letter is drawn from.
        fraction: Probability that a token is chosen.
        generator: The source of all randomness, on the device of the tokens.

    Raises:
        InputError: The fraction is not from 0 to 1.

    Source:
        Devlin et al. 2019, https://doi.org/10.18653/v1/N19-1423, section 3.1.

    Example:
        >>> tokens = torch.arange(4, 24)[None]
        >>> hide_tokens(tokens, tokens > 0, hidden=32, others=torch.arange(4, 24), fraction=1.0).chosen.all()
        tensor(True)
    """
    if not 0 <= fraction <= 1:
        raise InputError(f"Expected a fraction from 0 to 1, found {fraction}. The usual one is 0.15.")
    device = tokens.device
    chance = torch.rand(tokens.shape, generator=generator, device=device)
    chosen = mask & (chance < fraction)
    fate = torch.rand(tokens.shape, generator=generator, device=device)
    letters = others.to(device)[torch.randint(len(others), tokens.shape, generator=generator, device=device)]
    seen = tokens.where(~chosen | (fate >= 0.9), letters).masked_fill(chosen & (fate < 0.8), hidden)
    return Hidden(seen, chosen)
