"""What the engine knows about ATen operations: which elements of the inputs an element of the result depends on.

Four kinds cover the core set; anything else is taken to depend on everything, which is sound and merely less sharp.

- *layout*: elements are moved, repeated or dropped, never combined;
- *pointwise*: with broadcasting;
- *along*: each element depends on the elements that share its position in the other dimensions (reductions, softmax);
- *product*: matrix products of two activations.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from pyrosys.adapters.hashing import largest, once
from pyrosys.adapters.nodes import args_of, leaves, map_leaves, target_of
from pyrosys.adapters.precision import widest

__all__ = [
    "NONE",
    "backward_dependence",
    "depends_on_none",
    "forward_dependence",
    "is_layout",
    "is_pointwise",
    "tensor_arguments",
]

aten = torch.ops.aten
NONE = 0.0
"""The sketch of an element that depends on no parameter."""

_LAYOUT = {
    "view", "_unsafe_view", "reshape", "expand", "permute", "transpose", "t", "slice", "select", "unsqueeze", "squeeze",
    "clone", "alias", "detach", "contiguous", "cat", "stack", "split", "split_with_sizes", "unbind", "chunk", "flip", "roll",
    "repeat", "as_strided", "as_strided_scatter", "slice_scatter", "select_scatter", "diagonal", "index", "index_select",
    "gather", "constant_pad_nd", "unfold", "_reshape_alias", "lift_fresh_copy", "tril", "triu", "view_as_real",
    "view_as_complex", "movedim", "narrow", "embedding", "index_put", "scatter", "unsafe_split", "unsafe_chunk",
    "unsafe_split_with_sizes", "copy", "view_copy", "expand_copy", "permute_copy", "_conj", "resolve_conj", "_to_copy",
}  # fmt: skip

_VIEWS = {aten.view.default, aten._unsafe_view.default}

_ALONG = {
    "sum", "mean", "amax", "amin", "var", "std", "var_mean", "std_mean", "logsumexp", "prod", "linalg_vector_norm", "norm",
    "max", "min", "median", "_softmax", "_safe_softmax", "_log_softmax", "softmax", "log_softmax", "cumsum", "cumprod",
    "logcumsumexp", "sort", "argsort", "topk", "argmax", "argmin", "any", "all", "renorm", "kthvalue",
}  # fmt: skip

_PRODUCTS = {"mm", "bmm", "convolution"}

_OTHER = {
    "native_layer_norm", "where", "masked_fill", "clamp", "scatter_add", "scatter_reduce", "index_add",
    "max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "_adaptive_avg_pool2d", "_local_scalar_dense", "item",
}  # fmt: skip


def _name(node: fx.Node) -> str:
    return _name_of(node.target)


@functools.cache
def _name_of(target: Any) -> str:
    return target._schema.name.split("::")[1] if hasattr(target, "_schema") else ""


def is_layout(node: fx.Node) -> bool:
    """Whether the node only moves elements (getitem on the parts of a split included)."""
    if node.target is operator.getitem:
        parent = args_of(node)[0]
        return isinstance(parent, fx.Node) and is_layout(parent)
    return _name(node) in _LAYOUT


def is_pointwise(node: fx.Node) -> bool:
    """Whether each element of the result depends on the elements at its own place only."""
    return _works_pointwise(node.target)


@functools.cache
def _works_pointwise(target: Any) -> bool:
    return hasattr(target, "tags") and torch.Tag.pointwise in target.tags


@functools.cache
def is_known(operation: Any) -> bool:
    """Whether an ATen operation is of one of the kinds above, so that nothing is gained by taking it apart."""
    name = operation._schema.name.split("::")[1]
    return torch.Tag.pointwise in operation.tags or name in _LAYOUT | _ALONG | _PRODUCTS | _OTHER


def tensor_arguments(node: fx.Node) -> tuple[fx.Node, ...]:
    """Tensor inputs of a node, in the order of its arguments, each once per occurrence."""
    known = node.meta.get(_ARGUMENTS)
    if known is None or known[0] is not node.args or known[1] is not node.kwargs:
        found = tuple(leaf for leaf in leaves((node.args, node.kwargs)) if isinstance(leaf, fx.Node))
        known = node.meta[_ARGUMENTS] = (node.args, node.kwargs, found)
    return known[2]


_ARGUMENTS = "tensor arguments"


def run_node(node: fx.Node, lookup: Callable[[fx.Node], Any]) -> Any:
    """Execute one node on the values that `lookup` gives, in float64."""

    def read(argument: Any) -> Any:
        return lookup(argument) if isinstance(argument, fx.Node) else widest(argument)

    return _callable(node)(*map_leaves(read, node.args), **map_leaves(read, node.kwargs))


def _callable(node: fx.Node) -> Any:
    """The operation, on values that may lie in memory in another way than when it was recorded."""
    return aten.reshape.default if node.target in _VIEWS else target_of(node)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape)


def _unbroadcast(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The largest element over every broadcast dimension."""
    while x.dim() > len(shape):
        x = x.amax(0)
    dims = [d for d, size in enumerate(shape) if size == 1 and x.shape[d] != 1]
    return x.amax(dims, keepdim=True) if dims else x


