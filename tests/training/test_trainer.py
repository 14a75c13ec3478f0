"""Runs: exact when they go on after a stop, and the same on every backend."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pyrosys.errors import InputError
from pyrosys.training import DataModule, MaskedResidues
from pyrosys.zoo.esm import ESM
from tests.training.runs import STEPS, Data, Stopped, history, run


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

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
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
def test_ray_with_one_worker_takes_the_steps_of_lightning(proteins: Path, whole: Path, tmp_path: Path) -> None:
    run(tmp_path, data(proteins), backend="ray")
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
