"""Other processes that fetch or publish. They are forked off a process that has imported what they need, so they start at once."""

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from huggingface_hub import constants

__all__ = ["REFUSED", "small_model", "start_fetch", "start_port", "start_publish"]

REFUSED = 3  # how a process exits that could not publish

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.hub.processes", "pyrosys.hub.hugging_face", "pyrosys.publishing"])
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


def start_publish(seed: int, name: str, hub: str, tag: str | None = None) -> ForkServerProcess:
    """Publish `small_model` in another process, which exits with 3 if that is refused."""
    settings = {name: os.environ[name] for name in (*SETTINGS, "HF_TOKEN") if name in os.environ}
    process = CONTEXT.Process(target=_publish, args=(seed, name, hub, tag, settings), daemon=True)
    process.start()
    return process


def start_port(checkpoint: Path, output: Path) -> ForkServerProcess:
    """Move the weights of `small_model` into another spelling of it, on the command line of another process."""
    process = CONTEXT.Process(target=_port, args=(str(checkpoint), str(output)), daemon=True)
    process.start()
    return process


def _port(checkpoint: str, output: str) -> None:
    import torch

    from pyrosys.cli import main

    torch.set_num_threads(1)
    models = ("--source", f"{__name__}:source", "--target", f"{__name__}:target", "--inputs", f"{__name__}:inputs")
    sys.exit(main(["port", checkpoint, *models, "--output", output]))


def source() -> Any:
    """`small_model` with weights that do not matter."""
    return small_model(7)[0]


def target() -> Any:
    """`small_model` in another spelling."""
    from torch import nn

    lookup, inner, activation, outer = source()
    return nn.Sequential(nn.Sequential(lookup, inner), nn.Sequential(activation, outer)).apply(_forget)


def _forget(module: Any) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.data.zero_()


def inputs() -> Any:
    """What `small_model` takes."""
    return small_model(0)[1]


def small_model(seed: int) -> Any:
    """A small model, and the inputs that it takes."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 7))
    return model, (torch.arange(14).reshape(2, 7) % 7,)


def _publish(seed: int, name: str, hub: str, tag: str | None, settings: dict[str, str]) -> None:
    import torch

    import pyrosys
    from pyrosys.errors import PublishError

    os.environ.update(settings)
    constants.HF_HUB_DISABLE_XET = "HF_HUB_DISABLE_XET" in settings
    torch.set_num_threads(1)
    model, inputs = small_model(seed)
    try:
        pyrosys.publish(model, name, hub=hub, inputs=inputs, tag=tag)
    except PublishError as error:
        print(error)
        sys.exit(REFUSED)
