"""The data of a run: which rows, in which batches, from any batch of any epoch on."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from functools import cached_property
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
from numpy import ndarray
from torch.utils.data import DataLoader

from pyrosys.errors import InputError
from pyrosys.training.data.dataset import Dataset
from pyrosys.training.data.recipes import Batch, Example, Recipe, crop_row
from pyrosys.training.data.sampling import Sampler

__all__ = ["Batches", "DataModule"]


class DataModule(pl.LightningDataModule):
    """Batches of a data set for training, validation and test.

    An epoch is the same whenever and wherever it is computed: `epoch` gives its batches for one of several processes,
    from any of them on. With Lightning's own trainer, give it ``reload_dataloaders_every_n_epochs=1`` and
    ``use_distributed_sampler=False``; a run that was stopped in the middle of an epoch then goes on with the next batch.

    Args:
        path: A folder that `prepare` wrote, or Parquet or Arrow files of your own; see `pyrosys.training.data.schema`.
        recipe: What to make of the rows.
        tokens: The most tokens in a batch, padding included.
        sampling: ``"all"`` items in an epoch, or one member, drawn anew in every epoch, of each of the ``"clusters"``.
            Validation and test take all items.
        crop: The most residues of an item, the rest is cut off; ``None`` to refuse items longer than a batch.
        crop_kind: What is kept of an item that is too long: a ``"contiguous"`` stretch at random, or the residues nearest
            in space to a random one, ``"spatial"``.
        seed: Where all randomness starts.
        window: How many items are sorted by length together.
        workers: Processes that read ahead, for each process of training. Where there are some, a program that is run as
            a script has to begin under ``if __name__ == "__main__":``.
        train: The split to train on, ``None`` for all rows.
        validation: The split to validate on.
        test: The split to test on.

    Raises:
        InputError: The files are not as documented, or an argument is out of range.
        MissingExtra: pyarrow is not installed.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        recipe: Recipe,
        *,
        tokens: int = 8192,
        sampling: Literal["all", "clusters"] = "all",
        crop: int | None = None,
        crop_kind: Literal["contiguous", "spatial"] = "contiguous",
        seed: int = 0,
        window: int = 8192,
        workers: int = 0,
        train: str | None = "train",
        validation: str = "validation",
        test: str = "test",
    ) -> None:
        super().__init__()
        if sampling not in ("all", "clusters"):
            raise InputError(f"Expected sampling to be 'all' or 'clusters', found {sampling!r}. Choose one of them.")
        if crop_kind not in ("contiguous", "spatial"):
            raise InputError(f"Expected crop_kind to be 'contiguous' or 'spatial', found {crop_kind!r}. Choose one.")
        if crop is not None and crop < 1:
            raise InputError(f"Expected a crop of at least 1 residue, found {crop}. Leave it out to crop nothing.")
        if seed < 0 or workers < 0:
            raise InputError(f"Expected seed and workers of at least 0, found {seed} and {workers}. Change them.")
        self.dataset = Dataset(path)
        self.recipe = recipe
        self.tokens = tokens
        self.sampling = sampling
        self.crop = crop
        self.crop_kind = crop_kind
        self.seed = seed
        self.window = window
        self.workers = workers
        self.splits = {"train": train, "validation": validation, "test": test}

    @property
    def digest(self) -> str:
        """SHA-256 of the data set, as 64 hexadecimal digits."""
        return self.dataset.digest

    def settings(self) -> dict[str, Any]:
        """What the batches depend on, as plain data."""
        names = ("digest", "tokens", "sampling", "crop", "crop_kind", "seed", "window", "splits")
        return {**{name: getattr(self, name) for name in names}, **self.recipe.settings()}

    def count(self, stage: Literal["train", "validation", "test"]) -> int:
        """The number of items of a split, which may be 0."""
        return len(self._rows(stage))

    def epoch(self, epoch: int, start: int = 0, rank: int = 0, processes: int = 1) -> Batches:
        """The training batches of a process in an epoch, without the first ``start``; as many for every process."""
        return self._batches("train", epoch, start, rank, processes)

    def validation(self, rank: int = 0, processes: int = 1) -> Batches:
        """The batches of a process for validation, the same each time."""
        return self._batches("validation", 0, 0, rank, processes)

    def test(self, rank: int = 0, processes: int = 1) -> Batches:
        """The batches of a process for the test, the same each time."""
        return self._batches("test", 0, 0, rank, processes)

    def train_dataloader(self) -> Batches:
        """The batches of Lightning's current epoch.

        Raises:
            InputError: Lightning would take the batches of the first epoch for those of all.
        """
        trainer = self._trainer()
        if getattr(trainer, "reload_dataloaders_every_n_epochs") != 1 and trainer.max_epochs != 1:  # noqa: B009 (untyped)
            raise InputError(
                "Expected a trainer that asks for the batches of every epoch, found one that asks once. "
                "Give pl.Trainer reload_dataloaders_every_n_epochs=1."
            )
        return self.epoch(trainer.current_epoch, 0, trainer.global_rank, trainer.world_size)

    def val_dataloader(self) -> Batches | list[Any]:
        """The batches of validation, if there are any."""
        trainer = self._trainer()
        return self.validation(trainer.global_rank, trainer.world_size) if self.count("validation") else []

    def test_dataloader(self) -> Batches:
        """The batches of the test."""
        trainer = self._trainer()
        return self.test(trainer.global_rank, trainer.world_size)

    def _trainer(self) -> pl.Trainer:
        if self.trainer is None:
            raise InputError(
                "Expected a trainer that this data module belongs to, found none. Use `epoch` without one."
            )
        return self.trainer

    def _batches(self, stage: str, epoch: int, start: int, rank: int, processes: int) -> Batches:
        batches = self._sampler(stage).batches(epoch, rank, processes)
        crop = None if self.crop is None else (self.crop, self.crop_kind == "spatial")
        items = _Items(self.dataset, self.recipe, crop, self.seed, epoch)
        return Batches(items, batches, start, self.workers)

    def _sampler(self, stage: str) -> Sampler:
        if stage not in self._samplers:
            rows = self._rows(stage)
            if not len(rows):
                raise InputError(
                    f"Expected items of the split {self.splits[stage]!r} in {self.dataset.paths[0].parent}, found none. "
                    "Name another split."
                )
            lengths = self.dataset.lengths[rows]
            if self.crop is not None:
                lengths = np.minimum(lengths, self.crop)
            training = stage == "train"
            clusters = self.dataset.codes("cluster")[0][rows] if training and self.sampling == "clusters" else None
            self._samplers[stage] = Sampler(
                rows,
                lengths + self.recipe.special,
                self.tokens,
                clusters=clusters,
                seed=self.seed,
                window=self.window,
                shuffle=training,
            )
        return self._samplers[stage]

    @cached_property
    def _samplers(self) -> dict[str, Sampler]:
        return {}

    def _rows(self, stage: str) -> ndarray:
        """The numbers of the rows of a split."""
        name = self.splits[stage]
        if name is None:
            return np.arange(len(self.dataset))
        codes, names = self._split_codes
        return np.flatnonzero(codes == names.index(name)) if name in names else np.arange(0)

    @cached_property
    def _split_codes(self) -> tuple[ndarray, list[str]]:
        return self.dataset.codes("split")


