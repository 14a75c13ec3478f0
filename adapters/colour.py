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

import torch
from torch import Tensor, fx

from pyrosys.adapters.capture import Capture
from pyrosys.adapters.layout import Elements, blocks, elements_of
from pyrosys.adapters.nodes import args_of
from pyrosys.adapters.operations import (
    NONE,
    backward_dependence,
    forward_dependence,
    is_layout,
    is_pointwise,
    layout_result,
    run_node,
    tensor_arguments,
)
from pyrosys.errors import CaptureError

__all__ = ["DEAD", "Colouring", "Family", "Place", "mix"]

aten = torch.ops.aten
_HASH_BITS = 42
_MASK = (1 << _HASH_BITS) - 1
_ELEMENTWISE_LIMIT = 1 << 24
SIGNATURE = 4
"""Numbers per element in the numeric stream."""


def mix(*parts: Any) -> Tensor:
    """A 62-bit hash of integer tensors that broadcast together (splitmix64 finaliser, Steele et al. 2014)."""
    total = torch.zeros((), dtype=torch.int64)
    for part in parts:
        x = torch.as_tensor(part, dtype=torch.int64)
        total = total * 6364136223846793005 + x + 1442695040888963407
        total = (total ^ ((total >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
        total = (total ^ ((total >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
        total = total ^ ((total >> 31) & 0x1FFFFFFFF)
    return total & 0x3FFFFFFFFFFFFFFF


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
    return torch.sin(1.3 * x) + 0.05 * (torch.cos(2.1 * x) - 1)


def _smooth_too(x: Tensor) -> Tensor:
    return torch.sin(2.3 * x) - 0.05 * (torch.cos(1.1 * x) - 1)


def _modulation(x: Tensor) -> Tensor:
    return 1 + 0.5 * torch.sin(1.7 * x + 0.3)


def deepen(sketch: Tensor, *parts: Any) -> Tensor:
    """One level deeper: depth in the high bits so that the deepest chain wins a maximum, a hash below."""
    whole = sketch.to(torch.int64)
    depth = (whole >> _HASH_BITS) + 1
    return ((depth << _HASH_BITS) | (mix(whole, *parts) & _MASK)).to(torch.float64)


@dataclasses.dataclass(frozen=True)
class Place:
    """One use of one parameter operand.

    Attributes:
        kind: `"contract"`, `"look up"` or `"elements"`.
        node: the consuming node (contraction, look-up, decoration, or first node that takes the operand as data).
        operand: the parameter-only node it takes.
        source: for `"elements"`, the placeholder whose elements are coloured.
    """

    kind: str
    node: fx.Node
    operand: fx.Node
    source: Any = None
    operation: str = ""

    @property
    def scope(self) -> str:
        return self.node.meta.get("scope", "")


@dataclasses.dataclass
class Family:
    """Colours of one place: `features` for columns or elements, `rows` for the rows of a look-up table."""

    features: Tensor
    rows: Any = None


_UNSEEN = 1e-13  # of the largest gradient: what rounding leaves of one that is zero

DEAD = 0
"""The colour of elements that no output depends on."""


class Contraction:
    """Geometry of one contraction of data with a parameter: sums over the contracted positions, and their transposes.

    The parameter operand is addressed as (group, contracted, feature).
    """

    def __init__(self, node: fx.Node, data: fx.Node, operand: fx.Node, data_first: bool):
        self.node = node
        self.data = data
        self.operand = operand
        self.data_first = data_first
        self.convolution = node.target is aten.convolution.default
        shape = tuple(operand.meta["shape"])
        if self.convolution:
            self.groups = int(args_of(node)[8])
            self.features = shape[0] // self.groups
            self.kernel = shape[2:]
            if args_of(node)[6]:
                raise CaptureError(
                    f"Transposed convolution in {node.meta.get('scope')!r} is not covered by the engine yet."
                )
        else:
            self.groups = shape[0] if len(shape) == 3 else 1
            self.features = shape[-1] if data_first else shape[-2]
        self.elements = elements_of(operand)
        self.blocks = blocks(self.elements, self)
        _, self.group_index = torch.unique(self.blocks[0].groups, return_inverse=True)
        self.distinct_groups = int(self.group_index.max()) + 1 if self.groups else 0

    def grid_lines(self, lines: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Element numbers along (group, contracted, feature), from those along the operand's dimensions."""
        if self.convolution:
            rows = lines[0].reshape(self.groups, -1)
            contracted = lines[1]
            for line in lines[2:]:
                contracted = (contracted[:, None] + line[None, :]).reshape(-1)
            return rows[:, 0], contracted, rows[0] - rows[0, 0]
        head = lines[0] if len(lines) == 3 else torch.zeros(1, dtype=torch.int64)
        return (head, lines[-2], lines[-1]) if self.data_first else (head, lines[-1], lines[-2])

    def operand_grid(self, operand: Tensor) -> Tensor:
        """The operand as (group, contracted, feature)."""
        if self.convolution:
            return operand.reshape(self.groups, self.features, -1).transpose(1, 2)
        grid = operand if self.data_first else operand.transpose(-1, -2)
        return grid if grid.dim() == 3 else grid.unsqueeze(0)

    def _as_rows(self, colours: Tensor) -> Tensor:
        """(distinct group, feature) colours in the shape that broadcasts against the result."""
        colours = colours[self.group_index]
        if self.convolution:
            return colours.reshape(1, -1, *([1] * len(self.kernel)))
        line = colours.unsqueeze(-2) if self.data_first else colours.unsqueeze(-1)
        return line if len(self.operand.meta["shape"]) == 3 else line.squeeze(0)

    def reduce(self, x: Tensor) -> Tensor:
        """Sum over the contracted positions, keeping a feature axis of size one (one per group for convolutions)."""
        if not self.convolution:
            return x.sum(-1 if self.data_first else -2, keepdim=True)
        channels = x.shape[1] // self.groups
        ones = torch.ones(self.groups, channels, *self.kernel, dtype=x.dtype)
        return aten.convolution.default(x, ones, None, *args_of(self.node)[3:8], self.groups)

    def expand(self, total: Tensor, numbers: Tensor) -> Tensor:
        """Result rows from the sums and one number per feature."""
        if self.convolution and self.groups > 1:
            total = total.repeat_interleave(self.features, 1)
        return total * self._as_rows(numbers)

    def project(self, gradient: Tensor, numbers: Tensor) -> Tensor:
        """Sum over features of gradient times a number per feature, in the shape of `reduce`'s result."""
        weighted = gradient * self._as_rows(numbers)
        if not self.convolution:
            return weighted.sum(-1 if self.data_first else -2, keepdim=True)
        n, _, *rest = weighted.shape
        return weighted.reshape(n, self.groups, self.features, *rest).sum(2)

    def spread(self, total: Tensor, x: Tensor) -> Tensor:
        """The transpose of `reduce`."""
        if not self.convolution:
            return total.expand(x.shape)
        with torch.enable_grad():
            z = torch.zeros(x.shape, dtype=x.dtype, requires_grad=True)
            return torch.autograd.grad(self.reduce(z), z, total)[0]

    def per_feature(self, x: Tensor) -> Tensor:
        """Sum of a result-shaped tensor over everything but features: (distinct group, feature)."""
        by_group = self.result_grid(x).sum(1)
        return torch.zeros(self.distinct_groups, self.features, dtype=x.dtype).index_add_(0, self.group_index, by_group)

    def per_feature_max(self, x: Tensor) -> Tensor:
        """Largest element of a result-shaped tensor per (distinct group, feature)."""
        by_group = self.result_grid(x).amax(1)
        index = self.group_index.unsqueeze(1).expand(by_group.shape)
        return torch.zeros(self.distinct_groups, self.features, dtype=x.dtype).scatter_reduce_(
            0, index, by_group, "amax"
        )

    def deepest_input(self, sketch: Tensor) -> Tensor:
        """Largest sketch over the contracted positions, in the shape of `reduce`'s result."""
        if not self.convolution:
            return sketch.amax(-1 if self.data_first else -2, keepdim=True)
        windows = self.windows(sketch)
        return windows.amax(2).reshape(*windows.shape[:2], *self._positions(sketch))

    def deepest_output(self, sketch: Tensor) -> Tensor:
        """Largest of a result-shaped sketch over features, in the shape of `reduce`'s result."""
        if not self.convolution:
            return sketch.amax(-1 if self.data_first else -2, keepdim=True)
        n, _, *rest = sketch.shape
        return sketch.reshape(n, self.groups, self.features, *rest).amax(2)

    def expand_sketch(self, total: Tensor) -> Tensor:
        if self.convolution and self.groups > 1:
            return total.repeat_interleave(self.features, 1)
        return total

    def _positions(self, x: Any) -> tuple[int, ...]:
        return tuple(self.node.meta["shape"][2:])

    def windows(self, x: Tensor) -> Tensor:
        """Data as (batch, group, contracted, position) for convolutions; zero outside."""
        stride, padding, dilation = (_per_dimension(args_of(self.node)[i], len(self.kernel)) for i in (3, 4, 5))
        index = self._window_index(tuple(x.shape), stride, padding, dilation)
        n, channels = x.shape[:2]
        flat = torch.cat([x.reshape(n, channels, -1), torch.zeros(n, channels, 1, dtype=x.dtype)], -1)
        taps = flat[:, :, index]  # (batch, channel, tap, position)
        return taps.reshape(n, self.groups, -1, index.shape[-1])

    def _window_index(self, shape: Any, stride: Any, padding: Any, dilation: Any) -> Tensor:
        """(tap, position) -> flat input position, or the one past the end for padding."""
        size = shape[2:]
        index = torch.zeros(1, 1, dtype=torch.int64)
        valid = torch.ones(1, 1, dtype=torch.bool)
        for extent, kernel, s, p, d, out in zip(
            size, self.kernel, stride, padding, dilation, self._positions(None), strict=True
        ):
            line = torch.arange(out) * s - p + (torch.arange(kernel) * d).unsqueeze(1)
            inside = (line >= 0) & (line < extent)
            index = _outer(index * extent, line)
            valid = _outer(valid.to(torch.int64), inside.to(torch.int64), product=True).bool()
        return torch.where(valid, index, int(torch.Size(size).numel()))

    def spread_sketch(self, total: Tensor, x: Tensor) -> Tensor:
        """Largest of `total` over the windows that hold each data element."""
        if not self.convolution:
            return total.expand(x.shape)
        stride, padding, dilation = (_per_dimension(args_of(self.node)[i], len(self.kernel)) for i in (3, 4, 5))
        index = self._window_index(tuple(x.shape), stride, padding, dilation)
        n, channels = x.shape[:2]
        area = int(torch.Size(x.shape[2:]).numel())
        flat = torch.zeros(n, self.groups, area + 1, dtype=total.dtype)
        values = total.reshape(n, self.groups, 1, -1).expand(n, self.groups, *index.shape).reshape(n, self.groups, -1)
        flat.scatter_reduce_(2, index.reshape(1, 1, -1).expand(n, self.groups, -1), values, "amax")
        grouped = flat[..., :area].repeat_interleave(channels // self.groups, 1)
        return grouped.reshape(x.shape)

    def data_grid(self, x: Tensor) -> Tensor:
        """Data as (group, position, contracted)."""
        if self.convolution:
            windows = self.windows(x)
            return windows.permute(1, 0, 3, 2).reshape(self.groups, -1, windows.shape[2])
        grid = x if self.data_first else x.transpose(-1, -2)
        return grid if grid.dim() == 3 else grid.unsqueeze(0)

    def result_grid(self, y: Tensor) -> Tensor:
        """A result-shaped tensor as (group, position, feature)."""
        if self.convolution:
            by_group = y.reshape(y.shape[0], self.groups, self.features, -1)
            return by_group.permute(1, 0, 3, 2).reshape(self.groups, -1, self.features)
        grid = y if self.data_first else y.transpose(-1, -2)
        return grid if grid.dim() == 3 else grid.unsqueeze(0)


def _per_dimension(value: Any, rank: int) -> list[int]:
    values = list(value)
    return values if len(values) == rank else values * rank


def _outer(a: Tensor, b: Tensor, product: bool = False) -> Tensor:
    """Combine (taps, positions) tables of two dimensions into one table over their products."""
    left, right = a[:, None, :, None], b[None, :, None, :]
    both = left * right if product else left + right
    return both.reshape(a.shape[0] * b.shape[0], a.shape[1] * b.shape[1])


class _Contract(torch.autograd.Function):
    """The coloured contraction; its backward is a colour rule of its own, not a derivative."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        geometry: Contraction,
        numbers: tuple[Tensor, Tensor],
        back: Tensor,
        record: dict[str, Any],
        spread: float,
    ) -> Tensor:
        total, other = geometry.reduce(_smooth(x)) / spread, geometry.reduce(_smooth_too(x)) / spread
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
        return ctx.geometry.spread(projected, x) * _modulation(x), None, None, None, None, None


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


_DECORATIONS: dict[Any, bool] = {
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
    if _DECORATIONS[node.target]:
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

    def restrict(self, outputs: list[fx.Node]) -> None:
        """Keep only what these outputs depend on."""
        needed = set(outputs)
        for node in reversed(list(self.capture.graph.nodes)):
            if node in needed:
                needed.update(node.all_input_nodes)
        self.capture = dataclasses.replace(self.capture, outputs=outputs)
        self.nodes = [n for n in self.nodes if n in needed]
        self.places = [p for p in self.places if p.node in needed]
        self.constants = {n: v for n, v in self.constants.items() if n in needed}

    @property
    def widest(self) -> int:
        """Most terms that a contraction sums over."""
        contractions = [self.role[p.node][1] for p in self.places if p.kind == "contract"]
        return max((sum(len(b.contracted) for b in c.blocks) for c in contractions), default=1)

    def reached(self) -> set[str]:
        """Names of tensors that the outputs depend on."""
        return {s.meta["parameter"] for place in self.places for s in self.sources(place.operand)}

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
        if node.target in _DECORATIONS and len(inputs) == 2 and len(pure) == 1:
            other = inputs[0] if inputs[1] in self.pure else inputs[1]
            divided = node.target is aten.div.Tensor and inputs[0] in self.pure
            if other not in self.leaf_sums and self._is_data(other) and not divided:
                self.role[node] = ("decorate", other, pure[0])
                self.neutral[node] = _neutral(node, pure[0])
                self._elements(node, pure[0], "gain" if _DECORATIONS[node.target] else "bias")
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
            elements = elements_of(operand)
            rows = _rows_of_table(elements)
            if rows is None or not (other in self.leaf_sums or self._by_position(rows, other)):
                continue
            if operand.op == "placeholder":
                operand = self._alias(operand, node)
            self.pure.remove(operand)
            self.role[operand] = ("look up", rows, elements.roots[0], True)
            self.places.append(Place("look up", operand, elements.roots[0]))
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
        features = self._features(data, {})
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

    def _features(self, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        """For each element of a node, which feature of the contraction before it it is; -1 where there is none."""
        if node not in known:
            known[node] = self._find_features(node, known)
        return known[node]

    def _find_features(self, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        role, shape = self.role.get(node, ("plain",)), tuple(node.meta.get("shape", ()))
        if role[0] == "contract":
            numbers = torch.arange(role[1].distinct_groups * role[1].features, dtype=torch.float64)
            return role[1]._as_rows(numbers.reshape(role[1].distinct_groups, -1)).expand(shape)
        none = torch.full(shape, -1.0, dtype=torch.float64)
        if role[0] == "look up" or node in self.pure or node in self.constants:
            return none
        if node.target is operator.getitem or is_layout(node):
            return layout_result(node, lambda a: self._features(a, known)) if is_layout(node) else none
        if role[0] == "decorate" or is_pointwise(node):
            found = [self._features(a, known) for a in tensor_arguments(node)]
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


def _rows_of_table(elements: Elements) -> Tensor | None:
    """Which rows of its parameter an operand holds, when that is several whole rows of a table, and nothing else."""
    (root, *more), plain = elements.roots, (elements.scale, elements.shift) == (1.0, 0.0)
    if more or root.op != "placeholder" or not plain or elements.strided is None:
        return None
    table = [n for n in root.meta["shape"] if n != 1]
    offset, size, stride = elements.strided
    if len(table) != 2 or not size or size[-1] != table[1] or stride[-1] != 1 or offset % table[1]:
        return None
    if any(s % table[1] for n, s in zip(size[:-1], stride[:-1], strict=True) if n > 1):
        return None
    rows = dataclasses.replace(elements, strided=(offset, size[:-1], stride[:-1])).numbers() // table[1]
    return rows if len(torch.unique(rows)) > 1 else None


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
        self.salt = salt
        self.others = others
        self.families = {place: self._blank(place) for place in structure.places}
        self.values: dict[fx.Node, Any] = {}
        self.sketches: dict[fx.Node, Any] = {}
        self.streams: dict[Place, Streams] = {}
        self._varying: dict[fx.Node, Any] = {}
        self.records: dict[fx.Node, dict[str, Any]] = {}

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
                "what to compute by its activations, as a mixture of experts does, which the engine does not follow. Use an "
                "implementation that computes every expert."
            ) from error

    def _run(self) -> dict[Place, Streams]:
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
        self.records = {}
        by_node: dict[fx.Node, list[Place]] = {}
        for place in structure.places:
            by_node.setdefault(place.node, []).append(place)
        with torch.enable_grad():
            for node in structure.nodes:
                if node in structure.pure:
                    continue
                role = structure.role.get(node, ("plain",))
                for place in by_node.get(node, ()):
                    if place.kind == "elements":
                        leaves[place] = _uniform(self.families[place].features, 11 + self.salt).requires_grad_()
                if role[0] == "contract":
                    values[node] = self._contract(node, role[1], values)
                elif role[0] == "look up":
                    values[node] = self._look_up(node, role, values)
                else:
                    mine = {p.source: leaves[p] for p in by_node.get(node, ())}
                    for operand in {p.operand for p in by_node.get(node, ())}:
                        operands[node, operand] = self._materialise(operand, mine, values)
                    if role[0] == "decorate":
                        parameter = operands[node, role[2]]
                        values[node] = _Decorate.apply(
                            values[role[1]], parameter, _DECORATIONS[node.target], *structure.neutral[node]
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
        return _Contract.apply(x, geometry, numbers, back, record, self.spread)

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
            self._place_of = {p.node: p for p in self.structure.places if p.kind != "elements"}
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
                    colours = geometry._as_rows(self.families[self.place_of(node)].features)
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
                colours = geometry._as_rows(self.families[self.place_of(node)].features)
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
        geometry: Contraction = self.structure.role[place.node][1]
        record = self.records[place.node]
        y = self.values[place.node]
        gradient = record.get("gradient", torch.zeros(y.shape, dtype=torch.float64)).detach()
        total = record["total"].detach()
        numbers = []
        for m in range(SIGNATURE):
            weight = geometry.expand_sketch(torch.cos((0.9 + 0.8 * m) * total + 0.5 * m))
            numbers.append(torch.asinh(geometry.per_feature(gradient * weight)))
        reach = reaches.get(place.node)
        reach = torch.zeros(y.shape, dtype=torch.float64) if reach is None else reach
        joint = mix(sketches[place.node].to(torch.int64), reach.to(torch.int64))
        exact = geometry.per_feature_max(torch.where(reach == NONE, NONE, (joint & _MASK).to(torch.float64)))
        return Streams(exact.to(torch.int64), torch.stack(numbers, -1))

    def _look_up_streams(self, place: Place, reaches: Any) -> Streams:
        role, record, family = self.structure.role[place.node], self.records[place.node], self.families[place]
        gradient = self._anchor_gradient(place.node)
        reach = reaches.get(place.node)
        reach = torch.zeros(gradient.shape, dtype=torch.float64) if reach is None else reach
        if not role[3]:
            gradient, reach = gradient.transpose(-1, -2), reach.transpose(-1, -2)
        index = record["index"].reshape(-1)
        reach = reach.reshape(-1, reach.shape[-1])
        # Summed per row first: looking a row up once for all examples or once for each is the same.
        by_row = torch.zeros(family.rows.shape[0], gradient.shape[-1], dtype=torch.float64)
        by_row = torch.asinh(by_row.index_add_(0, index, gradient.reshape(-1, gradient.shape[-1])))
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

    def _anchor_gradient(self, node: fx.Node) -> Tensor:
        anchor = self.records[node]["anchor"]
        return torch.zeros_like(anchor) if anchor.grad is None else anchor.grad

    def _element_streams(self, place: Place, leaf: Tensor, sketches: Any, reaches: Any) -> Streams:
        assert place.source is not None
        role = self.structure.role[place.node]
        gradient = torch.asinh(self.gradients[place].detach()).unsqueeze(-1)
        shape = tuple(self.operands[place.node, place.operand].shape)
        if role[0] != "decorate":
            reach = reaches.get((place.node, place.operand), torch.zeros(shape, dtype=torch.float64))
            return Streams(self._reach_of_source(place, reach, leaf).to(torch.int64), gradient)
        here = reaches.get(place.node, torch.zeros(self.shape_of(place.node), dtype=torch.float64))
        below = sketches.get(role[1], torch.zeros(self.shape_of(role[1]), dtype=torch.float64)).expand(here.shape)
        below = torch.where(here == NONE, NONE, below)
        # Largest first and joint then: a gain before a sum sees the terms, a gain after it their sum.
        both = [self._reach_of_source(place, _largest_to(x, shape), leaf).to(torch.int64) for x in (below, here)]
        return Streams(torch.where(both[1] == int(NONE), 0, mix(*both) & _MASK), gradient)

    def _reach_of_source(self, place: Place, operand_reach: Tensor, leaf: Tensor) -> Tensor:
        """Carry what the operand reaches back to the elements of one placeholder."""
        shapes = {place.source: leaf.shape}
        reach: dict[Any, Any] = {place.operand: operand_reach}
        order = [n for n in self.structure.capture.graph.nodes if n in self.structure.pure]
        upstream = self._upstream(place.operand)
        for node in reversed([n for n in order if n in upstream]):
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
        return torch.zeros(shapes[place.source], dtype=torch.float64) if found is None else found

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


def _both(a: Tensor, b: Tensor) -> Tensor:
    return torch.where((a == 0) & (b == 0), 0, mix(a, b))


def _largest_to(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    while x.dim() > len(shape):
        x = x.amax(0)
    dims = [d for d, size in enumerate(shape) if size == 1 and x.shape[d] != 1]
    return x.amax(dims, keepdim=True) if dims else x
