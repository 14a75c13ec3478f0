"""Contractions of data with a parameter, matrix products and convolutions alike: how data, operand and result are laid out."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from pyrosys.adapters.hashing import in_blocks
from pyrosys.adapters.layout import blocks, elements_of
from pyrosys.adapters.nodes import args_of
from pyrosys.errors import CaptureError

__all__ = ["Contraction"]

aten = torch.ops.aten


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

    def as_rows(self, colours: Tensor) -> Tensor:
        """(distinct group, feature) colours in the shape that broadcasts against the result."""
        one = colours.shape[0] == 1
        colours = colours.expand(len(self.group_index), -1) if one else colours[self.group_index]
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

    def sums(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """`reduce` of a pointwise function of the data."""
        if self.convolution:
            return self.reduce(function(x))
        axis = x.dim() - (1 if self.data_first else 2)
        shape = tuple(1 if d == axis else size for d, size in enumerate(x.shape))
        return in_blocks(lambda part: self.reduce(function(part)), shape, x)

    def expand(self, totals: tuple[Tensor, Tensor], numbers: tuple[Tensor, Tensor]) -> Tensor:
        """Result rows from two sums, each with one number per feature."""
        total, other = (self.expand_sketch(t) for t in totals)
        return (total * self.as_rows(numbers[0])).addcmul_(other, self.as_rows(numbers[1]))

    def project(self, gradient: Tensor, numbers: Tensor) -> Tensor:
        """Sum over features of gradient times a number per feature, in the shape of `reduce`'s result."""
        if self.convolution:
            weighted = gradient * self.as_rows(numbers)
            n, _, *rest = weighted.shape
            return weighted.reshape(n, self.groups, self.features, *rest).sum(2)
        found = torch.bmm(self.result_grid(gradient), numbers[self.group_index].unsqueeze(-1))
        found = found if self.data_first else found.transpose(-1, -2)
        return found if gradient.dim() == 3 else found.squeeze(0)

    def spread(self, total: Tensor, x: Tensor) -> Tensor:
        """The transpose of `reduce`."""
        if not self.convolution:
            return total.expand(x.shape)
        with torch.enable_grad():
            z = torch.zeros(x.shape, dtype=x.dtype, requires_grad=True)
            return torch.autograd.grad(self.reduce(z), z, total)[0]

    def per_feature(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        """Sums of a result-shaped tensor over everything but features, (distinct group, feature, weight).

        Args:
            x: the tensor.
            weights: what the rows of `x` are weighted by, each of the shape of `reduce`'s result.
        """
        if self.convolution:
            rows = torch.stack([w.transpose(0, 1).reshape(self.groups, -1) for w in weights], 1)
        else:
            rows = torch.cat([self.result_grid(w) for w in weights], -1).mT
        by_group = torch.bmm(rows, self.result_grid(x)).mT
        found = torch.zeros(self.distinct_groups, self.features, len(weights), dtype=x.dtype)
        return found.index_add_(0, self.group_index, by_group)

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
