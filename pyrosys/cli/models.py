"""What the zoo offers on the command line: ``list``, ``info``, ``load``, ``embed``, ``score`` and ``design``."""

from __future__ import annotations

import argparse
import re
import textwrap
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyrosys
from pyrosys.cli.common import Add, add_json, print_json, print_rows, print_table, replacing
from pyrosys.errors import InputError

if TYPE_CHECKING:
    from pyrosys.inverse_folding import Score
    from pyrosys.model import Model

__all__ = ["declare"]

Kind = TypeVar("Kind", bound="Model")


def declare(add: Add) -> None:
    """Add the commands of this group."""
    for command in (_add_list, _add_info, _add_load, _add_embed, _add_score, _add_design):
        command(add)


def _add_list(add: Add) -> None:
    parser = add("list", _list, "list the models of the zoo", "pyrosys list 'esm2*'")
    parser.add_argument("pattern", nargs="?", default="*", help="names to list, with wildcards (default: all)")
    add_json(parser)


def _list(options: argparse.Namespace) -> None:
    """List the models of the zoo: name, number of parameters, licence of the weights, and what they can do."""
    cards = {name: pyrosys.info(name) for name in pyrosys.list_models(options.pattern)}
    if not cards:
        raise InputError(f"Expected a name or pattern of the zoo, found {options.pattern!r}. `pyrosys list` shows all.")
    if options.json:
        print_json(cards)
        return
    rows = [
        (name, f"{card['parameters']:,}", card["weights_licence"], " ".join(card["task"]))
        for name, card in cards.items()
    ]
    print_table(("name", "parameters", "weights", "tasks"), rows)


def _add_info(add: Add) -> None:
    parser = add("info", _info, "say what is known of a model", "pyrosys info proteinmpnn-v48-020")
    _add_name(parser)
    add_json(parser)


def _info(options: argparse.Namespace) -> None:
    """Say what is known of a model: tasks, size, sources and digests, licences of code and weights, paper."""
    card = pyrosys.info(options.name)
    if options.json:
        print_json(card)
        return
    for key, value in card.items():
        text = ", ".join(value) if key == "task" else value
        if key == "sources":
            text = "\n".join(source["uri"] for source in value)
        print(f"{key.replace('_', ' '):<16} {textwrap.indent(str(text), ' ' * 17).strip()}")


def _add_load(add: Add) -> None:
    parser = add("load", _load, "fetch and verify a model's weights", "pyrosys load proteinmpnn-v48-020")
    _add_name(parser)
    add_json(parser)


def _load(options: argparse.Namespace) -> None:
    """Fetch a model's weights, load them and verify them. What was fetched once is there when there is no network."""
    model = pyrosys.load(options.name)
    facts = {
        "name": options.name,
        "class": f"{type(model).__module__}:{type(model).__qualname__}",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    if options.json:
        print_json(facts)
    else:
        print(f"{facts['name']}: {facts['class']}, {facts['parameters']:,} parameters, loaded and verified")


def _add_embed(add: Add) -> None:
    parser = add(
        "embed",
        _embed,
        "represent sequences by vectors",
        "pyrosys embed esm2-8m proteins.fasta --pool mean --output embeddings.npz",
    )
    _add_name(parser)
    parser.add_argument("fasta", type=Path, help="FASTA file of sequences")
    parser.add_argument("--output", type=Path, required=True, help="file to write, .npz")
    parser.add_argument("--layer", type=int, default=-1, help="layer whose output to take (default: the last)")
    parser.add_argument("--pool", choices=("mean", "cls"), help="one vector per sequence instead of one per residue")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="residues to run together (default: 4096)")
    _add_device(parser)