def _dims(node: fx.Node, rank: int) -> list[int] | None:
    """Dimensions along which an *along* operation works; all of them by default."""
    name = _name(node)
    schema = _argument_names(node.target)
    key = next((k for k in ("dim", "dims") if k in schema), None)
    if key is None:
        return list(range(rank))
    value: Any = node.kwargs.get(
        key, args_of(node)[schema.index(key)] if schema.index(key) < len(args_of(node)) else None
    )
    if value is None and name in ("topk", "sort", "argsort", "kthvalue"):
        value = -1
    if value is None or (isinstance(value, (list, tuple)) and not value):
        return list(range(rank))
    values = value if isinstance(value, (list, tuple)) else [value]
    return sorted(int(v) % max(rank, 1) for v in values)


@functools.cache
def _argument_names(target: Any) -> list[str]:
    return [a.name for a in target._schema.arguments]


def _layer_norm_dims(node: fx.Node, rank: int) -> list[int]:
    return list(range(rank - len(args_of(node)[1]), rank))


def _along_dims(node: fx.Node, rank: int) -> list[int] | None:
    name = _name(node)
    if name == "native_layer_norm":
        return _layer_norm_dims(node, rank)
    return _dims(node, rank) if name in _ALONG else None


def layout_result(node: fx.Node, lookup: Callable[[fx.Node], Any]) -> Any:
    """Run a layout operation on sketches or indices instead of values."""
    name = _name(node)
    if name == "view_as_complex":
        return lookup(args_of(node)[0]).amax(-1)
    if name == "view_as_real":
        x = lookup(args_of(node)[0])
        return x.unsqueeze(-1).expand(*x.shape, 2)
    if name in ("_to_copy", "_conj", "resolve_conj"):
        return lookup(args_of(node)[0])
    if name == "copy":
        return lookup(args_of(node)[1]).expand(_shape(lookup(args_of(node)[0])))
    if _accumulates(node):
        base, places, added = map_arg(args_of(node)[:3], lookup)
        at = _places(base, places)
        flat = base.reshape(-1).clone()
        return flat.scatter_reduce_(0, at.reshape(-1), added.expand(at.shape).reshape(-1), "amax").reshape(base.shape)
    if name == "constant_pad_nd":
        return aten.constant_pad_nd.default(lookup(args_of(node)[0]), args_of(node)[1], 0)
    args = map_arg(args_of(node), lookup)
    kwargs = map_arg(node.kwargs, lookup)
    return _callable(node)(*args, **kwargs)


def _accumulates(node: fx.Node) -> bool:
    """Whether the node adds at given places, so that elements meet."""
    args = args_of(node)
    return _name(node) == "index_put" and bool(node.kwargs.get("accumulate", args[3] if len(args) > 3 else False))


def _places(base: Tensor, places: list[Tensor | None]) -> Tensor:
    """Numbers of the elements at some places of a tensor."""
    return aten.index.Tensor(torch.arange(base.numel()).reshape(base.shape), places)


