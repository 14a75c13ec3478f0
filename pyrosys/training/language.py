"""Masked language models: hidden residues are predicted from the others."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from pyrosys.language import MaskedLanguageModel
from pyrosys.losses import Average, cross_entropy
from pyrosys.training.optimiser import Optimiser
from pyrosys.training.task import Task
from pyrosys.training.tuning import Full, Tuning

__all__ = ["MaskedLanguageTask"]


class MaskedBatch(NamedTuple):
    tokens: Tensor
    targets: Tensor
    chosen: Tensor


class MaskedLanguageTask(Task[MaskedBatch]):
    """Cross entropy of the hidden residues.

    Args:
        model: A masked language model.
        optimiser: How to change the parameters.
        tuning: Which parameters to change.
    """

    def __init__(
        self, model: MaskedLanguageModel[Any], optimiser: Optimiser = Optimiser(), tuning: Tuning = Full()
    ) -> None:
        super().__init__(model, optimiser, tuning)
        self.leave_out_unused(self.model(*model.example_input_array))

    def predict(self, batch: MaskedBatch) -> Tensor:
        """Compute logits of every token."""
        return self.model(batch.tokens)

    def loss(self, prediction: Tensor, batch: MaskedBatch) -> Average:
        """Compute the cross entropy of the hidden tokens."""
        return cross_entropy(prediction, batch.targets, batch.chosen)
