"""Masked language models: the verbs that they all share."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, TypeVar

from jaxtyping import Float, Int
from torch import Tensor

from pyrosys.alphabet import Alphabet
from pyrosys.model import Model

__all__ = ["MaskedLanguageModel"]

Config = TypeVar("Config")


class MaskedLanguageModel(Model[Config]):
    alphabet: ClassVar[Alphabet]

    @abstractmethod
    def encode(self, tokens: Int[Tensor, "batch length"], layer: int = -1) -> Float[Tensor, "batch length width"]:
        """Token representations after ``layer`` blocks."""
