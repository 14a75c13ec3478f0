"""Leave out what a state of zeros adds.

A recurrent network begins with a state of zeros, and multiplies it with a matrix; others leave the first product out, or write it
in another way. The matrix still counts where it meets other states, and only then is the product left out.
"""

import torch
from torch import fx

from pyrosys.adapters.nodes import args_of
from pyrosys.adapters.operations import is_layout, tensor_arguments

__all__ = ["drop_products_of_zero"]

aten = torch.ops.aten
_PRODUCTS = {aten.mm.default, aten.bmm.default}


def drop_products_of_zero(graph: fx.Graph, outputs: list[fx.Node]) -> list[fx.Node]:
    """Replace sums with products of zeros by what is added to these, in place; gives the outputs."""
    instead: dict[fx.Node, fx.Node] = {}
    products = {n for n in graph.nodes if n.target in _PRODUCTS and any(map(_is_zero, args_of(n)))}
    if not products:
        return outputs
    zero: set[fx.Node] = set()
    for node in list(graph.nodes):
        inputs = tensor_arguments(node) if node.op == "call_function" else []
        if node in products:
            if all(_is_zero(a) or set(a.users) - products for a in inputs):
                zero.add(node)
        elif is_layout(node) and inputs and zero.issuperset(inputs):
            zero.add(node)
        elif node.target is aten.add.Tensor and len(inputs) == 2 and zero & set(inputs):
            kept, *others = [a for a in inputs if a not in zero] or inputs
            if others:
                zero.add(node)
            elif not node.kwargs:
                instead[node] = _expanded(kept, node)
                node.replace_all_uses_with(instead[node])
    return [instead.get(o, o) for o in outputs]


def _is_zero(node: fx.Node) -> bool:
    """Whether a node is a constant of zeros, whatever the inputs are."""
    value = node.meta.get("constant")
    if value is None or node.meta["data"] or value.is_meta or not value.is_floating_point():
        return False
    return not bool(value.any())


def _expanded(node: fx.Node, like: fx.Node) -> fx.Node:
    shape = tuple(like.meta["shape"])
    if tuple(node.meta["shape"]) == shape:
        return node
    with like.graph.inserting_before(like):
        expanded = like.graph.call_function(aten.expand.default, (node, list(shape)))
    expanded.meta.update(like.meta)
    return expanded
