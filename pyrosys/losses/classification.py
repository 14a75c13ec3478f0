"""Losses of predicted classes: hidden tokens, residues of a backbone, labels of a protein."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyrosys.errors import InputError
from pyrosys.losses.average import Average, reduced

__all__ = ["cross_entropy", "inverse_folding_loss"]


def cross_entropy(
    logits: Float[Tensor, "*shape classes"],
    labels: Int[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    *,
    smoothing: float = 0.0,
) -> Average:
    """Minus the logarithm of the probability of the right class, averaged over what the mask keeps.

    For masked language models the mask is where tokens were hidden.

    Args:
        logits: Scores of classes; normalised or not makes no difference.
        labels: The right class; anything where the mask is false.
        mask: What counts.
        smoothing: Probability that is taken from the right class and spread evenly over all.

    Raises:
        InputError: Smoothing is not from 0 to 1.

    Source:
        Devlin et al. 2019, https://doi.org/10.18653/v1/N19-1423, section 3.1; smoothing: Szegedy et al. 2016,
        https://arxiv.org/abs/1512.00567, section 7.

    Example:
        >>> import torch
        >>> labels, mask = torch.tensor([[2, 0, 99]]), torch.tensor([[True, True, False]])
        >>> cross_entropy(torch.zeros(1, 3, 20), labels, mask).value.exp()  # a guess among 20
        tensor(20.)
    """
    if not 0 <= smoothing <= 1:
        raise InputError(f"Expected smoothing from 0 to 1, found {smoothing}. Choose a small one, such as 0.1.")
    chosen = reduced(logits[mask])  # what is masked is left out, not multiplied by 0: it may be infinite
    total = F.cross_entropy(chosen, labels[mask].long(), reduction="sum", label_smoothing=smoothing)
    return Average(total, mask.sum().to(total.dtype))


def inverse_folding_loss(
    logits: Float[Tensor, "batch length classes"],
    sequence: Int[Tensor, "batch length"],
    mask: Bool[Tensor, "batch length"],
    *,
    weight: float = 0.1,
) -> Average:
    """Minus the log-likelihood of native sequences, smoothed as for ProteinMPNN.

    ``weight`` is spread over all letters and the sum normalised: a smoothing of weight / (1 + weight).

    Args:
        logits: Scores of letters, or their log-probabilities.
        sequence: The native letters.
        mask: Residues to be designed that are real.
        weight: What is added to the one of the native letter, over all letters together.

    Raises:
        InputError: The weight is negative.

    Source:
        Dauparas et al. 2022, https://doi.org/10.1126/science.add2187, supplement; ``loss_smoothed`` of the authors'
        code. Their training divides by a constant where this divides by the number of residues.

    Example:
        >>> import torch
        >>> logits, sequence = torch.randn(2, 9, 21), torch.randint(21, (2, 9))
        >>> inverse_folding_loss(logits, sequence, torch.ones(2, 9, dtype=torch.bool)).count
        tensor(18.)
    """
    if weight < 0:
        raise InputError(f"Expected a weight of 0 or more, found {weight}. ProteinMPNN was trained with 0.1.")
    return cross_entropy(logits, sequence, mask, smoothing=weight / (1 + weight))
