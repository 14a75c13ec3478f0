"""Analysis on the command line: ``analyse``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import pyrosys
from pyrosys.cli.common import Add, add_json, call_reference, print_json, print_table, replacing
from pyrosys.errors import InputError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["declare"]


def declare(add: Add) -> None:
    """Add the commands of this group."""
    parser = add(
        "analyse",
        _analyse,
        "say what a model is like, or how two differ, with figures",
        "pyrosys analyse esm2-8m --sequences proteins.fasta --output analysis\n"
        "pyrosys analyse runs/first/entry runs/second/entry --sequences held-out.fasta --output comparison",
    )
    parser.add_argument("models", metavar="MODEL", nargs="+", help="one model or two: name, entry, or MODULE:CALLABLE")
    parser.add_argument("--sequences", type=Path, metavar="FASTA", help="what to run language models on")
    parser.add_argument(
        "--inputs", metavar="MODULE:CALLABLE", help="what to run models on (default: their own example)"
    )
    parser.add_argument("--no-structure", action="store_true", help="do not look for where computations part")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to create")
    add_json(parser)


def _analyse(options: argparse.Namespace) -> None:
    """Say what a model is like, or how two models or two stages of training differ, as a folder with figures and a page.

    For each model: its fingerprint, the weights of each Module and what it returns, where the heads look, and with
    --sequences whether it is right as often as it says. For two also where their structures agree and part, how their
    tensors differ, and how alike their layers represent the same residues.

    A MODEL is a name in the zoo, a published entry, such as the one that `pyrosys train` writes, or MODULE:CALLABLE,
    which returns a torch module with its weights. Needs the extra pyrosys[analysis].
    """
    if len(options.models) > 2:
        raise InputError(f"Expected one model or two, found {len(options.models)}. Compare them in pairs.")
    if options.output.exists():
        raise InputError(f"Expected no file or directory at {options.output}, found one. Choose another --output.")
    if options.sequences is not None and options.inputs is not None:
        raise InputError("Expected --sequences or --inputs, found both. Leave one out.")
    from pyrosys.analysis import analyse, compare, save
    from pyrosys.fasta import read_fasta

    sequences = None if options.sequences is None else [sequence for _, sequence in read_fasta(options.sequences)]
    inputs = None if options.inputs is None else call_reference(options.inputs)
    first, *others = (_load(name) for name in options.models)
    if others:
        names = _names(*options.models)
        found = compare(first, others[0], inputs, sequences=sequences, names=names, structure=not options.no_structure)
    else:
        found = analyse(first, inputs, sequences=sequences, name=options.models[0])
    with replacing(options.output) as folder:
        page = options.output / save(found, folder).name
    if options.json:
        print_json({"page": str(page), "numbers": found.numbers()})
    else:
        print_table(("number", "value"), [(name, f"{value:,.6g}") for name, value in found.numbers().items()])
        print(f"open {page}")


def _load(model: str) -> nn.Module:
    return call_reference(model) if ":" in model and "//" not in model else pyrosys.load(model)


def _names(first: str, second: str) -> tuple[str, str]:
    return (first, second) if first != second else (f"{first} (first)", f"{second} (second)")