def forward_dependence(node: fx.Node, sketch: Callable[[fx.Node], Any], value: Callable[[fx.Node], Any]) -> Any:
    """Sketch of a parameter-free node's result: for each element, the largest sketch among the elements it depends on.

    Args:
        node: the node.
        sketch: float64 sketches of its inputs, of the inputs' shapes; `NONE` where nothing depends on a parameter.
        value: the inputs' values, for integer arguments such as indices.
    """
    moved = next(iter(tensor_arguments(node)), None)

    def lookup(argument: fx.Node) -> Any:
        x = value(argument)
        if argument is moved:
            return sketch(argument)
        return x if isinstance(x, Tensor) and not (x.is_floating_point() or x.is_complex()) else sketch(argument)

    result = value(node)
    if node.target is operator.getitem:
        parts = sketch(args_of(node)[0])
        return parts[args_of(node)[1]]
    if is_layout(node):
        return layout_result(node, lookup)
    inputs = tensor_arguments(node)
    shapes = (
        [_shape(r) for r in result if isinstance(r, Tensor)] if isinstance(result, (tuple, list)) else [_shape(result)]
    )
    sketches = [sketch(a) for a in inputs]
    outputs: list[Tensor]
    name = _name(node)
    dims = _along_dims(node, sketches[0].dim()) if len(sketches) == 1 else None
    if dims is not None:
        if name in _SOFTMAX:
            sketches[0] = torch.where(value(node) == 0, NONE, sketches[0])
        reduced = sketches[0].amax(dims, keepdim=True) if dims else sketches[0]
        outputs = [_reduced_to(reduced, dims, sketches[0].shape, shape) for shape in shapes]
    elif name in ("mm", "bmm"):
        silent = [_silent(value(a), s) for a, s in zip(inputs, sketches, strict=True)]
        outputs = [_max_product(*sketches, *silent)]
    elif name in ("mul", "masked_fill", "where", "add"):
        outputs = [_masked(node, inputs, sketches, value, shapes[0])]
    elif is_pointwise(node) or name in ("where", "masked_fill", "clamp"):
        outputs = [_largest_of(sketches).expand(shapes[0])]
    elif name in ("max_pool2d_with_indices", "avg_pool2d", "max_pool2d", "_adaptive_avg_pool2d", "avg_pool1d"):
        outputs = _pooled(node, sketches[0], shapes)
    elif name in ("index_add", "scatter_add", "scatter_reduce"):
        outputs = [_scattered(node, lookup)]
    else:
        top = max((float(s.max()) if s.numel() else NONE) for s in sketches)
        outputs = [torch.full(shape, top, dtype=torch.float64) for shape in shapes]
    if name in _SOFTMAX:
        outputs = [torch.where(value(node) == 0, NONE, outputs[0])]
    return outputs if isinstance(result, (tuple, list)) else outputs[0]


_SOFTMAX = {"_softmax", "_safe_softmax", "softmax"}


def _silent(value: Tensor, sketch: Tensor) -> Tensor | None:
    """Where a tensor is zero and depends on nothing: a mask's zeros. None if nowhere."""
    if not depends_on_none(sketch):
        return None
    silent = (value == 0) & (sketch == NONE)
    return silent if bool(silent.any()) else None


def depends_on_none(sketch: Tensor) -> bool:
    """Whether any element depends on no parameter."""
    if not sketch.numel():
        return False
    if 0 in sketch.stride():
        sketch = sketch[tuple(slice(None) if step else 0 for step in sketch.stride())]
    return bool(sketch.amin() == NONE)


def _largest_of(sketches: list[Tensor]) -> Tensor:
    """The largest of several sketches that broadcast together."""
    total, *others = sketches
    for other in others:
        if _constant(other) and depends_on_none(other):
            total = total.expand(np.broadcast_shapes(total.shape, other.shape))  # torch's own is slow
        else:
            total = largest(total, other)
    return total


def _constant(sketch: Tensor) -> bool:
    """Whether it is known without looking that all elements are one number."""
    return bool(sketch.numel()) and not any(sketch.stride())


