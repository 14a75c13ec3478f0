"""Take products and sums of matrices together where nothing stands between them: a low-rank update and its matrix.

`B (A x) + W x` is `(B A + W) x`. Written so, the matrices become one that the model computes from its parameters, and can be
told to be the merged matrix of another model.
"""

import dataclasses
from typing import Any

import torch
from torch import fx

from pyrosys.adapters.capture import Capture
from pyrosys.adapters.layout import elements_of
from pyrosys.adapters.nodes import args_of, drop_unused
from pyrosys.adapters.operations import tensor_arguments

__all__ = ["merge_products"]

aten = torch.ops.aten
_VIEWS = {aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.expand.default, aten.clone.default}


@dataclasses.dataclass
class _Product:
    """`scale * (data @ matrix)`, in rows."""

    data: fx.Node
    matrix: fx.Node
    scale: float
    node: fx.Node


def merge_products(captured: Capture) -> bool:
    """Rewrite a capture in place; whether there was anything to rewrite."""
    merger = _Merger(captured.graph)
    for node in list(captured.graph.nodes):
        merger.flatten(node)
    flattened = len(merger.instead)
    for node in list(captured.graph.nodes):
        merger.visit(node)
    captured.outputs = [merger.instead.get(o, o) for o in captured.outputs]
    if merger.instead:
        drop_unused(captured.graph)
    return len(merger.instead) > flattened


def _is_repeated(operand: fx.Node) -> bool:
    """Whether the matrices of an operand are one."""
    strided = elements_of(operand).strided
    return strided is not None and (strided[1][0] == 1 or strided[2][0] == 0)


class _Merger:
    def __init__(self, graph: fx.Graph):
        self.graph = graph
        self.pure: set[fx.Node] = set()
        self.instead: dict[fx.Node, fx.Node] = {}
        self.rows: dict[fx.Node, fx.Node] = {}

    def flatten(self, node: fx.Node) -> None:
        """Write products of many rows with one matrix, repeated, as one product."""
        inputs = tensor_arguments(node) if node.op == "call_function" else []
        if node.op == "placeholder" or (inputs and all(a in self.pure for a in inputs)):
            self.pure.add(node)
        elif node.target is aten.bmm.default and inputs[1] in self.pure and _is_repeated(inputs[1]):
            data, shape = inputs[0], list(node.meta["shape"])
            with self.graph.inserting_before(node):
                if data not in self.rows:
                    self.rows[data] = self.call(aten.reshape.default, (data, [-1, data.meta["shape"][-1]]))
                matrix = self.call(aten.select.int, (inputs[1], 0, 0))
                product = self.call(aten.mm.default, (self.rows[data], matrix))
                self.replace(node, self.call(aten.reshape.default, (product, shape)))

    def visit(self, node: fx.Node) -> None:
        inputs = tensor_arguments(node) if node.op == "call_function" else []
        if node in self.pure:
            return
        if node.target is aten.mm.default and inputs[1] in self.pure:
            inner = self.product(inputs[0])
            if inner is not None and inner.node.meta["shape"][0] == node.meta["shape"][0]:
                with self.graph.inserting_before(node):
                    joint = self.call(aten.mm.default, (self.weight(inputs[1]), self.weight(inner.matrix)))
                    self.replace(node, self.multiplied(inner.data, self.scaled(joint, inner.scale)))
        elif node.target is aten.add.Tensor and len(inputs) == 2 and node.kwargs.get("alpha", 1) == 1:
            for one, other in (inputs, inputs[::-1]):
                if self.add(node, one, other):
                    break

    def add(self, node: fx.Node, one: fx.Node, other: fx.Node) -> bool:
        """Two products of the same data as one; the first may have a bias already."""
        second, first, bias = self.product(other), self.product(one), None
        if first is None:
            biased = self.behind_views(one)
            inputs = tensor_arguments(biased) if biased.target is aten.add.Tensor and len(biased.users) == 1 else []
            if len(inputs) == 2 and inputs[1] in self.pure:
                first, bias = self.product(inputs[0]), inputs[1]
        if first is None or second is None or first.data is not second.data:
            return False
        with self.graph.inserting_before(node):
            weights = [self.scaled(self.weight(p.matrix), p.scale) for p in (first, second)]
            total = self.multiplied(first.data, self.call(aten.add.Tensor, tuple(weights)))
            if bias is not None:
                total = self.call(aten.add.Tensor, (total, bias))
            if total.meta["shape"] != node.meta["shape"]:
                total = self.call(aten.reshape.default, (total, list(node.meta["shape"])))
        self.replace(node, total)
        return True

    def product(self, node: fx.Node) -> _Product | None:
        """What a node is as a product of rows with a matrix, if it is one that nothing else uses."""
        scale = 1.0
        while len(node.users) == 1:
            if node.target in _VIEWS and self.keeps_rows(node):
                node = tensor_arguments(node)[0]
            elif node.target in (aten.mul.Tensor, aten.div.Tensor) and isinstance(args_of(node)[1], (int, float)):
                scale *= float(args_of(node)[1]) ** (1 if node.target is aten.mul.Tensor else -1)
                node = args_of(node)[0]
            elif node.target is aten.mm.default and args_of(node)[1] in self.pure and args_of(node)[0] not in self.pure:
                return _Product(args_of(node)[0], args_of(node)[1], scale, node)
            else:
                return None
        return None

    def behind_views(self, node: fx.Node) -> fx.Node:
        while node.target in _VIEWS and self.keeps_rows(node) and len(node.users) == 1:
            node = tensor_arguments(node)[0]
        return node

    @staticmethod
    def keeps_rows(node: fx.Node) -> bool:
        before, after = tensor_arguments(node)[0].meta["shape"], node.meta["shape"]
        same = torch.Size(before).numel() == torch.Size(after).numel()
        return same and bool(before) and bool(after) and before[-1] == after[-1]

    def weight(self, matrix: fx.Node) -> fx.Node:
        """A matrix as linear layers keep it, (out, in)."""
        return args_of(matrix)[0] if matrix.target is aten.t.default else self.call(aten.t.default, (matrix,))

    def multiplied(self, data: fx.Node, weight: fx.Node) -> fx.Node:
        return self.call(aten.mm.default, (data, self.call(aten.t.default, (weight,))))

    def scaled(self, weight: fx.Node, scale: float) -> fx.Node:
        return weight if scale == 1 else self.call(aten.mul.Tensor, (weight, scale))

    def call(self, operation: Any, args: tuple[Any, ...]) -> fx.Node:
        node = self.graph.call_function(operation, args)
        inputs = tensor_arguments(node)
        like = [torch.empty(a.meta["shape"], device="meta") for a in inputs]
        rest = args[len(inputs) :]
        node.meta.update(shape=tuple(operation(*like, *rest).shape), dtype=torch.float64, scope="")
        if all(a in self.pure for a in inputs):
            self.pure.add(node)
        return node

    def replace(self, node: fx.Node, other: fx.Node) -> None:
        other.meta["scope"] = node.meta.get("scope", "")
        node.replace_all_uses_with(other)
        self.instead[node] = other
