"""Weights on the command line: ``fetch``, ``where`` and ``verify``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import pyrosys
from pyrosys.cli.common import Add, add_json, print_json, print_table
from pyrosys.errors import InputError, IntegrityError, PyrosysError, SourceError

__all__ = ["declare"]


def declare(add: Add) -> None:
    """Add the commands of this group."""
    for command in (_add_fetch, _add_where, _add_verify):
        command(add)


def _add_fetch(add: Add) -> None:
    parser = add(
        "fetch",
        _fetch,
        "bring weights here, for work without a network",
        "pyrosys fetch 'proteinmpnn-*' hf://lab/model@v1.0",
    )
    _add_names(parser)
    parser.add_argument(
        "--with-deps",
        action="store_true",
        help="also bring what belongs to the weights: with one file of a published entry, the rest of it",
    )
    parser.add_argument("--offline", action="store_true", help="use what is here only")
    add_json(parser)


def _fetch(options: argparse.Namespace) -> None:
    """Bring weights here, check them, and say where they are. What is here already is not downloaded again.

    A download that was interrupted goes on where it stopped. What can be had is fetched even if something else cannot.
    """
    rows, failures = [], []
    for name in _expanded(options.names):
        try:
            path = pyrosys.fetch(name, with_deps=options.with_deps, offline=options.offline or None)
        except PyrosysError as error:
            failures.append(f"{name}: {error}")
        else:
            rows.append({"name": name, "path": str(path)})
    if options.json:
        print_json(rows)
    elif rows:
        print_table(("name", "path"), [(row["name"], row["path"]) for row in rows])
    if failures:
        raise SourceError("\n".join([f"{len(failures)} of {len(rows) + len(failures)} not fetched.", *failures]))


def _add_where(add: Add) -> None:
    parser = add("where", _where, "say where weights lie on this machine", "pyrosys where proteinmpnn-v48-020")
    parser.add_argument("name", help="model of the zoo, published entry (organisation/name), address or path")


def _where(options: argparse.Namespace) -> None:
    """Say where weights lie on this machine, checked, without the network."""
    print(pyrosys.where(options.name))


def _add_verify(add: Add) -> None:
    parser = add(
        "verify",
        _verify,
        "read weights again and compare them with what is on record",
        "pyrosys verify proteinmpnn-v48-020\npyrosys verify --all",
    )
    _add_names(parser, count="*")
    parser.add_argument("--all", action="store_true", help="check everything that was ever fetched")
    parser.add_argument("--signed-by", metavar="PEM", help="public key that published entries have to be signed with")
    add_json(parser)


def _verify(options: argparse.Namespace) -> None:
    """Read files again from the first byte to the last, and compare them with everything that is on record.

    On record are the digests of the catalogue, of the Hugging Face Hub, of the manifest of a published entry, and those
    that files had when they were fetched. Exits with 2 if anything is damaged or missing.
    """
    from pyrosys.verifying import check_signatures, inspect

    if bool(options.names) == options.all:
        raise InputError("Expected either names or --all. `pyrosys verify --help` shows examples.")
    found = inspect() if options.all else [file for name in _expanded(options.names) for file in inspect(name)]
    rows = [
        {"file": str(file.path), "state": file.state, "compared_with": file.records, "problems": file.problems}
        for file in found
    ]
    if options.json:
        print_json(rows)
    else:
        if found:
            print_table(
                ("file", "state", "compared with"),
                [(file.path.name, file.state, ", ".join(file.records) or "nothing") for file in found],
            )
        else:
            print("Nothing has been fetched yet.", file=sys.stderr)
    if options.signed_by:
        check_signatures(found, options.signed_by)
    problems = [problem for file in found for problem in file.problems]
    if problems:
        raise IntegrityError("\n".join([f"Expected {len(found)} sound files, found these problems:", *problems]))


def _add_names(parser: argparse.ArgumentParser, count: str = "+") -> None:
    parser.add_argument(
        "names",
        nargs=count,
        metavar="NAME",
        help="model of the zoo (also with wildcards), published entry (organisation/name), address or path",
    )


def _expanded(names: list[str]) -> Iterator[str]:
    """Names with those of the zoo in place of patterns."""
    for name in names:
        if "*" not in name or "/" in name:
            yield name
            continue
        matching = pyrosys.list_models(name)
        if not matching:
            raise InputError(f"Expected a pattern of names of the zoo, found {name!r}. `pyrosys list` shows all.")
        yield from matching
