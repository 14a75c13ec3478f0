"""How well letters are predicted."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyrosys.losses import Average, cross_entropy
from pyrosys.losses.average import reduced
from pyrosys.metrics.average import AverageMetric, average_rows

__all__ = ["Perplexity", "PseudoPerplexity", "SequenceRecovery"]


class Perplexity(AverageMetric):
    """How many letters a model hesitates between: the exponential of the mean of −log p over all residues.

    Example:
        >>> import torch
        >>> metric = Perplexity()
        >>> metric.update(torch.zeros(2, 5, 20), torch.randint(20, (2, 5)), torch.ones(2, 5, dtype=torch.bool))
        >>> metric.compute().round(decimals=4)
        tensor(20.)
    """

    higher_is_better = False

    def update(
        self,
        logits: Float[Tensor, "batch length classes"],
        tokens: Int[Tensor, "batch length"],
        mask: Bool[Tensor, "batch length"],
    ) -> None:
        """Add predictions.

        Args:
            logits: Scores of letters, or their log-probabilities.
            tokens: The right letters.
            mask: What counts, such as the residues that were hidden.
        """
        self.add(cross_entropy(logits, tokens, mask))

    def compute(self) -> Float[Tensor, ""]:
        """The perplexity so far."""
        return super().compute().exp()


class PseudoPerplexity(AverageMetric):
    """Mean over sequences of the perplexity of each, where every residue is predicted from all the others.

    Source:
        Salazar et al. 2020, https://doi.org/10.18653/v1/2020.acl-main.240; averaged as in Lin et al. 2023,
        https://doi.org/10.1126/science.ade2574.

    Example:
        >>> import torch
        >>> metric = PseudoPerplexity()
        >>> metric.update(torch.full((1, 4), 0.5).log(), torch.tensor([[True, True, True, False]]))
        >>> metric.compute().round(decimals=4)
        tensor(2.)
    """

    higher_is_better = False

    def update(self, log_probabilities: Float[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]) -> None:
        """Add sequences.

        Args:
            log_probabilities: That of each residue, predicted while it was hidden.
            mask: Which residues are real; a sequence without any does not count.
        """
        counts = mask.sum(1)
        means = reduced(log_probabilities.where(mask, 0)).sum(1) / counts.clamp(min=1)
        self.add(average_rows((-means).exp(), counts > 0))


class SequenceRecovery(AverageMetric):
    """Share of residues for which the predicted letter is the native one.

    Args:
        per_protein: Whether to average over residues of a protein first, and then over proteins.

    Example:
        >>> import torch
        >>> metric = SequenceRecovery()
        >>> metric.update(torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2, 0]]), torch.ones(1, 3, dtype=torch.bool))
        >>> metric.compute().round(decimals=4)
        tensor(0.6667)
    """

    higher_is_better = True

    def __init__(self, per_protein: bool = False) -> None:
        super().__init__()
        self.per_protein = per_protein

    def update(
        self,
        predicted: Int[Tensor, "batch length"],
        native: Int[Tensor, "batch length"],
        mask: Bool[Tensor, "batch length"],
    ) -> None:
        """Add designed sequences, or the likeliest letters of a prediction."""
        hits, counts = (x.sum(1).to(self.total.dtype) for x in ((predicted == native) & mask, mask))
        if self.per_protein:
            self.add(average_rows(hits / counts.clamp(min=1), counts > 0))
        else:
            self.add(Average(hits.sum(), counts.sum()))
