"""Runs in several processes of this machine, one for each worker."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
from typing import Any

from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch.distributed import destroy_process_group, is_initialized
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from pyrosys.errors import PyrosysError, TrainingError
from pyrosys.training.data import DataModule
from pyrosys.training.task import Task
from pyrosys.training.trainer import Trainer, run_worker

__all__ = ["run_in_processes"]


def run_in_processes(trainer: Trainer, task: Task, data: DataModule) -> None:
    """Start the workers and wait for them; when one fails, the others are ended.

    Raises:
        TrainingError: A worker failed.
    """
    errors = multiprocessing.get_context("spawn").SimpleQueue()
    # As bytes, or the workers would share the memory of the parameters, and each change those of all.
    run = pickle.dumps((trainer, task, data))
    try:
        spawn(_work, (run, trainer.workers, _free_port(), errors), nprocs=trainer.workers)
    except (ProcessRaisedException, ProcessExitedException) as error:
        if not errors.empty():
            raise errors.get() from error
        raise TrainingError(f"Expected the workers to finish, found: {error}") from error


def _work(rank: int, run: bytes, workers: int, port: int, errors: Any) -> None:
    # As torchrun tells its processes who they are.
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    strategy = DDPStrategy(cluster_environment=LightningEnvironment())
    try:
        run_worker(*pickle.loads(run), strategy=strategy, devices=workers)
    except PyrosysError as error:
        errors.put(error)
        raise
    finally:
        # Or threads of Gloo outlive the interpreter, and now and then one of them aborts a process that has done its work.
        if is_initialized():
            destroy_process_group()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
