"""Cross entropy of predicted distances, in bins."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyrosys.losses.average import Average, average_structures, reduced
from pyrosys.modules.geometry import distance

__all__ = ["distogram_loss"]


def distogram_loss(
    logits: Float[Tensor, "batch length length bins"],
    points: Float[Tensor, "batch length 3"],
    mask: Bool[Tensor, "batch length"],
    *,
    low: float = 2.3125,
    high: float = 21.6875,
) -> Average:
    """Cross entropy of binned distances between residues, averaged over pairs of different residues, then structures.

    The first bin has all distances below ``low``, the last all above ``high``, and those between are evenly spaced.

    Args:
        logits: Scores of bins for each pair, the same for both orders of a pair.
        points: True place of each residue, usually its CB, or CA for glycine.
        mask: Residues whose place is known.
        low: Upper limit of the first bin.
        high: Lower limit of the last bin.

    Source:
        Jumper et al. 2021, https://doi.org/10.1038/s41586-021-03819-2, supplement 1.9.8, which counts the diagonal too.

    Example:
        >>> points = torch.tensor([[[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [9.0, 0.0, 0.0]]])
        >>> distogram_loss(torch.zeros(1, 3, 3, 64), points, torch.tensor([[True, True, False]])).value.exp()
        tensor(64.)
    """
    known = reduced(points.where(mask[..., None], 0))
    edges = torch.linspace(low, high, logits.shape[-1] - 1, dtype=known.dtype, device=known.device)
    labels = torch.bucketize(distance(known[:, :, None], known[:, None]), edges)
    pairs = mask[:, :, None] & mask[:, None] & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    scores = reduced(logits.where(pairs[..., None], 0)).log_softmax(-1)
    return average_structures(-scores.gather(-1, labels[..., None]).squeeze(-1), pairs)
