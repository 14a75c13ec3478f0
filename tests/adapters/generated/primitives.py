"""Linear maps, norms and activations, each written in one of several ways."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.adapters.generated.spec import Norm
from tests.adapters.generated.spelling import Spelling

__all__ = ["Part", "activation", "linear", "maps", "norm", "parameter"]


@overload
def parameter(value: Tensor) -> nn.Parameter: ...


@overload
def parameter(value: None) -> None: ...


def parameter(value: Tensor | None) -> nn.Parameter | None:
    return None if value is None else nn.Parameter(value.contiguous(), requires_grad=False)


class Linear(nn.Module):
    """A linear map of the last axis."""

    def __init__(self, way: str, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.way, (outputs, inputs) = way, weight.shape
        self.weight: Any = None
        self.bias = parameter(None if bias is None else bias[None] if way == "matrix, bias apart" else bias)
        if way in ("matrix", "matrix, bias apart", "addmm", "einsum"):
            self.weight = parameter(weight.t())
        elif way == "convolution":
            self.weight = parameter(weight[..., None])
        elif way == "columns apart":
            first, second = weight.split([inputs // 3 + 1, inputs - inputs // 3 - 1], 1)
            self.first, self.second = parameter(first), parameter(second)
        elif way == "rows apart":
            self.parts = nn.ParameterList(map(parameter, weight.split(outputs // 2 + 1)))
        elif way == "weight norm":
            self.length = parameter(weight.norm(dim=1, keepdim=True))
            self.direction = parameter(weight * torch.linspace(0.5, 2, outputs, dtype=weight.dtype)[:, None])
        elif way == "low rank":
            up, down = weight[:, :2] + 0.1, weight[:2] - 0.1
            self.up, self.down = parameter(up), parameter(down)
            self.weight = parameter(weight - 0.5 * up @ down)
        else:
            self.weight = parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        match self.way:
            case "addmm" if self.bias is not None:
                return torch.addmm(self.bias, flat, self.weight).view(*x.shape[:-1], -1)
            case "matrix" | "matrix, bias apart" | "addmm":
                y = x @ self.weight
            case "einsum":
                y = torch.einsum("...i,io->...o", x, self.weight)
            case "convolution":
                return F.conv1d(flat.t()[None], self.weight, self.bias)[0].t().reshape(*x.shape[:-1], -1)
            case "columns apart":
                width = self.first.shape[1]
                y = F.linear(x[..., :width], self.first) + F.linear(x[..., width:], self.second)
            case "rows apart":
                y = torch.cat([F.linear(x, part) for part in self.parts], -1)
            case "weight norm":
                lengths = self.direction.norm(dim=1, keepdim=True)
                return F.linear(x, self.direction * (self.length / lengths), self.bias)
            case "low rank":
                y = F.linear(x, self.weight) + 0.5 * F.linear(F.linear(x, self.down), self.up)
            case _:
                return F.linear(x, self.weight, self.bias)
        return y if self.bias is None else y + self.bias


PLAIN = ("linear", "matrix", "addmm", "convolution", "einsum", "matrix, bias apart")
CUT = (*PLAIN, *PLAIN, "columns apart", "rows apart")
COMPUTED = ("weight norm", "low rank")


def written(spelling: Spelling, path: str, weight: Tensor, bias: Tensor | None) -> Linear:
    """A linear map in one of the ways; in modules of their own, parameters may be computed from others."""
    ways = PLAIN if len(weight) < 3 else (*CUT, *COMPUTED) if spelling.storage == "modules" else CUT
    return Linear(spelling.choose(f"{path} way", *ways), weight, bias)


class Scaled(nn.Module):
    """A map whose outputs are multiplied by gains."""

    def __init__(self, inner: nn.Module, gain: Tensor) -> None:
        super().__init__()
        self.inner, self.gain = inner, parameter(gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.gain


def linear(
    spelling: Spelling,
    path: str,
    inputs: int,
    outputs: int,
    *,
    bias: bool = True,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    gain: bool = False,
) -> nn.Module:
    """A linear map.

    Args:
        spelling: How to write it, and its numbers.
        path: What it means.
        inputs, outputs: Widths.
        bias: Whether it has one.
        rows, columns: Which of the features, as they are meant, lies at each place; by default, in order.
        gain: Whether each feature of the result has a factor of its own.
    """
    weight = spelling.values.weight(path, outputs, inputs)
    offset = spelling.values.bias(f"{path} bias", outputs) if bias else None
    factor = spelling.values.gain(f"{path} gain", outputs) if gain else None
    folded = factor is not None and spelling.choose(f"{path} gain", "apart", "in the weight") == "in the weight"
    if factor is not None and folded:
        weight, offset = weight * factor[:, None], None if offset is None else offset * factor
    if rows is not None:
        weight, offset = weight[rows], None if offset is None else offset[rows]
        factor = None if factor is None else factor[rows]
    if columns is not None:
        weight = weight[:, columns]
    inner = written(spelling, path, weight, offset)
    return inner if factor is None or folded else Scaled(inner, factor)


@dataclass(frozen=True)
class Part:
    """One of several linear maps of the same data, to `count` × `size` features; `rows` as in `linear`."""

    name: str
    count: int
    size: int
    bias: bool = True
    rows: Tensor | None = field(default=None, compare=False)

    @property
    def width(self) -> int:
        return self.count * self.size


class Maps(nn.Module):
    """Several linear maps of the same data, from one matrix or more; each result is (..., count, size).

    Args:
        maps: One map for each part, or one for all.
        parts: What to return.
        order: The order of the parts within the joined map.
        layout: How the joined map's outputs are laid out: `"joined"`, `"by head"`, `"by group"` or `"by feature"`.
    """

    def __init__(self, maps: list[nn.Module], parts: list[Part], order: list[int], layout: str) -> None:
        super().__init__()
        self.maps, self.parts, self.order, self.layout = nn.ModuleList(maps), parts, order, layout

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.layout == "split":
            return [
                one(x).unflatten(-1, (part.count, part.size)) for one, part in zip(self.maps, self.parts, strict=True)
            ]
        return self.cut(self.maps[0](x))

    def cut(self, joined: Tensor) -> list[Tensor]:
        """The parts of a joined result."""
        parts = [self.parts[place] for place in self.order]
        groups = min(part.count for part in parts)
        if self.layout == "joined":
            found = list(joined.split([part.width for part in parts], -1))
        elif self.layout == "by feature":
            found = list(joined.unflatten(-1, (parts[0].width, len(parts))).unbind(-1))
        elif self.layout == "by head":
            found = list(joined.unflatten(-1, (parts[0].count, len(parts), parts[0].size)).unbind(-2))
        else:
            shares = [part.width // groups for part in parts]
            found = [one.flatten(-2) for one in joined.unflatten(-1, (groups, -1)).split(shares, -1)]
        found = [one.reshape(*joined.shape[:-1], part.count, part.size) for one, part in zip(found, parts, strict=True)]
        return [found[self.order.index(place)] for place in range(len(parts))]


def maps(spelling: Spelling, path: str, inputs: int, parts: list[Part]) -> Maps:
    """Several linear maps of the same data, in one or apart."""
    groups = min(part.count for part in parts)
    layouts = ["split", "joined"]
    if all(part.width == parts[0].width for part in parts):
        layouts.append("by feature")
    if groups > 1 and len({(part.count, part.size) for part in parts}) == 1:
        layouts.append("by head")
    if groups > 1 and all(part.count % groups == 0 for part in parts):
        layouts.append("by group")
    layout = spelling.choose(f"{path} layout", *layouts)
    names = [f"{path} {part.name}" for part in parts]
    if layout == "split":
        each = [
            linear(spelling, name, inputs, part.width, bias=part.bias, rows=part.rows)
            for name, part in zip(names, parts, strict=True)
        ]
        return Maps(each, parts, [], layout)
    order, rest = [], list(range(len(parts)))
    while rest:
        order.append(rest.pop(spelling.choose(f"{path} part {len(order)}", *range(len(rest)))))
    total = sum(part.width for part in parts)
    weight, bias = torch.empty(total, inputs, dtype=torch.float64), torch.zeros(total, dtype=torch.float64)
    whole = Maps([], parts, order, layout)
    for name, part, places in zip(names, parts, whole.cut(torch.arange(total)), strict=True):
        rows = torch.arange(part.width) if part.rows is None else part.rows
        weight[places.flatten()] = spelling.values.weight(name, part.width, inputs)[rows]
        if part.bias:
            bias[places.flatten()] = spelling.values.bias(f"{name} bias", part.width)[rows]
    whole.maps.append(written(spelling, path, weight, bias if any(part.bias for part in parts) else None))
    return whole


class Normalised(nn.Module):
    """A norm of the last axis."""

    def __init__(self, spec: Norm, way: str, gain: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.spec, self.way = spec, way
        self.gain, self.bias = parameter(gain - 1 if way == "less one" else gain), parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        eps, layer = self.spec.eps, self.spec.kind == "layer"
        if self.way == "library":
            if layer:
                return F.layer_norm(x, x.shape[-1:], self.gain, self.bias, eps)
            return F.rms_norm(x, x.shape[-1:], self.gain, eps)
        if self.way == "less one":
            y = F.layer_norm(x, x.shape[-1:], eps=eps) if layer else F.rms_norm(x, x.shape[-1:], eps=eps)
            y = y * (1 + self.gain)
        elif self.way == "by hand":
            centred = x - x.mean(-1, keepdim=True) if layer else x
            y = self.gain * (centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps))
        else:
            centred = x - x.sum(-1, keepdim=True) / x.shape[-1] if layer else x
            y = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * self.gain
        return y if self.bias is None else y + self.bias


def norm(spelling: Spelling, path: str, spec: Norm, width: int, order: Tensor | None = None) -> nn.Module:
    """A norm with gains and, if it is a layer norm, biases; `order` as `rows` in `linear`."""
    gain = spelling.values.gain(f"{path} gain", width)
    bias = spelling.values.bias(f"{path} bias", width) if spec.kind == "layer" else None
    if order is not None:
        gain, bias = gain[order], None if bias is None else bias[order]
    return Normalised(spec, spelling.choose(path, "library", "by hand", "by hand, divided", "less one"), gain, bias)


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "gelu": (F.gelu, lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))),
    "gelu-tanh": (
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: x / 2 * (torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)) + 1),
    ),
    "relu": (F.relu, lambda x: x.clamp(min=0), lambda x: torch.where(x > 0, x, 0.0)),
    "silu": (F.silu, lambda x: x * x.sigmoid(), lambda x: x / (1 + (-x).exp())),
    "tanh": (torch.tanh, lambda x: 2 * (2 * x).sigmoid() - 1),
    "sigmoid": (torch.sigmoid, lambda x: 1 / (1 + (-x).exp()), lambda x: 0.5 * (torch.tanh(x / 2) + 1)),
    "relu squared": (lambda x: x.relu().square(), lambda x: x * x.relu()),
    "leaky relu": (lambda x: F.leaky_relu(x, 0.1), lambda x: torch.maximum(x, 0.1 * x)),
}


def activation(spelling: Spelling, path: str, kind: str) -> Callable[[Tensor], Tensor]:
    ways = ACTIVATIONS[kind]
    return ways[spelling.choose(path, *range(len(ways)))]
