"""What is added to the features in a step of a layer: attention, feed-forward, convolution, messages, triangles."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.adapters.generated import spec as specs
from tests.adapters.generated.primitives import Part, activation, linear, maps, norm, parameter
from tests.adapters.generated.spelling import Spelling

__all__ = ["branch"]

Given = dict[str, Tensor]
NEAREST = 4  # furthest distance that a table of relative positions tells from further ones


class Attention(nn.Module):
    """Takes (..., length, width) and, for the bias, features of pairs (..., length, length, pair_width).

    With groups of heads, head `h` of the queries belongs to group `h // share`, or to `h % groups` in a `strided` spelling. The
    features of a head that turn together are half a head apart, or neighbours.
    """

    frequency: Tensor
    slope: Tensor | None

    def __init__(
        self, spelling: Spelling, path: str, spec: specs.Attention, width: int, gain: bool, pairs: int
    ) -> None:
        super().__init__()
        self.spec, choose, values = spec, spelling.choose, spelling.values
        heads, groups, size = spec.heads, spec.groups, spec.size
        share = heads // groups
        self.strided = 1 < groups < heads and choose(f"{path} strided", False, True)
        order = torch.arange(heads)
        if self.strided:
            order = order.view(groups, share).t().flatten()
        within = torch.arange(size)
        self.rotation = "halves"
        if spec.positions == "rotary":
            self.rotation = choose(f"{path} rotation", "halves", "halves, turned", "neighbours", "complex")
            if self.rotation in ("neighbours", "complex"):
                within = within.view(2, -1).t().flatten()
            frequency = spec.base ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
            self.register_buffer("frequency", frequency, persistent=choose(f"{path} saved frequency", False, True))
        rows = (order[:, None] * size + within).flatten()
        plain = (order[:, None] * size + torch.arange(size)).flatten()
        keys = (torch.arange(groups)[:, None] * size + within).flatten()
        bias = spec.bias != "none"
        parts = [
            Part("query", heads, size, bias, rows),
            Part("key", groups, size, spec.bias == "all", keys),
            Part("value", groups, size, bias),
        ]
        if spec.gate:
            parts.append(Part("gate", heads, size, bias, plain))
        self.maps = maps(spelling, path, width, parts)
        self.norms = None
        if spec.query_norm:
            self.norms = nn.ModuleList(
                norm(spelling, f"{path} {name} norm", specs.Norm("rms", 1e-6), size, within)
                for name in ("query", "key")
            )
        self.table = self.pairs = None
        slope = None
        if spec.positions == "relative":
            self.table = parameter(values.table(f"{path} table", 2 * NEAREST + 1, heads)[:, order])
        if spec.positions == "linear":
            slope = (2.0 ** -(1 + torch.arange(heads, dtype=torch.float64)))[order]
        self.register_buffer("slope", slope, persistent=False)
        if spec.pairs:
            self.pairs = linear(spelling, f"{path} pairs", pairs, heads, bias=False, rows=order)
        self.outer = linear(spelling, f"{path} output", heads * size, width, bias=bias, columns=plain, gain=gain)
        self.scaling = choose(f"{path} scaling", "scores", "query", "key")
        self.masking = choose(f"{path} masking", "filled", "added", "where", "large")
        self.product = choose(f"{path} product", "matmul", "einsum", "library")
        self.sharing = choose(f"{path} sharing", "repeated", "expanded")

    def forward(self, x: Tensor, given: Given) -> Tensor:
        spec = self.spec
        query, key, value, *gate = (part.transpose(-3, -2) for part in self.maps(x))
        if self.norms is not None:
            query, key = self.norms[0](query), self.norms[1](key)
        if spec.positions == "rotary":
            query, key = self.turned(query), self.turned(key)
        share = spec.heads // spec.groups
        if share > 1:
            key, value = (self.shared(part, share) for part in (key, value))
        y = self.attend(query, key, value, self.bias(x, given))
        if gate:
            y = y * gate[0].sigmoid()
        return self.outer(y.transpose(-3, -2).flatten(-2))

    def shared(self, x: Tensor, share: int) -> Tensor:
        """Keys or values of the groups, for each head."""
        if self.sharing == "expanded":
            axis = -4 if self.strided else -3
            wide = x.unsqueeze(axis)
            sizes = [-1] * wide.ndim
            sizes[axis] = share
            return wide.expand(sizes).flatten(-4, -3)
        if self.strided:
            return torch.cat([x] * share, -3)
        return x.repeat_interleave(share, -3)

    def turned(self, x: Tensor) -> Tensor:
        """Rotary positions (Su et al. 2021)."""
        angle = torch.arange(x.shape[-2], device=x.device).to(x.dtype)[:, None] * self.frequency.to(x.dtype)
        if self.rotation == "complex":
            turn = torch.polar(torch.ones_like(angle), angle)
            return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)
        cos, sin = angle.cos(), angle.sin()
        if self.rotation == "halves, turned":
            a, b = x.chunk(2, -1)
            return x * torch.cat([cos, cos], -1) + torch.cat([-b, a], -1) * torch.cat([sin, sin], -1)
        a, b = x.chunk(2, -1) if self.rotation == "halves" else (x[..., 0::2], x[..., 1::2])
        turned = a * cos - b * sin, b * cos + a * sin
        return torch.cat(turned, -1) if self.rotation == "halves" else torch.stack(turned, -1).flatten(-2)

    def bias(self, x: Tensor, given: Given) -> Tensor | None:
        """What is added to the scores, the mask left aside."""
        length, bias = x.shape[-2], None
        places = torch.arange(length)
        apart = places - places[:, None]
        if self.table is not None:
            bias = self.table[(apart.clamp(-NEAREST, NEAREST) + NEAREST)].permute(2, 0, 1)
        if self.slope is not None:
            bias = -self.slope.to(x.dtype)[:, None, None] * apart.abs()
        if self.pairs is not None:
            mine = self.pairs(given["pairs"]).movedim(-1, -3)
            bias = mine if bias is None else bias + mine
        return bias

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        spec, length = self.spec, query.shape[-2]
        apart = torch.arange(length) - torch.arange(length)[:, None]
        seen = {"none": apart == apart, "causal": apart <= 0, "window": apart.abs() <= 2}[spec.mask]
        hidden = torch.zeros(length, length, dtype=query.dtype).masked_fill(~seen, -torch.inf)
        if self.product == "library" and spec.weights == "softmax" and spec.cap is None:
            mask = hidden if bias is None else bias + hidden
            if query.ndim > 4 and bias is not None:
                mask = mask.expand(*query.shape[:-2], length, length)
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=spec.scale)
        if self.scaling == "query":
            query = query * spec.scale
        if self.scaling == "key":
            key = spec.scale * key
        by_name = self.product == "einsum"
        scores = torch.einsum("...qd,...kd->...qk", query, key) if by_name else query @ key.transpose(-1, -2)
        if self.scaling == "scores":
            scores = scores * spec.scale
        if bias is not None:
            scores = scores + bias
        if spec.cap is not None:
            scores = torch.tanh(scores / spec.cap) * spec.cap
        if spec.mask != "none":
            match self.masking:
                case "filled":
                    scores = scores.masked_fill(~seen, -torch.inf)
                case "added":
                    scores = scores + hidden
                case "where":
                    scores = torch.where(seen, scores, -torch.inf)
                case _:
                    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1) if spec.weights == "softmax" else scores.sigmoid()
        return torch.einsum("...qk,...kd->...qd", weights, value) if by_name else weights @ value


class FeedForward(nn.Module):
    def __init__(self, spelling: Spelling, path: str, spec: specs.FeedForward, width: int, gain: bool) -> None:
        super().__init__()
        names = ("up", "gate") if spec.gated else ("up",)
        self.maps = maps(spelling, path, width, [Part(name, 1, spec.hidden, spec.bias) for name in names])
        self.activation = activation(spelling, f"{path} activation", spec.activation)
        self.outer = linear(spelling, f"{path} output", spec.hidden, width, bias=spec.bias, gain=gain)
        self.turned = spelling.choose(f"{path} product", False, True)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        up, *gate = (part.squeeze(-2) for part in self.maps(x))
        if not gate:
            return self.outer(self.activation(up))
        opened = self.activation(gate[0])
        return self.outer(opened * up if self.turned else up * opened)


class FrozenNorm(nn.Module):
    """Batch norm of the last axis with its statistics in parameters or buffers."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, spelling: Spelling, path: str, width: int) -> None:
        super().__init__()
        values = spelling.values
        self.way = spelling.choose(path, "library", "by hand", "buffers")
        found = {
            "weight": values.gain(f"{path} gain", width),
            "bias": values.bias(f"{path} bias", width),
            "running_mean": values.bias(f"{path} mean", width),
            "running_var": values.gain(f"{path} variance", width).abs() + 0.5,
        }
        for name, value in found.items():
            if self.way == "buffers" or name.startswith("running"):
                self.register_buffer(name, value)
            else:
                self.register_parameter(name, parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, variance = self.weight, self.bias, self.running_mean, self.running_var
        if self.way == "library":
            flat = x.reshape(-1, x.shape[-1])
            return F.batch_norm(flat, mean, variance, weight, bias).reshape(x.shape)
        if self.way == "by hand":
            return (x - mean) / (variance + 1e-5).sqrt() * weight + bias
        scale = weight * (variance + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


class Convolution(nn.Module):
    """Along the positions, from windows of them or by the library."""

    def __init__(self, spelling: Spelling, path: str, spec: specs.Convolution, width: int, gain: bool) -> None:
        super().__init__()
        self.spec, values = spec, spelling.values
        weight = values.weight(f"{path} kernel", spec.hidden, width, spec.kernel)
        bias = values.bias(f"{path} kernel bias", spec.hidden)
        self.norm = None
        if spec.batch_norm:
            folded = spelling.choose(f"{path} batch norm", "apart", "in the kernel") == "in the kernel"
            self.norm = FrozenNorm(spelling, f"{path} norm", spec.hidden)
            if folded:
                scale = self.norm.weight * (self.norm.running_var + 1e-5).rsqrt()
                weight, bias = weight * scale[:, None, None], (bias - self.norm.running_mean) * scale + self.norm.bias
                self.norm = None
        self.way = spelling.choose(f"{path} way", "library", "window, channel", "channel, window", "sum")
        form = {
            "library": weight,
            "window, channel": weight.transpose(1, 2).flatten(1),
            "channel, window": weight.flatten(1),
            "sum": weight.permute(2, 0, 1),
        }
        self.weight, self.bias = parameter(form[self.way]), parameter(bias)
        self.activation = activation(spelling, f"{path} activation", spec.activation)
        self.outer = linear(spelling, f"{path} output", spec.hidden, width, gain=gain)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        spec = self.spec
        beyond, step = spec.dilation * (spec.kernel - 1), spec.dilation
        before = beyond if spec.padding == "past" else beyond // 2
        mode = "replicate" if spec.padding == "copies" else "constant"
        padded = F.pad(x.transpose(-1, -2), (before, beyond - before), mode=mode)
        if self.way == "library":
            y = F.conv1d(padded, self.weight, self.bias, dilation=step).transpose(-1, -2)
        else:
            padded, length = padded.transpose(-1, -2), x.shape[-2]
            windows = [padded[..., step * i : step * i + length, :] for i in range(spec.kernel)]
            if self.way == "sum":
                y = sum((F.linear(w, tap) for w, tap in zip(windows, self.weight, strict=True)), self.bias)
            else:
                data = torch.cat(windows, -1) if self.way == "window, channel" else torch.stack(windows, -1).flatten(-2)
                y = F.linear(data, self.weight, self.bias)
        if self.norm is not None:
            y = self.norm(y)
        return self.outer(self.activation(y))


class Messages(nn.Module):
    """From the features of a residue, of its neighbours, and of the distance to them, to the residue."""

    WAVES = 4

    def __init__(self, spelling: Spelling, path: str, spec: specs.Messages, width: int, gain: bool) -> None:
        super().__init__()
        self.spec = spec
        self.order: list[int] = list(spelling.choose(f"{path} order", (0, 1, 2), (2, 1, 0), (1, 0, 2)))
        sizes = (width, width, self.WAVES)
        starts = (0, width, 2 * width)
        columns = torch.cat([torch.arange(sizes[i]) + starts[i] for i in self.order])
        self.inner = linear(spelling, f"{path} message", sum(sizes), spec.hidden, columns=columns)
        self.activation = activation(spelling, f"{path} activation", spec.activation)
        self.outer = linear(spelling, f"{path} output", spec.hidden, width, gain=gain)
        self.gathering = spelling.choose(f"{path} gathering", "index", "gather", "one hot")

    def forward(self, x: Tensor, given: Given) -> Tensor:
        places = given["places"]
        distance = (places[:, :, None] - places[:, None]).square().sum(-1).sqrt()
        distance, nearest = distance.topk(self.spec.neighbours, largest=False)
        centre = torch.linspace(0, 3, self.WAVES, dtype=x.dtype)
        waves = torch.exp(-((distance[..., None] - centre) ** 2))
        match self.gathering:
            case "index":
                others = x[torch.arange(len(x))[:, None, None], nearest]
            case "gather":
                index = nearest.flatten(1)[..., None].expand(-1, -1, x.shape[-1])
                others = x.gather(1, index).unflatten(1, nearest.shape[1:])
            case _:
                others = torch.einsum("blkm,bmd->blkd", F.one_hot(nearest, x.shape[1]).to(x.dtype), x)
        parts = [x[:, :, None].expand_as(others), others, waves]
        message = self.outer(self.activation(self.inner(torch.cat([parts[i] for i in self.order], -1))))
        return message.mean(2) if self.spec.reduce == "mean" else message.amax(2)


class TriangleProduct(nn.Module):
    """Triangle multiplication (Jumper et al. 2021, supplement, algorithms 11 and 12)."""

    def __init__(self, spelling: Spelling, path: str, spec: specs.TriangleProduct, width: int, gain: bool) -> None:
        super().__init__()
        self.spec = spec
        names = ("left", "left gate", "right", "right gate")
        self.maps = maps(spelling, path, width, [Part(name, 1, spec.hidden) for name in names])
        self.norm = norm(spelling, f"{path} norm", specs.Norm(), spec.hidden)
        self.gate = linear(spelling, f"{path} gate", width, width)
        self.outer = linear(spelling, f"{path} output", spec.hidden, width, gain=gain)
        self.product = spelling.choose(f"{path} product", "einsum", "matmul")

    def forward(self, x: Tensor, given: Given) -> Tensor:
        left, left_gate, right, right_gate = (part.squeeze(-2) for part in self.maps(x))
        left, right = left * left_gate.sigmoid(), right_gate.sigmoid() * right
        if self.product == "einsum":
            product = torch.einsum("bkic,bkjc->bijc" if self.spec.incoming else "bikc,bjkc->bijc", left, right)
        else:
            left, right = left.movedim(-1, 1), right.movedim(-1, 1)
            product = (left.mT @ right if self.spec.incoming else left @ right.mT).movedim(1, -1)
        return self.gate(x).sigmoid() * self.outer(self.norm(product))


class TriangleAttention(nn.Module):
    """Triangle attention (Jumper et al. 2021, supplement, algorithms 13 and 14)."""

    def __init__(self, spelling: Spelling, path: str, spec: specs.TriangleAttention, width: int, gain: bool) -> None:
        super().__init__()
        self.spec = spec
        self.attention = Attention(spelling, path, spec.attention, width, gain, width)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        if not self.spec.ending:
            return self.attention(x, {"pairs": x[:, None]})
        turned = x.transpose(1, 2)
        return self.attention(turned, {"pairs": (turned if self.spec.late else x)[:, None]}).transpose(1, 2)


def branch(spelling: Spelling, path: str, spec: specs.Branch, width: int, gain: bool, pairs: int) -> nn.Module:
    match spec:
        case specs.Attention():
            return Attention(spelling, path, spec, width, gain, pairs)
        case specs.FeedForward():
            return FeedForward(spelling, path, spec, width, gain)
        case specs.Convolution():
            return Convolution(spelling, path, spec, width, gain)
        case specs.Messages():
            return Messages(spelling, path, spec, width, gain)
        case specs.TriangleProduct():
            return TriangleProduct(spelling, path, spec, width, gain)
        case specs.TriangleAttention():
            return TriangleAttention(spelling, path, spec, width, gain)
    raise TypeError(f"no branch is {spec}")