def _masked(
    node: fx.Node,
    inputs: Sequence[fx.Node],
    sketches: list[Tensor],
    value: Callable[[fx.Node], Any],
    shape: tuple[int, ...],
) -> Tensor:
    """Pointwise operations with which models mask: what a zero, a fill or an infinity covers has no influence."""
    total = _largest_of(sketches).expand(shape)
    for operand, covered in _covers(node, inputs, dict(zip(inputs, sketches, strict=True)).__getitem__, value):
        del operand
        total = once(_uncovered, covered, total)
    if _name(node) == "where":
        condition, a, b = (inputs[0], args_of(node)[1], args_of(node)[2])
        chosen = [sketches[inputs.index(x)] if isinstance(x, fx.Node) else torch.zeros(()) for x in (a, b)]
        if not bool((sketches[0] != NONE).any()):
            total = torch.where(value(condition), *chosen).expand(shape)
    return total


def _uncovered(covered: Tensor, sketch: Tensor) -> Tensor:
    return torch.where(covered, NONE, sketch)


def _covers(
    node: fx.Node, inputs: Sequence[fx.Node], sketch: Callable[[fx.Node], Tensor], value: Callable[[fx.Node], Any]
) -> list[tuple[fx.Node, Tensor]]:
    """(covering input, where it makes the other inputs irrelevant) of a masking operation."""
    name = _name(node)
    covers = []
    if name == "masked_fill" and isinstance(args_of(node)[1], fx.Node):
        covers.append((args_of(node)[1], value(args_of(node)[1]).bool()))
    elif name == "mul":
        for a in inputs:
            silent = _silent(value(a), sketch(a))
            if silent is not None:
                covers.append((a, silent))
    elif name == "add":
        for a in inputs:
            if value(a).is_floating_point() and depends_on_none(sketch(a)):
                infinite = torch.isinf(value(a)) & (sketch(a) == NONE)
                if bool(infinite.any()):
                    covers.append((a, infinite))
    return covers


def _reduced_to(reduced: Tensor, dims: list[int], source: Any, shape: tuple[int, ...]) -> Tensor:
    if shape == tuple(source):
        return reduced.expand(shape)
    if reduced.dim() == len(shape):
        return reduced.expand(shape) if tuple(reduced.shape) != shape else reduced
    return reduced.reshape(shape)


def _max_product(a: Tensor, b: Tensor, silent_a: Tensor | None, silent_b: Tensor | None) -> Tensor:
    """Dependence of a matrix product, shapes (…, n, k) and (…, k, m), leaving out products with a mask's zero."""
    if silent_b is not None and silent_a is not None:
        both = torch.maximum(a.unsqueeze(-1), b.unsqueeze(-3))
        silent = silent_a.unsqueeze(-1) | silent_b.unsqueeze(-3)
        return torch.where(silent, NONE, both).amax(-2)
    if silent_b is not None:
        return _max_product(b.mT, a.mT, silent_b.mT, None).mT
    if silent_a is not None:
        return torch.maximum(torch.where(silent_a, NONE, a).amax(-1, keepdim=True), _largest_seen(silent_a, b))
    return torch.maximum(a.amax(-1, keepdim=True), b.amax(-2, keepdim=True))


def _largest_seen(silent: Tensor, b: Tensor) -> Tensor:
    """For each row of a mask (…, n, k), the largest of `b`, (…, k, m), that it does not silence; one row if all are alike."""
    rows = range(1) if bool((silent == silent[..., :1, :]).all()) else range(silent.shape[-2])
    return torch.stack([torch.where(silent[..., row, :, None], NONE, b).amax(-2) for row in rows], -2)


