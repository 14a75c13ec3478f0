"""The structure engine on the command line: ``port`` and ``fingerprint``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyrosys
from pyrosys.cli.common import Add, add_json, print_json, print_table, replacing
from pyrosys.errors import InputError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["declare"]


def declare(add: Add) -> None:
    """Add the commands of this group."""
    for command in (_add_port, _add_fingerprint):
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
    source, target = _build(options.source) if options.source else None, _build(options.target)
    inputs = _call(options.inputs) if options.inputs else getattr(target, "example_input_array", None)
    if inputs is None:
        raise InputError("Expected inputs to run both models on, found none. Name a function with --inputs.")
    target_inputs = _call(options.target_inputs) if options.target_inputs else None
    result = pyrosys.port(
        options.checkpoint,
        target,
        source=source,
        inputs=inputs,
        target_inputs=target_inputs,
        expected=_call(options.expected) if options.expected else None,
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


def _add_fingerprint(add: Add) -> None:
    parser = add("fingerprint", _fingerprint, "identify a model by its structure", "pyrosys fingerprint esm2-8m")
    parser.add_argument("model", metavar="MODEL", help="name in the zoo, or MODULE:CALLABLE that builds a torch module")
    parser.add_argument("--inputs", metavar="MODULE:CALLABLE", help="inputs to run it on (default: the model's own)")
    add_json(parser)


def _fingerprint(options: argparse.Namespace) -> None:
    """Identify a model and each of its submodules by structure.

    Names, nesting and layout of weights do not matter, and no weights are needed.
    """
    inputs = _call(options.inputs) if options.inputs else None
    result = pyrosys.fingerprint(_build(options.model), inputs)
    if options.json:
        print_json({"whole": result.whole, "parts": result.parts})
    else:
        print_table(("fingerprint", "part"), [(result.whole, "(whole)"), *((v, k) for k, v in result.parts.items())])


def _build(model: str) -> nn.Module:
    """Build a torch module from the name of a model in the zoo, without its weights, or from MODULE:CALLABLE."""
    if ":" in model:
        return _call(model)
    from pyrosys.catalogue import build

    return build(model)


def _call(reference: str) -> Any:
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
