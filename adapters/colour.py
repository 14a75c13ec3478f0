"""Colours: what tells the elements of a model's parameters apart, without their names, shapes or values.

A model is run on a probe with made-up parameters that know nothing but colours. Everything that has no parameter runs as it
is, in float64, so that a GELU or an attention written in any way is the same thing. At the three places where a parameter
meets the data, it is replaced:

- *contraction* (matrix product, convolution): two smooth functions are summed over the input row, and each is spread over
  the output features by numbers that depend on the feature's colour only. Written so, `[W₁|W₂]·[x₁;x₂]` equals
  `W₁·x₁ + W₂·x₂`, and a fused `[q;k;v]` equals three projections. (Two, because a norm would make rows of rank one equal.)
- *look-up* (embedding): the same with numbers for row colours and for column colours.
- *decoration* (a bias, a gain): transparent, so that a bias that is absent changes nothing else.

Two streams come back for each parameter element. The numeric stream is the pair of value and gradient at its place. The
second, the *sketch*, is exact and survives where numbers degenerate (a norm of a constant row is zero): the deepest chain of
contractions that leads to the element, and the deepest that leads from it to the output.

Elements with equal streams get equal colours; a few rounds make colours stable. This is colour refinement (Weisfeiler and
Leman 1968) on the graph of scalars, with the layout of tensors already gone: views, permutations, chunks and concatenations
are executed, not interpreted.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from pyrosys.adapters.contraction import Contraction
from pyrosys.adapters.nodes import args_of
from pyrosys.adapters.operations import (
    NONE,
    backward_dependence,
    forward_dependence,
    run_node,
    tensor_arguments,
)
from pyrosys.adapters.structure import DECORATIONS, Place, Structure
from pyrosys.errors import CaptureError

__all__ = ["DEAD", "SIGNATURE", "Colouring", "Family", "Streams", "mix", "spread_for"]

aten = torch.ops.aten
_HASH_BITS = 42
_MASK = (1 << _HASH_BITS) - 1
SIGNATURE = 4
"""Numbers per element in the numeric stream."""


def mix(*parts: Any) -> Tensor:
    """A 62-bit hash of integer tensors that broadcast together (splitmix64 finaliser, Steele et al. 2014)."""
    total = np.zeros((), dtype=np.uint64)
    for part in parts:
        x = np.asarray(part, dtype=np.int64).view(np.uint64)
        mixed = np.empty(np.broadcast_shapes(total.shape, x.shape), dtype=np.uint64)
        np.add(np.multiply(total, _MULTIPLIER, out=np.empty_like(total)), x, out=mixed)
        flat = mixed.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            _finalise(flat[start : start + _CHUNK])
        total = mixed
    total &= np.uint64(0x3FFFFFFFFFFFFFFF)
    return torch.from_numpy(total.view(np.int64))


_MULTIPLIER = np.uint64(6364136223846793005)
_INCREMENT = np.uint64(1442695040888963407)
_STEPS = tuple(
    (np.uint64(shift), np.uint64(factor)) for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
)
_CHUNK = 1 << 14  # elements that stay in the processor's cache from the first step to the last


def _finalise(x: np.ndarray) -> None:
    """The steps of the hash, in place."""
    shifted = np.empty_like(x)
    x += _INCREMENT
    for shift, factor in _STEPS:
        np.right_shift(x, shift, out=shifted)
        x ^= shifted
        x *= factor
    np.right_shift(x, np.uint64(31), out=shifted)
    x ^= shifted


def _uniform(colour: Tensor, salt: int) -> Tensor:
    """A number in ±[0.5, 1.5] per colour."""
    x = mix(colour, salt)
    unit = (x & 0xFFFFFFFF).to(torch.float64) / 2**32
    sign = ((x >> 40) & 1).to(torch.float64) * 2 - 1
    return sign * (0.5 + unit)


def _smooth(x: Tensor) -> Tensor:
    """A bounded smooth function without symmetry; smooth, so that rounding stays rounding.

    It is zero at zero, so that padding and features that are always zero add nothing, and nearly odd, so that sums over
    many features neither drift nor saturate what follows.
    """
    return _wave(x, 1.3, 2.1, 0.05)


def _smooth_too(x: Tensor) -> Tensor:
    return _wave(x, 2.3, 1.1, -0.05)


def _wave(x: Tensor, odd: float, even: float, amount: float) -> Tensor:
    return (odd * x).sin_().add_((even * x).cos_().sub_(1), alpha=amount)


def _modulation(x: Tensor) -> Tensor:
    return 1 + 0.5 * torch.sin(1.7 * x + 0.3)


def deepen(sketch: Tensor, *parts: Any) -> Tensor:
    """One level deeper: depth in the high bits so that the deepest chain wins a maximum, a hash below."""
    whole = sketch.to(torch.int64)
    depth = (whole >> _HASH_BITS) + 1
    return ((depth << _HASH_BITS) | (mix(whole, *parts) & _MASK)).to(torch.float64)


def spread_for(structures: tuple[Structure, ...]) -> float:
    """What sums over features are divided by in models that are compared.

    Sums of many terms of either sign are kept where activations do not saturate, or rounding would grow with the depth.
    """
    return max(12.0, 0.6 * max(s.widest for s in structures) ** 0.5)


@dataclasses.dataclass
class Family:
    """Colours of one place: `features` for columns or elements, `rows` for the rows of a look-up table."""

    features: Tensor
    rows: Any = None


_UNSEEN = 1e-13  # of the largest gradient: what rounding leaves of one that is zero

DEAD = 0
"""The colour of elements that no output depends on."""


class _Contract(torch.autograd.Function):
    """The coloured contraction; its backward is a colour rule of its own, not a derivative."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        totals: tuple[Tensor, Tensor],
        geometry: Contraction,
        numbers: tuple[Tensor, Tensor],
        back: Tensor,
        record: dict[str, Any],
        spread: float,
    ) -> Tensor:
        total, other = totals
        ctx.geometry, ctx.back, ctx.record, ctx.spread = geometry, back, record, spread
        ctx.save_for_backward(x)
        record["total"] = total
        record["data"] = x
        return geometry.expand(total, numbers[0]) + geometry.expand(other, numbers[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,) = ctx.saved_tensors
        squeezed = torch.asinh(gradients[0] + ctx.record["reach"])
        ctx.record["gradient"] = squeezed
        projected = ctx.geometry.project(squeezed, ctx.back) / ctx.spread
        return ctx.geometry.spread(projected, x) * _modulation(x), None, None, None, None, None, None


class _Decorate(torch.autograd.Function):
    """A bias or gain at its place: it acts as if it were neutral, and receives the gradient it would receive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parameter: Tensor, product: bool, factor: float, shift: float) -> Tensor:
        ctx.product, ctx.factor, ctx.shape, ctx.own = product, factor, tuple(parameter.shape), tuple(x.shape)
        shape = torch.broadcast_shapes(x.shape, parameter.shape)
        ctx.save_for_backward(x)
        return (factor * x + shift).expand(shape).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        (x,) = ctx.saved_tensors
        to_parameter = gradient * x if ctx.product else gradient
        return (gradient * ctx.factor).sum_to_size(ctx.own), to_parameter.sum_to_size(ctx.shape), None, None, None


@dataclasses.dataclass
class Streams:
    """What one round found for each place: exact integers and numbers per element."""

    exact: Tensor
    numbers: Tensor
    row_exact: Tensor | None = None
    row_numbers: Tensor | None = None


class Colouring:
    """Runs a structure under colours and reads both streams.

    Args:
        structure: the model.
        seeds: cotangents of the outputs, one tensor per output of its shape: what tells output elements apart.
        salt: changes every made-up number.
        spread: what sums over features are divided by; the same for both models of a pair.
        others: the same model on further probes; they share this one's colours and add to its streams.
    """

    def __init__(
        self,
        structure: Structure,
        seeds: list[Tensor],
        salt: int = 0,
        spread: float = 12.0,
        others: tuple["Colouring", ...] = (),
    ):
        self.structure = structure
        self.spread = spread
        self.seeds = seeds
        self.salt = self.first_salt = salt
        self.others = others
        self.families = {place: self._blank(place) for place in structure.places}
        self.values: dict[fx.Node, Any] = {}
        self.operands: dict[tuple[fx.Node, fx.Node], Tensor] = {}
        self.sketches: dict[fx.Node, Any] = {}
        self.streams: dict[Place, Streams] = {}
        self._varying: dict[fx.Node, Any] = {}
        self.records: dict[fx.Node, dict[str, Any]] = {}
        self.totals: dict[Any, Any] = {}

    def _blank(self, place: Place) -> Family:
        if place.kind == "contract":
            geometry = self.structure.role[place.node][1]
            return Family(torch.zeros(geometry.distinct_groups, geometry.features, dtype=torch.int64))
        shape = place.operand.meta["shape"]
        if place.kind == "look up":
            columns = shape[-1] if self.structure.role[place.node][3] else shape[-2]
            rows = torch.Size(shape).numel() // columns
            return Family(torch.zeros(columns, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64))
        assert place.source is not None
        code = {"bias": 1, "gain": 2, "data": 3}[place.operation]
        return Family(torch.full(place.source.meta["shape"], code, dtype=torch.int64))

    # One round

    def vary(self, number: int) -> None:
        """Make other numbers up: what a few happen not to tell apart, others do."""
        for one in (self, *self.others):
            one.salt = one.first_salt + 1000 * number

    def run(self) -> dict[Place, Streams]:
        """Both streams of every place under the present colours.

        Raises:
            CaptureError: what the model computes depends on its activations.
        """
        try:
            return self._run()
        except (RuntimeError, IndexError, ValueError) as error:
            raise CaptureError(
                f"The recorded model works on the probe and fails with other weights ({type(error).__name__}: {error}): it chooses "
                "what to compute by its activations, in a way that the engine does not follow. Use an implementation that computes "
                "everything, such as every expert."
            ) from error

    def _run(self) -> dict[Place, Streams]:
        self.let_go()  # of the last run, so that this one finds its memory free
        leaves, total = self._forward()
        sketches, reaches = self._sketch()
        self.sketches = sketches
        for node, record in self.records.items():
            record["reach"] = self._reach_as_number(node, reaches)
        if total.requires_grad:
            total.backward()
        self.gradients = {p: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for p, leaf in leaves.items()}
        streams = {}
        for place in self.structure.places:
            if place.kind == "contract":
                streams[place] = self._contract_streams(place, sketches, reaches)
            elif place.kind == "look up":
                streams[place] = self._look_up_streams(place, reaches)
            else:
                streams[place] = self._element_streams(place, leaves[place], sketches, reaches)
        for other in self.others:
            streams = self._joined(streams, other.under(self))
        self.streams = streams
        return streams

    def under(self, first: "Colouring") -> dict[Place, Streams]:
        """Run on this probe under the colours of the same model on another."""
        self.families = {
            mine: first.families[theirs]
            for mine, theirs in zip(self.structure.places, first.structure.places, strict=True)
        }
        return self.run()

    def let_go(self) -> None:
        """Keep what contractions received and forget the rest, where many runs are to be compared."""
        self.values, self.operands, self.sketches, self.totals, self._varying = {}, {}, {}, {}, {}

    def _joined(self, streams: dict[Place, Streams], other: dict[Place, Streams]) -> dict[Place, Streams]:
        """Both probes' streams side by side; an element that neither probe reaches keeps `NONE`."""
        joined = {}
        for (place, a), b in zip(streams.items(), other.values(), strict=True):
            rows = None if a.row_exact is None or b.row_exact is None else _both(a.row_exact, b.row_exact)
            numbers = torch.cat([a.numbers, b.numbers], -1)
            row_numbers = None
            if a.row_numbers is not None and b.row_numbers is not None:
                row_numbers = torch.cat([a.row_numbers, b.row_numbers], -1)
            joined[place] = Streams(_both(a.exact, b.exact), numbers, rows, row_numbers)
        return joined

    def rows_seen(self, place: Place) -> Tensor:
        """Rows of a table that the probe looks up where it matters to an output."""
        exact = self.streams[place].row_exact
        assert exact is not None
        return torch.nonzero(exact != int(NONE)).reshape(-1)

    def constant(self, node: fx.Node) -> Tensor:
        value = self.structure.constants[node]
        if value.is_floating_point():
            return value.to(torch.float64)
        return value.to(torch.complex128) if value.is_complex() else value

    def _forward(self) -> tuple[dict[Place, Tensor], Tensor]:
        structure = self.structure
        values: dict[fx.Node, Any] = {node: self.constant(node) for node in structure.constants}
        leaves: dict[Place, Tensor] = {}
        operands: dict[tuple[fx.Node, fx.Node], Tensor] = {}
        self.records, self.totals = {}, {}
        with torch.enable_grad():
            for node in structure.nodes:
                if node in structure.pure:
                    continue
                role = structure.role.get(node, ("plain",))
                here = structure.places_at.get(node, ())
                for place in here:
                    if place.kind == "elements" and place not in leaves:
                        leaves[place] = _uniform(self.families[place].features, 11 + self.salt).requires_grad_()
                if role[0] == "contract":
                    values[node] = self._contract(node, role[1], values)
                elif role[0] == "look up":
                    values[node] = self._look_up(node, role, values)
                else:
                    mine = {p.source: leaves[p] for p in here}
                    for operand in {p.operand for p in here}:
                        operands[node, operand] = self._materialise(operand, mine, values)
                    if role[0] == "decorate":
                        parameter = operands[node, role[2]]
                        values[node] = _Decorate.apply(
                            values[role[1]], parameter, DECORATIONS[node.target], *structure.neutral[node]
                        )
                    else:
                        values[node] = run_node(
                            node, lambda a, n=node: operands[n, a] if (n, a) in operands else values[a]
                        )
            outputs = [values[o] for o in structure.capture.outputs]
            total = torch.stack([(o * s).sum() for o, s in zip(outputs, self.seeds, strict=True)]).sum()
        self.values = values
        self.operands = operands
        return leaves, total

    def _reach_as_number(self, node: fx.Node, reaches: dict[fx.Node, Any]) -> Tensor:
        """What a contraction's result reaches, as a gradient of its own: it lives where the true one is degenerate."""
        reach = reaches.get(node)
        if reach is None:
            return torch.zeros((), dtype=torch.float64)
        number = _uniform(reach.to(torch.int64), 8 + self.salt)
        return torch.where(reach == NONE, 0.0, number)

    def _materialise(self, operand: fx.Node, leaves: dict[Any, Tensor], values: dict[fx.Node, Any]) -> Tensor:
        """Value of a parameter-only node from the made-up values of its placeholders."""
        known: dict[fx.Node, Any] = dict(leaves)

        def value(node: fx.Node) -> Any:
            if node in known:
                return known[node]
            if node in self.structure.constants:
                return values[node]
            if node.op == "placeholder":  # joined with others and cut away again
                known[node] = torch.zeros(node.meta["shape"], dtype=torch.float64)
            else:
                known[node] = run_node(node, value)
            return known[node]

        return value(operand)

    def _contract(self, node: fx.Node, geometry: Contraction, values: dict[fx.Node, Any]) -> Tensor:
        colours = self.families[self.place_of(node)].features
        numbers = _uniform(colours, 1 + self.salt), _uniform(colours, 9 + self.salt)
        back = _uniform(colours, 2 + self.salt)
        record = self.records.setdefault(node, {})
        x = values[geometry.data]
        if not x.is_floating_point():
            x = x.to(torch.float64)
        if not x.requires_grad:
            x = x + torch.zeros((), dtype=torch.float64, requires_grad=True)
        sums = geometry.data, node if geometry.convolution else geometry.data_first
        if sums not in self.totals:  # queries, keys and values are projections of the same data
            bare = x.detach()
            self.totals[sums] = tuple(geometry.reduce(f(bare)) / self.spread for f in (_smooth, _smooth_too))
        return _Contract.apply(x, self.totals[sums], geometry, numbers, back, record, self.spread)

    def _look_up(self, node: fx.Node, role: Any, values: dict[fx.Node, Any]) -> Tensor:
        family = self.families[self.place_of(node)]
        index = values[role[1]] if isinstance(role[1], fx.Node) else role[1]
        rows = _uniform(family.rows, 3 + self.salt)[index]
        columns = _uniform(family.features, 4 + self.salt)
        table_first = role[3]
        other_rows = _uniform(family.rows, 13 + self.salt)[index]
        other_columns = _uniform(family.features, 14 + self.salt)
        product = rows.unsqueeze(-1) * columns + other_rows.unsqueeze(-1) * other_columns
        result = (product if table_first else product.transpose(-1, -2)).requires_grad_()
        self.records[node] = {"anchor": result, "index": index}
        return result

    def place_of(self, node: fx.Node) -> Place:
        if not hasattr(self, "_place_of"):
            self._place_of = {n: p for p in self.structure.places if p.kind != "elements" for n in p.nodes}
        return self._place_of[node]

    def back_numbers(self, place: Place) -> Tensor:
        """The numbers that weigh a contraction's features on the way back, (distinct group, feature)."""
        return _uniform(self.families[place].features, 2 + self.salt)

    def unseen(self) -> dict[str, int]:
        """Parameters with elements that do not move the outputs, such as the bias of a key, and how many elements."""
        largest = max((float(g.abs().max()) for g in self.gradients.values() if g.numel()), default=0.0)
        found: dict[str, int] = {}
        for place, gradient in self.gradients.items():
            live = self.families[place].features != DEAD
            blind = int(((gradient.abs() <= _UNSEEN * largest) & live).sum())
            name = place.source.meta["parameter"]
            # An element that is used in several places is seen if any of them shows it.
            found[name] = min(blind, found.get(name, blind))
        return {name: count for name, count in found.items() if count}

    # Sketches

    def _sketch(self) -> tuple[dict[fx.Node, Any], dict[fx.Node, Any]]:
        structure = self.structure
        sketches: dict[fx.Node, Any] = {}

        def sketch(node: fx.Node) -> Any:
            return sketches[node] if node in sketches else torch.zeros(self.shape_of(node), dtype=torch.float64)

        def value(node: fx.Node) -> Any:
            return self.values[node] if node in self.values else torch.empty(node.meta["shape"], dtype=torch.float64)

        with torch.no_grad():
            for node in structure.nodes:
                if node in structure.pure:
                    continue
                role = structure.role.get(node, ("plain",))
                if role[0] == "contract":
                    geometry: Contraction = role[1]
                    deepest = geometry.deepest_input(sketch(geometry.data))
                    colours = geometry.as_rows(self.families[self.place_of(node)].features)
                    sketches[node] = deepen(geometry.expand_sketch(deepest), colours, 5)
                elif role[0] == "look up":
                    record, family = self.records[node], self.families[self.place_of(node)]
                    both = mix(family.rows[record["index"]].unsqueeze(-1), family.features)
                    leaf = (both & _MASK).to(torch.float64)
                    sketches[node] = leaf if role[3] else leaf.transpose(-1, -2)
                elif role[0] == "decorate":
                    sketches[node] = sketch(role[1]).expand(self.values[node].shape)
                else:
                    for operand in structure.pure & set(tensor_arguments(node)):
                        sketches[operand] = torch.ones(operand.meta["shape"], dtype=torch.float64)
                    sketches[node] = forward_dependence(node, sketch, value)
            reaches = self._reach(value, sketch)
        return sketches, reaches

    def shape_of(self, node: fx.Node) -> tuple[int, ...]:
        value = self.values.get(node)
        return tuple(value.shape) if isinstance(value, Tensor) else tuple(node.meta.get("shape", ()))

    def _reach(self, value: Any, sketch_of: Any) -> dict[fx.Node, Any]:
        """For every node, per element, the deepest chain that leads from it to an output."""
        structure = self.structure
        reach: dict[Any, Any] = {}

        def add(node: fx.Node, sketch: Tensor, item: int | None = None) -> None:
            if node in structure.constants:
                return
            if item is not None:
                parts = reach.setdefault(node, [None] * len(self.values[node]))
                parts[item] = sketch if parts[item] is None else torch.maximum(parts[item], sketch)
            else:
                reach[node] = sketch if node not in reach else torch.maximum(reach[node], sketch)

        for position, (node, seed) in enumerate(zip(structure.capture.outputs, self.seeds, strict=True)):
            bits = (seed * 2**40).to(torch.int64)
            add(node, (mix(bits, position) & _MASK).to(torch.float64))
        for node in reversed(structure.nodes):
            if node in structure.pure or node not in reach:
                continue
            role = structure.role.get(node, ("plain",))
            here = reach[node]
            if role[0] == "contract":
                geometry: Contraction = role[1]
                colours = geometry.as_rows(self.families[self.place_of(node)].features)
                deep = deepen(here, colours, 6)
                deep = torch.where(here == NONE, NONE, deep)
                add(geometry.data, geometry.spread_sketch(geometry.deepest_output(deep), value(geometry.data)))
            elif role[0] == "decorate":
                add(role[1], _largest_to(here, self.shape_of(role[1])))
            elif role[0] == "plain":
                if node.target is operator.getitem:
                    add(args_of(node)[0], here, args_of(node)[1])
                    continue
                wanted = [a for a in tensor_arguments(node) if a not in structure.constants]
                wanted = list(dict.fromkeys(wanted))
                found = backward_dependence(node, here, self._value_or_operand(node), wanted, sketch_of)
                for argument, sketch in zip(wanted, found, strict=True):
                    if argument in structure.pure:
                        reach[node, argument] = sketch
                    else:
                        add(argument, sketch)
        return reach

    def _value_or_operand(self, node: fx.Node) -> Any:
        def value(argument: fx.Node) -> Any:
            if argument is not node and (node, argument) in self.operands:
                return self.operands[node, argument]
            return self.values[argument]

        return value

    def varies(self, node: fx.Node) -> Tensor:
        """Which elements of a node can change with the inputs or the parameters."""
        if not self._varying:
            one = torch.ones(())
            flags: dict[fx.Node, Any] = {}

            def flag(n: fx.Node) -> Any:
                if n in flags:
                    return flags[n]
                if n in self.structure.constants:
                    return (one if n.meta["data"] else torch.zeros(())).double().expand(n.meta["shape"])
                return one.double().expand(self.shape_of(n))

            with torch.no_grad():
                for n in self.structure.nodes:
                    if n not in self.structure.pure:
                        role = self.structure.role.get(n, ("plain",))[0]
                        if role == "plain":
                            flags[n] = forward_dependence(n, flag, self._value_or_operand(n))
                        else:
                            flags[n] = one.double().expand(self.shape_of(n))
            flags.update({n: flag(n) for n in self.structure.constants})
            self._varying = flags
        return self._varying[node]

    # Streams per place

    def _contract_streams(self, place: Place, sketches: Any, reaches: Any) -> Streams:
        parts = [self._contract_sums(node, sketches, reaches) for node in place.nodes]
        exact, numbers = _largest(e for e, _ in parts), _total(n for _, n in parts)
        return Streams(exact.to(torch.int64), torch.asinh(numbers))

    def _contract_sums(self, node: fx.Node, sketches: Any, reaches: Any) -> tuple[Tensor, Tensor]:
        geometry: Contraction = self.structure.role[node][1]
        record = self.records[node]
        y = self.values[node]
        gradient = record.get("gradient", torch.zeros(y.shape, dtype=torch.float64)).detach()
        total = record["total"].detach()
        numbers = []
        for m in range(SIGNATURE):
            weight = geometry.expand_sketch(torch.cos((0.9 + 0.8 * m) * total + 0.5 * m))
            numbers.append(geometry.per_feature(gradient * weight))
        reach = reaches.get(node)
        reach = torch.zeros(y.shape, dtype=torch.float64) if reach is None else reach
        joint = mix(sketches[node].to(torch.int64), reach.to(torch.int64))
        exact = geometry.per_feature_max(torch.where(reach == NONE, NONE, (joint & _MASK).to(torch.float64)))
        return exact, torch.stack(numbers, -1)

    def _look_up_streams(self, place: Place, reaches: Any) -> Streams:
        family = self.families[place]
        looked_up = [self._rows_looked_up(node, reaches) for node in place.nodes]
        index, reach, gradient = (torch.cat(parts) for parts in zip(*looked_up, strict=True))
        # Summed per row first: looking a row up once for all examples or once for each is the same.
        by_row = torch.zeros(family.rows.shape[0], gradient.shape[-1], dtype=torch.float64)
        by_row = torch.asinh(by_row.index_add_(0, index, gradient))
        rows = _uniform(family.rows, 3 + self.salt).unsqueeze(-1)
        numbers = [torch.asinh((by_row * torch.cos((0.9 + 0.8 * m) * rows + 0.5 * m)).sum(0)) for m in range(SIGNATURE)]
        back = [_uniform(family.features, 20 + m + self.salt) for m in range(SIGNATURE)]
        row_numbers = torch.stack([(by_row * b).sum(-1) / 8 for b in back], -1)
        row_exact = torch.zeros(family.rows.shape[0], dtype=torch.float64)
        row_exact.scatter_reduce_(0, index, reach.amax(-1), "amax")
        exact = reach.amax(0)
        return Streams(
            exact.to(torch.int64), torch.stack(numbers, -1), row_exact.to(torch.int64), torch.asinh(row_numbers)
        )

    def _rows_looked_up(self, node: fx.Node, reaches: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of a table in the order in which they are looked up, what each element reaches, and its gradient."""
        gradient = self._anchor_gradient(node)
        reach = reaches.get(node)
        reach = torch.zeros(gradient.shape, dtype=torch.float64) if reach is None else reach
        if not self.structure.role[node][3]:
            gradient, reach = gradient.transpose(-1, -2), reach.transpose(-1, -2)
        width = reach.shape[-1]
        return self.records[node]["index"].reshape(-1), reach.reshape(-1, width), gradient.reshape(-1, width)

    def _anchor_gradient(self, node: fx.Node) -> Tensor:
        anchor = self.records[node]["anchor"]
        return torch.zeros_like(anchor) if anchor.grad is None else anchor.grad

    def _element_streams(self, place: Place, leaf: Tensor, sketches: Any, reaches: Any) -> Streams:
        gradient = torch.asinh(self.gradients[place].detach()).unsqueeze(-1)
        found = [self._reached_elements(place, node, leaf, sketches, reaches) for node in place.nodes]
        here = _largest(h for h, _ in found).to(torch.int64)
        if self.structure.role[place.node][0] != "decorate":
            return Streams(here, gradient)
        # Largest first and joint then: a gain before a sum sees the terms, a gain after it their sum.
        below = _largest(b for _, b in found).to(torch.int64)
        return Streams(torch.where(here == int(NONE), 0, mix(below, here) & _MASK), gradient)

    def _reached_elements(
        self, place: Place, node: fx.Node, leaf: Tensor, sketches: Any, reaches: Any
    ) -> tuple[Tensor, Tensor]:
        """What the elements of a place's parameter reach through one of its nodes, and what they meet there if they decorate it."""
        role = self.structure.role[node]
        shape = tuple(self.operands[node, place.operand].shape)
        if role[0] != "decorate":
            reach = reaches.get((node, place.operand), torch.zeros(shape, dtype=torch.float64))
            return self._reach_of_source(place, reach, leaf), reach
        here = reaches.get(node, torch.zeros(self.shape_of(node), dtype=torch.float64))
        below = sketches.get(role[1], torch.zeros(self.shape_of(role[1]), dtype=torch.float64)).expand(here.shape)
        below = torch.where(here == NONE, NONE, below)
        here, below = (self._reach_of_source(place, _largest_to(x, shape), leaf) for x in (here, below))
        return here, below

    def _reach_of_source(self, place: Place, operand_reach: Tensor, leaf: Tensor) -> Tensor:
        """Carry what the operand reaches back to the elements of one placeholder."""
        if place.operand is place.source:
            return operand_reach
        reach: dict[Any, Any] = {place.operand: operand_reach}
        for node in sorted(self._upstream(place.operand), reverse=True):
            if node.op != "call_function" or node not in reach:
                continue
            if node.target is operator.getitem:
                parts = reach.setdefault(args_of(node)[0], {})
                parts[args_of(node)[1]] = reach[node]
                continue
            here = reach[node]
            if isinstance(here, dict):
                count = max(here) + 1
                here = [here.get(i) for i in range(count)]
            wanted = [a for a in dict.fromkeys(tensor_arguments(node)) if a in self.structure.pure]
            for argument, sketch in zip(
                wanted, backward_dependence(node, here, self._value_or_shape, wanted), strict=True
            ):
                reach[argument] = sketch if argument not in reach else torch.maximum(reach[argument], sketch)
        found = reach.get(place.source)
        return torch.zeros(leaf.shape, dtype=torch.float64) if found is None else found

    def _value_or_shape(self, node: fx.Node) -> Tensor:
        return self.values[node] if node in self.values else torch.empty(node.meta["shape"], dtype=torch.float64)

    def _upstream(self, operand: fx.Node) -> set[fx.Node]:
        found: set[fx.Node] = set()
        stack = [operand]
        while stack:
            node = stack.pop()
            if node not in found and node in self.structure.pure:
                found.add(node)
                stack.extend(tensor_arguments(node))
        return found


def _largest(parts: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.maximum, parts)


def _total(parts: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, parts)


def _both(a: Tensor, b: Tensor) -> Tensor:
    return torch.where((a == 0) & (b == 0), 0, mix(a, b))


def _largest_to(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    while x.dim() > len(shape):
        x = x.amax(0)
    dims = [d for d, size in enumerate(shape) if size == 1 and x.shape[d] != 1]
    return x.amax(dims, keepdim=True) if dims else x
