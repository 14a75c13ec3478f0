"""Inverse folding: residues are predicted from the backbone and from those decoded before them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics import Metric

from pyrosys.inverse_folding import InverseFolding
from pyrosys.losses import Average, inverse_folding_loss
from pyrosys.metrics import Perplexity, SequenceRecovery
from pyrosys.training.data.recipes import Batch
from pyrosys.training.optimiser import Optimiser
from pyrosys.training.task import Task, example_inputs
from pyrosys.training.tuning import FULL, Tuning

__all__ = ["InverseFoldingTask"]

INPUTS = ("coordinates", "sequence", "mask", "chain_index", "residue_index", "decoding_order")


class InverseFoldingTask(Task):
    """Likelihood of native sequences, smoothed, on batches of `pyrosys.training.data.Backbones`.

    Args:
        model: The model of inverse folding.
        optimiser: How to change the parameters.
        tuning: Which parameters to change.
        smoothing: What is added to the one of the native letter, over all letters together.

    Source:
        Dauparas et al. 2022, https://doi.org/10.1126/science.add2187.
    """

    model: InverseFolding[Any]

    def __init__(
        self,
        model: InverseFolding[Any],
        optimiser: Optimiser | None = None,
        tuning: Tuning = FULL,
        *,
        smoothing: float = 0.1,
    ) -> None:
        super().__init__(model, optimiser, tuning)
        self.smoothing = smoothing
        self.leave_out_unused(self.model(*example_inputs(model)))

    def predict(self, batch: Batch) -> Tensor:
        """Compute log-probabilities of every letter."""
        return self.model(*(batch[name] for name in INPUTS))

    def loss(self, prediction: Tensor, batch: Batch) -> Average:
        """Compute the smoothed negative log-likelihood of the residues to predict."""
        return inverse_folding_loss(prediction, batch["sequence"], batch["chosen"], weight=self.smoothing)

    def metrics(self) -> dict[str, Metric]:
        """Build perplexity, and the share of residues whose likeliest letter is the native one."""
        return {"perplexity": Perplexity(), "recovery": SequenceRecovery()}

    def measure(self, prediction: Tensor, batch: Batch) -> None:
        """Update the metrics."""
        self.measures["perplexity"].update(prediction, batch["sequence"], batch["chosen"])
        self.measures["recovery"].update(prediction.argmax(-1), batch["sequence"], batch["chosen"])

    def settings(self) -> dict[str, Any]:
        """What the task depends on."""
        return {**super().settings(), "smoothing": self.smoothing}
