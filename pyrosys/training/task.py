"""What a model is trained for: a task joins it with a loss, metrics and an optimiser."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import Metric

from pyrosys.errors import TrainingError
from pyrosys.losses import Average
from pyrosys.metrics import Mean
from pyrosys.model import Model
from pyrosys.publishing import publish
from pyrosys.training.data.recipes import Batch
from pyrosys.training.optimiser import Optimiser
from pyrosys.training.tuning import FULL, Tuning

__all__ = ["Task", "example_inputs"]


class Task(pl.LightningModule, ABC):
    """A model, a loss, metrics, an optimiser and a schedule.

    A step may be spread over several batches (gradient accumulation) and several processes (data parallelism). Its loss
    is the average over everything in it that counts, whichever batch and process that was in: totals and counts are
    summed apart and divided once. Averaging the averages of batches would favour what is in the small ones.

    A subclass says how to predict, what the loss is, and what to measure.

    Args:
        model: What to train. It is put in training mode.
        optimiser: How to change the parameters.
        tuning: Which parameters to change: all, none of the model's own, or low-rank updates.
    """

    def __init__(self, model: Model[Any], optimiser: Optimiser | None = None, tuning: Tuning = FULL) -> None:
        super().__init__()
        self.model = tuning.prepare(model)
        self.optimiser = optimiser or Optimiser()
        self.tuning = tuning
        self.measures: dict[str, Metric] = nn.ModuleDict(self.metrics())  # type: ignore[assignment]
        self.validation_loss = Mean()
        self._sums = torch.zeros(2)
        self.train()

    @abstractmethod
    def predict(self, batch: Batch) -> Tensor:
        """Compute what the loss and the metrics compare with the batch."""

    @abstractmethod
    def loss(self, prediction: Tensor, batch: Batch) -> Average:
        """Compute the loss of a batch: its total, and the count that it is to be divided by."""

    def metrics(self) -> dict[str, Metric]:
        """Build the metrics of validation, by name."""
        return {}

    def measure(self, prediction: Tensor, batch: Batch) -> None:
        """Update the metrics, which are in ``measures`` by name."""

    def trained_model(self) -> Model[Any]:
        """The model with what was trained merged into its own parameters, as it was before but for their values."""
        return self.tuning.merge(self.model)

    def publish(self, hub: str | Path, name: str = "entries/model", **about: Any) -> list[str]:
        """Publish the trained model to a directory or hub.

        Args:
            hub: The directory or the address of the hub.
            name: What the entry is called: ``organisation/name``, in a directory the folder in it.
            about: What to say of it, as `pyrosys.publish` takes it.

        Returns:
            The addresses, as `pyrosys.load` takes them.
        """
        return [publish(self.trained_model().eval(), name, hub=hub, **about).address]

    def settings(self) -> dict[str, Any]:
        """What the task depends on, as plain data: a run goes on only with the same."""
        return {
            "task": type(self).__qualname__,
            "model": type(self.model).__qualname__,
            "config": dataclasses.asdict(self.model.config),
            "optimiser": dataclasses.asdict(self.optimiser),
            "tuning": dataclasses.asdict(self.tuning),
        }

    def leave_out_unused(self, output: Tensor) -> None:
        """Freeze the parameters that an output does not depend on, such as a head that the loss does not reach."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(output.sum(), trained, allow_unused=True)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)

    def train(self, mode: bool = True) -> Task:
        """Switch between training and evaluation; a frozen model stays in evaluation."""
        super().train(mode)
        if self.tuning.kind == "frozen":
            self.model.eval()
        return self

    def on_fit_start(self) -> None:
        """Put the sums where the batches will be."""
        self._sums = torch.zeros(2, device=self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Add a batch to the current step. Gradients are those of totals until the step is complete."""
        average = self.loss(self.predict(batch), batch)
        self._sums += torch.stack([average.total.detach().float(), average.count.float()])
        return average.total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn gradients of totals into those of the average over the whole step.

        Raises:
            TrainingError: The loss is not finite.
        """
        total, count = self.trainer.strategy.reduce(self._sums, reduce_op="sum").tolist()
        self._sums.zero_()
        loss = total / max(count, 1.0)
        if not abs(loss) < float("inf"):
            raise TrainingError(
                f"Expected a finite loss at step {self.trainer.global_step + 1}, found {loss}. Lower the learning rate, "
                "clip gradients, or look for broken values in the data."
            )
        # Lightning has divided by the number of batches in a step, and data parallelism by that of processes.
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size / max(count, 1.0)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad *= scale
        self.log("loss", loss, prog_bar=True)
        self.log("learning_rate", optimizer.param_groups[0]["lr"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure a batch."""
        prediction = self.predict(batch)
        self.validation_loss.update(self.loss(prediction, batch))
        self.log("validation/loss", self.validation_loss, prog_bar=True)
        self.measure(prediction, batch)
        for name, metric in self.measures.items():
            self.log(f"validation/{name}", metric)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimiser and its schedule over the steps of the run."""
        optimiser, schedule = self.optimiser.build(self.parameters(), self.trainer.max_steps)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def example_inputs(model: Model[Any]) -> tuple[Tensor, ...]:
    """The example that a model carries, as arguments."""
    assert isinstance(model.example_input_array, tuple)  # as `Model` makes it
    return model.example_input_array
