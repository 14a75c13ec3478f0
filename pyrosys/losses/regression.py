"""Losses of predicted numbers."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from pyrosys.losses.average import Average, reduced

__all__ = ["squared_error"]


def squared_error(
    prediction: Float[Tensor, "*shape"], truth: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]
) -> Average:
    """Squared difference, averaged over what the mask keeps.

    Example:
        >>> import torch
        >>> prediction, truth = torch.tensor([1.0, 9.0]), torch.tensor([3.0, torch.nan])
        >>> squared_error(prediction, truth, mask=torch.tensor([True, False])).value
        tensor(4.)
    """
    total = (reduced(prediction[mask]) - reduced(truth[mask])).square().sum()
    return Average(total, mask.sum().to(total.dtype))
