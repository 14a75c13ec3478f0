"""Chains of gains and biases behind a contraction: batch norm, folded into the contraction or spelled in another way.

What follows a contraction feature by feature, `scale * y + shift`, can be part of it: the scale of its weights, the shift of
its bias. Two models that distribute a scale and a shift over different parameters compute the same, so where the chains of a
pair of contractions differ, effective values are carried over instead of parameters:

- parameters are copied one by one if the two chains compute alike from them, whatever the operations;
- otherwise the weights take the source's scale, one parameter of the target's chain takes the shift, and the others are set
  so that they do nothing.

Nothing is known of batch norm here. Chains are recorded operations, run on numbers.
"""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from pyrosys.adapters.contraction import Contraction
from pyrosys.adapters.layout import Elements, blocks, elements_of
from pyrosys.adapters.nodes import args_of
from pyrosys.adapters.operations import is_layout, tensor_arguments
from pyrosys.adapters.program import Program
from pyrosys.adapters.structure import Place, Structure

__all__ = ["Chain", "Leaf", "Transfer", "chain_behind", "transfer"]

aten = torch.ops.aten
_CLOSE = 1e-12
_MOST = 5
"""Parameters of a chain up to which ways to set them are searched."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Elements that a chain uses as one parameter: a tensor, or the part of one that views cut out.

    Attributes:
        root: the placeholder of the tensor.
        numbers: the elements, in order.
    """

    root: fx.Node
    numbers: tuple[int, ...]

    @property
    def positions(self) -> Tensor:
        return torch.tensor(self.numbers)


@dataclasses.dataclass
class Chain:
    """Gains and biases behind a contraction.

    Attributes:
        structure: the model.
        head: the contraction.
        path: nodes from behind the contraction to the last gain or bias, layout included.
        places: uses of parameters on the path.
    """

    structure: Structure
    head: Place
    path: list[fx.Node]
    places: list[Place]

    @property
    def geometry(self) -> Contraction:
        return self.structure.role[self.head.node][1]

    @property
    def width(self) -> int:
        """Number of features."""
        return self.geometry.distinct_groups * self.geometry.features

    @property
    def is_simple(self) -> bool:
        """Whether the chain is at most one plain bias, which needs no arithmetic."""
        return len(self.places) <= 1 and all(p.operation == "bias" and _is_plain(p) for p in self.places)

    @property
    def kinds(self) -> list[tuple[Any, ...]]:
        """Operations and constants in order; equal for chains whose parameters correspond one by one."""
        return [
            (p.operation, p.operand.target if p.operand.op == "call_function" else None, *_constants(p))
            for p in self.places
        ]

    @functools.cached_property
    def parameters(self) -> list[Leaf]:
        """The parameters, in order of their tensors and then of their elements."""
        return sorted({leaf for p in self.places for leaf in _leaves(p.operand)}, key=lambda f: (f.root, f.numbers))


def _leaves(operand: fx.Node) -> list[Leaf]:
    """What views take of each parameter before anything is computed."""
    found, stack = [], [operand]
    while stack:
        node = stack.pop()
        elements = elements_of(node)
        (root, *more), plain = elements.roots, (elements.scale, elements.shift) == (1.0, 0.0)
        if root.op == "placeholder" and not more and plain:
            found.append(Leaf(root, tuple(torch.unique(elements.numbers()).tolist())))
        else:
            stack.extend(a for a in tensor_arguments(node) if a.op != "get_attr")
    return found


def _is_plain(place: Place) -> bool:
    elements = elements_of(place.operand)
    return elements.roots == [place.source] and (elements.scale, elements.shift) == (1.0, 0.0)


def _constants(place: Place) -> tuple[Any, ...]:
    """Plain numbers in the computation of a place's operand."""
    program = Program.of(place.operand)
    return tuple(a for n in program.nodes if n.op == "call_function" for a in args_of(n) if isinstance(a, float))


def chain_behind(structure: Structure, place: Place) -> Chain:
    """The gains and biases that follow a contraction without anything else in between."""
    outputs = set(structure.capture.outputs)
    path: list[fx.Node] = []
    places: list[Place] = []
    kept, node = 0, place.node
    while node not in outputs and len(node.users) == 1:
        (user,) = node.users
        if structure.role.get(user, ("plain",))[0] == "decorate" and structure.role[user][1] is node:
            path.append(user)
            places += structure.places_at[user]
            kept = len(path)
        elif is_layout(user) and len(tensor_arguments(user)) == 1:
            path.append(user)
        else:
            break
        node = user
    return Chain(structure, place, path[:kept], places)


