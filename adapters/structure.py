"""A captured model sorted into constants, what depends on parameters only, uses of parameters, and everything else.

A parameter meets the data in one of four ways. It is contracted with it, as a matrix or a convolution kernel is; looked up
in, as an embedding is; it decorates it, as a gain or a bias does; or its elements are data themselves.
"""

import dataclasses
import functools
import operator
from typing import Any

import torch
from torch import Tensor, fx

from pyrosys.adapters.capture import Capture
from pyrosys.adapters.contraction import Contraction
from pyrosys.adapters.layout import Elements, elements_of
from pyrosys.adapters.nodes import args_of
from pyrosys.adapters.operations import is_layout, is_pointwise, layout_result, tensor_arguments
from pyrosys.errors import CaptureError

__all__ = ["DECORATIONS", "Place", "Structure"]

aten = torch.ops.aten
_ELEMENTWISE_LIMIT = 1 << 24


@dataclasses.dataclass(frozen=True)
class Place:
    """One use of one parameter operand.

    Attributes:
        kind: `"contract"`, `"look up"` or `"elements"`.
        node: the consuming node (contraction, look-up, decoration, or first node that takes the operand as data).
        operand: the parameter-only node it takes.
        source: for `"elements"`, the placeholder whose elements are coloured.
        again: further nodes that take it in the same way, where all uses of a parameter are one place.
    """

    kind: str
    node: fx.Node
    operand: fx.Node
    source: Any = None
    operation: str = ""
    again: tuple[fx.Node, ...] = ()

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """Every consuming node."""
        return (self.node, *self.again)

    @property
    def scope(self) -> str:
        return self.node.meta.get("scope", "")

    def among(self, needed: set[fx.Node]) -> "Place | None":
        """The place with those of its nodes that are needed."""
        first, *again = [n for n in self.nodes if n in needed] or [None]
        return None if first is None else dataclasses.replace(self, node=first, again=tuple(again))


DECORATIONS: dict[Any, bool] = {
    aten.add.Tensor: False,
    aten.sub.Tensor: False,
    aten.mul.Tensor: True,
    aten.div.Tensor: True,
}


def _neutral(node: fx.Node, operand: fx.Node) -> tuple[float, float]:
    """Factor and shift that a decoration puts on the data while its parameter is neutral: 1 in a gain, 0 in a bias.

    A parameter may be stored with a factor or less one; the plain numbers beside it belong to the function.
    """
    elements = elements_of(operand)
    if DECORATIONS[node.target]:
        gain = elements.shift or elements.scale
        return (gain if node.target is aten.mul.Tensor else 1 / gain), 0.0
    if node.target is aten.sub.Tensor:
        return (-1.0, elements.shift) if args_of(node)[0] is operand else (1.0, -elements.shift)
    return 1.0, elements.shift * float(node.kwargs.get("alpha", 1))


_LOOK_UPS: set[Any] = {aten.embedding.default, aten.index_select.default, aten.index.Tensor}


