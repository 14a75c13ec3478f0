"""Take copies for one tensor, where the other model has one tensor in their stead.

A model computes something once, with a table or a gain, and uses it in every layer; another has a table for each layer, and
computes it again with each. If the second is to compute what the first does, its tables hold equal values. So they are taken
for one, and what is computed with each is computed once. In the model that is filled that is what the port makes of them; in
the other one it is done only where they do hold equal values.

Before anything is told apart, each tensor leads to the outputs in a way of its own. The model with copies has ways that the
other lacks: the table of the first layer leads through all the layers, as the one table does; that of a later layer leads
through fewer, as nothing in the other model does. Such a tensor is a copy, if another does the same to the same data.
"""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from pyrosys.adapters.capture import Capture
from pyrosys.adapters.colour import DEAD, Colouring, Family
from pyrosys.adapters.hashing import mix
from pyrosys.adapters.share import replaced
from pyrosys.adapters.structure import Place, Structure

__all__ = ["Copies", "find_copies", "take_for_one", "unseen"]

Copies = dict[str, str]
"""Name of a tensor that is a copy, to the name of the one that it is a copy of."""

_STEPS = 16


def take_for_one(captured: Capture, copies: Copies) -> Capture:
    """The pass with one tensor instead of its copies, in place."""
    roots = {n.meta["parameter"]: n for n in captured.graph.nodes if n.op == "placeholder"}
    return replaced(captured, {roots[name]: roots[first] for name, first in copies.items()})


def find_copies(sides: tuple[Colouring, Colouring], are_equal: Callable[[str, str], bool]) -> tuple[Copies, Copies]:
    """Tensors of either model that may be copies where the other has one.

    Args:
        sides: source and target under their first colours, not run yet.
        are_equal: whether two tensors of the source hold equal values.
    """
    if not any(_alike(side.structure) for side in sides):
        return {}, {}
    for side in sides:
        side.run()
    left, right = (_ways(side) for side in sides)
    return (
        _copies(sides[0].structure, left, _more(left, right), are_equal),
        _copies(sides[1].structure, right, _more(right, left), lambda name, first: True),
    )


def unseen(side: Colouring) -> dict[str, int]:
    """`Colouring.unseen` of a model that has not been matched: under colours that tell all of its elements apart."""
    for number, (place, family) in enumerate(side.families.items()):
        rows = None if family.rows is None else _all_apart(family.rows, number)
        side.families[place] = Family(_all_apart(family.features, number), rows)
    side.run()
    return side.unseen()


def _all_apart(colours: Tensor, number: int) -> Tensor:
    return mix(torch.arange(colours.numel()).reshape(colours.shape), number)


Way = tuple[str, int]
Ways = dict[str, Counter[Way]]
"""For each tensor, in which ways its elements lead to the outputs, and how many in each."""


def _ways(side: Colouring) -> Ways:
    found: Ways = {}
    for place, streams in side.streams.items():
        exact, counts = torch.unique(streams.exact, return_counts=True)
        seen = {(place.kind, way): n for way, n in zip(exact.tolist(), counts.tolist(), strict=True) if way != DEAD}
        for name in _names(side.structure, place):
            found.setdefault(name, Counter()).update(seen)
    return found


def _more(mine: Ways, theirs: Ways) -> Counter[Way]:
    """In which ways more elements lead to the outputs than in the other model, and how many more."""
    return sum(mine.values(), Counter[Way]()) - sum(theirs.values(), Counter[Way]())


def _copies(structure: Structure, ways: Ways, more: Counter[Way], may_be_one: Callable[[str, str], bool]) -> Copies:
    """As many tensors as the other model lacks that are copies, one found behind the other: a norm's gain, then its bias."""
    found: Copies = {}
    while True:
        next_ones: Copies = {}
        for name, first in _likely_pairs(structure, ways, more):
            free = not {name, first} & next_ones.keys() and name not in {*found.values(), *next_ones.values()}
            if free and ways[name] & more and may_be_one(name, first):
                next_ones[name] = first
                more = more - ways[name]
        if not next_ones:
            return found
        found |= next_ones
        structure = Structure(take_for_one(structure.capture.copy(), next_ones))
        structure.restrict(structure.capture.outputs)


def _likely_pairs(structure: Structure, ways: Ways, more: Counter[Way]) -> list[tuple[str, str]]:
    """Tensors that may be copies, each with others that it may be a copy of: the likely pairs first, the last copy first."""
    found: list[tuple[int, int, str, str]] = []
    for nodes in _alike(structure):
        steps = {name: _steps_after(node) for name, node in nodes.items()}
        for number, name in enumerate(nodes):
            if ways[name] & more:
                found += [(_in_common(steps[name], steps[f]), number, name, f) for f in nodes if f != name]
    return [(name, first) for *_, name, first in sorted(found, key=lambda pair: pair[:2], reverse=True)]


def _alike(structure: Structure) -> list[dict[str, fx.Node]]:
    """Tensors with which the same would be computed if they were one, and where, in order of execution."""
    found: dict[str, dict[str, fx.Node]] = {}
    for place in structure.places:
        names = _names(structure, place)
        if len(names) == 1:
            found.setdefault(_words(place.node, structure.pure), {}).setdefault(names[0], place.node)
    return [nodes for nodes in found.values() if len(nodes) > 1]


def _names(structure: Structure, place: Place) -> list[str]:
    return [root.meta["parameter"] for root in structure.sources(place.operand)]


def _words(node: fx.Node, pure: set[fx.Node]) -> str:
    """What a node computes, in words that do not name its tensor."""
    if node.op == "placeholder":
        return str(tuple(node.meta["shape"]))
    return f"{node.target}{map_arg((node.args, node.kwargs), lambda a: _words(a, pure) if a in pure else a.name)}"


def _steps_after(node: fx.Node) -> list[Counter[str]]:
    """The operations that are done to a value, step by step."""
    found, level = [], {node}
    for _ in range(_STEPS):
        level = {user for node in level for user in node.users}
        found.append(Counter(str(node.target) for node in level))
    return found


def _in_common(one: list[Counter[str]], other: list[Counter[str]]) -> int:
    """How many of the first steps are alike."""
    return next((number for number, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), _STEPS)
