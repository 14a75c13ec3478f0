"""Runs of training that the tests compare, in this process and in others."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pyrosys.training import DataModule, MaskedLanguageTask, MaskedResidues, Optimiser, Result, Trainer
from pyrosys.training.data.recipes import Batch
from pyrosys.training.history import read_history
from pyrosys.zoo.esm import ESM, ESMConfig

STEPS = 9


class Stopped(Exception):
    """What ends a run on purpose."""


class Data(DataModule):
    """A data module that ends the run when it is asked for the batch of that number, counted from 0."""

    def __init__(self, path: Path, stop: int | None = None, *, kill: bool = False, tokens: int = 128) -> None:
        super().__init__(path, MaskedResidues(ESM.alphabet), tokens=tokens)
        self.stop = stop
        self.kill = kill
        self.given = 0

    def epoch(self, epoch: int, start: int = 0, rank: int = 0, processes: int = 1) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().epoch(epoch, start, rank, processes):
            if self.given == self.stop:
                if self.kill:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise Stopped
            self.given += 1
            yield batch


def task(**options: Any) -> MaskedLanguageTask:
    torch.manual_seed(0)
    model = ESM(ESMConfig(layers=1, width=16, heads=2))
    return MaskedLanguageTask(model, Optimiser(learning_rate=1e-2, warmup=2, schedule="linear"), **options)


def run(directory: Path, data: DataModule, *, resume: bool = False, **options: Any) -> Result:
    options = {"steps": STEPS, "validate_every": 4, "save_every": 1, "log_every": 1, "accelerator": "cpu", **options}
    return Trainer(directory, **options).fit(task(), data, resume=resume)


def history(directory: Path) -> list[dict[str, float]]:
    return read_history(directory / "history.jsonl")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(
        Path(sys.argv[1]),
        Data(Path(sys.argv[2]), int(sys.argv[3]), kill=True),
        resume=True,
        save_every=int(sys.argv[4]),
    )
