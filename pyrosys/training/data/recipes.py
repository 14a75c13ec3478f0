"""How rows of a data set become a batch of tensors: encoding, masking, cropping, padding.

Everything random about an item comes from a generator of its own, which knows the seed, the epoch and the row. So an
item is the same whatever batch, process and worker it comes to, and in a resumed run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from pyrosys.alphabet import Alphabet
from pyrosys.errors import InputError
from pyrosys.training.data.dataset import Row

__all__ = ["Backbones", "Batch", "Labelled", "MaskedResidues", "Recipe"]

Batch: TypeAlias = "dict[str, Tensor]"
Example: TypeAlias = "dict[str, ndarray]"

STANDARD = "ACDEFGHIKLMNPQRSTVWY"


class Recipe(ABC):
    """What to read of a row, and what to make of it.

    Attributes:
        columns: The columns to read.
        optional: Columns to read where there are such.
        special: Number of tokens of an item beyond its residues.
        by_residue: The columns that have one entry per residue and are cropped with the sequence.
    """

    columns: tuple[str, ...] = ("sequence",)
    optional: tuple[str, ...] = ()
    special: int = 0
    by_residue: tuple[str, ...] = ("sequence", "coordinates", "mask", "chain")

    @abstractmethod
    def example(self, row: Row, generator: np.random.Generator) -> Example:
        """Turn a row into arrays, the first dimension of which runs over tokens if there is one."""

    @abstractmethod
    def blank(self) -> Example:
        """An item that counts nothing, for a process that has none."""

    @abstractmethod
    def padding(self) -> dict[str, Any]:
        """What to fill each array up with."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Stack examples, the shorter ones padded."""
        examples = examples or [self.blank()]
        return {name: _stack([example[name] for example in examples], fill) for name, fill in self.padding().items()}

    def settings(self) -> dict[str, Any]:
        """What the batches depend on, as plain data."""
        return {"recipe": type(self).__name__}


class _Tokens(Recipe):
    """Sequences as tokens of a language model, start and end around them."""

    special = 2

    def __init__(self, alphabet: Alphabet) -> None:
        self.alphabet = alphabet

    @cached_property
    def _table(self) -> ndarray:
        """The token of each character, -1 for those that are no letters."""
        table = np.full(128, -1, dtype=np.int64)
        for letter in self.alphabet.letters:
            table[ord(letter)] = self.alphabet.index[letter]
        return table

    def encode(self, row: Row) -> ndarray:
        """Turn the sequence of a row into tokens.

        Raises:
            InputError: The model has no token for a letter.
        """
        tokens = _look_up(self._table, row, self.alphabet.letters)
        index = self.alphabet.index
        return np.concatenate([[index[self.alphabet.start]], tokens, [index[self.alphabet.end]]])

    def settings(self) -> dict[str, Any]:
        """What the batches depend on, as plain data."""
        return {**super().settings(), "alphabet": list(self.alphabet.tokens)}


class MaskedResidues(_Tokens):
    """Batches for masked language models: some residues are chosen, hidden or changed, and to be predicted.

    | Key | Tensor | Meaning |
    |---|---|---|
    | ``tokens`` | ``(batch, length)`` integers | what the model reads |
    | ``mask`` | ``(batch, length)`` booleans | real tokens, start and end among them |
    | ``targets`` | ``(batch, length)`` integers | the tokens as they were |
    | ``chosen`` | ``(batch, length)`` booleans | residues to predict |

    Args:
        alphabet: The tokens of the model.
        rate: The share of the residues to choose, at least one of each sequence.
        hidden: The share of the chosen ones that become the mask token.
        changed: The share that become one of the 20 amino acids at random; the rest stay.

    Raises:
        InputError: The shares are out of range.

    Source:
        Devlin et al. 2019, https://arxiv.org/abs/1810.04805: 15 %, of which 80 %, 10 % and 10 %.
    """

    def __init__(self, alphabet: Alphabet, rate: float = 0.15, hidden: float = 0.8, changed: float = 0.1) -> None:
        super().__init__(alphabet)
        if not (0 < rate <= 1 and min(hidden, changed) >= 0 and hidden + changed <= 1 + 1e-9):
            raise InputError(
                f"Expected a rate up to 1, and shares of hidden and changed residues up to 1 together, found {rate}, "
                f"{hidden} and {changed}. The usual ones are 0.15, 0.8 and 0.1."
            )
        self.rate = rate
        self.hidden = hidden
        self.changed = changed

    def example(self, row: Row, generator: np.random.Generator) -> Example:
        """Turn a row into arrays."""
        targets = self.encode(row)
        residues = len(targets) - self.special
        count = max(1, round(self.rate * residues))
        places = 1 + generator.permutation(residues)[:count]
        fate = generator.random(count)
        tokens = targets.copy()
        tokens[places[fate < self.hidden]] = self.alphabet.index[self.alphabet.mask]
        changed = places[(fate >= self.hidden) & (fate < self.hidden + self.changed)]
        tokens[changed] = generator.choice(self._table[[ord(letter) for letter in STANDARD]], len(changed))
        chosen = np.zeros(len(targets), dtype=bool)
        chosen[places] = True
        return {"tokens": tokens, "mask": np.ones_like(chosen), "targets": targets, "chosen": chosen}

    def blank(self) -> Example:
        """An item that counts nothing."""
        tokens = np.array([self.alphabet.index[self.alphabet.start], self.alphabet.index[self.alphabet.end]])
        mask = np.ones(2, dtype=bool)
        return {"tokens": tokens, "mask": mask, "targets": tokens, "chosen": ~mask}

    def padding(self) -> dict[str, Any]:
        """What to fill each array up with."""
        fill = self.alphabet.index[self.alphabet.padding]
        return {"tokens": fill, "mask": False, "targets": fill, "chosen": False}

    def settings(self) -> dict[str, Any]:
        """What the batches depend on, as plain data."""
        return {**super().settings(), "rate": self.rate, "hidden": self.hidden, "changed": self.changed}