class Batches:
    """The batches of a process in an epoch, read as they are asked for.

    The state counts the batches that were handed out, not those that workers have read ahead, and Lightning asks for one
    only when it is about to use it, since it knows how many there are. So what is saved in a checkpoint is exactly what
    training has seen.
    """

    def __init__(self, items: _Items, batches: list[ndarray], start: int, workers: int) -> None:
        if not 0 <= start <= len(batches):
            raise InputError(f"Expected to start at a batch from 0 to {len(batches)}, found {start}. Check the run.")
        self.items = items
        self.batches = batches
        self.start = start
        self.workers = workers
        self._given = start

    def __len__(self) -> int:
        return len(self.batches) - self.start

    def __iter__(self) -> Iterator[Batch]:
        rest, self._given = self.batches[self._given :], self._given
        loader: DataLoader[Any] = DataLoader(
            self.items,  # type: ignore[arg-type] # torch takes anything with __getitems__
            batch_sampler=[batch.tolist() for batch in rest],
            collate_fn=self.items.recipe.collate,
            num_workers=min(self.workers, len(rest)),
            multiprocessing_context=_context() if self.workers and rest else None,
        )
        for batch in loader:
            self._given += 1
            yield batch
        self._given = self.start

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch were handed out."""
        return {"epoch": self.items.epoch, "batch": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after them.

        Raises:
            InputError: The state is of another epoch.
        """
        if state["epoch"] != self.items.epoch or not self.start <= state["batch"] <= len(self.batches):
            raise InputError(
                f"Expected the state of epoch {self.items.epoch}, of {len(self.batches)} batches, found that of batch "
                f"{state['batch']} of epoch {state['epoch']}. Resume with the same data and settings."
            )
        self._given = state["batch"]


class _Items:
    """Examples of an epoch by row, made where they are asked for: in this process or in one that reads ahead."""

    def __init__(self, dataset: Dataset, recipe: Recipe, crop: tuple[int, bool] | None, seed: int, epoch: int) -> None:
        self.dataset = dataset
        self.recipe = recipe
        self.crop = crop
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, rows: list[int]) -> list[Example]:
        found = []
        optional = [name for name in self.recipe.optional if name in self.dataset.columns]
        for row in self.dataset.read(rows, (*self.recipe.columns, *optional)):
            generator = np.random.default_rng((self.seed, self.epoch, row["row"]))
            if self.crop is not None:
                size, spatial = self.crop
                row = crop_row(row, size, spatial, self.recipe.by_residue, generator)
            found.append(self.recipe.example(row, generator))
        return found


def _context() -> BaseContext:
    """How to start workers: not by forking this process, which has threads, but one that has imported what they need."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context
