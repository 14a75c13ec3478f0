"""Runs of training: on Lightning in one process or several, or on Ray Train, with the same task and data.

A run is a number of steps. It lives in a directory, is saved there as it goes, and goes on from there after a crash at
any moment, with the same batches and the same losses as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import Strategy
from safetensors.torch import load_file
from tqdm import tqdm

from pyrosys.errors import InputError
from pyrosys.training.checkpoints import AtomicCheckpoints, Checkpoints, write_json
from pyrosys.training.data import DataModule
from pyrosys.training.history import History
from pyrosys.training.stream import Stream
from pyrosys.training.task import Task

__all__ = ["Result", "Trainer"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Args:
        directory: The run's directory.
        steps: Number of steps taken.
        kept: Which parameters the task has now: the ``"best"`` or the ``"final"`` ones.
        validation: Their loss and metrics on the validation data, by name; empty if there are no such data.
    """

    directory: Path
    steps: int
    kept: Literal["best", "final"]
    validation: dict[str, float]


@dataclass(frozen=True)
class Trainer:
    """Trains a task on data.

    With validation data, the parameters with the smallest validation loss are kept, otherwise the last ones.

    Args:
        directory: Where to keep the run.
        steps: Number of steps.
        backend: ``"lightning"``, or ``"ray"`` for Ray Train, on the cluster that is connected or on one of this machine.
        workers: Number of processes.
        accelerator: ``"cpu"``, ``"gpu"`` with one for each worker, or ``"auto"``.
        precision: ``"32-true"``, or ``"bf16-mixed"`` or ``"16-mixed"`` for matrix products in fewer bits.
        accumulate: Batches of each process in a step.
        clip: Largest norm of the gradient, or ``None`` for no limit.
        validate_every: Steps between validations.
        save_every: Steps between saves.
        log_every: Steps between lines of the history.
        patience: Validations without a smaller loss after which to stop.
        seed: Where all randomness of training starts.
        loggers: Lightning's loggers, beside the history in the directory.

    Raises:
        InputError: A number is out of range.
    """

    directory: str | Path
    steps: int
    _: dataclasses.KW_ONLY
    backend: Literal["lightning", "ray"] = "lightning"
    workers: int = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    accumulate: int = 1
    clip: float | None = 1.0
    validate_every: int = 500
    save_every: int = 100
    log_every: int = 10
    patience: int | None = None
    seed: int = 0
    loggers: tuple[Logger, ...] = ()

    def __post_init__(self) -> None:
        for name in ("steps", "workers", "accumulate", "validate_every", "save_every", "log_every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"Expected {name} to be at least 1, found {value}. Change it.")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"Expected clip to be above 0, found {self.clip}. Leave it out for no limit: None.")
        if self.backend not in ("lightning", "ray"):
            raise InputError(f"Expected backend to be 'lightning' or 'ray', found {self.backend!r}. Choose one.")

    @property
    def path(self) -> Path:
        """The run's directory."""
        return Path(self.directory).absolute()

    def fit(self, task: Task, data: DataModule, *, resume: bool = False) -> Result:
        """Train a task on data; afterwards it has the parameters that were kept.

        Args:
            task: What to train.
            data: What to train on.
            resume: Whether to go on with a run that the directory may hold.

        Raises:
            InputError: The directory holds a run and it is not to go on, or with other settings.
            TrainingError: The loss is not finite, or a worker failed.
        """
        self._enter({**task.settings(), "data": data.settings()}, resume)
        ended = self.path / "result.json"
        if not ended.exists():
            if self.backend == "ray":
                from pyrosys.training.ray_backend import run_on_ray

                run_on_ray(self, task, data)
            elif self.workers > 1:
                from pyrosys.training.processes import run_in_processes

                run_in_processes(self, task, data)
            else:
                run_worker(self, task, data, devices=1)
        result = Result(self.path, **json.loads(ended.read_text(encoding="utf-8")))
        task.load_state_dict(load_file(self.path / f"{result.kept}.safetensors"))
        return result

    def _enter(self, settings: dict[str, Any], resume: bool) -> None:
        """Make the directory, or find there the run that is to go on."""
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / "settings.json"
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("directory", "backend", "accelerator", "save_every", "log_every", "loggers"):
            del own[name]  # what it computes does not depend on them
        now = json.loads(json.dumps({**own, **settings}))
        if not path.exists():
            write_json(path, now)
            return
        if not resume:
            raise InputError(
                f"Expected no run in {self.path}, found one. Resume it (`resume=True`, or --resume on the command line), "
                "or choose another directory."
            )
        before, now = (dict(_flat(settings)) for settings in (json.loads(path.read_text(encoding="utf-8")), now))
        changed = [
            f"{name} {before.get(name)!r} then and {now.get(name)!r} now"
            for name in {**before, **now}
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise InputError(
                f"Expected the settings that the run in {self.path} was started with, found {', '.join(changed)}. Go back to "
                "them, or choose another directory."
            )


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings of sections by their full names."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def run_worker(
    trainer: Trainer,
    task: Task,
    data: DataModule,
    *,
    strategy: Strategy | str = "auto",
    devices: int | str = "auto",
    plugins: tuple[Any, ...] = (),
) -> None:
    """Train, then measure what is kept, as one of the processes of a run."""
    last, validated = trainer.path / "last.ckpt", data.count("validation") > 0
    saved = Checkpoints(trainer.path, trainer.save_every, trainer.validate_every if validated else None)
    with quiet():
        engine = pl.Trainer(
            default_root_dir=trainer.path,
            accelerator=trainer.accelerator,
            devices=devices,
            strategy=strategy,
            precision=trainer.precision,
            plugins=[AtomicCheckpoints(), *plugins],
            max_steps=trainer.steps,
            max_epochs=1,
            accumulate_grad_batches=trainer.accumulate,
            gradient_clip_val=trainer.clip,
            val_check_interval=trainer.validate_every * trainer.accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            limit_val_batches=None if validated else 0,
            log_every_n_steps=trainer.log_every,
            logger=[History(trainer.path / "history.jsonl"), *trainer.loggers],
            callbacks=[
                *_callbacks(trainer, validated),
                saved,
            ],  # last, so that what it saves of the others is up to date
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
        )
        module = _Data(data, trainer.steps * trainer.accumulate)
        try:
            engine.fit(task, datamodule=module, ckpt_path=last if last.exists() else None, weights_only=True)
        except SystemExit:  # what Lightning makes of an interruption
            raise KeyboardInterrupt from None
        result = {"steps": engine.global_step, "kept": "final", "validation": {}}
        engine.loggers = []  # how it ended is no part of the history
        if validated:
            result["validation"] = _measure(engine, task, module)
            if result["validation"]["loss"] > saved.best:
                task.load_state_dict(load_file(trainer.path / "best.safetensors"))
                result |= {"kept": "best", "validation": _measure(engine, task, module)}
    if engine.is_global_zero:
        write_json(trainer.path / "result.json", result)


def _measure(engine: pl.Trainer, task: Task, data: _Data) -> dict[str, float]:
    """Loss and metrics on the validation data."""
    (measured,) = engine.validate(task, datamodule=data, verbose=False)
    return {name.partition("/")[2]: value for name, value in measured.items()}


class _Data(pl.LightningDataModule):
    """The data of a run as Lightning asks for them."""

    def __init__(self, source: DataModule, length: int) -> None:
        super().__init__()
        self.source = source
        self.length = length

    def train_dataloader(self) -> Stream:
        """All batches of the run."""
        return Stream(self.source, self.length, *self._place())

    def val_dataloader(self) -> _Again:
        """The batches of validation."""
        return _Again(lambda: self.source.validation(*self._place()))

    def _place(self) -> tuple[int, int]:
        """Which process this is, and how many there are."""
        assert self.trainer is not None  # Lightning asks for data within a run only
        return self.trainer.global_rank, self.trainer.world_size


class _Again:
    """What is made anew each time it is gone through; Lightning would take a list of batches for several loaders."""

    def __init__(self, make: Callable[[], Iterable[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return iter(self.make())


def _callbacks(trainer: Trainer, validated: bool) -> Iterator[Callback]:
    yield _Seed(trainer.seed)
    yield _Progress(trainer.steps)
    if trainer.patience is not None and validated:
        yield EarlyStopping("validation/loss", patience=trainer.patience, check_finite=False)


class _Seed(Callback):
    """Draw the random numbers of each batch from a state of its own, so that they are the same in a resumed run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        words = np.random.SeedSequence((self.seed, batch_idx, trainer.global_rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0]))


class _Progress(Callback):
    """Show steps and losses on a terminal."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        hidden = None if trainer.is_global_zero else True
        self.bar = tqdm(total=self.steps, initial=trainer.global_step, unit="step", leave=False, disable=hidden)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if self.bar is not None and trainer.global_step > self.bar.n:
            self.bar.set_postfix(trainer.progress_bar_metrics, refresh=False)
            self.bar.update(trainer.global_step - self.bar.n)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what Lightning and Ray say of the machine and of habits that do not apply here."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.simplefilter("ignore", DeprecationWarning)  # of what Lightning and Ray use
        yield
