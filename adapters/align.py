"""Which uses of parameters correspond in two models that do not match: an alignment of their structure graphs.

A graph's nodes are uses of parameters in execution order; uses of one kind that read the same things are one node, so that a
fused projection and its parts are alike. Edges say what reads what. Nodes whose whole upstream is alike correspond, then
nodes whose whole downstream is; these are anchors. What lies between two anchors is aligned as two sequences are, first by
kind and width, then, where only widths differ, by kind.

This is a picture of two models for a person. It proves nothing and no weight is moved by it.
"""

import bisect
import dataclasses
import difflib
import hashlib
import itertools
from collections import Counter

import networkx
import torch
from torch import fx

from pyrosys.adapters.locate import operation, region_nodes
from pyrosys.adapters.operations import tensor_arguments
from pyrosys.adapters.structure import Place, Structure

__all__ = ["Use", "align", "structure_graph"]

_LONGEST = 1 << 22  # steps that comparing two gaps may take


@dataclasses.dataclass(frozen=True)
class Use:
    """Uses of parameters of one kind that read the same things.

    Attributes:
        kind: `"contract"`, `"look up"`, `"bias"`, `"gain"`, `"data"`, or `"output"` for the end.
        contracted: numbers that one feature sums over.
        width: features, or elements, of all places together.
        places: what is used where.
        operations: what happens on the way to it and was not on the way to an earlier one, with plain numbers.
    """

    kind: str
    contracted: int
    width: int
    places: tuple[Place, ...]
    operations: Counter[str]

    @property
    def label(self) -> tuple[str, int, int]:
        """What two uses have to share to correspond."""
        return self.kind, self.contracted, self.width


def structure_graph(structure: Structure) -> networkx.DiGraph:
    """A model's uses of parameters, numbered in execution order, each with its `use`; an edge leads to what reads a use."""
    members: dict[tuple[str, int, frozenset[int]], list[Place]] = {}
    numbers: dict[tuple[str, int, frozenset[int]], int] = {}
    by_node: dict[fx.Node, list[Place]] = {}
    for place in structure.places:
        by_node.setdefault(place.node, []).append(place)
    reads: dict[fx.Node, frozenset[int]] = {}
    for node in structure.nodes:
        places = by_node.get(node, [])
        if node in structure.pure and not places:
            continue
        below = frozenset().union(*(reads[a] for a in tensor_arguments(node) if a in reads))
        mine = [(_kind(place), _contracted(structure, place), below) for place in places]
        for place, key in zip(places, mine, strict=True):
            numbers.setdefault(key, len(numbers))
            members.setdefault(key, []).append(place)
        reads[node] = frozenset(numbers[key] for key in mine) or below
    graph = networkx.DiGraph()
    seen: set[fx.Node] = set()
    for key, places in members.items():
        (kind, contracted, below), number = key, numbers[key]
        width = sum(_width(structure, place) for place in places)
        graph.add_node(number, use=Use(kind, contracted, width, tuple(places), _operations(structure, places, seen)))
        graph.add_edges_from((other, number) for other in below)
    end = len(numbers)
    graph.add_node(end, use=Use("output", 0, 0, (), _operations(structure, None, seen)))
    nothing: frozenset[int] = frozenset()
    last = nothing.union(*(reads.get(o, nothing) for o in structure.capture.outputs))
    graph.add_edges_from((number, end) for number in last)
    return graph


def _kind(place: Place) -> str:
    return place.operation or place.kind


def _contracted(structure: Structure, place: Place) -> int:
    if place.kind != "contract":
        return 0
    geometry = structure.role[place.node][1]
    return geometry.operand_grid(torch.empty(geometry.operand.meta["shape"], device="meta")).shape[1]


def _width(structure: Structure, place: Place) -> int:
    if place.kind == "contract":
        geometry = structure.role[place.node][1]
        return geometry.features * geometry.distinct_groups
    shape = place.operand.meta["shape"] if place.source is None else place.source.meta["shape"]
    return torch.Size(shape).numel()