class Labelled(_Tokens):
    """Batches for supervised tasks on the encoder of a language model.

    | Key | Tensor | Meaning |
    |---|---|---|
    | ``tokens`` | ``(batch, length)`` integers | what the model reads |
    | ``mask`` | ``(batch, length)`` booleans | real tokens, start and end among them |
    | ``labels`` | ``(batch)``, or ``(batch, length)`` in line with the tokens; floats, or integers for classes | what to predict |
    | ``chosen`` | the shape of ``labels``, booleans | where there is a label |

    A label is missing where it is null, NaN or, in a string of classes, a letter that is not among them.

    Args:
        alphabet: The tokens of the model.
        level: Whether there is one label per ``"protein"`` or per ``"residue"``.
        classes: The classes in order, to predict one of them: the label is one of them, or for residues a string of one
            letter each. Whole numbers in the column are classes by number. ``None`` to predict numbers.
        column: The column of the labels.

    Raises:
        InputError: There is no such level, or a class for residues is not one letter.
    """

    def __init__(
        self,
        alphabet: Alphabet,
        level: Literal["protein", "residue"] = "protein",
        classes: Sequence[str] | None = None,
        column: str = "label",
    ) -> None:
        super().__init__(alphabet)
        if level not in ("protein", "residue"):
            raise InputError(f"Expected level to be 'protein' or 'residue', found {level!r}. Choose one of them.")
        self.level = level
        self.classes = None if classes is None else tuple(classes)
        if self.classes is not None and (len(set(self.classes)) < max(2, len(self.classes))):
            raise InputError(f"Expected at least 2 different classes, found {classes!r}. Name each once.")
        self.column = column
        self.columns = ("sequence", column)
        if level == "residue":
            self.by_residue = (*Recipe.by_residue, column)

    def example(self, row: Row, generator: np.random.Generator) -> Example:
        """Turn a row into arrays."""
        tokens = self.encode(row)
        labels = self._labels(row)
        if self.level == "residue":
            labels = np.concatenate([[np.nan], labels, [np.nan]])
        chosen = ~np.isnan(labels)
        labels = np.where(chosen, labels, 0)
        kind = np.float32 if self.classes is None else np.int64
        return {
            "tokens": tokens,
            "mask": np.ones(len(tokens), dtype=bool),
            "labels": labels.astype(kind),
            "chosen": chosen,
        }

    def blank(self) -> Example:
        """An item that counts nothing."""
        alphabet = self.alphabet
        tokens = np.array([alphabet.index[alphabet.start], alphabet.index[alphabet.end]])
        labels = np.zeros(2 if self.level == "residue" else (), np.float32 if self.classes is None else np.int64)
        return {
            "tokens": tokens,
            "mask": np.ones(2, dtype=bool),
            "labels": labels,
            "chosen": np.zeros(labels.shape, dtype=bool),
        }

    def padding(self) -> dict[str, Any]:
        """What to fill each array up with."""
        return {"tokens": self.alphabet.index[self.alphabet.padding], "mask": False, "labels": 0, "chosen": False}

    def settings(self) -> dict[str, Any]:
        """What the batches depend on, as plain data."""
        return {**super().settings(), "level": self.level, "classes": self.classes, "column": self.column}

    def _labels(self, row: Row) -> ndarray:
        """The labels of a row as floats, NaN where there is none."""
        label, residues = row[self.column], len(row["sequence"])
        shape = (residues,) if self.level == "residue" else ()
        if label is None:
            return np.full(shape, np.nan)
        if isinstance(label, str):
            found = self._classes(list(label) if self.level == "residue" else [label], row)
            labels = found if self.level == "residue" else found[0]
        else:
            labels = np.asarray(label, dtype=np.float64)
            valid = np.isnan(labels) | ((labels % 1 == 0) & (labels >= 0) & (labels < len(self.classes or ())))
            if self.classes is not None and not valid.all():
                raise InputError(
                    f"Expected classes from 0 to {len(self.classes) - 1} in {self.column!r} of row {row['row']}, found "
                    f"{label}. Correct the labels, or name all classes."
                )
        if np.shape(labels) != shape:
            raise InputError(
                f"Expected {'one label for each of ' + str(residues) + ' residues' if shape else 'one label'} in "
                f"{self.column!r} of row {row['row']}, found {len(np.atleast_1d(labels))}. Choose the other level, or "
                "correct the labels."
            )
        return np.asarray(labels)

    def _classes(self, names: list[str], row: Row) -> ndarray:
        if self.classes is None:
            raise InputError(
                f"Expected numbers in {self.column!r}, found {names[0]!r} in row {row['row']}. To predict classes, name "
                "them in `classes`."
            )
        places = {name: float(place) for place, name in enumerate(self.classes)}
        if self.level == "protein" and names[0] not in places:
            raise InputError(
                f"Expected one of the classes {', '.join(self.classes)} in {self.column!r} of row {row['row']}, found "
                f"{names[0]!r}. Name all classes, or leave the label empty where it is unknown."
            )
        return np.array([places.get(name, np.nan) for name in names])


