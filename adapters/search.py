"""Match a part of one model with a part, or the whole, of another.

Candidates are the values that submodules return, with everything that they depend on, and submodules on their own.
Hashes of what each depends on tell which can correspond; `match` decides. The candidate that covers most of the target is
taken, and further outputs are added while they match as well. Two candidates that fit the same place equally well are
a refusal.
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, fx, nn

from pyrosys.adapters.capture import Inputs, OutputSelector, capture
from pyrosys.adapters.card import CardSide
from pyrosys.adapters.colour import Colouring, spread_for
from pyrosys.adapters.fingerprint import keys
from pyrosys.adapters.part import Part, Value, arguments_of, readable, side_of, values_of
from pyrosys.adapters.plan import Plan
from pyrosys.adapters.sides import Side
from pyrosys.adapters.structure import Structure
from pyrosys.errors import InputError, PyrosysError, StructureMismatch

__all__ = ["Whole", "match_parts", "sides_of"]

Match = Callable[[Side, Side], Plan]

_ATTEMPTS = 6
_FURTHER = 4
_CLOSE = 1e-6
"""Relative difference up to which two values may be one function of made-up parameters: rounding of constants in float32."""
_WORTH = 0.9
"""What covering counts for where the cut leaves other values behind in one model than in the other."""


@dataclasses.dataclass
class Whole:
    """A model that a part is wanted of, with what it is run on.

    Attributes:
        model: a module, or a structure card as a side.
        probes: arguments of the whole model.
        select: from its output, or that of a named part, to the tensors that count.
        path: of the part, where the caller names it.
    """

    model: nn.Module | CardSide
    probes: list[Inputs]
    select: OutputSelector | None
    path: str | None = None

    @property
    def name(self) -> str:
        return self.model.name if isinstance(self.model, CardSide) else type(self.model).__name__

    @property
    def named(self) -> Part:
        """The value that the caller names; the output where none is named."""
        return Part((Value.parse(self.path),)) if self.path else Part()


def match_parts(source: Whole, target: Whole, search: bool, match: Match) -> Plan:
    """The plan for the largest part of the target that the source has too, or for the parts that the caller names.

    Args:
        source, target: the models.
        search: whether to look for the part where a path is not given; otherwise the whole is meant.
        match: from two sides to a plan.

    Raises:
        StructureMismatch: nothing corresponds, or several parts correspond equally well.
    """
    if search:
        return _searched(source, target, match)
    proposals = [(source.named, target.named)]
    values = [v for part in proposals[0] for v in part.values]
    if not isinstance(source.model, CardSide) and not any(v.call for v in values):
        alone = [Part(alone=whole.named.values[0].path) if whole.path else Part() for whole in (source, target)]
        proposals.append((alone[0], alone[1]))
    errors: list[PyrosysError] = []
    for parts in proposals:
        try:
            return _attempt(source, target, parts, match)
        except InputError:
            raise
        except PyrosysError as error:
            errors.append(error)
    if len(errors) > 1:
        raise type(errors[0])(f"{errors[0]} On its own: {errors[1]}") from errors[0]
    raise errors[0]


def sides_of(source: Whole, target: Whole, parts: tuple[Part, Part]) -> tuple[Side, Side]:
    """Both sides of a match of parts, on inputs that hold the same examples."""
    sides: list[Side] = []
    probes = _shared_arguments(source, target, parts) if any(p.alone is not None for p in parts) else None
    for position, (whole, part) in enumerate(zip((source, target), parts, strict=True)):
        if isinstance(whole.model, CardSide):
            sides.append(whole.model.part(part))
        else:
            mine = list(whole.probes if probes is None else probes[position])
            sides.append(side_of(whole.model, mine, part, whole.select))
    return sides[0], sides[1]


def _attempt(source: Whole, target: Whole, parts: tuple[Part, Part], match: Match) -> Plan:
    left, right = sides_of(source, target, parts)
    plan = match(left, right)
    plan.selectors = (source.select, target.select)
    plan.parts = parts
    if plan.certificate is not None:
        plan.certificate = dataclasses.replace(plan.certificate, compared=f"{left.name}; {right.name}")
    return plan


# Inputs of submodules on their own


def _shared_arguments(
    source: Whole, target: Whole, parts: tuple[Part, Part]
) -> tuple[Sequence[Inputs], Sequence[Inputs]]:
    """Arguments for both sides, of which at least one runs a submodule on its own.

    What a submodule is called with depends on the weights of its own model. The numbers are replaced by the same on both
    sides.
    """
    found: list[tuple[list[Inputs], list[list[Tensor]]] | None] = []
    for whole, part in zip((source, target), parts, strict=True):
        if part.alone is None:
            found.append(None)
        else:
            assert isinstance(whole.model, nn.Module)
            found.append(arguments_of(readable(whole.model), whole.probes, part.alone))
    left, right = found
    if left is None:
        assert right is not None
        return source.probes, [_with_numbers(i, m, s.tensors()) for i, m, s in zip(*right, source.probes, strict=True)]
    if right is None:
        if target.probes is source.probes:  # the target has none of its own: it takes what the submodule takes
            return left[0], [Inputs(*i.tensors()) for i in left[0]]
        return [_with_numbers(i, m, t.tensors()) for i, m, t in zip(*left, target.probes, strict=True)], target.probes
    return left[0], [_with_numbers(i, m, s.tensors()) for i, m, s in zip(*right, left[0], strict=True)]


def _with_numbers(inputs: Inputs, made: list[Tensor], numbers: list[Tensor]) -> Inputs:
    """Inputs in which tensors that were made up are those of the other side, in order, axes turned where they must be."""
    real = [t for t in numbers if t.is_floating_point()]
    instead: dict[int, Tensor] = {}
    for tensor in made:
        fitting = next((t for t in real if sorted(t.shape) == sorted(tensor.shape)), None)
        if fitting is None:
            raise InputError(
                f"Expected inputs with a tensor of shape {tuple(tensor.shape)}, which the other side's submodule takes, found "
                f"{', '.join(str(tuple(t.shape)) for t in numbers) or 'none'}. Pass the same examples to both."
            )
        real = [t for t in real if t is not fitting]
        instead[id(tensor)] = fitting.permute(_orders(tuple(fitting.shape), tuple(tensor.shape))[0])
    return inputs.map(lambda t: instead.get(id(t), t))


def _orders(source: tuple[int, ...], target: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Orders of the first shape's axes that give the second; its own order alone when the two are equal."""
    if source == target:
        return [tuple(range(len(source)))]
    return [p for p in itertools.permutations(range(len(source))) if tuple(source[i] for i in p) == target]


