"""Other processes that fetch. They are forked off a process that has imported what they need, so they start at once."""

import multiprocessing
import os
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from huggingface_hub import constants

__all__ = ["start_fetch"]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.hub.processes", "pyrosys.hub.hugging_face"])
SETTINGS = ("PYROSYS_CACHE", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_DISABLE_XET", "NO_PROXY", "HF_XET_CACHE")


def start_fetch(uri: str) -> ForkServerProcess:
    """Fetch in another process with the settings of this one."""
    settings = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    process = CONTEXT.Process(target=_fetch, args=(uri, settings), daemon=True)
    process.start()
    return process


def _fetch(uri: str, settings: dict[str, str]) -> None:
    from pyrosys.hub import fetch

    os.environ.update(settings)
    constants.HF_HUB_CACHE = settings["HF_HUB_CACHE"]  # the client has read the variables
    constants.HF_HUB_DISABLE_XET = "HF_HUB_DISABLE_XET" in settings
    assert Path(fetch(uri, progress=False)).exists()