class Backbones(Recipe):
    """Batches for inverse folding: what ``ProteinMPNN.forward`` takes, by name, and which residues count.

    | Key | Tensor | Meaning |
    |---|---|---|
    | ``coordinates`` | ``(batch, length, 4, 3)`` floats | N, CA, C and O in Å; 0 where they are missing |
    | ``sequence`` | ``(batch, length)`` integers | letters, by their place in the model's alphabet |
    | ``mask`` | ``(batch, length)`` booleans | residues that have all atoms which the model needs |
    | ``chain_index`` | ``(batch, length)`` integers | equal for residues of one chain |
    | ``residue_index`` | ``(batch, length)`` integers | place before cropping |
    | ``decoding_order`` | ``(batch, length)`` integers | residues in random order |
    | ``chosen`` | ``(batch, length)`` booleans | residues to predict: those with coordinates and a known letter |

    Letters that the model does not have count as its last, the unknown one.

    Args:
        letters: The model's alphabet, in its order, the unknown residue last.
        noise: Standard deviation in Å of what is added to each coordinate.
        atoms: The atoms, of N, CA, C and O, that the model needs.

    Raises:
        InputError: The noise is negative, or an atom is not of the backbone.
    """

    columns = ("sequence", "coordinates")
    optional = ("mask", "chain")
    ATOMS = ("N", "CA", "C", "O")

    def __init__(self, letters: str, noise: float = 0.0, atoms: Sequence[str] = ATOMS) -> None:
        if not 0 <= noise < float("inf") or not atoms or not set(atoms) <= set(self.ATOMS):
            raise InputError(
                f"Expected noise of at least 0 Å and atoms among {', '.join(self.ATOMS)}, found {noise} and "
                f"{', '.join(atoms)}. The usual noise is 0.2."
            )
        self.letters = letters
        self.noise = noise
        self.atoms = tuple(atoms)

    @cached_property
    def _table(self) -> ndarray:
        table = np.full(128, len(self.letters) - 1, dtype=np.int64)
        for place, letter in enumerate(self.letters):
            table[ord(letter)] = place
        return table

    def example(self, row: Row, generator: np.random.Generator) -> Example:
        """Turn a row into arrays."""
        sequence = _look_up(self._table, row, self.letters)
        coordinates, chain = row["coordinates"], row.get("chain")
        if coordinates is None:
            raise InputError(f"Expected coordinates in row {row['row']}, found none. Leave the row out.")
        length = len(sequence)
        mask = np.isfinite(coordinates[:, [self.ATOMS.index(atom) for atom in self.atoms]]).all(axis=(1, 2))
        if row.get("mask") is not None:
            mask &= row["mask"]
        noise = generator.normal(scale=self.noise, size=coordinates.shape) if self.noise else 0.0
        return {
            "coordinates": (np.nan_to_num(coordinates) + noise).astype(np.float32) * mask[:, None, None],
            "sequence": sequence,
            "mask": mask,
            "chain_index": np.zeros(length, np.int64) if chain is None else np.asarray(chain, np.int64),
            "residue_index": np.asarray(row.get("place", np.arange(length)), np.int64),
            "decoding_order": generator.permutation(length),
            "chosen": mask & (sequence != len(self.letters) - 1),
        }

    def blank(self) -> Example:
        """An item that counts nothing."""
        nothing = np.zeros(1, dtype=np.int64)
        places = dict.fromkeys(("sequence", "chain_index", "residue_index", "decoding_order"), nothing)
        flags = dict.fromkeys(("mask", "chosen"), nothing.astype(bool))
        return {"coordinates": np.zeros((1, 4, 3), np.float32), **places, **flags}

    def padding(self) -> dict[str, Any]:
        """What to fill each array up with."""
        return {
            "coordinates": 0.0,
            "sequence": len(self.letters) - 1,
            "mask": False,
            "chain_index": 0,
            "residue_index": 0,
            "decoding_order": None,
            "chosen": False,
        }

    def settings(self) -> dict[str, Any]:
        """What the batches depend on, as plain data."""
        return {**super().settings(), "letters": self.letters, "noise": self.noise, "atoms": list(self.atoms)}