@dataclasses.dataclass
class Transfer:
    """How a source's chain becomes a target's.

    Attributes:
        geometry: the source's contraction, with the weights that the target is to have.
        copies: parameter of the target to the elements of a source's node that it takes.
        fills: parameters of the target and the number that each holds everywhere.
    """

    geometry: Contraction
    copies: dict[Leaf, tuple[fx.Node, Tensor]]
    fills: dict[Leaf, float]


def transfer(source: Chain, target: Chain) -> Transfer | None:
    """Find out how to carry a chain over; None when the parameters simply correspond, or when no way is found."""
    if (source.is_simple and target.is_simple) or source.kinds == target.kinds:
        return None
    if any(c.geometry.distinct_groups not in (1, c.geometry.groups) for c in (source, target)):
        return None
    if source.width != target.width or len(source.parameters) > _MOST or len(target.parameters) > _MOST:
        return None
    effect = _Effect(source)
    twins = _twins(effect, source, target)
    if twins is not None:
        return Transfer(source.geometry, {mine: (leaf.root, leaf.positions) for mine, leaf in twins.items()}, {})
    shifts = any(p.operation == "bias" for p in source.places)
    found = _neutral(target, need_carrier=shifts)
    if found is None:
        return None
    carrier, fills = found
    copies: dict[Leaf, tuple[fx.Node, Tensor]] = {}
    if carrier is not None and shifts and source.is_simple:
        (bias,) = source.parameters
        copies[carrier] = bias.root, bias.positions
    elif carrier is not None and shifts:
        copies[carrier] = effect.shift, torch.arange(source.width)
    elif carrier is not None:
        fills = {**fills, carrier: 0.0}
    return Transfer(source.geometry if source.is_simple else effect.weighted(), copies, fills)


class _Effect:
    """Nodes for the scale and the shift that a chain puts on each feature, in a graph of their own."""

    def __init__(self, chain: Chain):
        self.chain = chain
        self.graph = fx.Graph()
        self.known: dict[fx.Node, fx.Node] = {}
        for operand in (chain.head.operand, *(p.operand for p in chain.places)):
            for node in Program.of(operand).nodes:
                if node not in self.known:
                    self.known[node] = self._copied(node, self.known)
        shape = tuple(chain.head.node.meta["shape"])
        last = chain.path[-1] if chain.path else chain.head.node
        features = chain.structure.features_of(last, {}).reshape(-1).to(torch.int64)
        at = torch.zeros(chain.width, dtype=torch.int64)
        numbered = torch.nonzero(features >= 0).reshape(-1).flip(0)
        at[features[numbered]] = numbered
        self.at = self._constant(at)
        self.shift = self._pick(self._follow(self._constant(torch.zeros(shape, dtype=torch.float64))))
        whole = self._pick(self._follow(self._constant(torch.ones(shape, dtype=torch.float64))))
        self.scale = self._call(aten.sub.Tensor, (whole, self.shift), (chain.width,))

    def _copied(self, node: fx.Node, known: dict[fx.Node, fx.Node]) -> fx.Node:
        copied = self.graph.node_copy(node, known.__getitem__)
        copied.meta = dict(node.meta)
        return copied

    def _constant(self, value: Tensor) -> fx.Node:
        node = self.graph.get_attr(f"effect_{len(self.graph.nodes)}")
        node.meta.update(constant=value, data=False, shape=tuple(value.shape), dtype=value.dtype, scope="")
        return node

    def _call(self, operation: Any, args: tuple[Any, ...], shape: tuple[int, ...]) -> fx.Node:
        node = self.graph.call_function(operation, args)
        node.meta.update(shape=shape, dtype=torch.float64, scope=self.chain.head.scope)
        return node

    def _follow(self, start: fx.Node) -> fx.Node:
        known = {**self.known, self.chain.head.node: start}
        for node in self.chain.path:
            known[node] = self._copied(node, known)
        return known[self.chain.path[-1]] if self.chain.path else start

    def _pick(self, node: fx.Node) -> fx.Node:
        flat = self._call(aten.reshape.default, (node, [-1]), (torch.Size(node.meta["shape"]).numel(),))
        return self._call(aten.index_select.default, (flat, 0, self.at), (self.chain.width,))

    def run(self, values: dict[Leaf, Tensor]) -> tuple[Tensor, Tensor]:
        """Scale and shift for values of the chain's parameters."""
        tensors: dict[str, Tensor] = {}
        for leaf, value in values.items():
            empty = torch.zeros(leaf.root.meta["shape"], dtype=torch.float64)
            tensors.setdefault(leaf.root.meta["parameter"], empty).view(-1)[leaf.positions] = value
        return Program.of(self.scale).run(tensors), Program.of(self.shift).run(tensors)

    def weighted(self) -> Contraction:
        """The contraction as if its weights held the scale."""
        geometry = self.chain.geometry
        operand, shape = self.known[geometry.operand], tuple(geometry.operand.meta["shape"])
        if not geometry.convolution and geometry.groups > geometry.distinct_groups:  # one matrix for all groups
            operand, shape = self._call(aten.select.int, (operand, 0, 0), shape[1:]), shape[1:]
        axis = 0 if geometry.convolution or not geometry.data_first else len(shape) - 1
        form = [self.chain.width if d == axis else 1 for d in range(len(shape))]
        scale = self._call(aten.reshape.default, (self.scale, form), tuple(form))
        weights = self._call(aten.mul.Tensor, (operand, scale), shape)
        strides = tuple(torch.empty(shape, device="meta").stride())
        found = copy.copy(geometry)
        found.elements = Elements([weights], (0, shape, strides), None)
        found.blocks = blocks(found.elements, found)
        return found


