"""Training on the command line: ``train``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from pyrosys.cli.common import Add, add_json, print_json

__all__ = ["declare"]


def declare(add: Add) -> None:
    """Add the commands of this group."""
    parser = add(
        "train",
        _train,
        "train or fine-tune a model",
        "pyrosys train configuration.yaml\npyrosys train configuration.yaml --set trainer.steps=100 --resume",
    )
    parser.add_argument("configuration", type=Path, help="YAML file: which model, for what, on what and how")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="SECTION.SETTING=VALUE",
        help="put a value in place of the file's, any number of times",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run that the directory holds, if any")
    add_json(parser)


def _train(options: argparse.Namespace) -> None:
    """Train a model as a file says, and write it as an entry that `pyrosys.load` takes.

    The run is kept in the directory that the file names, and goes on from there with --resume after a crash at any
    moment, as if nothing had happened. Needs the extra pyrosys[train].
    """
    from pyrosys.training.configuration import Configuration

    configuration = Configuration.read(options.configuration, options.changes)
    task, data = configuration.build()
    result = configuration.trainer.fit(task, data, resume=options.resume)
    about = dataclasses.asdict(configuration.entry)
    entries = task.publish(
        result.directory,
        f"entries/{about.pop('name')}",
        **about,
        provenance={"settings": task.settings(), "data": data.settings(), "validation": result.validation},
    )
    facts = {**dataclasses.asdict(result), "directory": str(result.directory), "entries": entries}
    if options.json:
        print_json(facts)
        return
    for name, value in result.validation.items():
        print(f"validation {name:<14} {value:.4f}")
    print(f"{result.steps} steps, kept the {result.kept} parameters")
    for entry in entries:
        print(f"load with pyrosys.load({entry!r})")
