"""Tasks: what they learn, which parameters they change, and how steps are averaged."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyrosys
from pyrosys.errors import InputError, TrainingError
from pyrosys.training import (
    Backbones,
    DataModule,
    Frozen,
    Full,
    InverseFoldingTask,
    Labelled,
    LowRank,
    MaskedLanguageTask,
    MaskedResidues,
    Optimiser,
    SupervisedTask,
    Task,
    Trainer,
)
from pyrosys.training.history import read_history
from pyrosys.zoo.esm import ESM, ESMConfig
from pyrosys.zoo.proteinmpnn import ProteinMPNN, ProteinMPNNConfig
from tests.training import runs

QUICK = Optimiser(learning_rate=1e-2)


def language_model(**options: Any) -> ESM:
    return ESM(ESMConfig(layers=1, width=16, heads=2, **options))


def values(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def fit(task: Task, data: DataModule, directory: Path, steps: int = 60, **options: Any) -> dict[str, float]:
    trainer = Trainer(directory, steps, accelerator="cpu", validate_every=steps, **options)
    return trainer.fit(task, data).validation


def test_step_of_many_batches_is_the_step_of_one(proteins: Path, tmp_path: Path) -> None:
    """Batches of any sizes: the loss is the average over all hidden residues, and so is the gradient."""
    recipe = MaskedResidues(ESM.alphabet)
    few = DataModule(proteins, recipe, tokens=64)
    batches = len(few.epoch(0))
    runs.run(tmp_path / "few", few, steps=2, accumulate=batches, validate_every=2)
    runs.run(tmp_path / "one", DataModule(proteins, recipe, tokens=4096), steps=2, validate_every=2)
    rows = [read_history(tmp_path / name / "history.jsonl") for name in ("few", "one")]
    assert batches > 8
    for few_row, one_row in zip(*rows, strict=True):
        assert few_row == pytest.approx(one_row, rel=1e-5)


def test_loss_that_is_not_finite_ends_the_run(proteins: Path, tmp_path: Path) -> None:
    task = MaskedLanguageTask(language_model())
    with torch.no_grad():
        task.model.norm.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match="finite loss at step 1, found nan"):
        fit(task, DataModule(proteins, MaskedResidues(ESM.alphabet), tokens=256), tmp_path)


def test_masked_language_model_learns(proteins: Path, tmp_path: Path) -> None:
    task = MaskedLanguageTask(language_model(), QUICK)
    assert not task.model.contact_head.regression.weight.requires_grad  # the loss does not reach it
    measured = fit(task, DataModule(proteins, MaskedResidues(ESM.alphabet), tokens=512), tmp_path)
    assert measured["perplexity"] < 19
    assert measured["loss"] == pytest.approx(torch.tensor(measured["perplexity"]).log().item(), rel=1e-4)
    (address,) = task.publish(tmp_path)
    torch.testing.assert_close(values(pyrosys.load(address)), values(task.model))


def test_inverse_folding_learns(proteins: Path, tmp_path: Path) -> None:
    config = ProteinMPNNConfig(width=32, neighbours=8, encoder_layers=1, decoder_layers=1, dropout=0.0)
    model = ProteinMPNN(config)
    data = DataModule(proteins, Backbones(model.alphabet), tokens=512)
    measured = fit(InverseFoldingTask(model, QUICK), data, tmp_path, log_every=1)
    losses = [row["loss"] for row in read_history(tmp_path / "history.jsonl") if "loss" in row]
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.05
    # The loss is smoothed, the perplexity is not.
    assert measured["perplexity"] != pytest.approx(math.exp(measured["loss"]), rel=1e-4)


@pytest.mark.parametrize(
    ("level", "column", "classes", "metric"),
    [
        ("protein", "label", None, "spearman"),
        ("protein", "kind", ("first", "second"), "accuracy"),
        ("residue", "states", ("h", "e"), "accuracy"),
    ],
)
def test_head_learns(
    level: Any, column: str, classes: tuple[str, ...] | None, metric: str, proteins: Path, tmp_path: Path
) -> None:
    task = SupervisedTask(language_model(), QUICK, level=level, classes=classes, hidden=8)
    data = DataModule(proteins, Labelled(ESM.alphabet, level, classes, column), tokens=512)
    assert fit(task, data, tmp_path)[metric] > 0.6
    sequences = ["MKTAYI", "GS"]
    predictions = task.predict_sequences(sequences)
    shapes = {"protein": [(), ()], "residue": [(6,), (2,)]}[level]
    assert [tuple(x.shape[: len(shape)]) for x, shape in zip(predictions, shapes, strict=True)] == shapes
    loaded = SupervisedTask.load(task.publish(tmp_path))
    torch.testing.assert_close(loaded.predict_sequences(sequences), predictions)


def test_prediction_of_a_protein_does_not_depend_on_padding(proteins: Path) -> None:
    task = SupervisedTask(language_model()).eval()
    data = DataModule(proteins, Labelled(ESM.alphabet), tokens=512)
    batch = next(iter(data.epoch(0)))
    sequences = [
        ESM.alphabet.decode(row[mask][1:-1].tolist()) for row, mask in zip(batch["tokens"], batch["mask"], strict=True)
    ]
    with torch.no_grad():
        expected = task.predict(batch)
    torch.testing.assert_close(torch.stack(task.predict_sequences(sequences)), expected)


def test_frozen_model_stays_as_it_is(proteins: Path, tmp_path: Path) -> None:
    task = SupervisedTask(language_model(), QUICK, Frozen())
    before, head = values(task.model), values(task.head)
    fit(task, DataModule(proteins, Labelled(ESM.alphabet), tokens=512), tmp_path, steps=3)
    torch.testing.assert_close(values(task.model), before, rtol=0, atol=0)
    assert not torch.equal(values(task.head)["output.weight"], head["output.weight"])
    assert not task.train().model.training


def test_low_rank_updates_change_only_their_layers_and_merge_into_them(proteins: Path, tmp_path: Path) -> None:
    model = language_model()
    before = values(model)
    task = MaskedLanguageTask(model, QUICK, LowRank(rank=2, layers=("query", "value")))
    tokens = ESM.alphabet.encode(["MKTAYI", "GS"])
    torch.testing.assert_close(task.model(tokens), model(tokens))
    fit(task, DataModule(proteins, MaskedResidues(ESM.alphabet), tokens=512), tmp_path, steps=5)
    with torch.no_grad():
        expected = task.eval().model(tokens)
        merged = task.trained_model()
        torch.testing.assert_close(merged(tokens), expected)
    after = values(merged)
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {f"layers.0.attention.{name}.weight" for name in ("query", "value")}


def test_low_rank_updates_name_layers_that_there_are() -> None:
    with pytest.raises(InputError, match="among .*query.*found quarry"):
        MaskedLanguageTask(language_model(), tuning=LowRank(layers=("quarry",)))


def test_full_training_is_what_there_was_without_a_choice() -> None:
    task = MaskedLanguageTask(language_model(contacts=False))
    assert task.tuning == Full()
    assert all(parameter.requires_grad for parameter in task.parameters())
