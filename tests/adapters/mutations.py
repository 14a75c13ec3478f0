"""Pairs of models of different functions that look alike: what the structure engine has to refuse.

Most take the same parameters by the same names, so that nothing but the arithmetic tells them apart.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.adapters import twins
from tests.adapters.pairs import Pair, draw, features, other, pairwise, tokens
from tests.adapters.transformer import BERT, ESM, GPT, LLAMA, Form, Transformer
from tests.adapters.twins import OUT, WIDTH

__all__ = ["CONTROLS", "MUTATIONS", "Mutation"]


@dataclass(frozen=True)
class Mutation:
    """Two models of different functions.

    Args:
        name: What differs.
        source: Builds the one model.
        target: Builds the other.
        inputs: Draws an example from a seed.
        one_way: Whether the target can be taken for the source: a part may be left out but not made up.
    """

    name: str
    source: Callable[[], nn.Module]
    target: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    one_way: bool = False


def mutated(family: str, form: Form, what: str, one_way: bool = False, **changes: Any) -> Mutation:
    return Mutation(f"{family}: {what}", draw(Transformer, form), other(Transformer, form(**changes)), tokens, one_way)


FAMILIES = {"esm-like": ESM, "gpt-like": GPT, "llama-like": LLAMA, "bert-like": BERT}
TRANSFORMERS = [
    mutation
    for family, form in FAMILIES.items()
    for mutation in (
        *(
            mutated(family, form, f"norm epsilon {form.eps:g} and {eps:g}", eps=eps)
            for eps in (1e-5, 1e-6, 1e-12)
            if eps != form.eps
        ),
        *(
            mutated(family, form, f"{form.activation} and {activation}", activation=activation)
            for activation in ("gelu", "gelu-tanh", "relu", "silu")
            if activation != form.activation
        ),
        mutated(family, form, "attention scores divided by the width of heads", scale=1 / form.dim),
        mutated(family, form, "attention scores not scaled", scale=1.0),
        mutated(family, form, "no residual connection around the feed-forward branch", skip=False),
        mutated(family, form, "causal and full attention", causal=not form.causal),
        mutated(family, form, "head count", heads=6, groups=6 if form.groups == form.heads else form.groups),
        mutated(family, form, "norm before and after", blocks="post" if form.blocks == "pre" else "pre"),
        mutated(family, form, "branches one after another and side by side", blocks="parallel"),
        mutated(family, form, "an extra layer", layers=3),
        mutated(family, form, "one layer less", layers=1),
        mutated(family, form, "branches scaled", residual=0.5),
        mutated(family, form, "embedding scaled, with a tied head", tied=True, embedding_scale=24**0.5)
        if form.tied
        else Mutation(
            f"{family}: embedding scaled, with a tied head",
            draw(Transformer, form(tied=True)),
            other(Transformer, form(tied=True, embedding_scale=24**0.5)),
            tokens,
        ),
        mutated(family, form, "softmax and sigmoid", weights="sigmoid"),
        mutated(family, form, "unequal ends into tied ones", one_way=True, tied=True)
        if not form.tied
        else Mutation(
            f"{family}: unequal ends into tied ones",
            draw(Transformer, form(tied=False)),
            other(Transformer, form),
            tokens,
            one_way=True,
        ),
        mutated(family, form, "unequal layers into one in a loop", one_way=True, looped=True),
    )
] + [
    *(
        mutated(family, FAMILIES[family], "a bias with nowhere to go", one_way=True, dropped_bias=True)
        for family in ("esm-like", "gpt-like", "bert-like")
    ),
    *(
        mutated(family, FAMILIES[family], f"rotary base 10000 and {base:g}", rotary=base)
        for family, base in (("esm-like", 500000.0), ("llama-like", 500000.0), ("llama-like", 10001.0))
    ),
    mutated("esm-like", ESM, "with and without positions", rotary=None),
    mutated("llama-like", LLAMA, "root mean square and full norm", norm="layer"),
    mutated("llama-like", LLAMA(groups=4), "four groups into two", one_way=True, groups=2),
    mutated("llama-like", LLAMA, "gated and plain", gated=False),
    mutated("bert-like", BERT, "embedding norm", embedding_norm=False),
    mutated("gpt-like", GPT, "final norm", final_norm=False),
]


# The same for other kinds of models.


class Cell(twins.HandCell):
    """A gated recurrent unit that resets the state before its linear map, not after (Cho et al. 2014)."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 9)
        states = []
        zw, rw, nw = self.state.weight.chunk(3)
        zb, rb, nb = self.state.bias.chunk(3)
        for step in x.unbind(1):
            z, r, n = self.input(step).chunk(3, dim=-1)
            z, r = (z + F.linear(h, zw, zb)).sigmoid(), (r + F.linear(h, rw, rb)).sigmoid()
            h = (1 - z) * (n + F.linear(r * h, nw, nb)).tanh() + z * h
            states.append(h)
        return torch.stack(states, 1)


