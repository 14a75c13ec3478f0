"""One transformer whose function and whose layout are chosen apart: what must be matched, and what must be refused.

Two models whose `Form`s agree in the first part compute the same function under some bijection of their parameters'
elements, however different the rest. Two whose `Form`s differ in the first part do not.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BERT", "ESM", "GPT", "LLAMA", "Form", "Transformer"]

ACTIVATIONS = {"gelu": F.gelu, "gelu-tanh": partial(F.gelu, approximate="tanh"), "relu": F.relu, "silu": F.silu}


@dataclass(frozen=True)
class Form:
    """The sizes and the function, then the layout of the parameters.

    Args:
        groups: Heads of keys and values.
        head_width: Features of a head; by default the width, divided.
        vocabulary: Number of tokens; with `None` the model takes and returns features.
        norm: `"layer"` or `"rms"`.
        rotary: The base of the frequencies.
        blocks: Where the norm lies: `"pre"`, `"post"`, or before two branches side by side: `"parallel"` or, with one
            norm for the two, `"parallel, one norm"`.
        bias: Which linear maps have a bias: `"all"`, `"none"` or `"feed-forward"`.
        scale: The factor of the attention scores.
        residual: The factor of each branch.
        skip: Whether the input of the feed-forward branch is added to its output.
        dropped_bias: Whether the last map of the feed-forward branch lacks its bias.
        qkv: `"split"`, `"q|k|v"`, `"q|v|k"`, `"per head"` as [h, 3, d], `"grouped"` as [group: q..q k v] or `"einsum"`.
        gate: `"split"`, `"gate|up"`, `"up|gate"` or `"even-odd"`.
        rotation: Which two features turn together: `"half"` a head apart or `"interleaved"`.
        strided: Whether query head `i` belongs to the group `i % groups` instead of `i // (heads // groups)`.
        transposed: Whether linear maps keep their weight as (in, out).
        offset_norm: Whether the norm's weight is stored less one.
        position_rows: How many unused rows the table of positions begins with.
        padded: How many unused rows the table of tokens ends with.
        looped: Whether one block is used for all layers.
    """

    layers: int = 2
    width: int = 24
    heads: int = 4
    groups: int = 4
    head_width: int | None = None
    hidden: int = 40
    vocabulary: int | None = 29
    positions: int | None = None
    alibi: bool = False
    relative: int | None = None
    rotary: float | None = None
    norm: str = "layer"
    eps: float = 1e-5
    embedding_norm: bool = False
    embedding_scale: float = 1.0
    activation: str = "gelu"
    gated: bool = False
    causal: bool = False
    blocks: str = "pre"
    bias: str = "all"
    head_bias: bool = False
    scale: float | None = None
    weights: str = "softmax"
    residual: float = 1.0
    skip: bool = True
    dropped_bias: bool = False
    final_norm: bool = True
    tied: bool = True

    qkv: str = "split"
    gate: str = "split"
    rotation: str = "half"
    strided: bool = False
    transposed: bool = False
    offset_norm: bool = False
    position_rows: int = 0
    padded: int = 0
    looped: bool = False

    @property
    def dim(self) -> int:
        return self.head_width or self.width // self.heads

    def __call__(self, **changes: object) -> "Form":
        """The same form with some fields changed."""
        return replace(self, **changes)


ESM = Form(rotary=10000.0)
GPT = Form(positions=12, causal=True, activation="gelu-tanh")
LLAMA = Form(
    groups=2, rotary=10000.0, norm="rms", eps=1e-6, activation="silu", gated=True, causal=True, bias="none", tied=False
)
BERT = Form(positions=12, blocks="post", eps=1e-12, embedding_norm=True, final_norm=False, head_bias=True)


class Transposed(nn.Module):
    """A linear map with its weight as (in, out)."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class RootMeanSquareNorm(nn.Module):
    def __init__(self, width: int, eps: float, offset: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.offset = offset
        self.weight = nn.Parameter(torch.zeros(width) if offset else torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return x * (1 + self.weight) if self.offset else x * self.weight


def _norm(form: Form) -> nn.Module:
    if form.norm == "layer":
        return nn.LayerNorm(form.width, eps=form.eps)
    return RootMeanSquareNorm(form.width, form.eps, form.offset_norm)


def _linear(form: Form, inputs: int, outputs: int, bias: bool) -> nn.Module:
    return (Transposed if form.transposed else nn.Linear)(inputs, outputs, bias=bias)


class QueryKeyValue(nn.Module):
    """The queries (batch, head, length, feature), and the keys and values (batch, group, length, feature)."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        bias, width, dim = form.bias == "all", form.width, form.dim
        if form.qkv == "split":
            self.query = _linear(form, width, form.heads * dim, bias)
            self.key, self.value = (_linear(form, width, form.groups * dim, bias) for _ in range(2))
        elif form.qkv == "einsum":
            self.weights = nn.ParameterList(
                torch.randn(width, count, dim) for count in (form.heads, form.groups, form.groups)
            )
            self.biases = nn.ParameterList(torch.randn(count, dim) for count in (form.heads, form.groups, form.groups))
        else:
            self.joined = _linear(form, width, (form.heads + 2 * form.groups) * dim, bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        form, dim = self.form, self.form.dim
        if form.qkv == "split":
            q, k, v = self.query(x), self.key(x), self.value(x)
        elif form.qkv == "einsum":
            q, k, v = (
                torch.einsum("bld,dhk->bhlk", x, weight) + (bias[:, None] if form.bias == "all" else 0)
                for weight, bias in zip(self.weights, self.biases, strict=True)
            )
            return q, k, v
        elif form.qkv == "q|k|v":
            q, k, v = self.joined(x).split([form.heads * dim, form.groups * dim, form.groups * dim], dim=-1)
        elif form.qkv == "q|v|k":
            q, v, k = self.joined(x).split([form.heads * dim, form.groups * dim, form.groups * dim], dim=-1)
        elif form.qkv == "per head":
            q, k, v = self.joined(x).unflatten(-1, (form.heads, 3, dim)).unbind(-2)
        else:
            grouped = self.joined(x).unflatten(-1, (form.groups, -1, dim))
            q, k, v = grouped[..., :-2, :], grouped[..., -2, :], grouped[..., -1, :]
        return tuple(part.reshape(*x.shape[:2], -1, dim).transpose(1, 2) for part in (q, k, v))


def _rotate(x: Tensor, form: Form) -> Tensor:
    assert form.rotary is not None
    frequency = form.rotary ** -(torch.arange(0, form.dim, 2, dtype=torch.float64) / form.dim)
    angle = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    if form.rotation == "half":
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


class Attention(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.inputs = QueryKeyValue(form)
        self.output = _linear(form, form.heads * form.dim, form.width, form.bias == "all")

    def forward(self, x: Tensor, table: Tensor | None) -> Tensor:
        form, length = self.form, x.shape[1]
        q, k, v = self.inputs(x)
        if form.rotary is not None:
            q, k = _rotate(q, form), _rotate(k, form)
        count = form.heads // form.groups
        if count > 1:
            k, v = (t.repeat(1, count, 1, 1) if form.strided else t.repeat_interleave(count, 1) for t in (k, v))
        scores = q @ k.transpose(-1, -2) * (form.dim**-0.5 if form.scale is None else form.scale)
        if form.alibi:
            slope = 2.0 ** (-8 / form.heads * torch.arange(1, form.heads + 1))
            scores = scores + slope[:, None, None] * torch.arange(length)
        if table is not None:
            scores = scores + table
        if form.causal:
            scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
        weights = scores.softmax(-1) if form.weights == "softmax" else scores.sigmoid()
        return self.output((weights @ v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        bias = form.bias != "none"
        if form.gated and form.gate != "split":
            self.joined = _linear(form, form.width, 2 * form.hidden, bias)
        else:
            self.up = _linear(form, form.width, form.hidden, bias)
            self.gate = _linear(form, form.width, form.hidden, bias) if form.gated else None
        self.down = _linear(form, form.hidden, form.width, bias and not form.dropped_bias)

    def forward(self, x: Tensor) -> Tensor:
        activation = ACTIVATIONS[self.form.activation]
        if not self.form.gated:
            return self.down(activation(self.up(x)))
        if self.form.gate == "split":
            assert self.gate is not None
            gate, up = self.gate(x), self.up(x)
        elif self.form.gate == "gate|up":
            gate, up = self.joined(x).chunk(2, dim=-1)
        elif self.form.gate == "up|gate":
            up, gate = self.joined(x).chunk(2, dim=-1)
        else:
            gate, up = self.joined(x).unflatten(-1, (-1, 2)).unbind(-1)
        return self.down(activation(gate) * up)


class Block(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.attention_norm = _norm(form)
        self.attention = Attention(form)
        self.feed_forward_norm = _norm(form) if form.blocks != "parallel, one norm" else None
        self.feed_forward = FeedForward(form)

    def forward(self, x: Tensor, table: Tensor | None) -> Tensor:
        r, skip = self.form.residual, 1.0 if self.form.skip else 0.0
        if self.form.blocks.startswith("parallel"):
            first = self.attention_norm(x)
            second = first if self.feed_forward_norm is None else self.feed_forward_norm(x)
            return x + r * self.attention(first, table) + r * self.feed_forward(second)
        assert self.feed_forward_norm is not None
        if self.form.blocks == "post":
            x = self.attention_norm(x + r * self.attention(x, table))
            return self.feed_forward_norm(skip * x + r * self.feed_forward(x))
        x = x + r * self.attention(self.attention_norm(x), table)
        return skip * x + r * self.feed_forward(self.feed_forward_norm(x))


class Transformer(nn.Module):
    """Tokens (batch, length) to scores of tokens, or features (batch, length, width) to features."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        rows = None if form.vocabulary is None else form.vocabulary + form.padded
        self.embedding = None if rows is None else nn.Embedding(rows, form.width)
        self.positions = nn.Embedding(form.positions + form.position_rows, form.width) if form.positions else None
        self.relative = nn.Embedding(form.relative, form.heads) if form.relative else None
        self.embedding_norm = _norm(form) if form.embedding_norm else nn.Identity()
        self.layers = nn.ModuleList(Block(form) for _ in range(1 if form.looped else form.layers))
        self.norm = _norm(form) if form.final_norm else nn.Identity()
        self.head = nn.Linear(form.width, rows, bias=form.head_bias) if rows is not None else nn.Identity()
        if self.embedding is not None and form.tied:
            self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        form, length = self.form, x.shape[1]
        if self.embedding is not None:
            x = self.embedding(x)
        x = x * form.embedding_scale
        if self.positions is not None:
            x = x + self.positions(torch.arange(length) + form.position_rows)
        table = None if self.relative is None else self.relative(_bucket(length, self.relative.num_embeddings))
        table = None if table is None else table.permute(2, 0, 1)
        x = self.embedding_norm(x)
        for depth in range(form.layers):
            x = self.layers[0 if form.looped else depth](x, table)
        return self.head(self.norm(x))[..., : form.vocabulary]


def _bucket(length: int, count: int, furthest: int = 128) -> Tensor:
    """Which row of the table of relative positions each pair of positions reads (Raffel et al. 2020, section 2.1)."""
    offset = torch.arange(length) - torch.arange(length)[:, None]
    distance, half = offset.abs(), count // 2
    exact = half // 2
    rate = (half - exact) / math.log(furthest / exact)
    far = exact + ((distance.clamp(min=1) / exact).log() * rate).long()
    return torch.where(distance < exact, distance, far.clamp(max=half - 1)) + half * (offset > 0)