# Search


@dataclasses.dataclass
class _Candidate:
    """A value, or a submodule on its own.

    Attributes:
        key: hash of what it depends on; equal for candidates that can correspond.
        tensors: the tensors that it depends on, as bits.
        position: in order of execution.
        node: of a value.
    """

    part: Part
    key: frozenset[str]
    tensors: int
    shape: tuple[int, ...]
    position: int = 0
    node: fx.Node | None = None


class _Survey:
    """Every candidate of one side."""

    def __init__(self, whole: Whole):
        self.whole = whole
        if isinstance(whole.model, CardSide):
            structure = Structure(whole.model.capture())
            values = whole.model.values()
        else:
            model, labels = values_of(readable(whole.model), whole.select)
            structure = Structure(capture(model, whole.probes[0]))
            values = list(zip(structure.capture.outputs, labels(), strict=True))
        self.structure = structure
        names = list(structure.capture.tensors)
        self.sizes = np.array([torch.Size(structure.capture.tensors[n]).numel() for n in names], dtype=np.int64)
        bits = {name: 1 << i for i, name in enumerate(names)}
        self.bits: dict[fx.Node, int] = {}
        for node in structure.capture.graph.nodes:
            own = bits.get(node.meta["parameter"], 0) if node.op == "placeholder" else 0
            for argument in node.all_input_nodes:
                own |= self.bits[argument]
            self.bits[node] = own
        self.live = self._behind([node for node, labels in values if any(not v.path for v in labels)])
        self.values = self._values(values)
        self.alone = [] if isinstance(whole.model, CardSide) else self._alone(values)

    def size(self, tensors: int) -> int:
        """Number of elements of a set of tensors."""
        raw = np.frombuffer(tensors.to_bytes(-(-len(self.sizes) // 8) or 1, "little"), dtype=np.uint8)
        return int(self.sizes[np.unpackbits(raw, bitorder="little")[: len(self.sizes)].astype(bool)].sum())

    def run(self, spread: float) -> None:
        """Run on made-up parameters in which all features are alike, so that values are functions of the structure only."""
        seeds = [torch.zeros(o.meta["shape"], dtype=torch.float64) for o in self.structure.capture.outputs]
        colouring = Colouring(self.structure, seeds, spread=spread)
        colouring.run(keep=True)
        values = [c.node for c in self.values if c.node is not None]
        self.numbers = {n: torch.sort(colouring.values[n].detach().reshape(-1)).values for n in values}

    def leaks(self, ends: Sequence[fx.Node]) -> int:
        """How many values behind these, beside themselves, the model's outputs need in another way too: an open cut."""
        inside = self._behind(ends)
        last = {n for n in ends if not any(u in inside for u in n.users)}
        inner = (n for n in inside - last if n.op == "call_function")
        return sum(any(u in self.live and u not in inside for u in n.users) for n in inner)

    def _behind(self, ends: Sequence[fx.Node]) -> set[fx.Node]:
        """What nodes depend on, with themselves."""
        inside, stack = set(ends), list(ends)
        while stack:
            more = [a for a in stack.pop().all_input_nodes if a not in inside and a not in self.structure.pure]
            inside.update(more)
            stack += more
        return inside

    def _wanted(self, value: Value) -> bool:
        """Whether a value is of the submodule that the caller names, and of the call, where that is not the first."""
        if self.whole.path is None:
            return True
        named = Value.parse(self.whole.path)
        return value.path == named.path and named.call in (0, value.call)

    def _values(self, values: list[tuple[fx.Node, list[Value]]]) -> list[_Candidate]:
        reads = keys(self.structure, self.structure.nodes)
        order = {node: i for i, node in enumerate(self.structure.capture.graph.nodes)}
        found: dict[fx.Node, _Candidate] = {}
        for node, labels in values:
            wanted = [v for v in labels if self._wanted(v)]
            key = reads.get(node, frozenset())
            if wanted and key and node not in found:
                best = min(wanted, key=lambda v: (v.path.count(".") + bool(v.path), v.path))
                found[node] = _Candidate(
                    Part((best,)), key, self.bits[node], tuple(node.meta["shape"]), order[node], node
                )
        return list(found.values())

    def _alone(self, values: list[tuple[fx.Node, list[Value]]]) -> list[_Candidate]:
        """Submodules that are called once, and the whole model, which has the empty path."""
        results: dict[str, list[fx.Node]] = {}
        again = set()
        for node, labels in values:
            for value in labels:
                results.setdefault(value.path, []).append(node)
                if value.call:
                    again.add(value.path)
        members: dict[str, list[fx.Node]] = {"": self.structure.nodes}
        for node in self.structure.nodes:
            scope = node.meta.get("scope", "")
            while scope:
                members.setdefault(scope, []).append(node)
                scope = scope.rpartition(".")[0]
        found: dict[int, _Candidate] = {}
        for path in sorted(results.keys() & members.keys() - again, key=lambda p: (p.count(".") + bool(p), p)):
            if path and not self._wanted(Value(path)):
                continue
            reads = keys(self.structure, members[path])
            key = frozenset().union(*(reads.get(n, frozenset()) for n in results[path]))
            inside = {a for n in members[path] for a in n.all_input_nodes if a in self.structure.pure}
            tensors = 0
            for node in inside:
                tensors |= self.bits[node]
            if key and tensors and tensors not in found:
                shape = tuple(results[path][0].meta["shape"])
                found[tensors] = _Candidate(Part(alone=path) if path else Part(), key, tensors, shape)
        return list(found.values())


@dataclasses.dataclass
class _Pair:
    source: _Candidate
    target: _Candidate
    axes: tuple[int, ...] | None = None

    @property
    def parts(self) -> tuple[Part, Part]:
        if self.axes is None:
            return self.source.part, self.target.part
        part = self.target.part
        value = part.values[0] if part.values else Value("", 0, 0)
        return self.source.part, Part((dataclasses.replace(value, axes=self.axes),), part.alone)


def _pairs(left: _Survey, right: _Survey) -> list[_Pair]:
    """Candidates that can correspond, those that cover most of the target first."""
    spread = spread_for((left.structure, right.structure))
    for survey in (left, right):
        survey.run(spread)
    pairs: list[_Pair] = []
    for mine, theirs in itertools.chain(_by_key(left.values, right.values), _by_key(left.alone, right.alone)):
        if mine.node is not None and theirs.node is not None:
            a, b = left.numbers[mine.node], right.numbers[theirs.node]
            if a.shape != b.shape or not bool(((a - b).abs() <= _CLOSE * a.abs().amax()).all()):
                continue
        elif mine.part.alone is None and theirs.part.alone is None:
            continue
        for order in _orders(theirs.shape, mine.shape):
            pairs.append(_Pair(mine, theirs, None if order == tuple(range(len(order))) else order))
    worth = {id(p): _worth(p, left, right) for p in pairs}
    return sorted(pairs, key=lambda p: worth[id(p)], reverse=True)


def _worth(pair: _Pair, left: _Survey, right: _Survey) -> tuple[float, int, bool, int, int]:
    """Elements of the target that are covered, then of the source; values first, large ones before pooled, late before early."""
    source, target = pair.source, pair.target
    covered = float(right.size(target.tensors))
    if source.node is not None and target.node is not None and left.leaks([source.node]) != right.leaks([target.node]):
        covered *= _WORTH
    numbers = torch.Size(target.shape).numel()
    return covered, left.size(source.tensors), source.node is not None, numbers, source.position + target.position


def _by_key(left: list[_Candidate], right: list[_Candidate]) -> Iterator[tuple[_Candidate, _Candidate]]:
    known: dict[frozenset[str], list[_Candidate]] = {}
    for candidate in left:
        known.setdefault(candidate.key, []).append(candidate)
    for candidate in right:
        for other in known.get(candidate.key, ()):
            yield other, candidate


def _searched(source: Whole, target: Whole, match: Match) -> Plan:
    left, right = _Survey(source), _Survey(target)
    pairs = _pairs(left, right)
    errors: list[tuple[_Pair, PyrosysError]] = []
    for pair in pairs[:_ATTEMPTS]:
        try:
            plan = _attempt(source, target, pair.parts, match)
        except PyrosysError as error:
            errors.append((pair, error))
            continue
        _refuse_alternatives(source, target, pair, pairs, match)
        return _extended(left, right, plan, pair, pairs, match)
    if not errors:
        raise StructureMismatch(
            f"Expected a part of {source.name} that computes what a part of {target.name} does; no submodule of the two depends "
            "on its parameters in the same way. Name the parts with source_part and target_part to see where they differ."
        )
    first, error = errors[0]
    raise StructureMismatch(
        f"Expected a part of {source.name} that computes what a part of {target.name} does; of {len(pairs)} pairs that are built "
        f"alike, {len(errors)} were tried, and none computes the same. The largest, {first.parts[0]} and {first.parts[1]}: {error}"
    ) from error


def _refuse_alternatives(source: Whole, target: Whole, found: _Pair, pairs: list[_Pair], match: Match) -> None:
    """Refuse when another part of either model does as well in the place of the one that was found.

    Raises:
        StructureMismatch: it does.
    """

    def rivals(pair: _Pair) -> bool:
        if (pair.source is found.source) == (pair.target is found.target):
            return False
        a, b = (pair.target, found.target) if pair.source is found.source else (pair.source, found.source)
        both = a.tensors & b.tensors
        return both not in (a.tensors, b.tensors)  # neither holds the other

    for pair in [p for p in pairs if rivals(p)][:_FURTHER]:
        try:
            _attempt(source, target, pair.parts, match)
        except PyrosysError:
            continue
        side = 1 if pair.source is found.source else 0
        whole, word = (target, "target_part") if side else (source, "source_part")
        raise StructureMismatch(
            f"Two parts of {whole.name} compute the same function of their weights: {found.parts[side]} and {pair.parts[side]}. "
            f"Say which one is meant with {word}."
        )


def _extended(left: _Survey, right: _Survey, plan: Plan, found: _Pair, pairs: list[_Pair], match: Match) -> Plan:
    """The plan with further values of both models, as long as they match, cover more, and close the cut in both."""
    chosen, failures = [found], 0
    for pair in pairs:
        covered = functools.reduce(operator.or_, (p.target.tensors for p in chosen))
        more = [*chosen, pair]
        ends = [[n for p in more if (n := getattr(p, side).node) is not None] for side in ("source", "target")]
        if min(map(len, ends)) < len(more) or not pair.target.tensors & ~covered or failures == _FURTHER:
            continue
        if left.leaks(ends[0]) != right.leaks(ends[1]):
            continue
        parts = [Part(tuple(v for p in more for v in p.parts[i].values)) for i in (0, 1)]
        try:
            plan = _attempt(left.whole, right.whole, (parts[0], parts[1]), match)
        except PyrosysError:
            failures += 1
            continue
        _refuse_alternatives(left.whole, right.whole, pair, pairs, match)
        chosen = more
    return plan
