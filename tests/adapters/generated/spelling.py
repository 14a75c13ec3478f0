"""What a generated model leaves open: how it is written, and the numbers in its parameters.

A model is built from a `Spec`, which says what it computes, and a `Spelling`, which says how. Two spellings of one spec take
their numbers from the same `Values`, by what a tensor means and not by where it is kept, so that both models give the same
outputs without any port: the truth is known before the engine is asked.
"""

import math
import re
import zlib
from collections.abc import Mapping
from random import Random
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["Choices", "Spelling", "Values"]

T = TypeVar("T")


class Choices:
    """Random decisions, each under a path; asked again, a path gives what it gave before.

    Args:
        random: Where decisions come from.
        plain: How often the plainest option is taken without any draw.
        fixed: Decisions that are made already: for a path, the place of the option.

    Attributes:
        taken: For each path that was asked for, the place of the option that was taken.
        unusual: The options that were taken and are not the first one, which is the plainest.
    """

    def __init__(self, random: Random, plain: float = 0.0, fixed: Mapping[str, int] | None = None) -> None:
        self.random = random
        self.plain = plain
        self.fixed = {} if fixed is None else fixed
        self.taken: dict[str, int] = {}
        self.unusual: dict[str, Any] = {}

    def __call__(self, path: str, *options: T) -> T:
        if path not in self.taken:
            plain = self.random.random() < self.plain
            place = 0 if plain else self.random.randrange(len(options))
            self.taken[path] = min(self.fixed.get(path, place), len(options) - 1)
            if options[self.taken[path]] != options[0]:
                self.unusual[path] = options[self.taken[path]]
        return options[self.taken[path]]


class Values:
    """Random parameters in float64, each determined by a path that says what it means."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def weight(self, path: str, outputs: int, *inputs: int) -> Tensor:
        return self._drawn(path, outputs, *inputs) * 1.2 / math.sqrt(math.prod(inputs))

    def bias(self, path: str, size: int) -> Tensor:
        return 0.3 * self._drawn(path, size)

    def gain(self, path: str, size: int) -> Tensor:
        return 1 + 0.3 * self._drawn(path, size)

    def table(self, path: str, rows: int, columns: int) -> Tensor:
        return self._drawn(path, rows, columns)

    def _drawn(self, path: str, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {path}".encode()))
        return torch.randn(shape, generator=generator, dtype=torch.float64)


class Spelling:
    """How one model is written.

    Args:
        choices: Where decisions come from.
        values: Where the numbers come from.

    Attributes:
        storage: How tensors are kept: each in its module, those of all layers in one tensor, or all in one vector.
        layers_alike: Whether all layers are written in one way.
    """

    def __init__(self, choices: Choices, values: Values) -> None:
        self.choices = choices
        self.values = values
        self.storage = choices("storage", *["modules"] * 6, "stack", "vector")
        self.layers_alike = self.storage == "stack" or choices("layers are written alike", True, False)

    def choose(self, path: str, *options: T) -> T:
        """One of the ways, the plainest first; for all layers the same if they are written alike."""
        return self.choices(re.sub(r"layers\.\d+", "layers", path) if self.layers_alike else path, *options)