def _drawn(leaves: list[Leaf], seed: int) -> dict[Leaf, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {leaf: 0.5 + torch.rand(len(leaf.numbers), generator=generator, dtype=torch.float64) for leaf in leaves}


def _twins(effect: _Effect, source: Chain, target: Chain) -> dict[Leaf, Leaf] | None:
    """Parameter of the target to that of the source, if the chains compute alike from them."""
    mine, theirs = target.parameters, source.parameters
    if len(mine) != len(theirs) or any(len(leaf.numbers) != source.width for leaf in (*mine, *theirs)):
        return None
    drawn = _drawn(theirs, 1)
    wanted, other = effect.run(drawn), _Effect(target)
    for order in itertools.permutations(theirs):
        pairs = dict(zip(mine, order, strict=True))
        found = other.run({m: drawn[t] for m, t in pairs.items()})
        if all(bool(((a - b).abs() <= _CLOSE * (1 + b.abs())).all()) for a, b in zip(found, wanted, strict=True)):
            return pairs
    return None


def _neutral(chain: Chain, need_carrier: bool) -> tuple[Leaf | None, dict[Leaf, float]] | None:
    """A parameter that is the shift itself, and numbers for the others with which the scale is one."""
    if not chain.parameters:
        return None if need_carrier else (None, {})
    effect = _Effect(chain)
    carriers: list[Leaf | None] = [leaf for leaf in chain.parameters if len(leaf.numbers) == chain.width]
    for carrier in carriers if need_carrier else [*carriers, None]:
        others = [leaf for leaf in chain.parameters if leaf != carrier]
        drawn = {} if carrier is None else _drawn([carrier], 2)

        def run(fills: dict[Leaf, float], drawn: dict[Leaf, Tensor] = drawn) -> tuple[Tensor, Tensor]:
            full = {leaf: torch.full((len(leaf.numbers),), v, dtype=torch.float64) for leaf, v in fills.items()}
            return effect.run({**drawn, **full})

        for numbers in itertools.product((0.0, 1.0), repeat=len(others)):
            fills = _with_unit_scale(dict(zip(others, numbers, strict=True)), run)
            if fills is None:
                continue
            shift = run(fills)[1]
            wanted = torch.zeros_like(shift) if carrier is None else drawn[carrier]
            if bool(((shift - wanted).abs() <= _CLOSE * (1 + wanted.abs())).all()):
                return carrier, fills
    return None


def _with_unit_scale(
    fills: dict[Leaf, float], run: Callable[[dict[Leaf, float]], tuple[Tensor, Tensor]]
) -> dict[Leaf, float] | None:
    """The numbers, one of them moved so far that the scale is one (a variance to one less epsilon)."""

    def excess(candidate: dict[Leaf, float]) -> float:
        scale = run(candidate)[0]
        return (
            float(scale.mean()) - 1
            if bool(torch.isfinite(scale).all()) and float(scale.std()) < _CLOSE
            else float("nan")
        )

    if excess(fills) == 0:
        return fills
    for leaf in fills:
        a, b = fills[leaf], fills[leaf] + 1e-3
        low, high = excess({**fills, leaf: a}), excess({**fills, leaf: b})
        for _ in range(60):
            if high == low or not (abs(high) < 1e3 and abs(low) < 1e3):
                break
            a, b, low = b, b - high * (b - a) / (high - low), high
            high = excess({**fills, leaf: b})
            if abs(high) <= 1e-15:
                return {**fills, leaf: b}
    return None
