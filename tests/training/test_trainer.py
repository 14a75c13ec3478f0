"""Runs: exact when they go on after a stop, and the same on every backend."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pyrosys.errors import InputError, WeightsError
from pyrosys.training import DataModule, MaskedLanguageTask, MaskedResidues, Optimiser, Trainer
from pyrosys.zoo.esm import ESM
from tests.training.runs import STEPS, Data, Stopped, history, run, task


@pytest.fixture(scope="module")
def whole(proteins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing stopped."""
    directory = tmp_path_factory.mktemp("whole")
    run(directory, Data(proteins))
    return directory


def assert_same_run(directory: Path, expected: Path) -> None:
    assert history(directory) == history(expected)
    for name in ("best", "final"):
        ours, theirs = (load_file(path / f"{name}.safetensors") for path in (directory, expected))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert (directory / "result.json").read_bytes() == (expected / "result.json").read_bytes()


def test_history_has_every_step_and_validation(whole: Path) -> None:
    rows = history(whole)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows if "validation/loss" in row] == [4, 8]
    assert rows[0]["learning_rate"] == pytest.approx(0.005)


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 5, 7, 8])
def test_run_goes_on_after_any_step_as_if_nothing_had_happened(
    stop: int, proteins: Path, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, Data(proteins, stop))
    run(tmp_path, Data(proteins), resume=True)
    assert_same_run(tmp_path, whole)


def test_run_that_is_killed_again_and_again_is_the_same(proteins: Path, whole: Path, tmp_path: Path) -> None:
    for given in (3, 4):
        arguments = [str(tmp_path), str(proteins), str(given), "2"]
        command = [sys.executable, "-m", "tests.training.runs", *arguments]
        killed = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        assert killed.returncode == -9, killed.stderr
    run(tmp_path, Data(proteins), resume=True, save_every=2)
    assert_same_run(tmp_path, whole)


def data(path: Path, tokens: int = 128) -> DataModule:
    return DataModule(path, MaskedResidues(ESM.alphabet), tokens=tokens)


@pytest.fixture(scope="module")
def parallel(proteins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run on two processes."""
    directory = tmp_path_factory.mktemp("parallel")
    run(directory, data(proteins), workers=2)
    return directory


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster of this machine."""
    from pyrosys.training.trainer import quiet

    with quiet():
        import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def test_two_processes_take_the_steps_of_one_that_has_the_batches_of_both(
    proteins: Path, parallel: Path, tmp_path: Path
) -> None:
    """Batches differ in size, so that an average of averages would be another."""

    class Both(DataModule):
        def epoch(self, epoch: int, start: int = 0, rank: int = 0, processes: int = 1):  # type: ignore[no-untyped-def]
            shares = [super(Both, self).epoch(epoch, start // 2, rank, 2) for rank in (0, 1)]
            return [batch for pair in zip(*shares, strict=True) for batch in pair]

    both = Both(proteins, MaskedResidues(ESM.alphabet), tokens=128)
    run(tmp_path, both, accumulate=2)
    for ours, theirs in zip(history(tmp_path), history(parallel), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)


@pytest.mark.usefixtures("cluster")
def test_ray_with_one_worker_takes_the_steps_of_lightning(
    proteins: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # workers have other current directories
    run(Path(), data(proteins), backend="ray")
    for ours, theirs in zip(history(tmp_path), history(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.usefixtures("cluster")
def test_ray_with_two_workers_takes_the_steps_of_two_processes(proteins: Path, parallel: Path, tmp_path: Path) -> None:
    result = run(tmp_path, data(proteins), backend="ray", workers=2)
    for ours, theirs in zip(history(tmp_path), history(parallel), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    assert result.validation == pytest.approx(json.loads((parallel / "result.json").read_text())["validation"])


class Broken(DataModule):
    """Data whose batches count nothing that is finite."""

    def epoch(self, *arguments: int):  # type: ignore[no-untyped-def,override]
        raise InputError("Expected data, found none.")


@pytest.mark.usefixtures("cluster")
def test_error_of_a_worker_arrives_as_it_is(proteins: Path, tmp_path: Path) -> None:
    for name, options in {"processes": {"workers": 2}, "ray": {"backend": "ray"}}.items():
        broken = Broken(proteins, MaskedResidues(ESM.alphabet), tokens=128)
        with pytest.raises(InputError, match="Expected data, found none"):
            run(tmp_path / name, broken, **options)


def test_run_is_not_overwritten_and_goes_on_only_as_it_was(proteins: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found one. Resume it"):
        run(whole, Data(proteins))
    with pytest.raises(InputError, match="found steps 9 then and 10 now"):
        run(whole, Data(proteins), steps=10, resume=True)
    with pytest.raises(InputError, match=r"found data.tokens 128 then and 256 now"):
        run(whole, Data(proteins, tokens=256), resume=True)


def test_run_that_has_ended_gives_its_result_again(proteins: Path, whole: Path) -> None:
    result = run(whole, Data(proteins, stop=0), resume=True)
    assert result.steps == STEPS
    again = task()
    Trainer(whole, STEPS, accelerator="cpu", validate_every=4).fit(again, Data(proteins, stop=0), resume=True)
    torch.testing.assert_close(dict(again.state_dict()), load_file(whole / f"{result.kept}.safetensors"))


def test_better_parameters_are_kept_and_patience_ends_the_run(proteins: Path, tmp_path: Path) -> None:
    worse = Optimiser(learning_rate=0.5, schedule="constant")
    trained = MaskedLanguageTask(task().model, worse)
    trainer = Trainer(tmp_path, 60, accelerator="cpu", validate_every=2, patience=2)
    result = trainer.fit(trained, data(proteins))
    losses = [row["validation/loss"] for row in history(tmp_path) if "validation/loss" in row]
    assert result.steps < 60
    assert len(losses) == result.steps // 2
    assert min(losses) == losses[-3] < min(losses[-2:])
    assert result.kept == "best"
    assert result.validation["loss"] == pytest.approx(min(losses), rel=1e-6)


def test_without_validation_data_the_last_parameters_are_kept(proteins: Path, tmp_path: Path) -> None:
    every = DataModule(proteins, MaskedResidues(ESM.alphabet), tokens=128, validation="none")
    result = run(tmp_path, every, steps=3)
    assert (result.kept, result.validation) == ("final", {})
    assert [row["step"] for row in history(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_damaged_checkpoint_is_explained(content: bytes, proteins: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, Data(proteins, 3))
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(WeightsError, match=r"last\.ckpt to be a checkpoint of this run"):
        run(tmp_path, Data(proteins), resume=True)


def test_checkpoint_that_would_run_code_is_refused(proteins: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, Data(proteins, 3))
    torch.save({"state_dict": Path}, tmp_path / "last.ckpt")
    with pytest.raises(WeightsError, match="checkpoint of this run"):
        run(tmp_path, Data(proteins), resume=True)


def test_fewer_bits_for_products_give_nearly_the_same_losses(proteins: Path, whole: Path, tmp_path: Path) -> None:
    run(tmp_path, data(proteins), precision="bf16-mixed")
    ours, theirs = ([row["loss"] for row in history(path) if "loss" in row] for path in (tmp_path, whole))
    assert ours != theirs
    assert ours == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"workers": 0}, {"clip": 0.0}, {"backend": "abacus"}, {"patience": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Trainer(tmp_path, **{"steps": 1, **wrong})
