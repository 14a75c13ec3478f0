"""Metrics that are an average: of residues, sequences or structures."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from pyrosys.losses import Average

__all__ = ["AverageMetric", "Mean", "average_rows"]


def average_rows(values: Float[Tensor, " batch"], real: Bool[Tensor, " batch"]) -> Average:
    """Average over the rows that are real."""
    return Average(values[real].sum(), real.sum().to(values.dtype))


class AverageMetric(Metric):
    """Base of the metrics that add up a sum and a count."""

    is_differentiable = False
    full_state_update = False
    total: Float[Tensor, ""]
    count: Int[Tensor, ""]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        # Single precision would stop counting at 16 million.
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def add(self, average: Average) -> None:
        """Add to the sum and to the count."""
        self.total += average.total.to(self.total.dtype)
        self.count += average.count.long()

    def compute(self) -> Float[Tensor, ""]:
        """The average so far."""
        return self.total / self.count


class Mean(AverageMetric):
    """Average of a loss over its items, not over batches.

    Example:
        >>> from pyrosys.losses import Average
        >>> metric = Mean()
        >>> metric.update(Average(torch.tensor(3.0), torch.tensor(1.0)))
        >>> metric.update(Average(torch.tensor(1.0), torch.tensor(3.0)))
        >>> metric.compute().round(decimals=4)
        tensor(1.)
    """

    def update(self, average: Average) -> None:
        """Add what a loss returned."""
        self.add(average)
