"""What the numbers in a model look like, Module by Module: its weights, and what it computes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from pyrosys.adapters.capture import Inputs
from pyrosys.analysis.observe import observe

__all__ = ["Summary", "activation_statistics", "weight_statistics"]


@dataclass(frozen=True)
class Summary:
    """What many numbers look like; all but ``count`` and ``not_finite`` are of the finite ones.

    Args:
        count: How many there are.
        mean: Their mean; NaN if there are none.
        deviation: Their standard deviation.
        smallest: The smallest.
        largest: The largest.
        zeros: Share that is exactly 0.
        not_finite: How many are infinite or NaN.
    """

    count: int
    mean: float
    deviation: float
    smallest: float
    largest: float
    zeros: float
    not_finite: int

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> Summary:
        """Summarise the elements of tensors.

        Example:
            >>> import torch
            >>> Summary.of([torch.tensor([0.0, 2.0]), torch.tensor([4.0])]).mean
            2.0
        """
        gathered = _Gathered()
        for tensor in tensors:
            gathered.add(tensor)
        return gathered.summary()


class _Gathered:
    """Sums over tensors that come one at a time; the variance is updated about the mean, so that nothing cancels."""

    def __init__(self) -> None:
        self.count = self.finite = self.zeros = 0
        self.mean = self.squares = 0.0
        self.smallest, self.largest = math.inf, -math.inf

    def add(self, tensor: Tensor) -> None:
        values = tensor.detach().flatten()
        self.count += len(values)
        values = values[values.isfinite()].double()
        if not len(values):
            return
        mean = float(values.mean())
        total = self.finite + len(values)
        shift = mean - self.mean
        self.squares += float((values - mean).square().sum()) + shift**2 * self.finite * len(values) / total
        self.mean += shift * len(values) / total
        self.finite = total
        self.zeros += int((values == 0).sum())
        self.smallest = min(self.smallest, float(values.min()))
        self.largest = max(self.largest, float(values.max()))

    def summary(self) -> Summary:
        none = self.finite == 0
        return Summary(
            count=self.count,
            mean=math.nan if none else self.mean,
            deviation=math.nan if none else math.sqrt(self.squares / self.finite),
            smallest=math.nan if none else self.smallest,
            largest=math.nan if none else self.largest,
            zeros=math.nan if none else self.zeros / self.finite,
            not_finite=self.count - self.finite,
        )


def weight_statistics(model: nn.Module) -> dict[str, Summary]:
    """Summarise the parameters that each Module has of its own, by the name of the Module.

    Example:
        >>> weight_statistics(nn.Sequential(nn.Linear(3, 5), nn.ReLU()))["0"].count
        20
    """
    own = {name: list(module.parameters(recurse=False)) for name, module in model.named_modules()}
    return {name: Summary.of(parameters) for name, parameters in own.items() if parameters}


def activation_statistics(model: nn.Module, batches: Iterable[Inputs]) -> dict[str, Summary]:
    """Summarise what each Module returns, over all batches, by the name of the Module; padding counts like the rest.

    Example:
        >>> import torch
        >>> found = activation_statistics(nn.Sequential(nn.Linear(3, 5), nn.ReLU()), [Inputs(torch.randn(4, 3))])
        >>> found["1"].smallest
        0.0
    """
    gathered: dict[str, _Gathered] = {}
    observe(model, batches, lambda name, tensor: gathered.setdefault(name, _Gathered()).add(tensor))
    return {name: sums.summary() for name, sums in gathered.items()}
