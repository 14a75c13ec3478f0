"""What every loss returns, and the precision it is reduced in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Average", "average_structures", "reduced"]

EPSILON = 1e-8  # so that an average over nothing is 0


@dataclass(frozen=True)
class Average:
    """A sum and what it is to be divided by, apart, so that averages over several batches or workers stay exact.

    Add averages up, or sum ``total`` and ``count`` over workers, and take ``value`` last. A count of nothing has the
    value 0, and a gradient of 0.

    Args:
        total: The sum, in single precision or better.
        count: How many items went into it.

    Example:
        >>> short, long = Average(torch.tensor(3.0), torch.tensor(1.0)), Average(torch.tensor(1.0), torch.tensor(3.0))
        >>> (short + long).value  # the mean of the values would be 1.67
        tensor(1.)
    """

    total: Float[Tensor, ""]
    count: Float[Tensor, ""]

    @property
    def value(self) -> Float[Tensor, ""]:
        """The average."""
        return self.total / (self.count + EPSILON)

    def __add__(self, other: Average) -> Average:
        """Average over the items of both."""
        return Average(self.total + other.total, self.count + other.count)


def reduced(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert to the precision that losses are reduced in: single, or double for what is double already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def average_structures(
    errors: Float[Tensor, "batch rows columns"], mask: Bool[Tensor, "batch rows columns"]
) -> Average:
    """Average over each structure's pairs, then over those structures that have any."""
    counts = mask.sum((1, 2))
    values = errors.where(mask, 0).sum((1, 2)) / counts.clamp(min=1)
    return Average(values.sum(), (counts > 0).sum().to(values.dtype))