class Structure:
    """A capture sorted into constants, parameter-only nodes, places, and everything else.

    Attributes:
        places: every use of a parameter, in execution order.
    """

    def __init__(self, captured: Capture):
        self.capture = captured
        self.nodes = [n for n in captured.graph.nodes if n.op == "call_function"]
        self.constants: dict[fx.Node, Tensor] = {}
        self.pure: set[fx.Node] = set()
        self.leaf_sums: set[fx.Node] = set()
        self.role: dict[fx.Node, Any] = {}
        self.places: list[Place] = []
        self.neutral: dict[fx.Node, tuple[float, float]] = {}
        for node in captured.graph.nodes:
            if node.op == "get_attr":
                self.constants[node] = node.meta["constant"]
            elif node.op == "placeholder":
                self.pure.add(node)
            elif node.op == "call_function":
                self._classify(node)
        if captured.together:
            self._join_uses()

    def restrict(self, outputs: list[fx.Node]) -> None:
        """Keep only what these outputs depend on."""
        needed = set(outputs)
        for node in reversed(list(self.capture.graph.nodes)):
            if node in needed:
                needed.update(node.all_input_nodes)
        self.capture = dataclasses.replace(self.capture, outputs=outputs)
        self.nodes = [n for n in self.nodes if n in needed]
        self.places = [found for p in self.places if (found := p.among(needed))]
        self.constants = {n: v for n, v in self.constants.items() if n in needed}
        for known in ("places_at", "number"):
            vars(self).pop(known, None)

    @functools.cached_property
    def places_at(self) -> dict[fx.Node, list[Place]]:
        """The places of every node that has any."""
        found: dict[fx.Node, list[Place]] = {}
        for place in self.places:
            for node in place.nodes:
                found.setdefault(node, []).append(place)
        return found

    @functools.cached_property
    def number(self) -> dict[Place, int]:
        """The position of every place among the places."""
        return {place: number for number, place in enumerate(self.places)}

    @property
    def widest(self) -> int:
        """Most terms that a contraction sums over."""
        contractions = [self.role[p.node][1] for p in self.places if p.kind == "contract"]
        return max((sum(len(b.contracted) for b in c.blocks) for c in contractions), default=1)

    def reached(self) -> set[str]:
        """Names of tensors that the outputs depend on."""
        return {s.meta["parameter"] for place in self.places for s in self.sources(place.operand)}

    def elements_reached(self, name: str) -> Tensor:
        """Which elements of a tensor take part in what the outputs depend on."""
        (source,) = [n for n in self.capture.graph.nodes if n.op == "placeholder" and n.meta["parameter"] == name]
        reached = torch.zeros(torch.Size(source.meta["shape"]).numel(), dtype=torch.bool)
        stack, done = [place.operand for place in self.places], set[fx.Node]()
        while stack:
            operand = stack.pop()
            if operand in done or operand not in self.pure:
                continue
            done.add(operand)
            elements = elements_of(operand)
            numbers, start = elements.numbers().reshape(-1), 0
            for root in elements.roots:
                end = start + torch.Size(root.meta["shape"]).numel()
                if root is source:
                    reached[numbers[(numbers >= start) & (numbers < end)] - start] = True
                elif root.op == "call_function":
                    stack.extend(tensor_arguments(root))
                start = end
        return reached

    def _join_uses(self) -> None:
        """Make one place of all that take the same elements in the same way."""
        found: dict[Any, list[Place]] = {}
        for place in self.places:
            found.setdefault(self._use(place), []).append(place)
        self.places = [dataclasses.replace(p[0], again=tuple(other.node for other in p[1:])) for p in found.values()]

    def _use(self, place: Place) -> Any:
        if place.kind == "contract":
            geometry: Contraction = self.role[place.node][1]
            strided = geometry.elements.strided
            if strided is not None:  # along an axis without steps the elements are the same
                steps = [s for s in zip(*strided[1:], strict=True) if s[1]]
                number = geometry.elements.scale, geometry.elements.shift
                return (
                    geometry.elements.roots[0],
                    strided[0],
                    *steps,
                    geometry.features,
                    geometry.distinct_groups,
                    number,
                )
        return place.kind, place.operand, place.source, place.operation, place.node.target

    def _classify(self, node: fx.Node) -> None:
        inputs = tensor_arguments(node)
        if node.target in _LOOK_UPS and self._is_look_up(node):
            self._look_up(node, inputs[0])
            return
        data_constant = any(a in self.constants and a.meta["data"] for a in inputs)
        if all(a in self.pure or a in self.constants for a in inputs) and not data_constant:
            self.pure.add(node)
            return
        if node.target is aten.add.Tensor:
            self._find_table(node, inputs)
        pure = [a for a in inputs if a in self.pure]
        if not pure:
            if (is_layout(node) or is_pointwise(node)) and all(
                a in self.leaf_sums or a in self.constants for a in inputs
            ):
                self.leaf_sums.add(node)
            return
        if node.target in (aten.mm.default, aten.bmm.default, aten.convolution.default) and len(inputs) == 2:
            first_is_data = inputs[1] in self.pure
            data, operand = (inputs[0], inputs[1]) if first_is_data else (inputs[1], inputs[0])
            if node.target is not aten.convolution.default or first_is_data:
                self._contraction(node, data, operand, first_is_data)
                return
        if node.target in DECORATIONS and len(inputs) == 2 and len(pure) == 1:
            other = inputs[0] if inputs[1] in self.pure else inputs[1]
            divided = node.target is aten.div.Tensor and inputs[0] in self.pure
            if other not in self.leaf_sums and self._is_data(other) and not divided:
                self.role[node] = ("decorate", other, pure[0])
                self.neutral[node] = _neutral(node, pure[0])
                self._elements(node, pure[0], "gain" if DECORATIONS[node.target] else "bias")
                return
            if other in self.leaf_sums:
                self.leaf_sums.add(node)
        for operand in dict.fromkeys(pure):
            self._elements(node, operand, "data")

    def _is_data(self, node: fx.Node) -> bool:
        """Whether a node carries the data: an activation, or real-valued inputs."""
        value = self.constants.get(node)
        return value is None or (bool(node.meta["data"]) and value.is_floating_point())

    def _contraction(self, node: fx.Node, data: fx.Node, operand: fx.Node, data_first: bool) -> None:
        value = self.constants.get(data)
        if value is not None and not value.is_meta and node.target is aten.mm.default:
            rows = value if data_first else value.t()
            if rows.is_floating_point() and bool(((rows == 0) | (rows == 1)).all()) and bool((rows.sum(-1) == 1).all()):
                self.role[node] = ("look up", rows.argmax(-1), operand, data_first)
                self.places.append(Place("look up", node, operand))
                self.leaf_sums.add(node)
                return
        self.role[node] = ("contract", Contraction(node, data, operand, data_first))
        self.places.append(Place("contract", node, operand))

    def _is_look_up(self, node: fx.Node) -> bool:
        table = args_of(node)[0]
        indices = [a for a in tensor_arguments(node) if a is not table]
        if table not in self.pure or not all(a in self.constants for a in indices) or len(table.meta["shape"]) != 2:
            return False
        if node.target is aten.embedding.default:
            return True
        if node.target is aten.index_select.default:
            return args_of(node)[1] == 0
        return len(args_of(node)[1]) == 1

    def _look_up(self, node: fx.Node, table: fx.Node) -> None:
        places: dict[Any, Any] = {
            aten.embedding.default: lambda: args_of(node)[1],
            aten.index_select.default: lambda: args_of(node)[2],
            aten.index.Tensor: lambda: args_of(node)[1][0],
        }
        index_node = places[node.target]()
        self.role[node] = ("look up", index_node, table, True)
        self.places.append(Place("look up", node, table))
        self.leaf_sums.add(node)

    def _find_table(self, node: fx.Node, inputs: list[fx.Node]) -> None:
        """Take rows of a table that are added position by position for a look-up, which is how others write it."""
        if len(inputs) != 2:
            return
        for operand, other in (inputs, inputs[::-1]):
            if operand not in self.pure or other in self.pure:
                continue
            table, rows = _table_behind(operand)
            if rows is None or not (other in self.leaf_sums or self._by_position(rows, other)):
                continue
            if operand is table:
                operand = self._alias(operand, node)
            self.pure.remove(operand)
            self.role[operand] = ("look up", rows, table, True)
            self.places.append(Place("look up", operand, table))
            self.leaf_sums.add(operand)

    def _alias(self, parameter: fx.Node, user: fx.Node) -> fx.Node:
        """A node of its own for a parameter's use in one place."""
        with self.capture.graph.inserting_before(user):
            alias = self.capture.graph.call_function(aten.alias.default, (parameter,))
        alias.meta.update(user.meta, shape=parameter.meta["shape"], dtype=parameter.meta["dtype"])
        user.replace_input_with(parameter, alias)
        self.nodes.insert(self.nodes.index(user), alias)
        self.pure.add(alias)
        return alias

    def _by_position(self, rows: Tensor, data: fx.Node) -> bool:
        """Whether the axes along which rows of a table change are positions of the data, not features of a contraction."""
        features = self.features_of(data, {})
        if features is None or rows.dim() >= features.dim() or not bool((features >= 0).any()):
            return False
        shape = features.shape[:-1]
        rows = (
            rows.expand(shape)
            if rows.dim() == len(shape)
            else rows.reshape((1,) * (len(shape) - rows.dim()) + rows.shape)
        )
        for axis in range(rows.dim()):
            if rows.shape[axis] > 1 and bool((rows.narrow(axis, 0, 1) != rows).any()):
                highest = features.amax(axis, keepdim=True)
                if bool(((features >= 0) & (features != highest)).any()):
                    return False
        return True

    def features_of(self, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        """For each element of a node, which feature of the contraction before it it is; -1 where there is none."""
        if node not in known:
            known[node] = self._find_features(node, known)
        return known[node]

    def _find_features(self, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        role, shape = self.role.get(node, ("plain",)), tuple(node.meta.get("shape", ()))
        if role[0] == "contract":
            numbers = torch.arange(role[1].distinct_groups * role[1].features, dtype=torch.float64)
            return role[1].as_rows(numbers.reshape(role[1].distinct_groups, -1)).expand(shape)
        none = torch.full(shape, -1.0, dtype=torch.float64)
        if role[0] == "look up" or node in self.pure or node in self.constants:
            return none
        if node.target is operator.getitem or is_layout(node):
            return layout_result(node, lambda a: self.features_of(a, known)) if is_layout(node) else none
        if role[0] == "decorate" or is_pointwise(node):
            found = [self.features_of(a, known) for a in tensor_arguments(node)]
            return functools.reduce(torch.maximum, found).expand(shape) if found else none
        return none

    def _elements(self, node: fx.Node, operand: fx.Node, operation: str) -> None:
        self.role.setdefault(node, ("plain",))
        roots = elements_of(operand).roots if operation != "data" else []
        for source in roots if roots and all(r.op == "placeholder" for r in roots) else self.sources(operand):
            numel = torch.Size(source.meta["shape"]).numel()
            if numel > _ELEMENTWISE_LIMIT:
                raise CaptureError(
                    f"Parameter {source.meta['parameter']!r} with {numel} elements is used element by element in "
                    f"{node.meta.get('scope')!r} ({node.target}); the engine colours at most {_ELEMENTWISE_LIMIT} such elements."
                )
            self.places.append(Place("elements", node, operand, source, operation))

    def sources(self, operand: fx.Node) -> list[fx.Node]:
        """Placeholders on which a parameter-only node depends, in order of first use."""
        found: dict[fx.Node, None] = {}
        stack = [operand]
        while stack:
            node = stack.pop()
            if node.op == "placeholder":
                found[node] = None
            elif node.op == "call_function":
                stack.extend(reversed(tensor_arguments(node)))
        return list(found)


def _table_behind(operand: fx.Node) -> tuple[fx.Node, Tensor | None]:
    """The table of which an operand holds whole rows, and which; what is cut out of a longer tensor may be one."""
    chain = [operand]
    while chain[-1].op == "call_function" and is_layout(chain[-1]) and len(tensor_arguments(chain[-1])) == 1:
        chain += tensor_arguments(chain[-1])
    elements = elements_of(operand)
    plain = elements.roots == [chain[-1]] and (elements.scale, elements.shift) == (1.0, 0.0)
    if chain[-1].op != "placeholder" or not plain or elements.strided is None:
        return operand, None
    for table in reversed(chain):
        rows = _rows_of_table(elements.strided, table)
        if rows is not None:
            return table, rows
    return operand, None


def _rows_of_table(held: tuple[int, tuple[int, ...], tuple[int, ...]], table: fx.Node) -> Tensor | None:
    """Which rows of a table some elements of its tensor are, if the table is one and they are whole rows of it."""
    shape = [n for n in table.meta.get("shape", ()) if n != 1]
    if len(shape) != 2:
        return None
    start, sizes, strides = elements_of(table).strided or (0, (), ())
    if [s for n, s in zip(sizes, strides, strict=True) if n != 1] != [shape[1], 1]:
        return None
    offset, size, stride = held
    if not size or size[-1] != shape[1] or stride[-1] != 1 or (offset - start) % shape[1]:
        return None
    if any(s % shape[1] for n, s in zip(size[:-1], stride[:-1], strict=True) if n > 1):
        return None
    rows = Elements([table], (offset - start, size[:-1], stride[:-1]), None).numbers() // shape[1]
    return rows if len(torch.unique(rows)) > 1 else None
