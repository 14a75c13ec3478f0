"""Join contractions that other models write as one.

`W₁·x₁ + W₂·x₂` is `[W₁|W₂]·[x₁; x₂]`, and the concatenation of `W₁·x` and `W₂·x` is `[W₁; W₂]·x`.
Behind a contraction there may be anything that moves elements without loss: views, transpositions. Which row of the data and
which feature lies at each place of the result is found by moving numbers through the same operations.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from pyrosys.adapters.capture import Capture
from pyrosys.adapters.contraction import Contraction
from pyrosys.adapters.nodes import args_of, drop_unused
from pyrosys.adapters.operations import is_layout, layout_result, tensor_arguments
from pyrosys.adapters.structure import Structure

__all__ = ["join_parts", "join_sums", "join_sums_of_one"]

aten = torch.ops.aten
_LIMIT = 1 << 22
"""Elements of a joined operand, which are numbered one by one."""


def join_sums(captured: Capture) -> bool:
    """Join contractions that are added, in place; whether there were any of different tensors."""
    return any(len(origins) > 1 for origins in _join_sums(captured, of_one=False))


def join_sums_of_one(captured: Capture) -> bool:
    """Join contractions of parts of one tensor that are added, in place; whether there were any."""
    return bool(_join_sums(captured, of_one=True))


def _join_sums(captured: Capture, *, of_one: bool) -> list[set[fx.Node]]:
    """Join sums in place; for each, the tensors that its contractions see parts of."""
    joiner = _Joiner(captured)
    joined = []
    for node in list(captured.graph.nodes):
        if _is_sum(node) and joiner.is_whole(node):
            joined += joiner.visit_sum(node, of_one=of_one)
    joiner.finish()
    return joined


def join_parts(captured: Capture) -> bool:
    """Join contractions of the same data whose results are put together, in place; whether there were any."""
    joiner = _Joiner(captured)
    for node in list(captured.graph.nodes):
        if node.target is aten.cat.default:
            joiner.visit_cat(node)
    return joiner.finish()


@dataclasses.dataclass
class _Term:
    """Something that is added.

    Attributes:
        node: what it is.
        sums: the sums that it is a part of, the whole one first.
        path: what moves the last of these into the whole one.
    """

    node: fx.Node
    sums: tuple[fx.Node, ...]
    path: tuple[fx.Node, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the sum that it is a part of."""
        return _shape(self.sums[-1])


@dataclasses.dataclass
class _Product:
    """A term that is rows of data times a matrix, (row, contracted) and (contracted, feature).

    Attributes:
        rows: which row of the data is at each place of the sum, its axis of features left out.
        axis: the axis of features.
    """

    term: _Term
    geometry: Contraction
    rows: Tensor
    axis: int

    @property
    def origin(self) -> fx.Node:
        """The tensor that the data is a part of."""
        node = self.geometry.data
        while node.op == "call_function" and is_layout(node) and len(tensor_arguments(node)) == 1:
            (node,) = tensor_arguments(node)
        return node


