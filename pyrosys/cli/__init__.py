"""The command line. Each command is a thin layer over the Python function of the same name, and imports late what it needs.

`common` has what they share; the other files hold a group of commands each and declare them to the parser.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence

import pyrosys
from pyrosys.cli import analysis, data, engine, hub, models, publishing, training
from pyrosys.cli.common import Command
from pyrosys.errors import PyrosysError

__all__ = ["main"]

ERROR = 2  # as argparse exits when it cannot read the arguments
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What follows ``pyrosys`` on the command line; by default, what does.

    Returns:
        0 for success, 1 for a comparison that found a difference, 2 for an error that is explained on standard error, 130
        for an interruption.
    """
    options = _parser().parse_args(arguments)
    status = None
    try:
        status = options.command(options)
        sys.stdout.flush()
    except PyrosysError as error:
        print(f"pyrosys: {error}", file=sys.stderr)
        return ERROR
    except KeyboardInterrupt:
        print("pyrosys: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyrosys",
        description="A zoo of protein models whose weights are kept and found by structure, not by parameter name.",
        epilog="`pyrosys COMMAND --help` explains a command with an example.",
    )
    parser.add_argument("--version", action="version", version=f"pyrosys {pyrosys.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Command, help: str, example: str) -> argparse.ArgumentParser:
        """Add a command that is described by the docstring of the function that runs it."""
        added = commands.add_parser(
            name,
            help=help,
            description=textwrap.dedent(f"    {command.__doc__}").strip(),
            epilog=f"example:\n{textwrap.indent(example, '  ')}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=command)
        return added

    for group in (models, engine, hub, publishing, data, training, analysis):
        group.declare(add)
    add("demo", _demo, "see it work on this machine", "pyrosys demo")
    return parser


def _demo(options: argparse.Namespace) -> None:
    """Design with real weights and move a checkpoint between two implementations, on this machine."""
    from pyrosys import demo

    demo.run()
