"""Which elements of an activation are one number by construction, whatever the inputs and the parameters.

A window at an edge that is padded with copies meets one element twice. Heads that share their values see the same where a mask
leaves one position to attend to. No input tells such elements apart, and no output depends on which is which.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx

from pyrosys.adapters.capture import EQUAL_HERE
from pyrosys.adapters.colour import Colouring
from pyrosys.adapters.nodes import args_of
from pyrosys.adapters.operations import is_layout, is_pointwise, layout_result, tensor_arguments

__all__ = ["Repeats"]

aten = torch.ops.aten
_ZERO, _ONE = 0.0, 1.0
_CASTS = {aten.to.dtype, aten._to_copy.default}
_PAD = aten.constant_pad_nd.default
_MASKS = {aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.where.self}
_MOVING = {
    "view", "_unsafe_view", "reshape", "expand", "permute", "transpose", "t", "slice", "select", "unsqueeze", "squeeze", "clone",
    "alias", "detach", "contiguous", "cat", "stack", "split", "split_with_sizes", "unbind", "chunk", "flip", "roll", "repeat",
    "diagonal", "index", "index_select", "gather", "constant_pad_nd", "unfold", "movedim", "narrow",
}  # fmt: skip
_PRODUCTS = {aten.mm.default, aten.bmm.default}
_SOFTMAX = {aten._softmax.default, aten._safe_softmax.default}


class Repeats:
    """Numbers elements of activations so that two have the same number only if they are one by construction.

    Args:
        side: a model that was run under colours, with all values kept.
    """

    def __init__(self, side: Colouring):
        self.side = side
        self.known: dict[fx.Node, Any] = {}
        self.next = 2.0

    @staticmethod
    def are_known(node: fx.Node) -> bool:
        """Whether nothing on the way to a node stands for others that may differ on other inputs."""
        stack, seen = [node], set[fx.Node]()
        while stack:
            one = stack.pop()
            if one.meta.get(EQUAL_HERE):
                return False
            if one not in seen:
                seen.add(one)
                stack += one.all_input_nodes
        return True

    def numbers(self, node: fx.Node) -> Any:
        """A number for each element; zero for what is always zero."""
        if node not in self.known:
            self.known[node] = self._find(node)
        return self.known[node]

    def _find(self, node: fx.Node) -> Any:
        structure = self.side.structure
        plain = node.op == "call_function" and node not in structure.pure and node not in structure.role
        if plain and node.target is operator.getitem:
            return self.numbers(args_of(node)[0])[args_of(node)[1]]
        if plain and node.target in _CASTS:
            return self.numbers(args_of(node)[0])
        if plain and self._only_moves(node):
            return layout_result(node, lambda a: self._value(a) if self._is_fixed(a) else self.numbers(a))
        if plain and node.target in _SOFTMAX and self._is_masked_alike(node):
            return self._weights(node)
        if plain and node.target is aten.bmm.default:
            return self._picked(node)
        return self._new(node)

    def _only_moves(self, node: fx.Node) -> bool:
        """Whether a node moves elements to places that do not depend on the inputs, and puts nothing but zeros beside them."""
        name = getattr(node.target, "_opname", None)
        if name not in _MOVING or (node.target is _PAD and any(args_of(node)[2:])):
            return False
        return all(self._is_fixed(a) or self._is_real(a) for a in tensor_arguments(node))

    def _is_real(self, node: fx.Node) -> bool:
        value = self._value(node)
        return not isinstance(value, Tensor) or value.is_floating_point()

    def _is_fixed(self, node: fx.Node) -> bool:
        """Whether a node is an index that is the same for all inputs."""
        return node in self.side.structure.constants and not node.meta["data"] and not self._is_real(node)

    def _is_masked_alike(self, node: fx.Node) -> bool:
        """Whether what a softmax leaves out does not depend on inputs or activations."""
        structure, stack, seen = self.side.structure, list(tensor_arguments(node)), set[fx.Node]()
        while stack:
            one = stack.pop()
            kind = structure.role.get(one, ("plain",))[0]
            if one in seen or one in structure.pure or kind in ("contract", "look up") or one.target in _PRODUCTS:
                continue
            seen.add(one)
            if one in structure.constants:
                if one.meta["data"]:
                    return False
                continue
            known = is_layout(one) or is_pointwise(one) or one.target in _MASKS
            if not known or one.meta["dtype"] == torch.bool:
                return False
            stack += tensor_arguments(one)
        return True

    def _value(self, node: fx.Node) -> Any:
        return self.side.constant(node) if node in self.side.structure.constants else self.side.values.get(node)

    def _new(self, node: fx.Node) -> Any:
        """Elements that are taken to be different from each other and from all others."""
        value = self._value(node)
        if isinstance(value, (tuple, list)):
            return [self._different(v.shape) for v in value]
        return self._different(node.meta["shape"] if value is None else value.shape)

    def _different(self, shape: Any) -> Tensor:
        count = torch.Size(shape).numel()
        first, self.next = self.next, self.next + count
        return torch.arange(count, dtype=torch.float64).reshape(shape) + first

    def _weights(self, node: fx.Node) -> Tensor:
        """Of a softmax, rows in which a mask leaves one position are one there and zero elsewhere, exactly."""
        value, axis = self.side.values[node].detach(), args_of(node)[1]
        alone = ((value == 0) | (value == 1)).all(axis, keepdim=True) & (value.sum(axis, keepdim=True) == 1)
        return torch.where(alone, value, self._different(value.shape))

    def _picked(self, node: fx.Node) -> Tensor:
        """Of a product, rows that are one element of the other factor."""
        left, right = (self.numbers(a) for a in tensor_arguments(node))
        one = ((left == _ONE).sum(-1) == 1) & ((left == _ONE) | (left == _ZERO)).all(-1)
        picked = right.gather(1, (left == _ONE).int().argmax(-1, keepdim=True).expand(*left.shape[:2], right.shape[-1]))
        return torch.where(one.unsqueeze(-1), picked, self._different(picked.shape))
