"""Masked language models: hidden residues are predicted from the others."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchmetrics import Metric

from pyrosys.language import MaskedLanguageModel
from pyrosys.losses import Average, cross_entropy
from pyrosys.metrics import Perplexity, SequenceRecovery
from pyrosys.training.data.recipes import Batch
from pyrosys.training.optimiser import Optimiser
from pyrosys.training.task import Task, example_inputs
from pyrosys.training.tuning import FULL, Tuning

__all__ = ["MaskedLanguageTask"]


class MaskedLanguageTask(Task):
    """Cross entropy of hidden residues, on batches of `pyrosys.training.data.MaskedResidues`.

    Args:
        model: The language model.
        optimiser: How to change the parameters.
        tuning: Which parameters to change.

    Source:
        Devlin et al. 2019, https://doi.org/10.18653/v1/N19-1423, section 3.1.
    """

    model: MaskedLanguageModel[Any]

    def __init__(
        self, model: MaskedLanguageModel[Any], optimiser: Optimiser | None = None, tuning: Tuning = FULL
    ) -> None:
        super().__init__(model, optimiser, tuning)
        self.leave_out_unused(self.model(*example_inputs(model)))

    def predict(self, batch: Batch) -> Tensor:
        """Compute logits of every token."""
        return self.model(batch["tokens"])

    def loss(self, prediction: Tensor, batch: Batch) -> Average:
        """Compute the cross entropy of the residues to predict."""
        return cross_entropy(prediction, batch["targets"], batch["chosen"])

    def metrics(self) -> dict[str, Metric]:
        """Build perplexity, and the share of residues whose likeliest letter is right."""
        return {"perplexity": Perplexity(), "recovery": SequenceRecovery()}

    def measure(self, prediction: Tensor, batch: Batch) -> None:
        """Update the metrics."""
        self.measures["perplexity"].update(prediction, batch["targets"], batch["chosen"])
        self.measures["recovery"].update(prediction.argmax(-1), batch["targets"], batch["chosen"])
