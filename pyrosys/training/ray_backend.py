"""Runs on Ray Train: the same worker as with Lightning alone, in processes that Ray places on its cluster."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pyrosys.errors import MissingExtra, PyrosysError, TrainingError
from pyrosys.training.data import DataModule
from pyrosys.training.task import Task
from pyrosys.training.trainer import Trainer, quiet, run_worker

__all__ = ["run_on_ray"]


def run_on_ray(trainer: Trainer, task: Task, data: DataModule) -> None:
    """Run on the cluster that is connected, or on one that Ray starts on this machine.

    The directory of the run has to be one that all machines of the cluster share.

    Raises:
        MissingExtra: Ray is not installed.
        TrainingError: A worker failed.
    """
    with quiet():
        try:
            from ray.train import RunConfig, ScalingConfig
            from ray.train.torch import TorchTrainer
        except ModuleNotFoundError as error:
            raise MissingExtra.needed("train", error) from error
        runs = TorchTrainer(
            _work,
            # Workers have other current directories.
            train_loop_config={"trainer": replace(trainer, directory=trainer.path), "task": task, "data": data},
            scaling_config=ScalingConfig(num_workers=trainer.workers, use_gpu=trainer.accelerator == "gpu"),
            run_config=RunConfig(storage_path=str(trainer.path), name="ray"),
        )
        try:
            runs.fit()
        except Exception as error:
            raise _cause(error) from error


def _work(config: dict[str, Any]) -> None:
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment

    run_worker(**config, strategy=RayDDPStrategy(), plugins=(RayLightningEnvironment(),))


def _cause(error: Exception) -> PyrosysError:
    """Find what a worker said in what Ray says of it."""
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        inner: BaseException | None = failure
        while inner is not None:
            if isinstance(inner, PyrosysError):
                return inner
            inner = getattr(inner, "cause", None) or inner.__cause__
    return TrainingError(f"Expected the workers to finish, found: {error}. The log of Ray says more.")
