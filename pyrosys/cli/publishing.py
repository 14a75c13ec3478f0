"""Published entries on the command line: ``publish``, ``find`` and ``catalogue``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import pyrosys
from pyrosys.cli.common import Add, add_json, build_model, call_reference, print_json, print_table
from pyrosys.errors import InputError, WeightsError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["declare"]


def declare(add: Add) -> None:
    """Add the commands of this group."""
    for command in (_add_publish, _add_find, _add_catalogue):
        command(add)


def _add_publish(add: Add) -> None:
    parser = add(
        "publish",
        _publish,
        "publish a model for anyone's equivalent model to find and load",
        "pyrosys publish proteinmpnn-v48-020 lab/proteinmpnn --weights-licence MIT --dry-run\n"
        "pyrosys publish mine:build lab/mine --weights mine.safetensors --inputs mine:inputs --hub /shared/hub",
    )
    parser.add_argument("model", metavar="MODEL", help="name in the zoo, or MODULE:CALLABLE that builds a torch module")
    parser.add_argument("name", metavar="ORGANISATION/NAME", help="what to publish it as")
    parser.add_argument(
        "--hub", help="address of a hub, or a directory that serves as one (default: the Hugging Face Hub)"
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="safetensors with exactly the tensors of the module that was built"
    )
    parser.add_argument("--inputs", metavar="MODULE:CALLABLE", help="inputs that show what it does (default: its own)")
    parser.add_argument("--weights-licence", metavar="LICENCE", help="licence of the weights, such as MIT")
    parser.add_argument("--code-licence", metavar="LICENCE", help="licence of the code")
    parser.add_argument("--base-model", metavar="ENTRY", help="what it was made from")
    parser.add_argument("--doi", help="of the paper")
    parser.add_argument("--description", default="", help="what a reader should know")
    parser.add_argument("--private", action="store_true", help="make a repository that is created private")
    parser.add_argument("--tag", help="tag for the commit (default: one made of the digest)")
    parser.add_argument("--shard-size", type=int, metavar="BYTES", help="largest file of weights (default: 5 GB)")
    parser.add_argument("--sign-key", type=Path, metavar="PEM", help="private key to sign with")
    parser.add_argument("--dry-run", action="store_true", help="say what would go where; send nothing")
    add_json(parser)


def _publish(options: argparse.Namespace) -> None:
    """Publish a model: weights, configuration, structure card, probe and model card, in one step.

    The entry is written, loaded back and compared before anything is sent. With --dry-run, it is not sent.

    A MODEL is the name of a model in the zoo, or MODULE:CALLABLE, where the callable takes no arguments and returns a
    torch module. MODULE is found like any import, and in the current directory.
    """
    given = ("weights_licence", "code_licence", "base_model", "doi", "description", "private", "tag", "sign_key")
    choices = {name: getattr(options, name) for name in given}
    if options.shard_size is not None:
        choices["shard_size"] = options.shard_size
    if ":" not in options.model:
        known = pyrosys.info(options.model)
        for key in ("weights_licence", "code_licence", "doi"):
            choices[key] = choices[key] or known[key]
    published = pyrosys.publish(
        _with_weights(options.model, options.weights),
        options.name,
        hub=options.hub,
        inputs=call_reference(options.inputs) if options.inputs else None,
        dry_run=options.dry_run,
        **choices,
    )
    if options.json:
        print_json(dataclasses.asdict(published))
    else:
        print(f"{'would publish' if options.dry_run else 'published'} {published}")


def _with_weights(model: str, weights: str | None) -> nn.Module:
    if ":" not in model:
        if weights is not None:
            raise InputError(f"Expected no --weights for {model}, which has its own, found {weights}.")
        return pyrosys.load(model)
    built = build_model(model)
    if weights is not None:
        from pyrosys.adapters.fill import fill
        from pyrosys.porting import state_for

        state = state_for(built, pyrosys.hub.read_weights(pyrosys.hub.fetch(weights)))
        fill(built, state)
    return built


def _add_find(add: Add) -> None:
    parser = add(
        "find",
        _find,
        "find published weights that fit a model or parts of it",
        "pyrosys find esm2-8m --hub /shared/hub\npyrosys find mine:build --inputs mine:inputs --json",
    )
    parser.add_argument("model", metavar="MODEL", help="name in the zoo, or MODULE:CALLABLE that builds a torch module")
    parser.add_argument("--inputs", metavar="MODULE:CALLABLE", help="inputs to run it on (default: the model's own)")
    parser.add_argument(
        "--hub",
        action="append",
        metavar="PLACE",
        help="directory, address of a hub, or index file (.json); may be given again (default: the catalogue and the hub)",
    )
    parser.add_argument("--offline", action="store_true", default=None, help="do without the network")
    add_json(parser)


def _find(options: argparse.Namespace) -> None:
    """List published entries whose structure fits a model or any of its submodules, the largest share of it first.

    Only the structure of the model matters, not its weights or names. Loading a candidate matches and runs both models.
    """
    found = pyrosys.find(
        build_model(options.model),
        hub=options.hub,
        inputs=call_reference(options.inputs) if options.inputs else None,
        offline=options.offline,
    )
    if options.json:
        print_json([hit.to_json() for hit in found])
        return
    rows = [
        (
            _printable(hit.entry),
            _printable(hit.part) or ("(beginning)" if hit.beginning else "(whole)"),
            (hit.into or "(whole)") + (f" and {len(hit.also)} like it" if hit.also else ""),
            f"{100 * hit.coverage:.1f} %",
            hit.evidence,
            _printable(hit.weights_licence or "not stated"),
        )
        for hit in found
    ]
    print_table(("entry", "part", "fits", "of the parameters", "evidence", "weights"), rows)


def _add_catalogue(add: Add) -> None:
    parser = add(
        "catalogue",
        _catalogue_add,
        "name published entries, and check what is on record",
        "pyrosys catalogue add my-model lab/mine\npyrosys catalogue check 'esm2*'\n"
        "pyrosys catalogue index index.json lab/mine facebook/esm2_t6_8M_UR50D",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    adding = actions.add_parser("add", help="give an entry a name", description=_catalogue_add.__doc__)
    adding.add_argument("name", help="lower-case letters, digits and dashes")
    adding.add_argument("entry", help="organisation/name, hf:// address, or folder")
    adding.add_argument("--hub", help="where organisation/name is")
    adding.set_defaults(command=_catalogue_add)

    checking = actions.add_parser(
        "check", help="check sources, digests and licences", description=_catalogue_check.__doc__
    )
    checking.add_argument("pattern", nargs="?", default="*", help="names to check, with wildcards (default: all)")
    checking.add_argument("--offline", action="store_true", default=None, help="check only what is in the cache")
    add_json(checking)
    checking.set_defaults(command=_catalogue_check)

    indexing = actions.add_parser("index", help="write an index for find", description=_catalogue_index.__doc__)
    indexing.add_argument("file", type=Path, help="file to write, .json")
    indexing.add_argument("entries", nargs="+", metavar="ENTRY", help="organisation/name, hf:// address, or folder")
    indexing.set_defaults(command=_catalogue_index)


def _catalogue_add(options: argparse.Namespace) -> None:
    """Give published entries names in your own catalogue, check what catalogues have on record, and index entries.

    The catalogue is the first folder in PYROSYS_CATALOGUE, or `catalogue` in the data folder of PyroSys. What is added is
    pinned: `pyrosys.load(NAME)` always gives what the entry was when it was added.
    """
    from pyrosys import own_catalogue

    print(f"{options.name}: {own_catalogue.add(options.name, options.entry, hub=options.hub)}")


def _catalogue_check(options: argparse.Namespace) -> None:
    """Check entries of the zoo and of your own catalogue: licences, digests and sizes on record, sources that are there."""
    from pyrosys import own_catalogue

    names = pyrosys.list_models(options.pattern)
    if not names:
        raise InputError(
            f"Expected a name or pattern of a catalogue, found {options.pattern!r}. `pyrosys list` shows all."
        )
    problems = {name: own_catalogue.check(name, offline=options.offline) for name in names}
    if options.json:
        print_json(problems)
    else:
        for name, found in problems.items():
            print(f"{name}: {'; '.join(map(_printable, found)) or 'in order'}")
    wrong = sum(map(bool, problems.values()))
    if wrong:
        raise WeightsError(f"Expected {len(names)} entries in order, found something to repair in {wrong}.")


def _catalogue_index(options: argparse.Namespace) -> None:
    """Write an index of entries, and of safetensors files of others, which `pyrosys find --hub INDEX` then searches."""
    from pyrosys.finding import write_index

    records = write_index(options.file, options.entries)
    print(f"{options.file}: {len(records)} entries")


def _printable(text: str) -> str:
    """Text of strangers without what a terminal would act upon."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
