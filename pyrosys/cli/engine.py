"""The structure engine on the command line: ``port``, ``diff``, ``export`` and ``fingerprint``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyrosys
from pyrosys.cli.common import Add, add_json, build_model, call_reference, print_json, print_table, replacing
from pyrosys.errors import InputError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["declare"]


def declare(add: Add) -> None:
    """Add the commands of this group."""
    for command in (_add_port, _add_diff, _add_export, _add_fingerprint):
        command(add)


def _add_port(add: Add) -> None:
    parser = add(
        "port",
        _port,
        "move a checkpoint into another implementation, with proof",
        "pyrosys port esm2_t6_8M_UR50D.safetensors --source theirs:build --target esm2-8m --inputs theirs:inputs \\\n"
        "    --output ported",
    )
    parser.add_argument("checkpoint", help="the weights of the source: file, directory, URL, hf:// or pypi:// address")
    parser.add_argument("--source", metavar="MODEL", help="implementation that the checkpoint is for")
    parser.add_argument("--target", required=True, metavar="MODEL", help="implementation to move it into")
    parser.add_argument("--inputs", metavar="MODULE:CALLABLE", help="inputs to run both on (default: the target's own)")
    parser.add_argument("--target-inputs", metavar="MODULE:CALLABLE", help="the same inputs in the target's form")
    parser.add_argument(
        "--expected", metavar="MODULE:CALLABLE", help="what the original gives, where there is no source"
    )
    parser.add_argument("--part", action="store_true", help="move the largest part that both have; the rest stays")
    parser.add_argument("--source-part", metavar="PATH", help="submodule of the source that counts")
    parser.add_argument("--target-part", metavar="PATH", help="submodule of the target that counts")
    parser.add_argument("--within", metavar="PATH", help="which nested mapping of the checkpoint to read")
    parser.add_argument("--prefix", help="what the checkpoint's names have in front of the source's (default: found)")
    parser.add_argument("--output", type=Path, required=True, help="directory to create")


def _port(options: argparse.Namespace) -> None:
    """Move a checkpoint into another implementation of the same model, by structure, with proof that both agree.

    Writes model.safetensors, plan.json and certificate.json into a new directory, all of them or none.

    A MODEL is the name of a model in the zoo, or MODULE:CALLABLE, where the callable takes no arguments and returns a
    torch module. MODULE is found like any import, and in the current directory. Inputs are what `pyrosys.match` takes:
    a tuple, a dict, pyrosys.Inputs, or a list of these.
    """
    if options.output.exists():
        raise InputError(f"Expected no file or directory at {options.output}, found one. Choose another --output.")
    source, target = build_model(options.source) if options.source else None, build_model(options.target)
    inputs = _inputs(options.inputs, target)
    target_inputs = call_reference(options.target_inputs) if options.target_inputs else None
    result = pyrosys.port(
        options.checkpoint,
        target,
        source=source,
        inputs=inputs,
        target_inputs=target_inputs,
        expected=call_reference(options.expected) if options.expected else None,
        part=options.part,
        source_part=options.source_part,
        target_part=options.target_part,
        within=options.within,
        prefix=options.prefix,
    )
    with replacing(options.output) as directory:
        directory.mkdir()
        pyrosys.hub.write_weights(directory / "model.safetensors", result.model.state_dict())
        result.plan.save(directory / "plan.json")
        certificate = json.dumps(result.certificate.to_json(), indent=2, ensure_ascii=False)
        (directory / "certificate.json").write_text(f"{certificate}\n", encoding="utf-8")
    print(result.certificate)


def _add_diff(add: Add) -> None:
    parser = add(
        "diff",
        _diff,
        "say where two models agree and where they part",
        "pyrosys diff theirs:build esm2-8m --inputs theirs:inputs --html difference.html",
    )
    parser.add_argument("source", metavar="A", help="name in the zoo, or MODULE:CALLABLE that builds a torch module")
    parser.add_argument("target", metavar="B", help="the model to compare it with, in the same form")
    parser.add_argument("--inputs", metavar="MODULE:CALLABLE", help="inputs to run both on (default: the models' own)")
    parser.add_argument("--target-inputs", metavar="MODULE:CALLABLE", help="the same inputs in the form that B takes")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write the comparison as one page")
    add_json(parser)


def _diff(options: argparse.Namespace) -> int:
    """Say where two models agree and where they part.

    For models that compute the same function, it prints the plan from A to B; for others the first values that differ,
    the operations and constants that differ, and the tensors without a counterpart.

    Exits with 0 when both compute the same function, 1 when they do not, and 2 when they could not be compared.
    """
    source, target = build_model(options.source), build_model(options.target)
    target_inputs = call_reference(options.target_inputs) if options.target_inputs else None
    found = pyrosys.diff(source, target, _inputs(options.inputs, source, target), target_inputs)
    if options.html is not None:
        with replacing(options.html) as unfinished:
            found.to_html(unfinished)
    if options.json:
        print_json(found.to_json())
    else:
        print(found.report())
    return 0 if found.equal else 1


def _inputs(reference: str | None, *models: nn.Module) -> Any:
    """Inputs that a function makes, or those that one of the models brings."""
    if reference:
        return call_reference(reference)
    own = (getattr(model, "example_input_array", None) for model in models)
    inputs = next((i for i in own if i is not None), None)
    if inputs is None:
        raise InputError("Expected inputs to run both models on, found none. Name a function with --inputs.")
    return inputs


def _add_export(add: Add) -> None:
    parser = add(
        "export",
        _export,
        "write a plan as Python, for where PyroSys is not installed",
        "pyrosys export ported/plan.json --output convert.py",
    )
    parser.add_argument("plan", type=Path, metavar="PLAN", help="plan that `pyrosys port` or `Plan.save` wrote")
    parser.add_argument(
        "--form",
        choices=("python", "transformers"),
        default="python",
        help="a function that needs torch only, or a mapping for transformers (default: python)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write (default: print)")


def _export(options: argparse.Namespace) -> None:
    """Write a plan as Python text, for where PyroSys is not installed.

    The form python is a module with a function `convert(state)`, from the source's state dict to the target's. The form
    transformers is a module with a function `mapping()`, the renamings and converters with which transformers loads such
    checkpoints; it is checked with transformers, which has to be installed.
    """
    text = pyrosys.Plan.load(options.plan).export(options.form)
    if options.output is None:
        print(text, end="")
        return
    with replacing(options.output) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _add_fingerprint(add: Add) -> None:
    parser = add("fingerprint", _fingerprint, "identify a model by its structure", "pyrosys fingerprint esm2-8m")
    parser.add_argument("model", metavar="MODEL", help="name in the zoo, or MODULE:CALLABLE that builds a torch module")
    parser.add_argument("--inputs", metavar="MODULE:CALLABLE", help="inputs to run it on (default: the model's own)")
    add_json(parser)


def _fingerprint(options: argparse.Namespace) -> None:
    """Identify a model and each of its submodules by structure.

    Names, nesting and layout of weights do not matter, and no weights are needed.
    """
    inputs = call_reference(options.inputs) if options.inputs else None
    result = pyrosys.fingerprint(build_model(options.model), inputs)
    if options.json:
        print_json({"whole": result.whole, "parts": result.parts})
    else:
        print_table(("fingerprint", "part"), [(result.whole, "(whole)"), *((v, k) for k, v in result.parts.items())])