def crop_row(row: Row, size: int, spatial: bool, names: Sequence[str], generator: np.random.Generator) -> Row:
    """Cut a row down to at most ``size`` residues, drawn at random.

    Args:
        row: The row.
        size: Largest number of residues.
        spatial: Whether to take the residues nearest in space to one of them, or a stretch of the sequence.
        names: The columns with one entry per residue.
        generator: Where the choice comes from.

    Returns:
        The row with these residues, in order; ``place`` says where each was.
    """
    length = len(row["sequence"])
    if length <= size:
        return row
    keep = _nearest(row["coordinates"], size, generator) if spatial else None
    if keep is None:
        keep = generator.integers(length - size + 1) + np.arange(size)
    cropped: Row = {**row, "place": keep}
    for name in names:
        value = row.get(name)
        if isinstance(value, str):
            cropped[name] = "".join(value[place] for place in keep)
        elif value is not None:
            cropped[name] = value[keep]
    return cropped


def _nearest(coordinates: ndarray | None, size: int, generator: np.random.Generator) -> ndarray | None:
    """The residues whose CA atoms are nearest to that of a random one; none if no residue has a CA atom."""
    alpha = np.full((0, 3), np.nan) if coordinates is None else coordinates[:, 1]
    seen = np.flatnonzero(np.isfinite(alpha).all(axis=1))
    if not len(seen):
        return None
    distances = np.linalg.norm(alpha - alpha[generator.choice(seen)], axis=1)
    # Residues without coordinates come after all others.
    return np.sort(np.argsort(np.nan_to_num(distances, nan=np.inf), kind="stable")[:size])


def _look_up(table: ndarray, row: Row, letters: str) -> ndarray:
    codes = np.frombuffer(row["sequence"].encode("ascii", "replace"), dtype=np.uint8)
    found = table[codes]
    if (found < 0).any():
        place = int(np.argmax(found < 0))
        raise InputError(
            f"Expected one of {letters} at position {place + 1} of row {row['row']}, found {row['sequence'][place]!r}. "
            "Prepare the data set with letters that the model has."
        )
    return found


def _stack(arrays: Sequence[ndarray], fill: Any) -> Tensor:
    """Stack arrays, padded along their first dimension to the longest; without a filling, with the places themselves."""
    if not arrays[0].ndim:
        return torch.from_numpy(np.stack(arrays))
    longest = max(map(len, arrays))
    if fill is None:
        stacked = np.tile(np.arange(longest, dtype=arrays[0].dtype), (len(arrays), 1))
    else:
        stacked = np.full((len(arrays), longest, *arrays[0].shape[1:]), fill, dtype=arrays[0].dtype)
    for place, array in enumerate(arrays):
        stacked[place, : len(array)] = array
    return torch.from_numpy(stacked)
