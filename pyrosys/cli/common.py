"""What the commands share: how they are declared, how they print, how they write."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyrosys.errors import InputError

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Add",
    "Command",
    "add_json",
    "build_model",
    "call_reference",
    "print_json",
    "print_rows",
    "print_table",
    "replacing",
]

# What a command returns is its exit status; None is 0.
Command = Callable[[argparse.Namespace], int | None]
# From a command's name, the function that runs it, one line of help and an example, to its parser.
Add = Callable[[str, Command, str, str], argparse.ArgumentParser]


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option that asks for JSON."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file or directory beside its place, and move it there when it is complete.

    What a process that was killed has left beside the place is removed.
    """
    from pyrosys.hub.directory import staging

    with staging(path.absolute().parent) as directory:
        unfinished = directory / path.name
        yield unfinished
        unfinished.replace(path)


def print_json(value: object) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_rows(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print rows of equal keys, as JSON or as a table of the values that are not collections."""
    if as_json:
        print_json(rows)
        return
    columns = [key for key, value in rows[0].items() if not isinstance(value, dict)]
    texts = [[f"{row[key]:.4f}" if isinstance(row[key], float) else str(row[key]) for key in columns] for row in rows]
    print_table(columns, texts)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns that are as wide as their longest text."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())


def build_model(model: str) -> nn.Module:
    """Build a torch module from the name of a model in the zoo, without its weights, or from MODULE:CALLABLE."""
    if ":" in model:
        return call_reference(model)
    from pyrosys.catalogue import build

    return build(model)


def call_reference(reference: str) -> Any:
    """Call what MODULE:CALLABLE names."""
    module, _, name = reference.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"Expected MODULE:CALLABLE that can be imported here, found {reference!r}: {error}. "
            "Run the command in the directory of the module, or install it."
        ) from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(function):
        raise InputError(
            f"Expected {reference!r} to be a function, found a {type(function).__name__}. Name a function."
        )
    return function()
