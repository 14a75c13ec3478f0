"""What a run logs, as lines of JSON in a file of its directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from pyrosys.hub.files import replacing

__all__ = ["History", "read_history"]


def read_history(path: Path) -> list[dict[str, float]]:
    """Read what a run has logged: the step, counted from 1, and numbers by name."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:  # the process was killed while it wrote the line
            break
    return rows


class History(Logger):
    """A Lightning logger that appends to a file, and drops what a resumed run logs again.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._started = False

    @property
    def name(self) -> str:
        """Lightning's name for a kind of run."""
        return "history"

    @property
    def version(self) -> str:
        """Lightning's name for a run."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a line."""
        row = {"step": (step or 0) + 1, **{name: value for name, value in metrics.items() if name != "epoch"}}
        if not self._started:
            self._started = True
            kept = [earlier for earlier in read_history(self.path) if earlier["step"] < row["step"]]
            with replacing(self.path) as file:
                file.writelines(json.dumps(earlier).encode() + b"\n" for earlier in kept)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Do nothing: the settings are in a file of their own."""
