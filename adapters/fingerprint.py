"""Fingerprints: equal for models of one structure, however they are named, nested or laid out.

The fingerprint of a model is a hash of the dependence of its outputs on its parametrised operations. A contraction is known
by the set of things it reads and by how many numbers it reads and writes; operations that read the same things count
together, so that a fused projection and its parts are alike. What has no parameter only unites the sets that it reads, so
that it does not matter how a softmax or an activation is spelled.

A fingerprint therefore does not see activations, epsilons or masks. Equal fingerprints name candidates; `match` proves them.

The hash is this library's own and versioned: `psf1:` and 64 hexadecimal digits. It reads no names and no values.
"""

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn

from pyrosys.adapters.capture import Capture, OutputSelector, as_inputs, capture
from pyrosys.adapters.contraction import Contraction
from pyrosys.adapters.garbage import seldom_collected
from pyrosys.adapters.operations import tensor_arguments
from pyrosys.adapters.structure import Place, Structure
from pyrosys.errors import InputError

__all__ = ["NOTHING", "VERSION", "Fingerprint", "cuts", "fingerprint", "keys", "of_outputs", "upstream"]

VERSION = "psf1"


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Fingerprint of a model and of every submodule that the probe runs.

    Attributes:
        whole: fingerprint of the model.
        parts: submodule name to fingerprint; submodules of equal structure have equal fingerprints.
    """

    whole: str
    parts: dict[str, str]

    def __str__(self) -> str:
        return self.whole


@seldom_collected()
def fingerprint(model: nn.Module, inputs: Any = None, *, output: OutputSelector | None = None) -> Fingerprint:
    """Fingerprint a model and all its submodules; its parameters may be on meta.

    Args:
        model: any module.
        inputs: example arguments; default: its `example_input_array`.
        output: from the model's output to the tensors that count.

    Raises:
        CaptureError: the model does not run on the inputs.

    Example:
        >>> import torch, pyrosys
        >>> a = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
        >>> b = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(3, 5)), torch.nn.ReLU(), torch.nn.Linear(5, 2))
        >>> x = torch.ones(1, 3)
        >>> pyrosys.fingerprint(a, x).whole == pyrosys.fingerprint(b, x).whole
        True
    """
    if inputs is None:
        inputs = getattr(model, "example_input_array", None)
        if inputs is None:
            raise InputError(
                f"Expected inputs to run {type(model).__name__} on, found none. Pass a tuple or a dict of arguments."
            )
    captured = capture(model, as_inputs(inputs)[0], output=output)
    return of_structure(Structure(captured))


def of_structure(structure: Structure) -> Fingerprint:
    """Fingerprint of a captured model."""
    whole = _whole(structure, structure.nodes, structure.capture.outputs)
    members: dict[str, list[fx.Node]] = {}
    for node in structure.nodes:
        scope = node.meta.get("scope", "")
        while scope:
            members.setdefault(scope, []).append(node)
            scope = scope.rpartition(".")[0]
    parts = {}
    for name, nodes in members.items():
        inside = set(nodes)
        exits = [n for n in nodes if any(user not in inside for user in n.users)]
        parts[name] = _whole(structure, nodes, exits)
    return Fingerprint(whole, parts)


def of_outputs(captured: Capture) -> list[str]:
    """Fingerprints of a captured model as if it had one of its outputs only, for each that differs from the whole."""
    prints: list[str] = []
    if len(captured.outputs) > 1:
        for output in captured.outputs:
            structure = Structure(captured)
            structure.restrict([output])
            prints.append(_whole(structure, structure.nodes, [output]))
    return list(dict.fromkeys(prints))


def cuts(captured: Capture) -> dict[fx.Node, str]:
    """For every node, the fingerprint that the model would have if it ended there: where a trunk without its head fits."""
    structure = Structure(captured)
    reads = _reads(structure, structure.nodes)
    return {
        node: _fingerprint([reads.get(node, frozenset())]) for node in structure.nodes if node not in structure.pure
    }


def _whole(structure: Structure, nodes: list[fx.Node], exits: Iterable[fx.Node]) -> str:
    reads = _reads(structure, nodes)
    return _fingerprint(reads.get(n, frozenset()) for n in exits if n not in structure.pure)


def _fingerprint(ends: Iterable[frozenset[str]]) -> str:
    return f"{VERSION}:{_digest('model', *sorted({_digest('exit', *sorted(reads)) for reads in ends}))}"


def upstream(structure: Structure) -> dict[Place, str]:
    """For every contraction and look-up, in order: the hash of what its result depends on."""
    reads = _reads(structure, structure.nodes)
    return {p: "+".join(sorted(reads[p.node])) for p in structure.places if p.kind != "elements"}


def keys(structure: Structure, nodes: list[fx.Node]) -> dict[fx.Node, frozenset[str]]:
    """For every node, a key of each parametrised operation whose result it reads without another in between.

    A key depends on what the operation depends on, and on nothing beside or behind it, so that it is the same in a part of a
    model and in the whole.
    """
    return _keys(structure, nodes)[0]


def _keys(
    structure: Structure, nodes: list[fx.Node]
) -> tuple[dict[fx.Node, frozenset[str]], dict[fx.Node, tuple[str, int]], dict[str, int]]:
    """Keys that each node reads, key and width of each operation, and joint widths of operations of one key."""
    inside = set(nodes)
    sizes: dict[str, int] = {}
    wide: dict[fx.Node, tuple[str, int]] = {}
    reads: dict[fx.Node, frozenset[str]] = {}
    for node in nodes:
        if node in structure.pure:
            continue
        role = structure.role.get(node, ("plain",))
        inputs = [a for a in tensor_arguments(node) if a in inside and a not in structure.pure]
        below = frozenset().union(*(reads.get(a, frozenset()) for a in inputs))
        if role[0] == "contract":
            geometry: Contraction = role[1]
            contracted = geometry.operand_grid(torch.empty(geometry.operand.meta["shape"], device="meta")).shape[1]
            key = _digest("contract", contracted, *sorted(below))
            features = geometry.features * geometry.distinct_groups
        elif role[0] == "look up":
            shape = sorted(role[2].meta["shape"])
            key, features = _digest("look up"), shape[-1]
        else:
            reads[node] = below
            continue
        sizes[key] = sizes.get(key, 0) + features
        wide[node] = (key, features)
        reads[node] = frozenset({key})
    return reads, wide, sizes


def _reads(structure: Structure, nodes: list[fx.Node]) -> dict[fx.Node, frozenset[str]]:
    """As `keys`, with each operation named by the joint width of all that read the same things."""
    inside = set(nodes)
    _, wide, sizes = _keys(structure, nodes)
    names: dict[str, str] = {}
    final: dict[fx.Node, frozenset[str]] = {}
    for node in nodes:
        if node in structure.pure:
            continue
        inputs = [a for a in tensor_arguments(node) if a in inside and a not in structure.pure]
        below = frozenset().union(*(final.get(a, frozenset()) for a in inputs))
        if node in wide:
            key, _ = wide[node]
            names[key] = _digest(key, sizes[key], *sorted(below))
            final[node] = frozenset({names[key]})
        else:
            final[node] = below
    return final


def _digest(*parts: Any) -> str:
    return hashlib.sha256("|".join(str(p) for p in parts).encode()).hexdigest()


NOTHING = frozenset((_fingerprint([]), _fingerprint([frozenset()])))
"""Fingerprints of whatever has no matrix and no table: all norms and activations are alike."""