class _Joiner:
    def __init__(self, captured: Capture):
        self.captured = captured
        self.structure = Structure(captured)
        self.graph = captured.graph
        self.outputs = captured.outputs
        self.instead: dict[fx.Node, fx.Node] = {}

    def finish(self) -> bool:
        self.captured.outputs = [self.instead.get(o, o) for o in self.captured.outputs]
        if self.instead:
            drop_unused(self.graph)
        return bool(self.instead)

    def visit_sum(self, whole: fx.Node, *, of_one: bool) -> list[set[fx.Node]]:
        """Join what is added; for each group of contractions, the tensors that they see parts of.

        Of a sum no more is rewritten than holds them, so that a bias stays beside the contraction that it belongs to.
        """
        joined: list[set[fx.Node]] = []
        inner = [_common(group) for group in self.groups(self.terms(whole), of_one=of_one)]
        for total in dict.fromkeys(sums[-1] for sums in inner if not any(other[-1] in sums[:-1] for other in inner)):
            terms = self.terms(total)
            groups = self.groups(terms, of_one=of_one)
            gone = {id(product.term) for group in groups for product in group}
            rest = [term for term in terms if id(term) not in gone]
            rest.sort(key=lambda term: term.node not in self.structure.pure)
            with self.graph.inserting_before(total):
                summands = [self.join(group, total) for group in groups]
                summands += [self.moved(term, total) for term in rest]
                self.replace(total, functools.reduce(self.add, summands))
            joined += [{product.origin for product in group} for group in groups]
        return joined

    def groups(self, terms: Iterable[_Term], *, of_one: bool) -> list[list[_Product]]:
        """Terms that can be one contraction."""
        found: dict[Any, list[_Product]] = {}
        for product in filter(None, (self.product(term) for term in terms)):
            found.setdefault((product.axis, product.origin if of_one else None), []).append(product)
        return [group for group in found.values() if len(group) > 1 and _elements(group) <= _LIMIT]

    def visit_cat(self, whole: fx.Node) -> None:
        parts = list(args_of(whole)[0])
        axis = (args_of(whole)[1] if len(args_of(whole)) > 1 else 0) % len(_shape(whole))
        products = [self.product(_Term(part, (part,))) for part in parts]
        found = [product for product in products if product is not None and product.axis == axis]
        alike = {product.geometry.data for product in found}
        if len(found) < max(2, len(parts)) or len(alike) > 1 or _elements(found) > _LIMIT:
            return
        if all(torch.equal(product.rows, found[0].rows) for product in found):
            with self.graph.inserting_before(whole):
                pairs = [self.as_matrices(product) for product in found]
                shape = (_shape(pairs[0][1])[0], _shape(whole)[axis])
                matrix = self.call(aten.cat.default, ([one for _, one in pairs], 1), shape, whole)
                self.replace(whole, self.times(pairs[0][0], matrix, axis, whole))

    def replace(self, node: fx.Node, twin: fx.Node) -> None:
        node.replace_all_uses_with(twin)
        self.instead[node] = twin

    def used_once(self, node: fx.Node) -> bool:
        return len(node.users) == 1 and node not in self.outputs

    def is_whole(self, node: fx.Node) -> bool:
        """Whether a sum is not part of another one."""
        size = _numel(node)
        while self.used_once(node):
            (user,) = node.users
            if _is_sum(user):
                return _shape(user) != _shape(node)
            if not _moves(user) or _numel(user) != size:
                break
            node = user
        return True

    def terms(self, whole: fx.Node) -> list[_Term]:
        return list(self._terms((whole,), ()))

    def _terms(self, sums: tuple[fx.Node, ...], path: tuple[fx.Node, ...]) -> Iterator[_Term]:
        for argument in args_of(sums[-1])[:2]:
            inner, moves = self.source(argument)
            if _is_sum(inner) and self.used_once(inner) and _shape(argument) == _shape(sums[-1]):
                yield from self._terms((*sums, inner), (*moves, *path))
            else:
                yield _Term(argument, sums, path)

    def source(self, node: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]]:
        """What a node's elements were before they were only moved, and the moves."""
        moves: list[fx.Node] = []
        while _moves(node) and self.used_once(node) and _numel(tensor_arguments(node)[0]) == _numel(node):
            moves.insert(0, node)
            (node,) = tensor_arguments(node)
        return node, tuple(moves)

    def product(self, term: _Term) -> _Product | None:
        base, moves = self.source(term.node)
        role = self.structure.role.get(base, ("plain",))
        if role[0] != "contract" or not self.used_once(base) or _shape(term.node) != term.shape:
            return None
        geometry: Contraction = role[1]
        if not _is_matrix(geometry):
            return None
        numbers = _follow(torch.arange(_numel(base)).reshape(_shape(base)), (*moves, *term.path))
        rows, features = _rows_and_features(geometry, _shape(base))
        rows, features = rows.reshape(-1)[numbers], features.reshape(-1)[numbers]
        for axis in reversed(range(numbers.dim())):
            line = torch.arange(geometry.features)
            if numbers.shape[axis] == len(line) and bool((features.movedim(axis, -1) == line).all()):
                return _Product(term, geometry, rows.select(axis, 0), axis)
        return None

    # Writing

    def join(self, group: Sequence[_Product], total: fx.Node) -> fx.Node:
        pairs = [self.as_matrices(product) for product in group]
        width = sum(_shape(data)[1] for data, _ in pairs)
        (rows, _), (_, features) = (_shape(one) for one in pairs[0])
        data = self.call(aten.cat.default, ([data for data, _ in pairs], 1), (rows, width), total)
        matrix = self.call(aten.cat.default, ([one for _, one in pairs], 0), (width, features), total)
        return self.times(data, matrix, group[0].axis, total)

    def times(self, data: fx.Node, matrix: fx.Node, axis: int, like: fx.Node) -> fx.Node:
        """Rows times a matrix, in the shape of a node with an axis of features."""
        rows, features, shape = _shape(data)[0], _shape(matrix)[1], _shape(like)
        node = self.call(aten.mm.default, (data, matrix), (rows, features), like)
        last = [*shape[:axis], *shape[axis + 1 :], features]
        node = self.call(aten.reshape.default, (node, last), last, like)
        if axis == len(shape) - 1:
            return node
        order = [*range(axis), len(shape) - 1, *range(axis, len(shape) - 1)]
        return self.call(aten.permute.default, (node, order), shape, like)

    def as_matrices(self, product: _Product) -> tuple[fx.Node, fx.Node]:
        """The data, with its rows in the order of the sum, and the operand."""
        geometry, like = product.geometry, product.geometry.node
        data, operand = geometry.data, geometry.operand
        shape, size = _shape(data), _shape(operand)
        if geometry.convolution:
            order = [0, *range(2, len(shape)), 1]
            data = self.call(aten.permute.default, (data, order), [shape[i] for i in order], like)
            operand = self.call(aten.reshape.default, (operand, list(size[:2])), size[:2], like)
            operand = self.call(aten.t.default, (operand,), reversed(size[:2]), like)
            shape = _shape(data)
        elif len(size) == 3:
            operand = self.call(aten.select.int, (operand, 0, 0), size[1:], like)
        elif not geometry.data_first:
            data = self.call(aten.t.default, (data,), reversed(shape), like)
            operand = self.call(aten.t.default, (operand,), reversed(size), like)
            shape = _shape(data)
        if len(shape) != 2:
            flat = (torch.Size(shape[:-1]).numel(), shape[-1])
            data = self.call(aten.reshape.default, (data, list(flat)), flat, like)
        rows = product.rows.reshape(-1)
        if not torch.equal(rows, torch.arange(_shape(data)[0])):
            data = self.call(aten.index_select.default, (data, 0, self.constant(rows)), (len(rows), shape[-1]), like)
        return data, operand

    def moved(self, term: _Term, total: fx.Node) -> fx.Node:
        """A term at its place in the whole sum."""
        if not term.path:
            return term.node
        shape = _shape(term.node)
        numbers = torch.arange(_numel(term.node)).reshape(shape).expand(term.shape)
        places = _follow(numbers, term.path)
        for axis in range(places.dim()):
            line = torch.arange(places.shape[axis])
            if _numel(term.node) == len(line) and bool((places.movedim(axis, -1) == line).all()):
                size = [len(line) if at == axis else 1 for at in range(places.dim())]
                size = size[axis:] if axis == places.dim() - 1 else size
                return self.call(aten.reshape.default, (term.node, size), size, total)
        node = term.node
        if shape != term.shape:
            node = self.call(aten.expand.default, (node, list(term.shape)), term.shape, total)
        for move in term.path:
            args = map_arg(move.args, lambda _, node=node: node)
            node = self.call(move.target, args, _shape(move), move)
        return node

    def add(self, a: fx.Node, b: fx.Node) -> fx.Node:
        return self.call(aten.add.Tensor, (a, b), torch.broadcast_shapes(_shape(a), _shape(b)), a)

    def constant(self, value: Tensor) -> fx.Node:
        node = self.graph.get_attr(f"rows_{len(self.graph.nodes)}")
        node.meta.update(constant=value, data=False, shape=tuple(value.shape), dtype=value.dtype, scope="")
        return node

    def call(self, operation: Any, args: tuple[Any, ...], shape: Iterable[int], like: fx.Node) -> fx.Node:
        node = self.graph.call_function(operation, args)
        node.meta.update(shape=tuple(shape), dtype=like.meta["dtype"], scope=like.meta["scope"])
        return node


