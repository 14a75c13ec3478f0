"""How well predicted numbers are in the right order."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional import spearman_corrcoef
from torchmetrics.utilities import dim_zero_cat

from pyrosys.losses.average import reduced

__all__ = ["Spearman"]


class Spearman(Metric):
    """Rank correlation of predicted and true numbers; NaN if there are fewer than two, or all are the same.

    All numbers are kept until ``reset``.

    Example:
        >>> import torch
        >>> metric = Spearman()
        >>> metric.update(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 8.0, 27.0]), torch.ones(3, dtype=torch.bool))
        >>> metric.compute().round(decimals=4)
        tensor(1.)
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better = True
    predictions: list[Tensor]
    truths: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("predictions", [], dist_reduce_fx="cat")
        self.add_state("truths", [], dist_reduce_fx="cat")

    def update(
        self, prediction: Float[Tensor, "*shape"], truth: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]
    ) -> None:
        """Add the pairs of numbers that the mask keeps."""
        self.predictions.append(reduced(prediction[mask]))
        self.truths.append(reduced(truth[mask]))

    def compute(self) -> Float[Tensor, ""]:
        """The correlation so far."""
        predictions, truths = dim_zero_cat(self.predictions), dim_zero_cat(self.truths)
        if any(len(x) < 2 or (x == x[0]).all() for x in (predictions, truths)):
            return predictions.new_full((), float("nan"))
        return spearman_corrcoef(predictions, truths)
