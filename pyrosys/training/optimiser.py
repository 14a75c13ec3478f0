"""How parameters are changed: AdamW, and a learning rate that rises, stays and falls."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from pyrosys.errors import InputError

__all__ = ["Optimiser"]


@dataclass(frozen=True)
class Optimiser:
    """AdamW with decoupled weight decay on matrices, and a schedule of the learning rate.

    Args:
        learning_rate: The largest learning rate.
        weight_decay: Decay of matrices; biases, gains and other vectors have none.
        momentum: AdamW's beta 1.
        second_momentum: AdamW's beta 2.
        warmup: Steps over which the learning rate rises to its largest.
        schedule: How it goes on from there.
        final: Which part of the largest learning rate is left at the last step, unless the schedule is constant.

    Raises:
        InputError: A number is out of range.

    Example:
        >>> optimiser = Optimiser(learning_rate=1e-3, warmup=10, schedule="linear", final=0.1)
        >>> [round(optimiser.scale(step, 100), 3) for step in (0, 9, 10, 55, 100)]
        [0.1, 1.0, 1.0, 0.55, 0.1]
    """

    learning_rate: float = 4e-4
    weight_decay: float = 0.01
    momentum: float = 0.9
    second_momentum: float = 0.98
    warmup: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    final: float = 0.1

    def __post_init__(self) -> None:
        ranges = {
            "a learning_rate above 0": self.learning_rate > 0,
            "a weight_decay of at least 0": self.weight_decay >= 0,
            "a momentum and a second_momentum from 0 up to but not including 1": 0 <= self.momentum < 1
            and 0 <= self.second_momentum < 1,
            "a warmup of at least 0 steps": self.warmup >= 0,
            "a schedule among constant, linear, cosine": self.schedule in ("constant", "linear", "cosine"),
            "a final part from 0 to 1": 0 <= self.final <= 1,
        }
        for expected, holds in ranges.items():
            if not holds:
                raise InputError(f"Expected {expected}, found {self}. Change the optimiser.")

    def scale(self, step: int, steps: int) -> float:
        """Which part of the largest learning rate to use at a step, counted from 0, of so many."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, steps - self.warmup))
        fall = {"constant": 0.0, "linear": progress, "cosine": (1 - math.cos(math.pi * progress)) / 2}[self.schedule]
        return 1 - fall * (1 - self.final)

    def build(self, parameters: Iterable[nn.Parameter], steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """Build torch's optimiser and schedule for the parameters that are to be trained."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        matrices = [parameter for parameter in trained if parameter.dim() > 1]
        vectors = [parameter for parameter in trained if parameter.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": self.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        optimiser = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.learning_rate,
            betas=(self.momentum, self.second_momentum),
        )
        return optimiser, LambdaLR(optimiser, lambda step: self.scale(step, steps))


LambdaLR = torch.optim.lr_scheduler.LambdaLR
