"""Which parameters of a model are trained: all, none, or low-rank updates beside those that stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from pyrosys.errors import InputError, MissingExtra
from pyrosys.model import Model

__all__ = ["FULL", "Frozen", "Full", "LowRank", "Tuning"]


@dataclass(frozen=True)
class Full:
    """Train every parameter of the model."""

    kind: Literal["full"] = "full"

    def prepare(self, model: Model[Any]) -> Model[Any]:
        """Make the model ready to be trained in this way."""
        return model.requires_grad_(True)

    def merge(self, model: Model[Any]) -> Model[Any]:
        """Give the model its own form back."""
        return model


@dataclass(frozen=True)
class Frozen:
    """Leave the model as it is, and train what the task adds to it."""

    kind: Literal["frozen"] = "frozen"

    def prepare(self, model: Model[Any]) -> Model[Any]:
        """Make the model ready to be trained in this way."""
        return model.requires_grad_(False)

    def merge(self, model: Model[Any]) -> Model[Any]:
        """Give the model its own form back."""
        return model


@dataclass(frozen=True)
class LowRank:
    """Train updates of low rank beside linear layers that stay as they are.

    Args:
        rank: Rank of each update.
        alpha: Updates are scaled by ``alpha / rank``.
        dropout: Probability of dropout on what goes into an update.
        layers: Names of the linear layers to update, as the last part of their paths.

    Source:
        Hu et al. 2021, LoRA, https://arxiv.org/abs/2106.09685.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    layers: tuple[str, ...] = ("query", "value")
    kind: Literal["low-rank"] = "low-rank"

    def prepare(self, model: Model[Any]) -> Model[Any]:
        """Make the model ready to be trained in this way.

        Raises:
            MissingExtra: peft is not installed.
            InputError: The model has none of the layers.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ModuleNotFoundError as error:
            raise MissingExtra.needed("train", error) from error
        linear = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
        absent = set(self.layers) - linear
        if absent or not self.layers:
            raise InputError(
                f"Expected names of linear layers among {', '.join(sorted(linear))}, found {', '.join(sorted(absent))}. "
                "Choose the layers to update."
            )
        config = LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=list(self.layers)
        )
        inject_adapter_in_model(config, model.requires_grad_(False))
        return model

    def merge(self, model: Model[Any]) -> Model[Any]:
        """Give the model its own form back, with the updates added to its parameters."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for path, layer in list(model.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, layer.get_base_layer())
        return model.requires_grad_(True)


Tuning = Full | Frozen | LowRank
FULL = Full()
