"""Whether a model is right as often as it says."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyrosys.adapters.capture import evaluation_mode
from pyrosys.errors import InputError
from pyrosys.language import MaskedLanguageModel
from pyrosys.losses import cross_entropy

__all__ = ["Calibration", "calibrate"]


@dataclass(frozen=True)
class Calibration:
    """Predictions sorted into bins by the probability of the likeliest class.

    Args:
        counts: Predictions in each bin; the bins are evenly spaced from 0 to 1.
        confidence: Sum of the probabilities in each bin.
        correct: Predictions in each bin that were right.
        surprise: Sum of −log p of the right class, over all predictions.
    """

    counts: list[int]
    confidence: list[float]
    correct: list[int]
    surprise: float

    @classmethod
    def of(
        cls,
        logits: Float[Tensor, "*shape classes"],
        labels: Int[Tensor, "*shape"],
        mask: Bool[Tensor, "*shape"],
        bins: int = 15,
    ) -> Calibration:
        """Sort the predictions that the mask keeps.

        Example:
            >>> labels, mask = torch.tensor([1, 0]), torch.tensor([True, True])
            >>> Calibration.of(torch.tensor([[0.0, 9.0], [0.0, 9.0]]), labels, mask).accuracy
            0.5
        """
        average = cross_entropy(logits, labels, mask)
        confidence, predicted = logits[mask].double().softmax(-1).max(-1)
        bin = (confidence * bins).long().clamp(max=bins - 1)
        right = (predicted == labels[mask]).double()
        counts, sums, hits = (
            torch.zeros(bins, dtype=torch.double).index_add(0, bin.cpu(), x.cpu())
            for x in (torch.ones_like(confidence), confidence, right)
        )
        return cls(counts.int().tolist(), sums.tolist(), hits.int().tolist(), float(average.total))

    def __add__(self, other: Calibration) -> Calibration:
        """Take the predictions of both."""
        return Calibration(
            [a + b for a, b in zip(self.counts, other.counts, strict=True)],
            [a + b for a, b in zip(self.confidence, other.confidence, strict=True)],
            [a + b for a, b in zip(self.correct, other.correct, strict=True)],
            self.surprise + other.surprise,
        )

    @property
    def count(self) -> int:
        """Number of predictions."""
        return sum(self.counts)

    @property
    def error(self) -> float:
        """Expected calibration error: by how much confidence and accuracy differ, averaged over predictions.

        Source:
            Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3.
        """
        gaps = (abs(right - sure) for right, sure in zip(self.correct, self.confidence, strict=True))
        return sum(gaps) / self.count if self.count else math.nan

    @property
    def accuracy(self) -> float:
        """Share of predictions that were right."""
        return sum(self.correct) / self.count if self.count else math.nan

    @property
    def perplexity(self) -> float:
        """Exponential of the mean of −log p of the right class."""
        return math.exp(self.surprise / self.count) if self.count else math.nan


def calibrate(
    model: MaskedLanguageModel[Any], sequences: Iterable[str], *, fraction: float = 0.15, seed: int = 0
) -> Calibration:
    """Hide residues of sequences and see whether the model is as often right about them as it is sure.

    Args:
        model: A masked language model.
        sequences: One-letter codes.
        fraction: Share of the residues of each sequence that are hidden, at least one.
        seed: Decides which.

    Raises:
        InputError: There are no sequences, or the fraction is not from 0 to 1.
    """
    if not 0 <= fraction <= 1:
        raise InputError(f"Expected a fraction from 0 to 1, found {fraction}. The usual one is 0.15.")
    generator = torch.Generator().manual_seed(seed)
    found = None
    for sequence in sequences:
        tokens = model.alphabet.encode([sequence])
        residues = tokens.shape[1] - 2  # less start and end
        places = 1 + torch.randperm(residues, generator=generator)[: max(1, round(fraction * residues))]
        hidden = torch.zeros_like(tokens, dtype=torch.bool).index_fill(1, places, True)
        with evaluation_mode(model), torch.inference_mode():
            logits = model(tokens.masked_fill(hidden, model.alphabet.index[model.alphabet.mask]).to(model.device)).cpu()
        measured = Calibration.of(logits, tokens, hidden)
        found = measured if found is None else found + measured
    if found is None:
        raise InputError("Expected at least one sequence, found none. Pass some.")
    return found
