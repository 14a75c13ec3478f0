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
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from pyrosys.adapters.contraction import Contraction
from pyrosys.adapters.hashing import HASH, deepen, in_blocks, largest, mix, once, uniform
from pyrosys.adapters.nodes import args_of
from pyrosys.adapters.operations import (
    NONE,
    backward_dependence,
    depends_on_none,
    forward_dependence,
    run_node,
    tensor_arguments,
)
from pyrosys.adapters.structure import DECORATIONS, Place, Structure
from pyrosys.errors import CaptureError

__all__ = ["DEAD", "SIGNATURE", "Colouring", "Family", "Streams", "spread_for"]

aten = torch.ops.aten
SIGNATURE = 4
"""Numbers per element in the numeric stream."""


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
    return (1.7 * x).add_(0.3).sin_().mul_(0.5).add_(1)


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
        if record["recording"]:
            record["data"] = x.detach()
        return geometry.expand((total, other), numbers)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,) = ctx.saved_tensors
        reached = ctx.record.pop("reach number", None)
        squeezed = gradients[0].asinh() if reached is None else (gradients[0] + reached()).asinh_()
        ctx.record["numbers"] = _contract_sums(ctx.geometry, squeezed, ctx.record["total"])
        if ctx.record["recording"]:
            ctx.record["gradient"] = squeezed
        projected = ctx.geometry.project(squeezed, ctx.back) / ctx.spread
        return _modulation(x).mul_(ctx.geometry.spread(projected, x)), None, None, None, None, None, None


def _contract_sums(geometry: Contraction, gradient: Tensor, total: Tensor) -> Tensor:
    """Numbers of every feature: what its results receive, weighted by what it meets, (distinct group, feature, number)."""
    weights = [torch.cos((0.9 + 0.8 * m) * total + 0.5 * m) for m in range(SIGNATURE)]
    return geometry.per_feature(gradient, weights)


