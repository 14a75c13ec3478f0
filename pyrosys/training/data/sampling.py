"""Which items of a data set go into which batch, in which epoch, on which process.

An epoch is a function of the seed and its number, and of nothing else: it can be computed again, by every process, and
gone on with from any batch. It is made in four steps:

1. Draw: all items in random order, or one of each cluster.
2. Window: cut that into windows, and sort each by length, so that a batch has items of similar length and little padding.
3. Fill: make batches of as many items as fit, padded, into the budget of tokens; put the batches in random order.
4. Share: every process gets the same number of batches. What does not divide is made to by splitting the batches with
   the most items; where all have one item already, some processes get an empty batch at the end. No item is left out or given twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from pyrosys.errors import InputError

__all__ = ["Sampler", "padding_waste"]


@dataclass(frozen=True, eq=False)
class Sampler:
    """Batches of rows, padded to at most so many tokens.

    Args:
        rows: The numbers of the rows to draw from.
        lengths: The tokens of each, with special ones, after cropping.
        tokens: The budget: the longest length of a batch times its number of items is at most this.
        clusters: The cluster of each, to draw one member of every cluster in an epoch; ``None`` to take all items.
        seed: Where all randomness starts.
        window: How many items are sorted by length together: more for less padding, fewer for batches more at random.
        shuffle: Whether the order is random. Otherwise items are sorted by length, all in one window.

    Raises:
        InputError: There are no items, one is longer than the budget, or a number is out of range.

    Example:
        >>> sampler = Sampler(np.arange(5), np.array([4, 9, 3, 5, 10]), tokens=12)
        >>> sorted(sorted(batch.tolist()) for batch in sampler.batches(epoch=0))
        [[0, 3], [1], [2], [4]]
        >>> [len(sampler.batches(epoch=0, rank=rank, processes=3)) for rank in range(3)]
        [2, 2, 2]
    """

    rows: Int[ndarray, " items"]
    lengths: Int[ndarray, " items"]
    tokens: int
    clusters: Int[ndarray, " items"] | None = None
    seed: int = 0
    window: int = 8192
    shuffle: bool = True

    def __post_init__(self) -> None:
        if not len(self.rows):
            raise InputError("Expected at least 1 item to sample from, found none. Check the split and the files.")
        longest = int(self.lengths.max())
        if longest > self.tokens:
            raise InputError(
                f"Expected items of at most {self.tokens} tokens, the budget of a batch, found one of {longest}. "
                "Raise the budget, or crop long items."
            )
        if self.window < 1:
            raise InputError(f"Expected a window of at least 1 item, found {self.window}. The usual one is 8192.")

    def batches(self, epoch: int, rank: int = 0, processes: int = 1) -> list[Int[ndarray, " batch"]]:
        """Rows by batch: those of one process in an epoch, in order.

        Raises:
            InputError: There is no such epoch or process.
        """
        if epoch < 0 or not 0 <= rank < processes:
            raise InputError(
                f"Expected an epoch of at least 0 and a rank below the number of processes, found epoch {epoch} and "
                f"rank {rank} of {processes}. Count both from 0."
            )
        generator = np.random.default_rng((self.seed, epoch))
        filled = self._fill(self._draw(generator))
        if self.shuffle:
            filled = [filled[place] for place in generator.permutation(len(filled))]
        return [self.rows[places] for places in _share(filled, processes)[rank::processes]]

    def _draw(self, generator: np.random.Generator) -> Int[ndarray, " drawn"]:
        """Places of the items of an epoch among the rows, in random order."""
        order = generator.permutation(len(self.rows)) if self.shuffle else np.arange(len(self.rows))
        if self.clusters is None:
            return order
        _, first = np.unique(self.clusters[order], return_index=True)  # of items in random order: a random member
        return order[np.sort(first)]

    def _fill(self, order: Int[ndarray, " drawn"]) -> list[Int[ndarray, " batch"]]:
        """Sort each window by length and cut it into batches."""
        batches = []
        window = self.window if self.shuffle else len(order)
        for start in range(0, len(order), window):
            places = order[start : start + window]
            places = places[np.argsort(-self.lengths[places], kind="stable")]
            taken = 0
            while taken < len(places):
                count = max(1, self.tokens // max(1, int(self.lengths[places[taken]])))
                batches.append(places[taken : taken + count])
                taken += count
        return batches


def padding_waste(batches: list[Int[ndarray, " batch"]], lengths: Int[ndarray, " rows"]) -> float:
    """The share of tokens that are padding.

    Example:
        >>> round(padding_waste([np.array([0, 1])], np.array([3, 1])), 3)
        0.333
    """
    real = sum(int(lengths[batch].sum()) for batch in batches)
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches if len(batch))
    return 1 - real / padded


def _share(batches: list[Int[ndarray, " batch"]], processes: int) -> list[Int[ndarray, " batch"]]:
    """Make the number of batches divisible."""
    missing = -len(batches) % processes
    if not missing:
        return batches
    shared = list(batches)
    for _ in range(missing):
        largest = max(range(len(shared)), key=lambda place: len(shared[place]))
        half = len(shared[largest]) // 2  # none of a single item, which leaves an empty batch
        shared.append(shared[largest][:half])
        shared[largest] = shared[largest][half:]
    return shared
