"""What a run keeps on disk, so that it can go on after a crash at any moment.

| File in the run's directory | What it is |
|---|---|
| ``settings.json`` | what the run was started with; it goes on with nothing else |
| ``last.ckpt`` | parameters, optimiser, schedule and place in the data, from which the run goes on |
| ``best.safetensors`` | parameters of the task at the smallest validation loss |
| ``final.safetensors`` | parameters of the task after the last step |
| ``history.jsonl`` | what was logged, one line of JSON at a time |
| ``result.json`` | how the run ended |

Each appears complete or not at all. ``last.ckpt`` is torch's format, read in the restricted way that runs no code.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import CheckpointIO

from pyrosys.errors import WeightsError
from pyrosys.hub import write_weights
from pyrosys.hub.files import replacing

__all__ = ["AtomicCheckpoints", "Checkpoints", "write_json"]


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON; the file appears complete or not at all."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=2, allow_nan=False).encode() + b"\n")


class AtomicCheckpoints(CheckpointIO):
    """Checkpoints that appear complete or not at all, and that hold nothing but data."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint."""
        with replacing(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint, never running code from it.

        Raises:
            WeightsError: The file is damaged, or not such a checkpoint.
        """
        try:
            return torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:  # torch raises whatever a damaged file leads to
            raise WeightsError(
                f"Expected {path} to be a checkpoint of this run, found: {error}. Restore the file, or start the run "
                "again in another directory."
            ) from error

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


class Checkpoints(Callback):
    """Save the run after every so many steps, and after validation; and the parameters that validate best.

    Args:
        directory: The run's directory.
        every: Steps between two saves.
        validate_every: Steps between two validations, if there are any. A run that is to be validated is saved after
            that, so that it never goes on without.
    """

    def __init__(self, directory: Path, every: int, validate_every: int | None) -> None:
        self.directory = directory
        self.every = every
        self.validate_every = validate_every
        self.best = float("inf")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save the run if it is time to, unless it will be validated now."""
        stepped = trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches == 0
        validated = self.validate_every is not None and trainer.global_step % self.validate_every == 0
        if stepped and trainer.global_step % self.every == 0 and not validated:
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the parameters if they are the best so far, and the run."""
        if trainer.state.fn != "fit":
            return
        loss = float(trainer.callback_metrics["validation/loss"])
        if loss < self.best:
            self.best = loss
            if trainer.is_global_zero:
                write_weights(self.directory / "best.safetensors", pl_module.state_dict())
        self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the parameters after the last step."""
        if trainer.is_global_zero:
            write_weights(self.directory / "final.safetensors", pl_module.state_dict())
        trainer.strategy.barrier()

    def state_dict(self) -> dict[str, Any]:
        """What the run goes on with."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self.best = state_dict["best"]

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.directory / "last.ckpt")