def _pooled(node: fx.Node, x: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    pooled = (
        torch.nn.functional.adaptive_max_pool2d(x, shapes[0][-2:]) if x.dim() >= 3 and len(shapes[0]) >= 3 else x.amax()
    )
    return [pooled.expand(shape) for shape in shapes]


def _scattered(node: fx.Node, lookup: Callable[[fx.Node], Any]) -> Tensor:
    x, dim, index, source = (lookup(a) if isinstance(a, fx.Node) else a for a in args_of(node)[:4])
    return x.clone().scatter_reduce_(dim, _spread_index(index, dim, source.shape), source, "amax")


def _spread_index(index: Tensor, dim: int, shape: tuple[int, ...]) -> Tensor:
    """Where along an axis each element of a shape goes; `index_add` says it once for the other axes."""
    if index.dim() != 1 or len(shape) == 1:
        return index
    return index.reshape([-1 if d == dim % len(shape) else 1 for d in range(len(shape))]).expand(shape)


def _scattered_backward(
    node: fx.Node, reach: Tensor, value: Callable[[fx.Node], Any], wanted: list[fx.Node]
) -> list[Tensor]:
    """What is added at some places reaches what these places reach."""
    base, dim, index, added = args_of(node)[:4]
    shape = _shape(value(added))
    at = _spread_index(value(index), dim, shape)
    taken = torch.full(shape, NONE, dtype=torch.float64)
    taken[tuple(slice(n) for n in at.shape)] = torch.gather(reach, dim, at)
    back = {base: reach, added: torch.maximum(reach, taken) if added is base else taken}
    return [
        back[a] if a in back else torch.full(_shape(value(a)), float(reach.max()), dtype=torch.float64) for a in wanted
    ]


def backward_dependence(
    node: fx.Node,
    reach: Any,
    value: Callable[[fx.Node], Any],
    wanted: list[fx.Node],
    sketch: Callable[[fx.Node], Tensor] | None = None,
) -> list[Tensor]:
    """For each wanted input, the largest sketch among the result's elements that depend on each of its elements.

    Args:
        node: a parameter-free node.
        reach: float64 sketch of what each element of the result reaches downstream (a list for several results).
        value: values of nodes.
        wanted: the inputs to answer for, each once.
        sketch: sketches of the inputs, to know a mask's zeros; without it nothing is taken to be masked.
    """
    shapes = [_shape(value(a)) for a in wanted]
    if is_layout(node) and node.target is not operator.getitem:
        return _layout_backward(node, reach, value, wanted)
    first = reach[0] if isinstance(reach, (list, tuple)) else reach
    parts = [r for r in (reach if isinstance(reach, (list, tuple)) else [reach]) if r is not None]
    name = _name(node)
    inputs = tensor_arguments(node)
    dims = _along_dims(node, len(shapes[0])) if len(inputs) == 1 else None
    if dims is not None:
        total = torch.zeros((), dtype=torch.float64).expand(shapes[0])
        for part in parts:
            live = torch.where(value(node) == 0, NONE, part) if name in _SOFTMAX else part
            total = largest(total, _spread(live, dims, shapes[0]))
        return [torch.where(value(node) == 0, NONE, total) if name in _SOFTMAX else total]
    if name in ("mm", "bmm"):
        silent = [None if sketch is None else _silent(value(a), sketch(a)) for a in inputs]
        one, other = map(value, inputs)
        left = _max_product(first, torch.zeros_like(other).mT, None, None if silent[1] is None else silent[1].mT)
        right = _max_product(torch.zeros_like(one).mT, first, None if silent[0] is None else silent[0].mT, None)
        by_input = {0: left, 1: right}
        found = []
        for a, shape in zip(wanted, shapes, strict=True):
            total = torch.zeros((), dtype=torch.float64).expand(shape)
            for position in [i for i, x in enumerate(inputs) if x is a]:
                total = largest(total, by_input[position].expand(shape))
            found.append(total)
        return found
    if name in ("mul", "masked_fill", "where", "add") and sketch is not None:
        covers = _covers(node, inputs, sketch, value)
        condition = value(inputs[0]) if name == "where" and not bool((sketch(inputs[0]) != NONE).any()) else None
        found = []
        for a, shape in zip(wanted, shapes, strict=True):
            live = first
            for cover, covered in covers:
                if cover is not a:
                    live = once(_uncovered, covered, live)
            if condition is not None and args_of(node)[1] is not args_of(node)[2]:
                live = torch.where(
                    condition, live if args_of(node)[1] is a else NONE, live if args_of(node)[2] is a else NONE
                )
            found.append(_unbroadcast(live, shape))
        return found
    if is_pointwise(node) or name in ("where", "masked_fill", "clamp"):
        return [_unbroadcast(first, shape) for shape in shapes]
    if name in ("index_add", "scatter_add", "scatter_reduce") and first.numel():
        return _scattered_backward(node, first, value, wanted)
    if name in ("max_pool2d_with_indices", "avg_pool2d", "max_pool2d", "_adaptive_avg_pool2d"):
        return [torch.nn.functional.interpolate(first, shape[-2:], mode="nearest") for shape in shapes]
    top = max((float(p.max()) if p.numel() else NONE) for p in parts)
    return [torch.full(shape, top, dtype=torch.float64) for shape in shapes]


def _spread(part: Tensor, dims: list[int], shape: tuple[int, ...]) -> Tensor:
    if tuple(part.shape) == shape:
        return (part.amax(dims, keepdim=True) if dims else part).expand(shape)
    if part.dim() != len(shape):
        kept = [1 if d in dims else size for d, size in enumerate(shape)]
        if part.numel() == torch.Size(kept).numel():
            return part.reshape(kept).expand(shape)
        return part.amax().expand(shape)
    return part.amax(dims, keepdim=True).expand(shape) if dims else part


_KEEP_ORDER = {
    "view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "clone", "alias", "detach", "contiguous",
    "lift_fresh_copy",
}  # fmt: skip
"""Layout operations after which every element is where it was in a line of all elements."""


def _turned_back(node: fx.Node, name: str, reach: Tensor) -> Tensor:
    """The result of a transposition as it was before."""
    if name == "t":
        return reach.t()
    if name == "transpose":
        return reach.transpose(*args_of(node)[1:3])
    dims = [d % reach.dim() for d in args_of(node)[1]]
    return reach.permute([dims.index(d) for d in range(len(dims))])


def _layout_backward(node: fx.Node, reach: Any, value: Callable[[fx.Node], Any], wanted: list[fx.Node]) -> list[Tensor]:
    """Scatter what the result reaches back along the movement, found by moving element numbers."""
    name = _name(node)
    if name == "view_as_complex":
        return [reach.unsqueeze(-1).expand(*reach.shape, 2)]
    if name == "view_as_real":
        return [reach.amax(-1)]
    if name in ("_to_copy", "_conj", "resolve_conj"):
        return [reach]
    if name in _KEEP_ORDER:
        return [reach.reshape(_shape(value(a))) for a in wanted]
    if name in ("transpose", "t", "permute"):
        return [_turned_back(node, name, reach) for _ in wanted]
    if _accumulates(node):
        base, places, added = args_of(node)[:3]
        at = _places(reach, [None if p is None else value(p) for p in places])
        back = {base: reach, added: _unbroadcast(reach.reshape(-1)[at], _shape(value(added)))}
        return [back.get(a, torch.full(_shape(value(a)), float(reach.max()), dtype=torch.float64)) for a in wanted]
    offset = 1
    index: dict[fx.Node, Tensor] = {}
    for argument in tensor_arguments(node):
        x = value(argument)
        if argument in index or not isinstance(x, Tensor):
            continue
        if x.is_floating_point() or x.is_complex() or not index:
            index[argument] = torch.arange(offset, offset + x.numel()).reshape(x.shape)
            offset += x.numel()
        else:
            index[argument] = x
    moved = layout_result(node, lambda a: index[a])
    flat = torch.zeros(offset, dtype=torch.float64)
    several = isinstance(moved, (tuple, list))
    # A tuple of parts may end early: parts that nothing reads are not reached.
    for numbers, part in itertools.zip_longest(moved, reach) if several else [(moved, reach)]:
        if part is not None:
            flat.scatter_reduce_(0, numbers.reshape(-1), part.reshape(-1), "amax")
    top = float(flat.max())
    # What is moved where may depend on activations too (routing): an index reaches whatever is reached at all.
    return [
        flat[index[a].reshape(-1)].reshape(index[a].shape)
        if value(a).is_floating_point() or value(a).is_complex() or a is next(iter(index))
        else torch.full(index[a].shape, top, dtype=torch.float64)
        for a in wanted
    ]