class _Decorate(torch.autograd.Function):
    """A bias or gain at its place: it acts as if it were neutral, and receives the gradient it would receive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parameter: Tensor, product: bool, factor: float, shift: float) -> Tensor:
        ctx.product, ctx.factor, ctx.shape, ctx.own = product, factor, tuple(parameter.shape), tuple(x.shape)
        shape = np.broadcast_shapes(x.shape, parameter.shape)  # torch's own is slow
        if product:
            ctx.save_for_backward(x)
        acted = x if (factor, shift) == (1.0, 0.0) else factor * x + shift
        return acted.expand(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        to_parameter = gradient * ctx.saved_tensors[0] if ctx.product else gradient
        to_data = gradient if ctx.factor == 1.0 else gradient * ctx.factor
        return to_data.sum_to_size(ctx.own), to_parameter.sum_to_size(ctx.shape), None, None, None


@dataclasses.dataclass
class Streams:
    """What one round found for each place: exact integers and numbers per element."""

    exact: Tensor
    numbers: Tensor
    row_numbers: Tensor | None = None
    row_exact: Tensor | None = None


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
        self.numbers: dict[Place, list[Tensor]] = {}

    def _blank(self, place: Place) -> Family:
        if place.kind == "contract":
            geometry = self.structure.role[place.node][1]
            blank = torch.zeros((), dtype=torch.int64)
            return Family(blank.expand(geometry.distinct_groups, geometry.features))
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

    def run(self, *, sketch: bool = True, record: bool = True, keep: bool = False) -> dict[Place, Streams]:
        """Both streams of every place under the present colours.

        Args:
            sketch: whether to follow sketches again; otherwise those of the last run count, and numbers alone tell more.
            record: whether to keep what contractions receive, by which their columns are paired in the end.
            keep: whether to keep every value that the model computed, to look at.

        Raises:
            CaptureError: what the model computes depends on its activations.
        """
        try:
            return self._run(sketch, record, keep)
        except (RuntimeError, IndexError, ValueError) as error:
            raise CaptureError(
                f"The recorded model works on the probe and fails with other weights ({type(error).__name__}: {error}): it chooses "
                "what to compute by its activations, in a way that the engine does not follow. Use an implementation that computes "
                "everything, such as every expert."
            ) from error

    def _run(self, sketch: bool, record: bool, keep: bool) -> dict[Place, Streams]:
        sketches = {} if sketch else self.sketches
        self.let_go()  # of the last run, so that this one finds its memory free
        self.sketches = sketches
        leaves, total = self._forward(sketch, record, keep)
        if sketch:
            self._exact = self._reach()
            for node in self._decorated:
                if not depends_on_none(self.sketches[node]):
                    self.sketches[node] = _placeholder(self.sketches[node])
        exact, row_exact = self._exact
        if total.requires_grad:
            total.backward()
        self.gradients = {p: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for p, leaf in leaves.items()}
        streams = {}
        for place in self.structure.places:
            if place.kind == "contract":
                streams[place] = Streams(exact[place], self._contract_numbers(place))
            elif place.kind == "look up":
                streams[place] = Streams(exact[place], *self._look_up_numbers(place, row_exact[place]))
            else:
                streams[place] = Streams(exact[place], torch.asinh(self.gradients[place]).unsqueeze(-1))
        for other in self.others:
            streams = self._joined(streams, other.under(self, sketch=sketch, record=record))
        self.streams = streams
        if not record:
            self.values, self.records = {}, {}
        return streams

    def under(self, first: "Colouring", *, sketch: bool = True, record: bool = True) -> dict[Place, Streams]:
        """Run on this probe under the colours of the same model on another."""
        self.families = {
            mine: first.families[theirs]
            for mine, theirs in zip(self.structure.places, first.structure.places, strict=True)
        }
        return self.run(sketch=sketch, record=record)

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
            joined[place] = Streams(_both(a.exact, b.exact), numbers, row_numbers, rows)
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

    def _forward(self, sketch: bool, record: bool, keep: bool) -> tuple[dict[Place, Tensor], Tensor]:
        """Values and sketches of all nodes; those that nothing asks for again are let go on the way."""
        structure = self.structure
        self.values = {node: self.constant(node) for node in structure.constants}
        self.records, self.totals, self.recording = {}, {}, record
        self.numbers = self._numbers()
        leaves: dict[Place, Tensor] = {}
        with torch.enable_grad():
            for node in structure.nodes:
                if node in structure.pure:
                    continue
                here = structure.places_at.get(node, ())
                for place in here:
                    if place.kind == "elements" and place not in leaves:
                        leaves[place] = self.numbers[place][0].requires_grad_()
                self.values[node] = self._value(node, {p: leaves[p] for p in here if p in leaves})
                if sketch:
                    with torch.no_grad():
                        self.sketches[node] = self._sketch(node)
                for done in () if keep else self._last_read.get(node, ()):
                    self._forget(done)
            outputs = [self.values[o] for o in structure.capture.outputs]
            total = torch.stack([(o * s).sum() for o, s in zip(outputs, self.seeds, strict=True)]).sum()
        return leaves, total

    def _numbers(self) -> dict[Place, list[Tensor]]:
        """What stands for the features of contractions, forth in two functions and back, and for the elements of the others."""
        found: dict[Place, list[Tensor]] = {}
        for kind, salts in ("contract", (1, 9, 2)), ("elements", (11,)):
            colours = {place: family.features for place, family in self.families.items() if place.kind == kind}
            every = (
                torch.cat([c.reshape(-1) for c in colours.values()]) if colours else torch.zeros(0, dtype=torch.int64)
            )
            drawn = [uniform(every, salt + self.salt).split([c.numel() for c in colours.values()]) for salt in salts]
            for (place, shaped), parts in zip(colours.items(), zip(*drawn, strict=True), strict=True):
                found[place] = [part.reshape(shaped.shape) for part in parts]
        return found

    def _value(self, node: fx.Node, leaves: dict[Place, Tensor]) -> Any:
        role = self.structure.role.get(node, ("plain",))
        if role[0] == "contract":
            return self._contract(node, role[1])
        if role[0] == "look up":
            return self._look_up(node, role)
        mine = {place.source: leaf for place, leaf in leaves.items()}
        for operand in {place.operand for place in leaves}:
            self.operands[node, operand] = self._materialise(operand, mine)
        if role[0] == "decorate":
            parameter = self.operands[node, role[2]]
            neutral = self.structure.neutral[node]
            return _Decorate.apply(self.values[role[1]], parameter, DECORATIONS[node.target], *neutral)
        return run_node(node, self._value_or_operand(node))

    @functools.cached_property
    def _last_read(self) -> dict[fx.Node, list[fx.Node]]:
        """For every node, what is read by it and by none after it."""
        last: dict[fx.Node, fx.Node] = {}
        for node in self.structure.nodes:
            if node not in self.structure.pure:
                read = [a for a in (*tensor_arguments(node), *self._data(node)) if a not in self.structure.pure]
                for argument in (node, *read):
                    last[argument] = node
        kept = {*self.structure.constants, *self.structure.capture.outputs}
        found: dict[fx.Node, list[fx.Node]] = {}
        for node, by in last.items():
            if node not in kept:
                found.setdefault(by, []).append(node)
        return found

    def _data(self, node: fx.Node) -> list[fx.Node]:
        """What meets a parameter at this node."""
        role = self.structure.role.get(node, ("plain",))
        if role[0] == "contract":
            return [role[1].data]
        return [role[1]] if len(role) > 1 and isinstance(role[1], fx.Node) else []

    @functools.cached_property
    def _meeting(self) -> set[fx.Node]:
        """Nodes that meet a parameter."""
        return {data for node in self.structure.role for data in self._data(node)}

    @functools.cached_property
    def _decorated(self) -> set[fx.Node]:
        """Nodes that meet a parameter, but are contracted with none."""
        found = self._meeting & self.sketches.keys()
        return found - {role[1].data for role in self.structure.role.values() if role[0] == "contract"}

    def _forget(self, node: fx.Node) -> None:
        """Keep of a node that nothing reads again what may mask others: values and sketches that depend on no parameter in part.

        Of the others the shapes remain, and the sketches of what meets a parameter.
        """
        value = self.values[node]
        if isinstance(value, (tuple, list)):  # the parts have been read each by a node of its own
            self.values[node] = [_placeholder(v) if isinstance(v, Tensor) else v for v in value]
            self.sketches[node] = None
        elif isinstance(value, Tensor) and not depends_on_none(self.sketches[node]) and _is_real(value):
            self.values[node] = _placeholder(value)
            if node not in self._meeting:
                self.sketches[node] = _placeholder(value, torch.float64)

    def _reach_as_number(self, reach: Tensor) -> Tensor:
        """What a contraction's result reaches, as a gradient of its own: it lives where the true one is degenerate."""

        def number(reach: Tensor) -> Tensor:
            return uniform(reach.to(torch.int64), 8 + self.salt).masked_fill_(reach == NONE, 0.0)

        return in_blocks(number, reach.shape, reach)

    def _materialise(self, operand: fx.Node, leaves: dict[Any, Tensor]) -> Tensor:
        """Value of a parameter-only node from the made-up values of its placeholders."""
        known: dict[fx.Node, Any] = dict(leaves)

        def value(node: fx.Node) -> Any:
            if node in known:
                return known[node]
            if node in self.structure.constants:
                return self.values[node]
            if node.op == "placeholder":  # joined with others and cut away again
                known[node] = torch.zeros(node.meta["shape"], dtype=torch.float64)
            else:
                known[node] = run_node(node, value)
            return known[node]

        return value(operand)

    def _contract(self, node: fx.Node, geometry: Contraction) -> Tensor:
        *numbers, back = self.numbers[self.place_of(node)]
        record = self.records.setdefault(node, {})
        record["recording"] = self.recording
        x = self.values[geometry.data]
        if not x.is_floating_point():
            x = x.to(torch.float64)
        if not x.requires_grad:
            x = x + torch.zeros((), dtype=torch.float64, requires_grad=True)
        sums = geometry.data, node if geometry.convolution else geometry.data_first
        if sums not in self.totals:  # queries, keys and values are projections of the same data
            self.totals[sums] = tuple(geometry.sums(x.detach(), f) / self.spread for f in (_smooth, _smooth_too))
        return _Contract.apply(x, self.totals[sums], geometry, (numbers[0], numbers[1]), back, record, self.spread)

    def _look_up(self, node: fx.Node, role: Any) -> Tensor:
        family = self.families[self.place_of(node)]
        index = self.values[role[1]] if isinstance(role[1], fx.Node) else role[1]
        rows = uniform(family.rows, 3 + self.salt)[index]
        columns = uniform(family.features, 4 + self.salt)
        table_first = role[3]
        other_rows = uniform(family.rows, 13 + self.salt)[index]
        other_columns = uniform(family.features, 14 + self.salt)
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
        return uniform(self.families[place].features, 2 + self.salt)

    def unseen(self) -> dict[str, int]:
        """Parameters with elements that do not move the outputs, such as the bias of a key, and how many elements."""
        found: dict[str, int] = {}
        for place, seen in self.seen().items():
            blind = int((~seen & (self.families[place].features != DEAD)).sum())
            name = place.source.meta["parameter"]
            # An element that is used in several places is seen if any of them shows it.
            found[name] = min(blind, found.get(name, blind))
        return {name: count for name, count in found.items() if count}

    def seen(self) -> dict[Place, Tensor]:
        """Which elements of the parameters of biases, gains and data move the outputs."""
        largest = max((float(g.abs().max()) for g in self.gradients.values() if g.numel()), default=0.0)
        return {place: gradient.abs() > _UNSEEN * largest for place, gradient in self.gradients.items()}

    # Sketches

    def _sketch(self, node: fx.Node) -> Any:
        """For every element, the deepest chain that leads to it."""
        role = self.structure.role.get(node, ("plain",))
        if role[0] == "contract":
            geometry: Contraction = role[1]
            deepest = self.records[node]["deepest"] = geometry.deepest_input(self._sketch_of(geometry.data))
            colours = geometry.as_rows(self.families[self.place_of(node)].features)
            return deepen(geometry.expand_sketch(deepest), colours, 5)
        if role[0] == "look up":
            record, family = self.records[node], self.families[self.place_of(node)]
            both = mix(family.rows[record["index"]].unsqueeze(-1), family.features)
            leaf = (both & HASH).to(torch.float64)
            return leaf if role[3] else leaf.transpose(-1, -2)
        if role[0] == "decorate":
            return self._sketch_of(role[1]).expand(self.values[node].shape)
        return forward_dependence(node, self._sketch_of, self._value_or_shape)

    def _sketch_of(self, node: fx.Node) -> Any:
        if node in self.sketches:
            return self.sketches[node]
        by_itself = float(node in self.structure.pure)  # a parameter depends on itself
        return torch.full((), by_itself, dtype=torch.float64).expand(self.shape_of(node))

    def shape_of(self, node: fx.Node) -> tuple[int, ...]:
        value = self.values.get(node)
        return tuple(value.shape) if isinstance(value, Tensor) else tuple(node.meta.get("shape", ()))

    @torch.no_grad()
    def _reach(self) -> tuple[dict[Place, Tensor], dict[Place, Tensor]]:
        """The exact streams: the deepest chains that lead to and from each element, and what rows of tables reach."""
        structure = self.structure
        reach: dict[fx.Node, Any] = {}
        exact = {p: torch.zeros(f.features.shape, dtype=torch.int64) for p, f in self.families.items()}
        rows = {p: torch.zeros_like(f.rows) for p, f in self.families.items() if f.rows is not None}
        decorations: dict[Place, tuple[Tensor, Tensor]] = {}

        def add(node: fx.Node, sketch: Tensor, item: int | None = None) -> None:
            if node in structure.constants:
                return
            if item is not None:
                parts = reach.setdefault(node, [None] * len(self.values[node]))
                parts[item] = sketch if parts[item] is None else largest(parts[item], sketch)
            else:
                reach[node] = sketch if node not in reach else largest(reach[node], sketch)

        for position, (node, seed) in enumerate(zip(structure.capture.outputs, self.seeds, strict=True)):
            bits = (seed * 2**40).to(torch.int64)
            add(node, (mix(bits, position) & HASH).to(torch.float64))
        for node in reversed(structure.nodes):
            if node in structure.pure or node not in reach:
                continue
            role = structure.role.get(node, ("plain",))
            here = reach.pop(node)
            if role[0] == "contract":
                place, geometry = self.place_of(node), role[1]
                colours = geometry.as_rows(self.families[place].features)
                deep = once(_unless_none, deepen(here, colours, 6), here)
                deepest = geometry.deepest_output(deep)
                add(geometry.data, geometry.spread_sketch(deepest, self._value_or_shape(geometry.data)))
                exact[place] = torch.maximum(exact[place], self._exact_of_features(node, here))
                self.records[node]["reach number"] = functools.partial(self._reach_as_number, here)
            elif role[0] == "look up":
                place = self.place_of(node)
                found = self._exact_of_table(node, role[3], here)
                exact[place], rows[place] = (
                    torch.maximum(a[place], b) for a, b in zip((exact, rows), found, strict=True)
                )
            elif role[0] == "decorate":
                add(role[1], _largest_to(here, self.shape_of(role[1])))
                for place in structure.places_at[node]:
                    found = self._around_decoration(place, node, role[1], here)
                    before = decorations.get(place, found)
                    decorations[place] = torch.maximum(before[0], found[0]), torch.maximum(before[1], found[1])
            elif node.target is operator.getitem:
                add(args_of(node)[0], here, args_of(node)[1])
            else:
                wanted = [a for a in dict.fromkeys(tensor_arguments(node)) if a not in structure.constants]
                found = backward_dependence(node, here, self._value_or_operand(node), wanted, self._sketch_of)
                for argument, sketch in zip(wanted, found, strict=True):
                    if argument not in structure.pure:
                        add(argument, sketch)
                    for place in structure.places_at.get(node, ()):
                        if place.operand is argument:
                            found_here = self._reach_of_source(place, sketch).to(torch.int64)
                            exact[place] = torch.maximum(exact[place], found_here)
        for place, (below, reached) in decorations.items():
            # Largest first and joint then: a gain before a sum sees the terms, a gain after it their sum.
            exact[place] = torch.where(reached == int(NONE), 0, mix(below, reached) & HASH)
        return exact, rows

    def _exact_of_features(self, node: fx.Node, reach: Tensor) -> Tensor:
        geometry: Contraction = self.structure.role[node][1]
        deepest = geometry.expand_sketch(self.records[node]["deepest"])

        def joint(deepest: Tensor, reach: Tensor) -> Tensor:
            found = mix(deepest.to(torch.int64), reach.to(torch.int64)).bitwise_and_(HASH)
            return found.masked_fill_(reach == NONE, int(NONE))

        return geometry.per_feature_max(in_blocks(joint, reach.shape, deepest, reach)).to(torch.int64)

    def _exact_of_table(self, node: fx.Node, table_first: bool, reach: Tensor) -> tuple[Tensor, Tensor]:
        """For the columns of a table, and for its rows."""
        reach = reach if table_first else reach.transpose(-1, -2)
        reach = reach.reshape(-1, reach.shape[-1])
        by_row = torch.zeros(self.families[self.place_of(node)].rows.shape[0], dtype=torch.float64)
        by_row.scatter_reduce_(0, self.records[node]["index"].reshape(-1), reach.amax(-1), "amax")
        return reach.amax(0).to(torch.int64), by_row.to(torch.int64)

    def _around_decoration(self, place: Place, node: fx.Node, data: fx.Node, reach: Tensor) -> tuple[Tensor, Tensor]:
        """The deepest chains that lead to and from what the elements of a decoration meet."""
        below = self._sketch_of(data).expand(reach.shape)
        if depends_on_none(reach):
            below = once(_unless_none, below, reach)
        shape = tuple(self.operands[node, place.operand].shape)
        below, reach = (self._reach_of_source(place, _largest_to(x, shape)).to(torch.int64) for x in (below, reach))
        return below, reach

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

    def _contract_numbers(self, place: Place) -> Tensor:
        total = torch.zeros(*self.families[place].features.shape, SIGNATURE, dtype=torch.float64)
        for node in place.nodes:
            record = self.records[node]
            if "numbers" in record:
                total += record["numbers"]
            else:  # no output feels it
                record.pop("reach number", None)
                record["gradient"] = torch.zeros(self.shape_of(node), dtype=torch.float64)
        return total.asinh_()

    def _look_up_numbers(self, place: Place, row_exact: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers of the columns of a table, and those of its rows beside what is known of them exactly."""
        family = self.families[place]
        # Summed per row first: looking a row up once for all examples or once for each is the same.
        by_row = torch.zeros(len(family.rows), len(family.features), dtype=torch.float64)
        for node in place.nodes:
            gradient = self._anchor_gradient(node)
            if not self.structure.role[node][3]:
                gradient = gradient.transpose(-1, -2)
            by_row.index_add_(0, self.records[node]["index"].reshape(-1), gradient.reshape(-1, gradient.shape[-1]))
        by_row.asinh_()
        rows = uniform(family.rows, 3 + self.salt).unsqueeze(-1)
        numbers = [torch.asinh((by_row * torch.cos((0.9 + 0.8 * m) * rows + 0.5 * m)).sum(0)) for m in range(SIGNATURE)]
        back = [uniform(family.features, 20 + m + self.salt) for m in range(SIGNATURE)]
        row_numbers = torch.stack([(by_row * b).sum(-1) / 8 for b in back], -1)
        return torch.stack(numbers, -1), torch.asinh(row_numbers), row_exact

    def _anchor_gradient(self, node: fx.Node) -> Tensor:
        anchor = self.records[node]["anchor"]
        return torch.zeros_like(anchor) if anchor.grad is None else anchor.grad

    def _reach_of_source(self, place: Place, operand_reach: Tensor) -> Tensor:
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
        return torch.zeros(place.source.meta["shape"], dtype=torch.float64) if found is None else found

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


def _is_real(x: Tensor) -> bool:
    """Whether a tensor holds numbers, and not indices or a mask."""
    return x.is_floating_point() or x.is_complex()


def _unless_none(sketch: Tensor, other: Tensor) -> Tensor:
    """A sketch where another says that there is anything."""
    return torch.where(other == NONE, NONE, sketch)


def _placeholder(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of ones of the same shape that takes no memory."""
    return torch.ones((), dtype=dtype or x.dtype).expand(x.shape)


def _both(a: Tensor, b: Tensor) -> Tensor:
    return torch.where((a == 0) & (b == 0), 0, mix(a, b))


def _largest_to(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    while x.dim() > len(shape):
        x = x.amax(0)
    dims = [d for d, size in enumerate(shape) if size == 1 and x.shape[d] != 1]
    return x.amax(dims, keepdim=True) if dims else x
