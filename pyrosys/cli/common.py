"""What the commands share: how they are declared, how they print, how they write."""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Add", "Command", "add_json", "print_json", "print_rows", "print_table", "replacing"]

# What a command returns is its exit status; None is 0.
Command = Callable[[argparse.Namespace], int | None]
# From a command's name, the function that runs it, one line of help and an example, to its parser.
Add = Callable[[str, Command, str, str], argparse.ArgumentParser]


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option that asks for JSON."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file or directory beside its place, and move it there when it is complete."""
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pyrosys-", dir=path.absolute().parent) as directory:
        unfinished = Path(directory, path.name)
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