def _operations(structure: Structure, places: list[Place] | None, seen: set[fx.Node]) -> Counter[str]:
    """Operations on the way to some places, or to the outputs, that were not on the way to earlier ones."""
    found: Counter[str] = Counter()
    for place in [None] if places is None else places:
        if place is None or place.kind == "contract":
            found.update(operation(node) for node in region_nodes(structure, place, seen))
    return found


def align(left: networkx.DiGraph, right: networkx.DiGraph) -> list[tuple[int, int]]:
    """Numbers of corresponding uses of two structure graphs, in the order of the second."""
    pairs: dict[int, int] = {}
    for direction in ("up", "down"):
        _pair_equal(_colours(left, direction), _colours(right, direction), pairs)
    anchors = _in_order(pairs)
    ends = [(-1, -1), *anchors, (left.number_of_nodes(), right.number_of_nodes())]
    taken = set(pairs.values())
    for (a, b), (c, d) in itertools.pairwise(ends):
        mine = [n for n in range(a + 1, c) if n not in pairs]
        theirs = [n for n in range(b + 1, d) if n not in taken]
        pairs.update(_between(mine, theirs, left, right))
    return sorted(pairs.items(), key=lambda pair: pair[1])


def _colours(graph: networkx.DiGraph, direction: str) -> dict[int, str]:
    """A hash of each use with everything before it, or everything after it."""
    nodes = sorted(graph) if direction == "up" else sorted(graph, reverse=True)
    neighbours = graph.predecessors if direction == "up" else graph.successors
    colours: dict[int, str] = {}
    for node in nodes:
        parts = [
            *map(str, graph.nodes[node]["use"].label),
            *sorted(colours[n] for n in neighbours(node) if n in colours),
        ]
        colours[node] = hashlib.sha256("|".join(parts).encode()).hexdigest()
    return colours


def _pair_equal(left: dict[int, str], right: dict[int, str], pairs: dict[int, int]) -> None:
    """Pair what has one colour, in order, where both sides have as many of it."""
    taken = set(pairs.values())
    classes: dict[str, tuple[list[int], list[int]]] = {}
    for side, (colours, done) in enumerate(((left, set(pairs)), (right, taken))):
        for node, colour in sorted(colours.items()):
            if node not in done:
                classes.setdefault(colour, ([], []))[side].append(node)
    for mine, theirs in classes.values():
        if len(mine) == len(theirs):
            pairs.update(zip(mine, theirs, strict=True))


def _in_order(pairs: dict[int, int]) -> list[tuple[int, int]]:
    """The most pairs of which none cross (a longest increasing subsequence)."""
    ends: list[int] = []
    last: list[tuple[int, int]] = []
    before: dict[tuple[int, int], tuple[int, int] | None] = {}
    for pair in sorted(pairs.items()):
        at = bisect.bisect_left(ends, pair[1])
        before[pair] = last[at - 1] if at else None
        ends[at : at + 1] = [pair[1]]
        last[at : at + 1] = [pair]
    chain: list[tuple[int, int]] = []
    pair = last[-1] if last else None
    while pair is not None:
        chain.append(pair)
        pair = before[pair]
    return chain[::-1]


def _between(mine: list[int], theirs: list[int], left: networkx.DiGraph, right: networkx.DiGraph) -> dict[int, int]:
    """Pairs among the uses between two anchors."""
    if not mine or not theirs or len(mine) * len(theirs) > _LONGEST:
        return {}
    labels = [left.nodes[n]["use"].label for n in mine], [right.nodes[n]["use"].label for n in theirs]
    kinds = [label[0] for label in labels[0]], [label[0] for label in labels[1]]
    if kinds[0] == kinds[1]:
        return dict(zip(mine, theirs, strict=True))
    blocks = difflib.SequenceMatcher(None, *labels, autojunk=False).get_matching_blocks()
    return {mine[b.a + i]: theirs[b.b + i] for b in blocks for i in range(b.size)}