class ResetBefore(twins.HandRecurrent):
    def __init__(self) -> None:
        super().__init__("GRU")
        self.cells = nn.ModuleList([Cell("GRU", WIDTH)])


class Padded(nn.Module):
    """A convolution with zeros, or copies, or nothing but the past, beyond the ends."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.inner, self.outer = nn.Conv1d(WIDTH, 20, 3), nn.Linear(20, OUT)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        x = F.pad(x, (2, 0)) if self.mode == "past" else F.pad(x, (1, 1), mode=self.mode)
        return self.outer(self.inner(x).transpose(1, 2).relu())


class Pooled(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.inner, self.outer = nn.Linear(WIDTH, 20), nn.Linear(20, OUT)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x).relu()
        if self.how == "first":
            return self.outer(x[:, 0])
        if self.how == "last":
            return self.outer(x[:, -1])
        return self.outer(x.amax(1) if self.how == "largest" else x.mean(1))


class BatchNormedAfter(twins.BatchNormed):
    """The non-linearity before the norm."""

    def forward(self, image: Tensor) -> Tensor:
        return self.outer(self.norm(self.conv(image).relu()))


class Gated(nn.Module):
    """Features that pass where others open; as one of the two maps has no bias, they cannot be exchanged.

    Args:
        first: Whether the map without a bias is the one that opens.
    """

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.left, self.right = nn.Linear(WIDTH, 20, bias=False), nn.Linear(WIDTH, 20)
        self.outer = nn.Linear(20, OUT)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        return self.outer(left.sigmoid() * right if self.first else left * right.sigmoid())


def images(seed: int) -> tuple[Tensor]:
    return features(seed, 2, 3, 8, 15)


OTHERS = [
    Mutation(
        "triangle attention: where the bias is read",
        draw(twins.TriangleAttention, False),
        other(twins.TriangleAttention, False, dialect=True),
        pairwise,
    ),
    Mutation(
        "triangle product: outgoing and incoming",
        draw(twins.TriangleProduct, False),
        other(twins.TriangleProduct, True, incoming=True),
        pairwise,
    ),
    Mutation("gated unit: reset after and before", draw(twins.HandRecurrent, "GRU"), other(ResetBefore), features),
    Mutation("convolution: zeros and copies", draw(Padded, "constant"), other(Padded, "replicate"), features),
    Mutation("convolution: centred and causal", draw(Padded, "constant"), other(Padded, "past"), features),
    Mutation("pooling: mean and largest", draw(Pooled, "mean"), other(Pooled, "largest"), features),
    Mutation("pooling: first and last", draw(Pooled, "first"), other(Pooled, "last"), features),
    Mutation("batch norm: before and after", draw(twins.BatchNormed), other(BatchNormedAfter), images),
    Mutation("gate: with and without a bias", draw(Gated, True), other(Gated, False), features),
    Mutation(
        "layers in a loop: 0 1 0 and 0 1 1",
        draw(twins.ListOfLayers, used=(0, 1, 0)),
        other(twins.ListOfLayers, used=(0, 1, 1)),
        features,
    ),
    Mutation(
        "unequal layers into a loop",
        draw(twins.ListOfLayers),
        other(twins.ListOfLayers, used=(0, 0, 0)),
        features,
        one_way=True,
    ),
    Mutation(
        "unequal norms into one",
        draw(twins.ListOfLayers),
        other(twins.ListOfLayers, one_norm=True),
        features,
        one_way=True,
    ),
    Mutation(
        "unequal branches into one", draw(twins.Branched), other(twins.Branched, (0, 0, 2)), features, one_way=True
    ),
    Mutation("embedding scaled by 2 and by 3, tied", draw(twins.Bag, 2.0, True), other(twins.Bag, 3.0, True), tokens),
]

MUTATIONS = [*TRANSFORMERS, *OTHERS]

# A refusal says nothing of a model that would not be matched with itself, so each has to be.
CONTROLS = [
    *(Pair(family, draw(Transformer, form), other(Transformer, form), tokens, ()) for family, form in FAMILIES.items()),
    *(
        Pair(name, draw(make, *arguments), other(make, *arguments), inputs, ())
        for name, make, arguments, inputs in (
            ("triangle attention", twins.TriangleAttention, (False,), pairwise),
            ("triangle product", twins.TriangleProduct, (False,), pairwise),
            ("gated unit", twins.HandRecurrent, ("GRU",), features),
            ("convolution", Padded, ("constant",), features),
            ("pooling, mean", Pooled, ("mean",), features),
            ("pooling, first", Pooled, ("first",), features),
            ("batch norm", twins.BatchNormed, (), images),
            ("gate", Gated, (True,), features),
            ("layers in a loop", twins.ListOfLayers, ((0, 1, 0),), features),
            ("branches", twins.Branched, (), features),
            ("tied and scaled", twins.Bag, (2.0, True), tokens),
        )
    ),
]
