"""The data module: batches that do not depend on workers, processes or interruptions."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from pyrosys.errors import InputError
from pyrosys.training.data import Batches, DataModule, Dataset, MaskedResidues
from pyrosys.zoo.esm import ALPHABET

Batch = dict[str, torch.Tensor]


def module(path: Path, **options: Any) -> DataModule:
    return DataModule(path, MaskedResidues(ALPHABET), **{"tokens": 512, "window": 64, **options})


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


def sequences(batches: list[Batch]) -> list[str]:
    """The sequences of all batches, sorted."""
    found = []
    for batch in batches:
        for tokens, mask, chosen in zip(batch["targets"], batch["mask"], batch["chosen"], strict=True):
            if chosen.any():
                found.append(ALPHABET.decode(tokens[mask].tolist()[1:-1]))
    return sorted(found)


def expected(path: Path, split: str) -> list[str]:
    dataset = Dataset(path)
    rows = dataset.read(range(len(dataset)), ["sequence", "split"])
    return sorted(row["sequence"] for row in rows if row["split"] == split)


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_every_item_of_a_split_comes_once(processes: int, prepared: Path) -> None:
    data = module(prepared)
    for epoch in (0, 1):
        batches = [batch for rank in range(processes) for batch in data.epoch(epoch, 0, rank, processes)]
        assert sequences(batches) == expected(prepared, "train")
    batches = [batch for rank in range(processes) for batch in data.validation(rank, processes)]
    assert sequences(batches) == expected(prepared, "validation")
    batches = [batch for rank in range(processes) for batch in data.test(rank, processes)]
    assert sequences(batches) == expected(prepared, "test")


def test_epochs_are_repeatable_and_different(prepared: Path) -> None:
    data = module(prepared)
    assert same(list(data.epoch(2)), list(data.epoch(2)))
    assert same(list(data.epoch(2)), list(module(prepared).epoch(2)))
    assert not same(list(data.epoch(2)), list(data.epoch(3)))
    assert not same(list(data.epoch(2)), list(module(prepared, seed=1).epoch(2)))
    assert same(list(data.validation()), list(data.validation()))


def test_masking_does_not_depend_on_the_batch(prepared: Path) -> None:
    def masked(batches: Any) -> set[tuple[int, ...]]:
        return {
            tuple(row[mask].tolist())
            for batch in batches
            for row, mask in zip(batch["tokens"], batch["mask"], strict=True)
        }

    one = masked(module(prepared).epoch(1))
    other = [batch for rank in range(3) for batch in module(prepared, tokens=1000, window=20).epoch(1, 0, rank, 3)]
    assert one == masked(other)


def test_workers_change_nothing(prepared: Path) -> None:
    alone, together = module(prepared), module(prepared, workers=2)
    assert same(list(alone.epoch(0)), list(together.epoch(0)))
    assert same(list(alone.epoch(0, 2)), list(together.epoch(0, 2)))


def test_clusters_give_one_member_each(prepared: Path) -> None:
    data = module(prepared, sampling="clusters")
    dataset = Dataset(prepared)
    cluster = {row["sequence"]: row["cluster"] for row in dataset.read(range(len(dataset)), ["sequence", "cluster"])}
    found = [cluster[text] for text in sequences(list(data.epoch(0)))]
    assert len(set(found)) == len(found)
    assert set(found) == {cluster[text] for text in expected(prepared, "train")}
    assert sequences(list(data.validation())) == expected(prepared, "validation")


@pytest.mark.parametrize("start", [0, 1, 5])
def test_an_epoch_goes_on_from_any_batch(start: int, prepared: Path) -> None:
    data = module(prepared)
    for rank in range(2):
        whole = list(data.epoch(1, 0, rank, 2))
        assert same(list(data.epoch(1, start, rank, 2)), whole[start:])


def test_state_counts_what_was_handed_out(prepared: Path) -> None:
    data = module(prepared, workers=2)  # which read ahead
    whole = list(module(prepared).epoch(1))
    batches = data.epoch(1)
    iterator = iter(batches)
    for _ in range(3):
        next(iterator)
    state = batches.state_dict()
    assert state == {"epoch": 1, "batch": 3}
    del iterator
    again = module(prepared).epoch(1)
    again.load_state_dict(state)
    assert same(list(again), whole[3:])
    with pytest.raises(InputError, match="the state of epoch 2"):
        data.epoch(2).load_state_dict(state)


def test_crops_keep_items_within_the_budget(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sequence": ["MKTAYIAKQR" * 30, "GS"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="found one of 302"):
        list(module(tmp_path, tokens=100, train=None).epoch(0))
    data = module(tmp_path, tokens=100, train=None, crop=98)
    assert sorted(map(len, sequences(list(data.epoch(0))))) == [2, 98]
    assert sequences(list(data.epoch(0))) != sequences(list(data.epoch(1)))


def test_fewer_items_than_processes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sequence": ["MKTA", "GS"]}), tmp_path / "a.parquet")
    shares = [list(module(tmp_path, train=None).epoch(0, 0, rank, 3)) for rank in range(3)]
    assert [len(share) for share in shares] == [1, 1, 1]
    assert sequences([batch for share in shares for batch in share]) == ["GS", "MKTA"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "families"}, "'all' or 'clusters'"),
        ({"crop_kind": "round"}, "'contiguous' or 'spatial'"),
        ({"crop": 0}, "crop of at least 1"),
        ({"workers": -1}, "workers of at least 0"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str, prepared: Path) -> None:
    with pytest.raises(InputError, match=message):
        module(prepared, **options)


def test_missing_splits_are_explained(prepared: Path) -> None:
    with pytest.raises(InputError, match="items of the split 'absent'"):
        module(prepared, train="absent").epoch(0)


class Recorder(pl.LightningModule):
    """Counts letters, and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Batch] = []

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.seen.append(batch)
        return self.weight * batch["mask"].sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def train(data: DataModule, folder: Path, steps: int, checkpoint: Path | None = None) -> list[Batch]:
    recorder = Recorder()
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        callbacks=[ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)],
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    trainer.fit(recorder, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return recorder.seen


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and on what is not saved
@pytest.mark.parametrize("sampling", ["all", "clusters"])
def test_lightning_sees_whole_epochs_and_resumes_at_the_next_batch(
    sampling: str, prepared: Path, tmp_path: Path
) -> None:
    data = module(prepared, sampling=sampling)
    epochs = [list(data.epoch(number)) for number in range(4)]
    first = len(epochs[0])
    whole = [batch for epoch in epochs for batch in epoch]
    steps = len(epochs[0]) + len(epochs[1]) + 2
    seen = train(data, tmp_path, steps)
    assert same(seen, whole[:steps])
    for stop in (1, first - 1, first, first + 1):
        resumed = train(module(prepared, sampling=sampling), tmp_path / "again", steps, tmp_path / f"step={stop}.ckpt")
        assert same(resumed, whole[stop:steps]), stop


def test_a_trainer_that_asks_once_is_refused(prepared: Path, tmp_path: Path) -> None:
    data = module(prepared)
    data.trainer = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", max_steps=3, logger=False)
    with pytest.raises(InputError, match="reload_dataloaders_every_n_epochs=1"):
        data.train_dataloader()
    assert isinstance(data.val_dataloader(), Batches)
