"""Alphabets: between sequences, written as letters, and the tokens that a model reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from pyrosys.errors import InputError

__all__ = ["Alphabet"]


@dataclass(frozen=True)
class Alphabet:
    """The tokens of a language model, in the order of its embedding.

    A sequence is written with one letter per residue, and the mask token where a residue is hidden from the model.
    A letter that the model has no token for is an error: nothing is replaced in silence.

    Args:
        tokens: All tokens; a token's index is its place here.
        letters: The tokens that stand for a residue.
        start: The token before every sequence.
        end: The token after every sequence.
        padding: The token that fills up the shorter sequences of a batch.
        mask: The token that hides a residue.

    Example:
        >>> alphabet = Alphabet(("<start>", "<pad>", "<end>", "A", "C", "<mask>"), "AC", start="<start>", end="<end>")
        >>> alphabet.encode(["ACA", "<mask>"])
        tensor([[0, 3, 4, 3, 2],
                [0, 5, 2, 1, 1]])
        >>> alphabet.decode([4, 5, 3])
        'C<mask>A'
    """

    tokens: tuple[str, ...]
    letters: str
    start: str
    end: str
    padding: str = "<pad>"
    mask: str = "<mask>"

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def index(self) -> dict[str, int]:
        """The index of every token."""
        return {token: index for index, token in enumerate(self.tokens)}

    def split(self, sequence: str) -> list[str]:
        """Split a sequence into the tokens of its residues.

        Raises:
            InputError: The sequence is empty, or something in it is neither one of the letters nor the mask token.

        Example:
            >>> alphabet = Alphabet(("<pad>", "A", "C", "<mask>"), "AC", start="<pad>", end="<pad>")
            >>> alphabet.split("AC<mask>A")
            ['A', 'C', '<mask>', 'A']
        """
        residues = re.findall(f"{re.escape(self.mask)}|.", sequence, re.DOTALL)
        if not residues:
            raise InputError("Expected a sequence of at least one residue, found an empty one. Leave it out.")
        allowed = {*self.letters, self.mask}
        for position, residue in enumerate(residues, start=1):
            if residue not in allowed:
                hint = (
                    "Write letters in upper case." if residue.upper() in allowed else "Write an unknown residue as X."
                )
                raise InputError(
                    f"Expected one of {self.letters} or {self.mask} at position {position}, found {residue!r}. {hint}"
                )
        return residues

    def encode(self, sequences: Sequence[str]) -> Int[Tensor, "batch length"]:
        """Turn sequences into a batch of tokens, with start and end around each and padding after the shorter ones.

        Raises:
            InputError: A sequence is empty or has a letter that is not in the alphabet.
        """
        return self.collate([self.split(sequence) for sequence in sequences])

    def collate(self, sequences: Sequence[Sequence[str]]) -> Int[Tensor, "batch length"]:
        """The same, for sequences that are split already."""
        longest = max(map(len, sequences))
        return torch.tensor(
            [
                [self.index[token] for token in (self.start, *residues, self.end)]
                + [self.index[self.padding]] * (longest - len(residues))
                for residues in sequences
            ],
            device="cpu",
        )

    def decode(self, indices: Iterable[int]) -> str:
        """Turn indices back into the sequence they stand for, special tokens included."""
        return "".join(self.tokens[index] for index in indices)
