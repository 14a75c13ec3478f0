"""Data sets on the command line: ``prepare``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pyrosys.cli.common import Add, add_json, print_json
from pyrosys.errors import InputError

__all__ = ["declare"]


def declare(add: Add) -> None:
    """Add the commands of this group."""
    _add_prepare(add)


def _add_prepare(add: Add) -> None:
    parser = add(
        "prepare",
        _prepare,
        "turn sequences and structures into a data set for training",
        "pyrosys prepare proteins.fasta structures/ --output dataset\n"
        "pyrosys prepare uniref50.fasta.gz --clusters cluster.tsv --longest 1022 --output dataset\n"
        "pyrosys prepare assay.csv --column sequence=mutant --column label=fitness --output dataset",
    )
    parser.add_argument("sources", nargs="+", help="FASTA, CSV, TSV, mmCIF or PDB files, folders of them, or addresses")
    parser.add_argument("--output", type=Path, required=True, help="folder to create, or to go on with")
    parser.add_argument("--clusters", type=Path, metavar="TSV", help="table of cluster and name, as MMseqs2 writes it")
    parser.add_argument(
        "--identity",
        type=_identity,
        default=0.5,
        metavar="SHARE",
        help="cluster by this share of equal residues; 'none' to cluster only equal sequences (default: 0.5)",
    )
    parser.add_argument(
        "--fractions",
        type=float,
        nargs=3,
        default=(0.9, 0.05, 0.05),
        metavar=("TRAIN", "VALIDATION", "TEST"),
        help="shares of the clusters (default: 0.9 0.05 0.05)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another one gives other splits (default: 0)")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="COLUMN=NAME",
        help="what tables call the column name, sequence, cluster, split or label",
    )
    parser.add_argument("--complexes", action="store_true", help="one item per structure instead of one per chain")
    parser.add_argument("--shortest", type=int, default=1, help="smallest number of residues (default: 1)")
    parser.add_argument("--longest", type=int, help="largest number of residues (default: any)")
    parser.add_argument("--format", choices=("parquet", "arrow"), default="parquet", help="files (default: parquet)")
    add_json(parser)


def _prepare(options: argparse.Namespace) -> None:
    """Turn sequences and structures into a data set of Parquet or Arrow files, with clusters and splits.

    Equal records are kept once. Records that cannot be used are left out, and counted by reason. A preparation that was
    interrupted or killed goes on where it was when the same command is run again.
    """
    from pyrosys.training.data import prepare

    pairs = [column.partition("=") for column in options.column]
    if wrong := [column for column, (_, _, name) in zip(options.column, pairs, strict=True) if not name]:
        raise InputError(f"Expected --column COLUMN=NAME, found {wrong[0]!r}. For example: --column sequence=mutant.")
    manifest = prepare(
        options.sources,
        options.output,
        clusters=options.clusters,
        identity=options.identity,
        fractions=tuple(options.fractions),
        seed=options.seed,
        columns={column: name for column, _, name in pairs},
        complexes=options.complexes,
        shortest=options.shortest,
        longest=options.longest,
        format=options.format,
    )
    if options.json:
        print_json(manifest)
    else:
        print("\n".join(_lines(options.output, manifest)))


def _lines(output: Path, manifest: dict[str, Any]) -> list[str]:
    """Say what a data set holds, and what was left out of it."""
    splits = ", ".join(f"{count:,} {split}" for split, count in manifest["splits"].items())
    lines = [
        f"{output}: {manifest['items']:,} items, {manifest['residues']:,} residues, {manifest['clusters']:,} clusters",
        f"splits: {splits}",
    ]
    if manifest["clusters_in_several_splits"]:
        lines.append(f"clusters in several splits, as the sources say: {manifest['clusters_in_several_splits']:,}")
    if manifest["repeated"]:
        lines.append(f"left out, repeated: {manifest['repeated']:,}")
    for reason, count in manifest["rejected"].items():
        names = ", ".join(manifest["rejected_examples"][reason])
        lines.append(f"left out, {reason}: {count:,}, such as {names}")
    return [*lines, f"digest: {manifest['digest']}"]


def _identity(text: str) -> float | None:
    return None if text == "none" else float(text)
