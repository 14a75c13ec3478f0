"""The batches of a whole run: epoch after epoch, from any batch on."""

from __future__ import annotations

from collections.abc import Iterator

from pyrosys.training.data import DataModule
from pyrosys.training.data.recipes import Batch

__all__ = ["Stream"]


class Stream:
    """All batches of a run in order, for one process.

    Lightning takes the run for one long epoch, so that there is one way to resume: at a batch. The state counts what was
    handed out, and with a length that is known Lightning does not read ahead.

    Args:
        data: Gives the batches of an epoch.
        length: Number of batches in the run.
        rank: Which process this is.
        processes: How many there are.
    """

    def __init__(self, data: DataModule, length: int, rank: int = 0, processes: int = 1) -> None:
        self.data = data
        self.length = length
        self.rank = rank
        self.processes = processes
        self._epoch = self._batch = self._given = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        while self._given < self.length:
            for batch in self.data.epoch(self._epoch, self._batch, self.rank, self.processes):
                self._batch += 1
                self._given += 1
                yield batch
                if self._given == self.length:
                    return
            self._epoch += 1
            self._batch = 0

    def state_dict(self) -> dict[str, int]:
        """Where the run is."""
        return {"epoch": self._epoch, "batch": self._batch, "given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self._epoch, self._batch, self._given = state["epoch"], state["batch"], state["given"]
