"""Which elements of a parameter an operand holds, and how a set of elements is written as views.

The operand of a contraction is a parameter seen through views. Running the same views on strides (or, where they copy, on
element numbers) tells for each operand position which element of which parameter it is. Nothing is interpreted: a fused,
interleaved, transposed, grouped or stacked layout needs no rule of its own.
"""

import dataclasses
import operator
from typing import Any

import torch
from torch import Tensor, fx

from pyrosys.adapters.nodes import args_of
from pyrosys.adapters.operations import is_layout, layout_result, tensor_arguments
from pyrosys.errors import CaptureError

__all__ = ["Block", "Elements", "blocks", "elements_of", "strided_axes"]

aten = torch.ops.aten
_EXPLICIT_LIMIT = 1 << 26
_CAST = {aten._to_copy.default, aten.clone.default, aten.detach.default, aten.alias.default}


@dataclasses.dataclass
class Elements:
    """Elements that an operand holds.

    Attributes:
        roots: the placeholders, or computed parameter-only nodes, that elements are numbered in, one after the other.
        strided: `(offset, size, stride)` when the operand is a strided view of one root.
        index: element numbers otherwise, of the operand's shape.
        scale, shift: the operand's value is `scale * element + shift`.
    """

    roots: list[fx.Node]
    strided: tuple[int, tuple[int, ...], tuple[int, ...]] | None
    index: Tensor | None
    scale: float = 1.0
    shift: float = 0.0

    def numbers(self) -> Tensor:
        """Element numbers of the operand's shape."""
        if self.index is not None:
            return self.index
        assert self.strided is not None
        offset, size, stride = self.strided
        total = torch.full((), offset)
        for position, (n, s) in enumerate(zip(size, stride, strict=True)):
            shape = [1] * len(size)
            shape[position] = n
            total = total + (torch.arange(n) * s).reshape(shape)
        return total.expand(size)

    def lines(self) -> tuple[int, list[Tensor]]:
        """Offset, and per dimension the element numbers relative to it, for a strided operand."""
        assert self.strided is not None
        offset, size, stride = self.strided
        return offset, [torch.arange(n) * s for n, s in zip(size, stride, strict=True)]


def _scalar_affine(node: fx.Node, scale: float, shift: float) -> tuple[fx.Node, float, float] | None:
    """Peel one `a * x + b` with plain numbers off a parameter-only node; composes with the (scale, shift) after it."""
    numbers = [a for a in args_of(node) if isinstance(a, (int, float)) and not isinstance(a, bool)]
    nodes = [a for a in args_of(node) if isinstance(a, fx.Node)]
    if len(nodes) != 1 or node.kwargs.get("alpha", 1) != 1:
        return None
    (x,) = nodes
    first = args_of(node)[0] is x
    target = node.target
    if target is aten.neg.default:
        return x, -scale, shift
    if len(numbers) != 1:
        return None
    (number,) = numbers
    if target in (aten.add.Tensor, aten.add.Scalar):
        return x, scale, shift + scale * number
    if target in (aten.mul.Tensor, aten.mul.Scalar):
        return x, scale * number, shift
    if target in (aten.div.Tensor, aten.div.Scalar) and first:
        return x, scale / number, shift
    if target in (aten.sub.Tensor, aten.sub.Scalar):
        return (x, scale, shift - scale * number) if first else (x, -scale, shift + scale * number)
    if target is aten.rsub.Scalar:
        return x, -scale, shift + scale * number
    return None


