"""How alike two structures of one protein are: point by point, as lengths and scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyrosys.losses.average import reduced
from pyrosys.losses.lddt import THRESHOLDS, compare_distances
from pyrosys.metrics.average import AverageMetric, average_rows

__all__ = ["LDDT", "RMSD", "TMScore", "lddt", "rmsd", "superpose", "tm_score"]

ITERATIONS = 20  # of the search for the best superposition
SHORTEST = 4  # points that a search starts from


def superpose(
    points: Float[Tensor, "batch points 3"],
    onto: Float[Tensor, "batch points 3"],
    mask: Bool[Tensor, "batch points"],
) -> Float[Tensor, "batch points 3"]:
    """Turn and shift points so that the squared distances of those in the mask become least; never reflect them.

    All points are moved, those outside the mask too.

    Source:
        Kabsch 1976, https://doi.org/10.1107/S0567739476001873.

    Example:
        >>> points, mask = torch.randn(1, 9, 3), torch.ones(1, 9, dtype=torch.bool)
        >>> torch.allclose(superpose(points.roll(1, -1) + 5, points, mask), points, atol=1e-5)
        True
    """
    dtype = torch.promote_types(reduced(points).dtype, reduced(onto).dtype)
    moving, fixed = points.to(dtype), onto.to(dtype)
    count = mask.sum(1).clamp(min=1)[:, None, None]
    from_centre, to_centre = (x.where(mask[..., None], 0).sum(1, keepdim=True) / count for x in (moving, fixed))
    with torch.autocast(mask.device.type, enabled=False):
        start, goal = ((moving - from_centre).where(mask[..., None], 0), (fixed - to_centre).where(mask[..., None], 0))
        # Points that are not finite stay so without any help from the rotation.
        left, _, right = torch.linalg.svd((start.mT @ goal).nan_to_num())
        handedness = torch.linalg.det(left @ right).sign()
        left = torch.cat([left[..., :2], left[..., 2:] * handedness[:, None, None]], -1)
        return (moving - from_centre) @ (left @ right) + to_centre


def rmsd(
    points: Float[Tensor, "batch points 3"],
    true_points: Float[Tensor, "batch points 3"],
    mask: Bool[Tensor, "batch points"],
) -> Float[Tensor, " batch"]:
    """Root of the mean squared distance, in Å, after superposition; NaN where the mask keeps no point."""
    moved = superpose(points, true_points, mask)
    squares = (moved - true_points).square().sum(-1).where(mask, 0)
    return (squares.sum(1) / mask.sum(1)).sqrt()


def lddt(
    points: Float[Tensor, "batch points 3"],
    true_points: Float[Tensor, "batch points 3"],
    mask: Bool[Tensor, "batch points"],
    *,
    radius: float = 15.0,
) -> Float[Tensor, " batch"]:
    """Share of true distances below ``radius`` Å that are kept within 0.5, 1, 2 and 4 Å, averaged over these limits.

    NaN where there is no such distance.

    Source:
        Mariani et al. 2013, https://doi.org/10.1093/bioinformatics/btt473, for one point per residue.

    Example:
        >>> points = torch.randn(2, 9, 3)
        >>> lddt(points, points, torch.ones(2, 9, dtype=torch.bool))
        tensor([1., 1.])
    """
    change, pairs = compare_distances(points, true_points, mask, radius)
    kept = sum(((change < threshold) & pairs).sum((1, 2)) for threshold in THRESHOLDS)
    return torch.as_tensor(kept) / (len(THRESHOLDS) * pairs.sum((1, 2)))


def tm_score(
    points: Float[Tensor, "batch points 3"],
    true_points: Float[Tensor, "batch points 3"],
    mask: Bool[Tensor, "batch points"],
) -> Float[Tensor, " batch"]:
    """Mean of 1 / (1 + squared distance / d0²) in the superposition that makes it largest, as far as a search finds it.

    The search starts from the superpositions of fragments of many lengths, and improves each by the points that it
    brings close. d0 follows from the number of points that the mask keeps; NaN if it keeps none.

    Args:
        points: CA atoms as predicted.
        true_points: The true CA atoms.
        mask: Residues that are known.

    Source:
        Zhang and Skolnick 2004, https://doi.org/10.1002/prot.20264.

    Example:
        >>> points = torch.randn(2, 9, 3)
        >>> tm_score(points, points, torch.ones(2, 9, dtype=torch.bool))
        tensor([1., 1.])
    """
    points, true_points = reduced(points), reduced(true_points)
    scores = points.new_full((len(points),), torch.nan)
    for row, known in enumerate(mask):
        if known.any():
            scores[row] = _search_superposition(points[row, known], true_points[row, known])
    return scores


def _search_superposition(points: Float[Tensor, "points 3"], true: Float[Tensor, "points 3"]) -> Float[Tensor, ""]:
    """The best TM score that is found from any fragment."""
    length = len(points)
    scale = max(1.24 * (max(length, 15) - 15) ** (1 / 3) - 1.8, 0.5)
    near = min(max(scale, 4.5), 8.0)
    chosen = torch.stack(list(_fragments(length, points.device)))  # one start of the search in each row
    points, true = points.expand(len(chosen), length, 3), true.expand(len(chosen), length, 3)
    best = points.new_zeros(())
    for iteration in range(ITERATIONS):
        squares = (superpose(points, true, chosen) - true).square().sum(-1)
        best = torch.maximum(best, (1 / (1 + squares / scale**2)).mean(1).max())
        limit = (near - 1 if iteration == 0 else near + 1) ** 2
        third = squares.kthvalue(min(3, length), dim=1, keepdim=True).values  # fewer points fix no superposition
        closer = squares <= third.clamp(min=limit)
        if torch.equal(closer, chosen):
            break
        chosen = closer
    return best


def _fragments(length: int, device: torch.device) -> Iterator[Bool[Tensor, " points"]]:
    """Stretches of the whole, half, a quarter of the length, and so on, each overlapping the next by half."""
    place = torch.arange(length, device=device)
    size = length
    while True:
        for start in range(0, length - size + 1, max(size // 2, 1)):
            yield (place >= start) & (place < start + size)
        if size // 2 < SHORTEST:
            return
        size //= 2


class StructureMetric(AverageMetric):
    """Base of the metrics that are the mean of a score over structures."""

    score: ClassVar[Callable[[Tensor, Tensor, Tensor], Tensor]]

    def update(
        self,
        points: Float[Tensor, "batch points 3"],
        true_points: Float[Tensor, "batch points 3"],
        mask: Bool[Tensor, "batch points"],
    ) -> None:
        """Add predicted structures; one in which the mask keeps too little for a score does not count."""
        scores = type(self).score(points, true_points, mask)
        self.add(average_rows(scores, self.has_score(scores, mask)))

    def has_score(self, scores: Float[Tensor, " batch"], mask: Bool[Tensor, "batch points"]) -> Bool[Tensor, " batch"]:
        """Which structures count. Others that are NaN are bad predictions, and show."""
        return mask.any(1)


class LDDT(StructureMetric):
    """Mean of ``lddt`` over structures.

    Example:
        >>> metric, points = LDDT(), torch.randn(2, 9, 3)
        >>> metric.update(points, points, torch.ones(2, 9, dtype=torch.bool))
        >>> metric.compute().round(decimals=4)
        tensor(1.)
    """

    higher_is_better = True
    score = staticmethod(lddt)

    def has_score(self, scores: Float[Tensor, " batch"], mask: Bool[Tensor, "batch points"]) -> Bool[Tensor, " batch"]:
        """Which structures have neighbours."""
        return ~scores.isnan()


class TMScore(StructureMetric):
    """Mean of ``tm_score`` over structures.

    Example:
        >>> metric, points = TMScore(), torch.randn(2, 9, 3)
        >>> metric.update(points, points, torch.ones(2, 9, dtype=torch.bool))
        >>> metric.compute().round(decimals=4)
        tensor(1.)
    """

    higher_is_better = True
    score = staticmethod(tm_score)


class RMSD(StructureMetric):
    """Mean of ``rmsd`` over structures, in Å.

    Example:
        >>> metric, points = RMSD(), torch.randn(2, 9, 3, dtype=torch.double)
        >>> metric.update(points + 1, points, torch.ones(2, 9, dtype=torch.bool))
        >>> metric.compute().round(decimals=4) < 1e-12
        tensor(True)
    """

    higher_is_better = False
    score = staticmethod(rmsd)
