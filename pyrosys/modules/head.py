"""Heads: from a trunk's features to what the model predicts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["ContactHead", "LanguageModelHead", "PropertyHead", "average_product_correction"]


class LanguageModelHead(nn.Module):
    """Features to logits over the vocabulary, by the likeness of each token's transformed features to each embedding.

    The weight of the last step is the token embedding's own, so the caller passes it.

    Args:
        width: Features per token.
        vocabulary: Number of tokens.

    Example:
        >>> head = LanguageModelHead(16, 33)
        >>> head(torch.randn(2, 9, 16), torch.randn(33, 16)).shape
        torch.Size([2, 9, 33])
    """

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(
        self, x: Float[Tensor, "batch length width"], embedding: Float[Tensor, "vocabulary width"]
    ) -> Float[Tensor, "batch length vocabulary"]:
        """Predict the token at every position."""
        return F.linear(self.norm(F.gelu(self.transform(x))), embedding, self.bias)


class ContactHead(nn.Module):
    """Logistic regression on attention maps, made symmetric and corrected for the average product.

    Args:
        maps: Number of attention maps: layers times heads.

    Source:
        Rao et al. 2021, https://openreview.net/forum?id=fylclEqgvgd.

    Example:
        >>> contacts = ContactHead(12)(torch.rand(2, 12, 7, 7))
        >>> contacts.shape, torch.allclose(contacts, contacts.mT)
        (torch.Size([2, 7, 7]), True)
    """

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.regression = nn.Linear(maps, 1)

    def forward(self, maps: Float[Tensor, "batch maps length length"]) -> Float[Tensor, "batch length length"]:
        """Predict the probability that two residues are in contact."""
        features = average_product_correction(maps + maps.mT)
        return self.regression(features.movedim(1, -1)).squeeze(-1).sigmoid()


class PropertyHead(nn.Module):
    """Features to numbers or logits of classes, in one linear layer or two.

    Args:
        width: Features per token or protein.
        outputs: How many numbers to predict of each.
        hidden: Features of a layer in between, with a GELU.
        dropout: Probability of dropout on what goes in.

    Example:
        >>> PropertyHead(16, 3, hidden=8)(torch.randn(2, 9, 16)).shape
        torch.Size([2, 9, 3])
    """

    def __init__(self, width: int, outputs: int, *, hidden: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(width, hidden) if hidden else None
        self.output = nn.Linear(hidden or width, outputs)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch outputs"]:
        """Predict the properties of each."""
        x = self.dropout(x)
        return self.output(x if self.hidden is None else F.gelu(self.hidden(x)))


def average_product_correction(maps: Float[Tensor, "*batch length length"]) -> Float[Tensor, "*batch length length"]:
    """Take away from each entry what its row's and column's sums alone would predict.

    Source:
        Dunn et al. 2008, https://doi.org/10.1093/bioinformatics/btm604.

    Example:
        >>> average_product_correction(torch.ones(3, 3)).abs().max()  # all of it is background
        tensor(0.)
    """
    rows, columns = maps.sum(-1, keepdim=True), maps.sum(-2, keepdim=True)
    return maps - rows * columns / rows.sum(-2, keepdim=True)
