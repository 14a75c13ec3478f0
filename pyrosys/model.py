"""The base class of every model in the zoo."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor

__all__ = ["Model"]

Config = TypeVar("Config")


class Model(pl.LightningModule, ABC, Generic[Config]):
    """Parameters, ``forward`` and the verbs of basic inference.

    A model knows nothing of losses, optimisers or data: those belong to a training task. It is built from one frozen
    dataclass, kept as ``config``, and carries the inputs that show what it computes as ``example_input_array``:
    Lightning summarises the model with them, and PyroSys captures and verifies it with them.

    Args:
        config: The frozen dataclass that describes the architecture, and nothing else.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        with torch.device("cpu"):  # real values, also when the parameters are built on the meta device
            self.example_input_array = self.example(torch.Generator().manual_seed(0))

    @abstractmethod
    def example(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Small inputs for ``forward``, in order: batch of at least 2, length of at least 3, padding included.

        Called once by the constructor, with ``config`` set and before the parameters exist.

        Args:
            generator: The source of all randomness.
        """

    @property
    def complete_method(self) -> str:
        """Name of the method whose outputs all parameters go into, with the arguments of ``forward``."""
        return "forward"

    @property
    def device(self) -> torch.device:
        """Where the parameters are now (Lightning's own record misses tensors that were assigned on loading)."""
        return next(self.parameters()).device