def elements_of(operand: fx.Node) -> Elements:
    """Trace a parameter-only node through views and plain-number factors to the elements that it holds.

    Raises:
        CaptureError: a copying layout operation on a parameter too large to be numbered.
    """
    scale, shift = 1.0, 0.0
    chain: list[fx.Node] = []
    node = operand
    while True:
        if node.op != "call_function":
            break
        if is_layout(node) and len(tensor_arguments(node)) == 1:
            chain.append(node)
            (node,) = tensor_arguments(node)
            continue
        peeled = _scalar_affine(node, scale, shift)
        if peeled is None:
            break
        node, scale, shift = peeled
    if node.op == "call_function" and is_layout(node):
        return _joined(operand, scale, shift)
    strided = _as_strides(node, chain)
    if strided is not None:
        return Elements([node], strided, None, scale, shift)
    return Elements([node], None, _numbered(operand, {node: 0}), scale, shift)


def _as_strides(root: fx.Node, chain: list[fx.Node]) -> tuple[int, tuple[int, ...], tuple[int, ...]] | None:
    """Run the views on a stand-in without memory; None when one of them has to copy."""
    base = torch.empty(root.meta["shape"], device="meta")
    x: Any = base
    for node in reversed(chain):
        if node.target in _CAST:
            continue
        try:
            x = layout_result(node, lambda _, x=x: x)
        except (RuntimeError, IndexError):
            return None
        probe = x[0] if isinstance(x, (tuple, list)) else x
        if probe.untyped_storage()._cdata != base.untyped_storage()._cdata:
            return None
    view: Any = x
    return view.storage_offset(), tuple(view.shape), tuple(view.stride())


def _joined(operand: fx.Node, scale: float, shift: float) -> Elements:
    """An operand put together from several parameters (concatenated or stacked)."""
    roots: dict[fx.Node, int] = {}
    total = 0
    stack = [operand]
    while stack:
        node = stack.pop()
        if node.op == "call_function" and is_layout(node):
            stack.extend(reversed(tensor_arguments(node)))
        elif node.op == "get_attr" and not node.meta["constant"].is_floating_point():
            continue  # an index
        elif node not in roots:
            roots[node] = total
            total += torch.Size(node.meta["shape"]).numel()
    numbers = _numbered(operand, roots)
    starts = torch.tensor(list(roots.values()))
    root_of = torch.bucketize(numbers, starts[1:], right=True)
    held = torch.unique(root_of).tolist()
    kept = [list(roots)[i] for i in held]
    # Parts that are cut away again (one bias of three that were joined) are no roots.
    before = torch.tensor([0, *(torch.Size(r.meta["shape"]).numel() for r in kept)]).cumsum(0)
    shifts = torch.zeros(len(roots), dtype=torch.int64)
    shifts[held] = before[: len(held)] - starts[held]
    return Elements(kept, None, numbers + shifts[root_of], scale, shift)


def _numbered(operand: fx.Node, roots: dict[fx.Node, int]) -> Tensor:
    numel = torch.Size(operand.meta["shape"]).numel()
    if max([numel, *(torch.Size(r.meta["shape"]).numel() for r in roots)]) > _EXPLICIT_LIMIT:
        raise CaptureError(
            f"A parameter in {operand.meta.get('scope')!r} is copied into another layout and too large to trace."
        )
    known: dict[fx.Node, Any] = {
        root: torch.arange(start, start + torch.Size(root.meta["shape"]).numel()).reshape(root.meta["shape"])
        for root, start in roots.items()
    }

    def value(node: fx.Node) -> Any:
        if node not in known:
            if node.op == "get_attr":
                known[node] = node.meta["constant"]
            elif node.target is operator.getitem:
                known[node] = value(args_of(node)[0])[args_of(node)[1]]
            elif is_layout(node):
                known[node] = layout_result(node, value)
            else:
                (x,) = [a for a in args_of(node) if isinstance(a, fx.Node)]
                known[node] = value(x)
        return known[node]

    return value(operand)


@dataclasses.dataclass
class Block:
    """Part of a contraction's operand whose elements are `offset + groups[g] + contracted[k] + features[j]` of one root.

    Attributes:
        root: the placeholder or computed node.
        contracted_at, features_at: positions of the operand grid that the block covers.
    """

    root: fx.Node
    offset: int
    groups: Tensor
    contracted: Tensor
    features: Tensor
    contracted_at: Tensor
    features_at: Tensor


