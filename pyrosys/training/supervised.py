"""Properties of proteins or residues, predicted by a head on the encoder of a language model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from pyrosys.entry import Entry
from pyrosys.errors import InputError, WeightsError
from pyrosys.language import MaskedLanguageModel
from pyrosys.loading import load
from pyrosys.losses import Average, cross_entropy, squared_error
from pyrosys.metrics import Mean, SequenceRecovery, Spearman
from pyrosys.modules import PropertyHead
from pyrosys.publishing import publish
from pyrosys.training.data.recipes import Batch
from pyrosys.training.optimiser import Optimiser
from pyrosys.training.task import Task, example_inputs
from pyrosys.training.tuning import FULL, Tuning

__all__ = ["SupervisedTask"]


class SupervisedTask(Task):
    """Regression or classification, per protein or per residue, on batches of `pyrosys.training.data.Labelled`.

    Args:
        model: The language model whose encoder is used.
        optimiser: How to change the parameters.
        tuning: Which parameters of the model to change; those of the head always are.
        level: Whether there is one label per ``"protein"`` or per ``"residue"``.
        classes: The classes in order, or ``None`` to predict numbers.
        hidden: Features of a layer between the encoder and the prediction, or ``None`` for a linear head.
        dropout: Probability of dropout on what goes into the head, in training.

    Raises:
        InputError: There is no such level, or fewer than 2 classes.
    """

    model: MaskedLanguageModel[Any]

    def __init__(
        self,
        model: MaskedLanguageModel[Any],
        optimiser: Optimiser | None = None,
        tuning: Tuning = FULL,
        *,
        level: Literal["protein", "residue"] = "protein",
        classes: Sequence[str] | None = None,
        hidden: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        if level not in ("protein", "residue"):
            raise InputError(f"Expected level to be 'protein' or 'residue', found {level!r}. Choose one of them.")
        if classes is not None and len(classes) < 2:
            raise InputError(f"Expected at least 2 classes, found {classes!r}. To predict numbers, name none.")
        self.level = level
        self.classes = None if classes is None else tuple(classes)
        super().__init__(model, optimiser, tuning)
        (tokens,) = example_inputs(model)
        encoded = self.model.encode(tokens)
        outputs = 1 if classes is None else len(classes)
        self.head = PropertyHead(encoded.shape[-1], outputs, hidden=hidden, dropout=dropout)
        self.leave_out_unused(self.head(encoded))

    def predict(self, batch: Batch) -> Tensor:
        """Compute numbers, or logits of the classes, of each protein or token."""
        tokens = batch["tokens"]
        x = self.model.encode(tokens)
        if self.level == "protein":
            alphabet = self.model.alphabet
            residues = (
                batch["mask"] & (tokens != alphabet.index[alphabet.start]) & (tokens != alphabet.index[alphabet.end])
            )
            x = (x * residues[..., None]).sum(1) / residues.sum(1, keepdim=True).clamp(min=1)
        return self._finish(x)

    def loss(self, prediction: Tensor, batch: Batch) -> Average:
        """Compute the squared error, or the cross entropy, of what has a label."""
        compare = squared_error if self.classes is None else cross_entropy
        return compare(prediction, batch["labels"], batch["chosen"])

    def metrics(self) -> dict[str, Metric]:
        """Build the mean squared error and the rank correlation, or the accuracy."""
        if self.classes is None:
            return {"squared_error": Mean(), "spearman": Spearman()}
        return {"accuracy": SequenceRecovery()}

    def measure(self, prediction: Tensor, batch: Batch) -> None:
        """Update the metrics."""
        labels, chosen = batch["labels"], batch["chosen"]
        if self.classes is None:
            self.measures["squared_error"].update(squared_error(prediction, labels, chosen))
            self.measures["spearman"].update(prediction, labels, chosen)
        else:
            found, labels, chosen = (x.reshape(len(labels), -1) for x in (prediction.argmax(-1), labels, chosen))
            self.measures["accuracy"].update(found, labels, chosen)

    def settings(self) -> dict[str, Any]:
        """What the task depends on."""
        return {**super().settings(), **self._head_config()}

    def predict_sequences(self, sequences: Iterable[str], *, batch_tokens: int = 4096) -> list[Tensor]:
        """Predict the property of sequences.

        Args:
            sequences: One-letter codes.
            batch_tokens: Largest number of tokens in a batch.

        Returns:
            For each sequence, a number or probabilities of the classes; per residue, one row for each.

        Raises:
            InputError: A sequence is empty, too long or has an unknown letter.

        Example:
            >>> from pyrosys.zoo.esm import ESM, ESMConfig
            >>> task = SupervisedTask(ESM(ESMConfig(layers=1, width=16, heads=4)), classes=("in", "out"))
            >>> [prediction.shape for prediction in task.predict_sequences(["MKTAYI", "GS"])]
            [torch.Size([2]), torch.Size([2])]
        """
        self.eval()
        predictions = []
        for x in self.model.embed(iter(sequences), batch_tokens=batch_tokens):
            with torch.no_grad():
                prediction = self._finish((x.mean(0) if self.level == "protein" else x).to(self.device))
            predictions.append((prediction if self.classes is None else prediction.softmax(-1)).cpu())
        return predictions

    def publish(self, hub: str | Path, name: str = "entries/model", **about: Any) -> list[str]:
        """Publish the model, and the head as an entry of its own, called ``<name>-head``."""
        (tokens,) = example_inputs(self.model)
        example = self.model.encode(tokens).detach()
        head = publish(self.head, f"{name}-head", hub=hub, inputs=(example,), config=self._head_config(), **about)
        return [*super().publish(hub, name, **about), head.address]

    @classmethod
    def load(cls, entries: Sequence[str | Path], **options: Any) -> SupervisedTask:
        """Load a published model and head, to predict with or to train further.

        Args:
            entries: The addresses of the two, as `publish` gives them.
            options: Optimiser and tuning.

        Raises:
            SourceError: An entry could not be obtained.
            WeightsError: An entry is damaged, or the second is not that of a head.
        """
        model, head = entries
        config = Entry.open(head).config["config"]
        if not isinstance(config, dict) or config.keys() != {"level", "classes", "hidden", "dropout"}:
            raise WeightsError(
                f"Expected the configuration of a head in {head}, found {config!r:.100}. Pass both entries."
            )
        encoder = load(model)
        if not isinstance(encoder, MaskedLanguageModel):
            raise WeightsError(
                f"Expected a language model in {model}, found a {type(encoder).__name__}. Pass both entries."
            )
        task = cls(encoder, **config, **options)
        load(head, into=task.head)
        return task.eval()

    def _head_config(self) -> dict[str, Any]:
        hidden = None if self.head.hidden is None else self.head.hidden.out_features
        return {"level": self.level, "classes": self.classes, "hidden": hidden, "dropout": self.head.dropout.p}

    def _finish(self, x: Tensor) -> Tensor:
        prediction = self.head(x)
        return prediction.squeeze(-1) if self.classes is None else prediction