def _embed(options: argparse.Namespace) -> None:
    """Represent each sequence of a FASTA file by vectors, and write them to an .npz file, one array per sequence.

    Sequences are read and arrays written one after the other: memory does not limit their number. The arrays have the
    names of the sequences and can be read with numpy.load.
    """
    import numpy as np

    from pyrosys.fasta import read_fasta
    from pyrosys.language import MaskedLanguageModel

    names = [name for name, _ in read_fasta(options.fasta)]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(
            f"Expected a name of its own for each sequence in {options.fasta}, found {repeated[0]!r} more than once. "
            "Rename one."
        )
    model = _load_model(options, MaskedLanguageModel, "embeds sequences")
    sequences = (sequence for _, sequence in read_fasta(options.fasta))
    embeddings = model.embed(sequences, layer=options.layer, pool=options.pool, batch_tokens=options.batch_tokens)
    with replacing(options.output) as path, zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, embedding in zip(names, embeddings, strict=True):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, embedding.float().numpy())


def _add_score(add: Add) -> None:
    parser = add(
        "score",
        _score,
        "score sequences, variants, or sequences on a backbone",
        "pyrosys score esm2-8m proteins.fasta\n"
        "pyrosys score esm2-8m wild-type.fasta --mutations A42G A42G:L55F\n"
        "pyrosys score proteinmpnn-v48-020 backbone.pdb --chains A",
    )
    _add_name(parser)
    parser.add_argument(
        "input", type=Path, help="FASTA file for a language model, PDB or mmCIF file for inverse folding"
    )
    add_json(parser)
    language = parser.add_argument_group("language models")
    language.add_argument("--mutations", nargs="+", metavar="VARIANT", help="variants of each sequence to score")
    methods = ("masked-marginal", "wildtype-marginal")
    language.add_argument("--method", choices=methods, help=f"how to score variants (default: {methods[0]})")
    folding = parser.add_argument_group("inverse folding")
    folding.add_argument("--sequences", type=Path, metavar="FASTA", help="score these instead of the structure's own")
    _add_residues(folding, "score")
    folding.add_argument("--samples", type=int, help="random decoding orders to average over (default: 1)")
    folding.add_argument("--seed", type=int, help="seed of the first order (default: 0)")
    _add_device(parser)


def _score(options: argparse.Namespace) -> None:
    """Score sequences. Higher is better for all scores but perplexities, and logarithms are natural.

    A language model gives each sequence of a FASTA file its pseudo-perplexity; with --mutations, it gives each variant
    the sum over mutated positions of log p(mutant) - log p(wild type), which is positive where it prefers the variant.
    Positions count from 1.

    A model of inverse folding gives the mean log-probability per residue of a sequence on the backbone in a PDB or
    mmCIF file, and its perplexity.
    """
    from pyrosys.fasta import read_fasta
    from pyrosys.inverse_folding import InverseFolding
    from pyrosys.language import MaskedLanguageModel
    from pyrosys.structure import read_structure

    model = _load_model(options, (InverseFolding, MaskedLanguageModel), "scores sequences")
    if isinstance(model, InverseFolding):
        _refuse(options, "mutations", "method")
        structure = read_structure(options.input)
        named = read_fasta(options.sequences) if options.sequences else [(structure.name, structure.sequence)]
        choices = _given(options, "chains", "fixed", "samples", "seed")
        rows = [_describe(name, model.score(structure, sequence, **choices)) for name, sequence in named]
    else:
        _refuse(options, "sequences", "chains", "fixed", "samples", "seed")
        rows = []
        for name, sequence in read_fasta(options.input):
            if options.mutations is None:
                rows.append({"name": name, "pseudo_perplexity": model.pseudo_perplexity(sequence)})
            else:
                scores = model.score(sequence, options.mutations, **_given(options, "method"))
                rows += [
                    {"name": name, "variant": variant, "score": score}
                    for variant, score in zip(options.mutations, scores, strict=True)
                ]
    print_rows(rows, options.json)


def _add_design(add: Add) -> None:
    parser = add(
        "design",
        _design,
        "write sequences for a backbone",
        "pyrosys design proteinmpnn-v48-020 backbone.pdb --chains A --fixed A:1-10,52A --samples 8 > designs.fasta",
    )
    _add_name(parser)
    parser.add_argument("structure", type=Path, help="PDB or mmCIF file, also compressed with gzip")
    _add_residues(parser, "design")
    parser.add_argument("--samples", type=int, default=1, help="how many sequences (default: 1)")
    parser.add_argument("--temperature", type=float, default=0.1, help="0 for the most probable letters (default: 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first sequence (default: 0)")
    parser.add_argument("--omit", default="X", metavar="LETTERS", help="letters never to write (default: X)")
    add_json(parser)
    _add_device(parser)