def blocks(elements: Elements, geometry: Any) -> list[Block]:
    """Split an operand into separable blocks.

    Args:
        elements: what the operand holds.
        geometry: the contraction; knows the operand as (group, contracted, feature).
    """
    if elements.strided is not None:
        offset, lines = elements.lines()
        g, k, j = geometry.grid_lines(lines)
        return [Block(elements.roots[0], offset, g, k, j, torch.arange(len(k)), torch.arange(len(j)))]
    numbers = geometry.operand_grid(elements.numbers()).contiguous()
    starts = torch.tensor(
        [0, *torch.cumsum(torch.tensor([torch.Size(r.meta["shape"]).numel() for r in elements.roots]), 0)]
    )
    root_of = torch.bucketize(numbers, starts[1:], right=True)
    found: list[Block] = []
    for features_at in _equal_columns(root_of.reshape(-1, root_of.shape[-1])):
        rows = root_of[..., features_at].transpose(-1, -2).reshape(-1, root_of.shape[-2])
        for contracted_at in _equal_columns(rows):
            part = numbers[:, contracted_at][:, :, features_at]
            root = int(root_of[0, contracted_at[0], features_at[0]])
            found += _separable(part - starts[root], elements.roots[root], contracted_at, features_at)
    return found


def _equal_columns(table: Tensor) -> list[Tensor]:
    """Positions of the columns of a table, grouped by equal columns."""
    _, inverse = torch.unique(table, dim=1, return_inverse=True)
    return [torch.nonzero(inverse == value).reshape(-1) for value in torch.unique(inverse)]


def _separable(part: Tensor, root: fx.Node, contracted_at: Tensor, features_at: Tensor) -> list[Block]:
    first = int(part[0, 0, 0])
    g, k, j = part[:, 0, 0] - first, part[0, :, 0] - first, part[0, 0, :] - first
    if bool((g[:, None, None] + k[None, :, None] + j[None, None, :] + first == part).all()):
        return [Block(root, first, g, k, j, contracted_at, features_at)]
    if len(features_at) > 1:
        return [
            b
            for i in range(len(features_at))
            for b in _separable(part[..., i : i + 1], root, contracted_at, features_at[i : i + 1])
        ]
    if len(contracted_at) > 1:
        return [
            b
            for i in range(len(contracted_at))
            for b in _separable(part[:, i : i + 1], root, contracted_at[i : i + 1], features_at)
        ]
    raise CaptureError(f"The groups of a parameter in {root.meta.get('scope')!r} do not share one layout.")


def strided_axes(target: Tensor, source: Tensor) -> list[tuple[int, int, int]] | None:
    """Write paired element numbers, both starting at 0, as nested loops.

    Returns:
        `(length, target step, source step)` from the outermost loop to the innermost, or None if they are not regular.

    Example:
        >>> import torch
        >>> strided_axes(torch.arange(6), torch.tensor([0, 2, 4, 1, 3, 5]))
        [(2, 3, 1), (3, 1, 2)]
    """
    both = torch.stack([target, source], 1)
    axes: list[tuple[int, int, int]] = []
    while len(both) > 1:
        step = both[1] - both[0]
        regular = ((both[1:] - both[:-1]) == step).all(1)
        breaks = torch.nonzero(~regular)
        run = int(breaks[0]) + 1 if len(breaks) else len(both)
        length = _block_length(both, run)
        if length is None:
            return None
        axes.append((length, int(step[0]), int(step[1])))
        both = both[::length]
        if len(axes) > 6:
            return None
    return axes[::-1]


def _block_length(both: Tensor, run: int) -> int | None:
    for length in range(run, 1, -1):
        if len(both) % length == 0:
            tiles = both.reshape(-1, length, 2)
            if bool((tiles - tiles[:, :1] == tiles[:1] - tiles[:1, :1]).all()):
                return length
    return None