def _is_sum(node: fx.Node) -> bool:
    if node.target is not aten.add.Tensor or node.kwargs.get("alpha", 1) != 1:
        return False
    a, b = args_of(node)[:2]
    return isinstance(a, fx.Node) and isinstance(b, fx.Node) and a is not b


def _moves(node: fx.Node) -> bool:
    """Whether a node only moves elements, or adds nothing to them, as a sum that starts from zero does."""
    if node.op != "call_function" or len(tensor_arguments(node)) != 1:
        return False
    adds_nothing = node.target is aten.add.Tensor and args_of(node)[1] in (0, 0.0)
    if not is_layout(node) and not adds_nothing:
        return False
    return all(n.meta.get("shape") is not None for n in (node, *tensor_arguments(node)))


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["shape"])


def _numel(node: fx.Node) -> int:
    return torch.Size(node.meta["shape"]).numel()


def _common(group: Sequence[_Product]) -> tuple[fx.Node, ...]:
    """The sums that all of some terms are parts of, the whole one first."""
    chains = [product.term.sums for product in group]
    shared = itertools.takewhile(lambda end: len({sums[:end] for sums in chains}) == 1, range(1, len(chains[0]) + 1))
    return chains[0][: max(shared, default=0)]


def _elements(group: Sequence[_Product]) -> int:
    return sum(_numel(product.geometry.operand) for product in group)


def _is_matrix(geometry: Contraction) -> bool:
    """Whether a contraction multiplies each row of its data by one matrix."""
    if geometry.convolution:
        stride, padding = args_of(geometry.node)[3:5]
        return geometry.groups == 1 and set(geometry.kernel) == {1} and set(stride) == {1} and set(padding) == {0}
    return geometry.distinct_groups == 1 and (geometry.data_first or len(_shape(geometry.operand)) == 2)


def _rows_and_features(geometry: Contraction, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """For each element of a contraction's result, its row of data and its feature."""
    axis = 1 if geometry.convolution else len(shape) - 1 if geometry.data_first else 0
    others = [n for at, n in enumerate(shape) if at != axis]
    rows = torch.arange(torch.Size(others).numel()).reshape(others).unsqueeze(axis).expand(shape)
    line = torch.arange(shape[axis]).reshape([-1 if at == axis else 1 for at in range(len(shape))])
    return rows, line.expand(shape)


def _follow(numbers: Tensor, moves: Iterable[fx.Node]) -> Tensor:
    for move in moves:
        numbers = layout_result(move, lambda _, numbers=numbers: numbers)
    return numbers