def _design(options: argparse.Namespace) -> None:
    """Write sequences for a backbone, in FASTA, with chains set apart by "/".

    The header of a sequence says the mean log-probability of what was designed, the share of it that is as in the
    structure, and the seed that gives the sequence again.
    """
    from pyrosys.inverse_folding import InverseFolding
    from pyrosys.structure import read_structure

    structure = read_structure(options.structure)
    model = _load_model(options, InverseFolding, "designs sequences")
    designs = model.design(
        structure,
        chains=options.chains,
        fixed=options.fixed,
        temperature=options.temperature,
        samples=options.samples,
        seed=options.seed,
        omit=options.omit,
    )
    rows = [
        {**_describe(structure.name, design), "recovery": design.recovery, "seed": design.seed} for design in designs
    ]
    if options.json:
        print_json(rows)
        return
    for row in rows:
        numbers = f"{row['average_log_probability']:.4f} recovery={row['recovery']:.4f} seed={row['seed']}"
        print(f">{row['name']} average_log_probability={numbers}\n{'/'.join(row['chains'].values())}")


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="a model of the zoo; `pyrosys list` shows all")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="where to run, such as cuda (default: cpu)")


def _add_residues(parser: argparse._ActionsContainer, verb: str) -> None:
    parser.add_argument("--chains", nargs="+", metavar="CHAIN", help=f"chains to {verb} (default: all)")
    parser.add_argument(
        "--fixed",
        type=_residues,
        nargs="+",
        action=_Merge,
        metavar="CHAIN:RESIDUES",
        help=f"residues of these chains not to {verb}, numbered as in the file: A:1-10,52A",
    )


class _Merge(argparse.Action):
    """Gather residues of several chains in one mapping."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        residues: dict[str, list[int | str]] = {}
        for chain, labels in values:
            residues.setdefault(chain, []).extend(labels)
        setattr(namespace, self.dest, residues)


def _residues(text: str) -> tuple[str, list[int | str]]:
    """Read residues such as ``A:1-10,52A``."""
    chain, colon, labels = text.partition(":")
    residues: list[int | str] = []
    for label in labels.split(","):
        span = re.fullmatch(r"(-?\d+)-(-?\d+)", label)
        if span:
            residues += range(int(span[1]), int(span[2]) + 1)
        elif re.fullmatch(r"-?\d+[A-Za-z]?", label):
            residues.append(label)
        else:
            colon = ""
    if not (chain and colon and residues):
        raise argparse.ArgumentTypeError(f"expected a chain and its residues, such as A:1-10,52A, found {text!r}")
    return chain, residues


def _load_model(options: argparse.Namespace, kind: type[Kind] | tuple[type[Kind], ...], purpose: str) -> Kind:
    """Load the model by name to the device, if it is of the kind that is needed."""
    model = pyrosys.load(options.name)
    if not isinstance(model, kind):
        raise InputError(
            f"Expected a model that {purpose}, found {options.name}, whose tasks are "
            f"{', '.join(pyrosys.info(options.name)['task'])}. `pyrosys list` shows the tasks of each."
        )
    try:
        return model.to(options.device)
    except (RuntimeError, AssertionError) as error:  # the second is what torch says where it was built without CUDA
        raise InputError(
            f"Expected a device of this machine, such as cpu, found {options.device!r}: {error}"
        ) from error


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Gather the options that were given."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _refuse(options: argparse.Namespace, *names: str) -> None:
    """Refuse options that this kind of model does not have."""
    for name in _given(options, *names):
        raise InputError(
            f"Expected no --{name} for {options.name}, found one. `pyrosys score --help` tells which options go with "
            "which kind of model."
        )


def _describe(name: str, score: Score) -> dict[str, Any]:
    """Gather what is printed of a sequence on a backbone."""
    return {
        "name": name,
        "average_log_probability": score.average,
        "perplexity": score.perplexity,
        "chain_averages": score.chain_averages,
        "chains": score.chains,
    }
