"""Local distance difference test: which distances to neighbours are kept, smooth as a loss and sharp as a score."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyrosys.losses.average import Average, average_structures, reduced
from pyrosys.modules.geometry import distance

__all__ = ["THRESHOLDS", "compare_distances", "smooth_lddt_loss"]

THRESHOLDS = (0.5, 1.0, 2.0, 4.0)


def smooth_lddt_loss(
    points: Float[Tensor, "batch points 3"],
    true_points: Float[Tensor, "batch points 3"],
    mask: Bool[Tensor, "batch points"],
    *,
    radius: float = 15.0,
) -> Average:
    """One minus the share of distances that are kept, each limit made smooth by a sigmoid, over pairs, then structures.

    A perfect prediction has a loss of 0.196: the sigmoids do not reach 1.

    Args:
        points: Predicted points.
        true_points: The true points.
        mask: Points that are known.
        radius: Pairs count whose true distance is smaller, in Å. For nucleotides, 30 is used.

    Source:
        Abramson et al. 2024, https://doi.org/10.1038/s41586-024-07487-w, supplement, algorithm 27.

    Example:
        >>> points = torch.randn(2, 9, 3)
        >>> smooth_lddt_loss(points, points, torch.ones(2, 9, dtype=torch.bool)).value
        tensor(0.1959)
    """
    change, pairs = compare_distances(points, true_points, mask, radius)
    kept = torch.stack([torch.sigmoid(threshold - change) for threshold in THRESHOLDS]).mean(0)
    return average_structures(1 - kept, pairs)


def compare_distances(
    points: Float[Tensor, "batch points 3"],
    true_points: Float[Tensor, "batch points 3"],
    mask: Bool[Tensor, "batch points"],
    radius: float,
) -> tuple[Float[Tensor, "batch points points"], Bool[Tensor, "batch points points"]]:
    """By how much each distance is off, in Å, and which pairs of different points are neighbours in truth."""
    predicted, true = (reduced(x.where(mask[..., None], 0)) for x in (points, true_points))
    distances, true_distances = (distance(x[:, :, None], x[:, None]) for x in (predicted, true))
    pairs = mask[:, :, None] & mask[:, None] & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return (distances - true_distances).abs(), pairs & (true_distances < radius)
