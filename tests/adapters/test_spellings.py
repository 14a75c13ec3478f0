"""One function spelled in two ways: small models, one for each mechanism, ported both ways and compared on fresh inputs."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrosys import Plan, StructureMismatch, match
from pyrosys.errors import CaptureError, PlanError, WeightsError
from tests.adapters.twins import randomise

WIDTH, INNER, OUT = 6, 5, 4


class Gated(nn.Module):
    """A gate, from one map or two, and a norm before any order of features is known."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.norm, self.output = form, nn.LayerNorm(INNER), nn.Linear(INNER, OUT)
        widths = [INNER, INNER] if form == "two" else [2 * INNER]
        self.maps = nn.ModuleList(nn.Linear(WIDTH, width) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "glu":
            return self.output(self.norm(F.glu(self.maps[0](x))))
        value, gate = self.maps[0](x).chunk(2, -1) if self.form == "fused" else (m(x) for m in self.maps)
        return self.output(self.norm(value * gate.sigmoid()))


class Placed(nn.Module):
    """Learned positions: looked up, cut out of the table, also where that lies in a longer vector, or the table as it is."""

    def __init__(self, form: str, rows: int = 4) -> None:
        super().__init__()
        self.form, self.inner, self.output = form, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, OUT)
        shapes = {"batched": (1, rows, WIDTH), "vector": (2 + rows * WIDTH,)}
        self.positions = nn.Parameter(torch.randn(shapes.get(form, (rows, WIDTH))))

    def forward(self, x: Tensor) -> Tensor:
        table = self.positions[2:].view(-1, WIDTH) if self.form == "vector" else self.positions
        if self.form == "looked up":
            places = F.embedding(torch.arange(x.shape[1])[None], table)
        else:
            places = table[: x.shape[1]] if self.form in ("cut out", "vector") else table
        return self.output((self.inner(x) + places).relu())


class Heads(nn.Module):
    """A bias of two axes, heads and features, which is no table of positions."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.inner, self.output = nn.Linear(WIDTH, 6, bias=False), nn.Linear(6, OUT)
        self.bias = nn.Parameter(torch.randn(2, 3) if form == "two axes" else torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x).unflatten(-1, (2, 3)) + self.bias.reshape(2, 3)
        return self.output(y.softmax(-2).flatten(-2))


class Weighted(nn.Module):
    """A weight for each head, before or after a sum over what it weighs; positive, with a constant factor somewhere."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.inner, self.output = form, nn.Linear(WIDTH, 12), nn.Linear(3, OUT)
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        y, weight = self.inner(x).unflatten(-1, (3, 4)).square(), F.softplus(self.weight)
        if self.form == "before":
            return self.output((y * (0.3 * weight)[:, None]).sum(-1).tanh())
        return self.output((y.sum(-1) * weight * 0.3).tanh())


class Scaled(nn.Module):
    """Fixed factors: numbers in the code, or a buffer that is saved."""

    factors: Tensor

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.inner, self.output = form, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, OUT)
        if form == "buffer":
            self.register_buffer("factors", torch.linspace(0.5, 2.0, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        factors = self.factors if self.form == "buffer" else torch.linspace(0.5, 2.0, WIDTH)
        return self.output((self.inner(x) * factors).tanh())


class Masked(nn.Module):
    """Causal attention with minus infinity in the code, or in a buffer that is saved."""

    hidden: Tensor

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.query, self.key = form, nn.Linear(WIDTH, INNER), nn.Linear(WIDTH, INNER)
        self.output = nn.Linear(WIDTH, OUT)
        if form == "buffer":
            self.register_buffer("hidden", torch.tensor(float("-inf")))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).mT
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        hidden = self.hidden if self.form == "buffer" else torch.tensor(float("-inf"), dtype=scores.dtype)
        return self.output(torch.where(seen, scores, hidden).softmax(-1) @ x)


class Written(nn.Module):
    """A table filled in place through views of views, or put together."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.inner, self.output = form, nn.Linear(WIDTH, 2), nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        if self.form == "in place":
            turns = y.new_zeros(*y.shape[:-1], 2, 2)
            turns[..., 0, 0] = y[..., 0]
            turns[..., 0, 1] = y[..., 1].sin()
            turns[..., 1, :] = y
        else:
            turns = torch.stack([torch.stack([y[..., 0], y[..., 1].sin()], -1), y], -2)
        return self.output((turns @ x.unflatten(-1, (2, 3))).flatten(-2))


class Gained(nn.Module):
    """Gains behind three maps, in the weights, apart, or in one tensor, in a model without modules."""

    def __init__(self, form: str) -> None:
        super().__init__()
        widths = INNER, INNER, OUT
        self.maps = nn.ParameterList(torch.empty(n, m) for n, m in itertools.pairwise((WIDTH, *widths)))
        self.gains = nn.ParameterList(torch.empty(n) for n in widths if form == "apart")
        self.vector = nn.Parameter(torch.ones(sum(widths))) if form == "in one tensor" else None

    def forward(self, x: Tensor) -> Tensor:
        gains = self.gains if self.vector is None else self.vector.split([INNER, INNER, OUT])
        for number, matrix in enumerate(self.maps):
            x = x @ matrix
            x = (x * gains[number] if len(gains) else x).tanh()
        return x


class Looped(nn.Module):
    """One map in every round of a loop: a matrix, or one that is computed from others."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.output = form, nn.Linear(WIDTH, OUT)
        self.inner = nn.Linear(WIDTH, WIDTH, bias=False)
        if form == "weight norm":
            nn.utils.parametrizations.weight_norm(self.inner)
        if form == "low rank":
            self.down, self.up = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            y = self.inner(x)
            x = (y + self.up(self.down(x)) if self.form == "low rank" else y).tanh()
        return self.output(x)


class LastRound(nn.Module):
    """Causal attention in a loop, of which the first position is read: no query or key of the last round is felt."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.maps, self.output = form, nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        for number in range(2):
            y = self.maps(x)
            query, key, value = y.chunk(3, -1) if self.form == "joined" else y.unflatten(-1, (-1, 3)).unbind(-1)
            scores = query.sin() @ key.mT
            x = value + (scores.masked_fill(hidden, -torch.inf) if number else scores).softmax(-1) @ x
        return self.output(x[:, 0])


class Rectified(nn.Module):
    """A gate and what it multiplies: equal numbers do not tell which is which, as `relu(x) x` has one derivative for both."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.output = form, nn.Linear(INNER, OUT, bias=False)
        self.maps = nn.ModuleList(
            nn.Linear(WIDTH, INNER if form == "apart" else 2 * INNER, bias=False)
            for _ in range(2 if form == "apart" else 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "by feature":
            value, gate = self.maps[0](x).unflatten(-1, (INNER, 2)).unbind(-1)
        else:
            gate, value = [one(x) for one in self.maps] if self.form == "apart" else self.maps[0](x).chunk(2, -1)
        return self.output(F.relu(gate) * value)


class Four(nn.Module):
    """Four parts of one map, joined or side by side, in a product of pairs with a norm behind."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.maps = form, nn.Linear(WIDTH, 4 * INNER)
        self.norm, self.output = nn.LayerNorm(INNER), nn.Linear(INNER, OUT)

    def forward(self, x: Tensor) -> Tensor:
        y = self.maps(x)
        if self.form == "joined":
            left, left_gate, right, right_gate = y.chunk(4, -1)
        else:
            right_gate, right, left_gate, left = y.unflatten(-1, (INNER, 4)).unbind(-1)
        left, right = left * left_gate.sigmoid(), right * right_gate.sigmoid()
        return self.output(self.norm(torch.einsum("bic,bjc->bijc", left, right)))


class Unfelt(nn.Module):
    """Heads of causal attention of which the first position is read: queries and keys change nothing, whatever their order."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.maps = form, nn.Linear(WIDTH, 18, bias=False)
        self.inner, self.output = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        y = self.maps(self.inner(x).tanh())
        if self.form == "joined":
            parts = y.unflatten(-1, (3, 2, 3)).unbind(-3)
        else:
            key, value, query = y.unflatten(-1, (2, 3, 3)).unbind(-1)
            parts = query, key, value
        query, key, value = (part.transpose(1, 2) for part in parts)
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = (query @ key.mT).masked_fill(hidden, -torch.inf)
        return self.output((scores.softmax(-1) @ value).transpose(1, 2).flatten(-2)[:, 0])


class FirstOnly(nn.Module):
    """A causal window of which the first position is read: its earlier taps meet padding wherever it matters."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.inner = form, nn.Linear(WIDTH, WIDTH)
        self.middle, self.output = nn.Linear(INNER, WIDTH), nn.Linear(WIDTH, OUT)
        self.taps = nn.Parameter(torch.empty(*((INNER, WIDTH, 2) if form == "kernel" else (2, WIDTH, INNER))))

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x).tanh()
        if self.form == "kernel":
            y = F.conv1d(F.pad(y.mT, (1, 0)), self.taps).mT
        else:
            y = torch.cat([F.pad(y, (0, 0, 1, 0))[:, :-1], y], -1) @ self.taps.flatten(0, 1)
        return self.output((x + self.middle(y.relu()))[:, 0].tanh())


class Branches(nn.Module):
    """Two branches that are added, one with its matrix cut in columns, with a bias, and with gains apart or in the weights."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.gain = form, nn.Parameter(torch.ones(WIDTH)) if form == "cut" else None
        self.first, self.second = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, INNER)
        self.cut = nn.ModuleList(nn.Linear(n, WIDTH, bias=False) for n in ((3, 5) if form == "cut" else (8,)))
        self.bias, self.whole = nn.Parameter(torch.zeros(WIDTH)), nn.Linear(INNER, WIDTH)
        self.output = nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x).tanh()]
        if self.form == "cut":
            parts = [parts[0][..., :3], parts[0][..., 3:]]
        one = sum(matrix(part) for matrix, part in zip(self.cut, parts, strict=True)) + self.bias
        other = self.whole(self.second(x).sigmoid())
        y = one + other * self.gain if self.gain is not None else other + one
        return self.output((x + y).relu())


class Repeated(nn.Module):
    """Rows that lie so that a matrix is repeated for them: with gains behind it, of low rank, or plain."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.inner, self.output = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, OUT)
        self.gain = nn.Parameter(torch.ones(WIDTH)) if form == "gain" else None
        self.update = None
        if form == "low rank":
            self.update = nn.Sequential(nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        x = (x[:, :, None] * x[:, None]).permute(0, 3, 1, 2).movedim(1, -1)
        y = self.inner(x)
        if self.update is not None:
            y = y + self.update(x)
        return self.output((y if self.gain is None else y * self.gain).tanh())


class Edge(nn.Module):
    """A window at an edge that is padded with copies, of which the first position is read: two taps meet one element."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.inner, self.output = form, nn.Linear(WIDTH, WIDTH), nn.Linear(INNER, OUT)
        self.taps = nn.Parameter(torch.empty(*((INNER, WIDTH, 3) if form == "kernel" else (3, WIDTH, INNER))))

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(self.inner(x).tanh().mT, (1, 1), mode="replicate")
        if self.form == "kernel":
            y = F.conv1d(y, self.taps).mT
        else:
            y = torch.cat([y.mT[:, i : i + x.shape[1]] for i in range(3)], -1) @ self.taps.flatten(0, 1)
        return self.output(y.relu())[:, 0]


class Alone(nn.Module):
    """Heads that share keys and values, of which the first position is read: all see the value there, as a mask hides the others."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.query, self.maps = form, nn.Linear(WIDTH, 6), nn.Linear(WIDTH, 6)
        self.output = nn.Linear(6, OUT)

    def forward(self, x: Tensor) -> Tensor:
        query, (key, value) = self.query(x).unflatten(-1, (2, 3)).transpose(1, 2), self.maps(x).chunk(2, -1)
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        if self.form == "expanded":
            value = value[:, None].expand(-1, 2, -1, -1)
            y = (query @ key[:, None].mT).masked_fill(hidden, -torch.inf).softmax(-1) @ value
        else:
            y = torch.einsum("bhqd,bkd->bhqk", query, key).masked_fill(hidden, -torch.inf).softmax(-1)
            y = torch.einsum("bhqk,bkd->bhqd", y, value)
        return self.output(y.transpose(1, 2).flatten(-2))[:, 0]


CASES: dict[str, tuple[Callable[[str], nn.Module], str, str]] = {
    "gated, fused | two maps": (Gated, "fused", "two"),
    "gated, glu | two maps": (Gated, "glu", "two"),
    "positions looked up | cut out": (partial(Placed, rows=9), "looked up", "cut out"),
    "positions looked up | cut out of a vector": (partial(Placed, rows=9), "looked up", "vector"),
    "positions looked up | added": (Placed, "looked up", "added"),
    "positions looked up | added, with a batch axis": (Placed, "looked up", "batched"),
    "bias of two axes | one": (Heads, "two axes", "one axis"),
    "weight before a sum | after": (Weighted, "before", "after"),
    "factors in a buffer | in the code": (Scaled, "buffer", "code"),
    "infinity in a buffer | in the code": (Masked, "buffer", "code"),
    "written in place | put together": (Written, "in place", "together"),
    "gains apart | in the weights": (Gained, "apart", "in the weights"),
    "gains apart | in one tensor": (Gained, "apart", "in one tensor"),
    "gains in one tensor | in the weights": (Gained, "in one tensor", "in the weights"),
    "weight norm in a loop | matrix": (Looped, "weight norm", "matrix"),
    "low rank in a loop | matrix": (Looped, "low rank", "matrix"),
    "last round without order, joined | by feature": (LastRound, "joined", "by feature"),
    "queries and keys that are not felt, joined | by feature": (Unfelt, "joined", "by feature"),
    "first position of a window, kernel | matrix": (FirstOnly, "kernel", "matrix"),
    "rectified gate, joined | by feature": (Rectified, "joined", "by feature"),
    "rectified gate, apart | by feature": (Rectified, "apart", "by feature"),
    "branches, one cut and one with gains | plain": (Branches, "cut", "plain"),
    "gains behind a repeated matrix | in it": (Repeated, "gain", "plain"),
    "low rank beside a repeated matrix | in it": (Repeated, "low rank", "plain"),
    "first position of copies, kernel | matrix": (Edge, "kernel", "matrix"),
    "first position of shared heads, expanded | summed": (Alone, "expanded", "summed"),
    "four parts, joined | by feature": (Four, "joined", "by feature"),
}


def example(seed: int) -> Tensor:
    return torch.randn(3, 4, WIDTH, generator=torch.Generator().manual_seed(seed))


def models(name: str, *, turned: bool = False) -> tuple[nn.Module, nn.Module]:
    make, first, second = CASES[name]
    source, target = (second, first) if turned else (first, second)
    return randomise(make(source), 1), randomise(make(target), 2)


@pytest.mark.parametrize("turned", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("name", CASES)
def test_the_spelling_does_not_matter(name: str, turned: bool) -> None:
    source, target = models(name, turned=turned)
    plan = match(source, target, (example(0),))
    target.load_state_dict(plan.apply(source.state_dict()))
    with torch.no_grad():
        expected, found = source(example(1)), target(example(1))
    torch.testing.assert_close(found, expected)


class Silent(nn.Module):
    """Features of which a ReLU silences many on a probe of three tokens, read by a convolution in one or two dimensions."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(3, WIDTH), nn.Linear(WIDTH, 32)
        self.flat = form == "1d"
        self.output = nn.Conv1d(32, OUT, 3, padding=1) if self.flat else nn.Conv2d(32, OUT, (1, 3), padding=(0, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        y = self.inner(self.table(tokens)).relu().mT
        return self.output(y) if self.flat else self.output(y.unsqueeze(-2)).squeeze(-2)


@pytest.mark.parametrize(("source", "target"), [("1d", "2d"), ("2d", "1d")])
def test_features_that_are_silent_under_some_weights_are_told_apart(source: str, target: str) -> None:
    plan = match(Silent(source), Silent(target), (torch.tensor([[2, 0, 1]]),))
    assert plan.checked == "real weights"


class Rounds(nn.Module):
    """A map in every round: one for all, or a copy for each; a matrix, or one with a norm of its own."""

    def __init__(self, form: str, copies: int) -> None:
        super().__init__()
        self.output = nn.Linear(WIDTH, OUT)
        self.inner = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(copies))
        if form == "weight norm":
            for one in self.inner:
                nn.utils.parametrizations.weight_norm(one)

    def forward(self, x: Tensor) -> Tensor:
        for number in range(2):
            x = self.inner[number % len(self.inner)](x).tanh()
        return self.output(x)


@pytest.mark.parametrize("form", ["matrix", "weight norm"])
@pytest.mark.parametrize("other", ["matrix", "weight norm"])
def test_copies_of_what_a_loop_computes_have_to_be_equal(form: str, other: str) -> None:
    source, target = Rounds(form, 2), Rounds(other, 1)
    for seed, model in enumerate((source, target)):
        randomise(model, seed)
    with pytest.raises(StructureMismatch, match="it is tied"):
        match(source, target, (example(0),))
    source.inner[1].load_state_dict(source.inner[0].state_dict())
    plan = match(source, target, (example(0),))
    assert plan.equal
    target.load_state_dict(plan.apply(source.state_dict()))
    with torch.no_grad():
        torch.testing.assert_close(target(example(1)), source(example(1)))
    other_state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    other_state[next(iter(plan.equal))] += 1
    with pytest.raises(WeightsError, match="to be equal, because the target has one tensor for both"):
        plan.apply(other_state)


class Doubled(nn.Module):
    """Features that are copies of each other, or that are equal where the two halves of the input are."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.first = form, nn.Linear(3, 3)
        self.inner, self.output = nn.Linear(WIDTH, INNER), nn.Linear(INNER, OUT)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        y = self.first(left)
        return self.output(self.inner(torch.cat([y, y if self.form == "copies" else self.first(right)], -1)).tanh())


@pytest.mark.parametrize(("form", "other"), [("copies", "equal"), ("equal", "copies"), ("equal", "equal")])
def test_features_that_happen_to_be_equal_are_not_taken_for_copies(form: str, other: str) -> None:
    half = example(0)[..., :3]
    with pytest.raises(StructureMismatch, match="pass inputs on which they differ"):
        match(randomise(Doubled(form), 1), randomise(Doubled(other), 2), (torch.cat([half, half], -1),))


def test_features_that_are_copies_keep_their_order() -> None:
    source, target = Doubled("copies"), Doubled("copies")
    plan = match(randomise(source, 1), randomise(target, 2), (example(0),))
    assert "6 input features of inner.weight (inner) are copies of others; their order is kept" in plan.notes
    assert torch.equal(plan.apply(source.state_dict())["inner.weight"], source.inner.weight)


def test_a_plan_asks_for_the_constants_it_was_made_with() -> None:
    source, target = models("factors in a buffer | in the code")
    plan = match(source, target, (example(0),))
    state = source.state_dict()
    assert "factors" in plan.unused
    plan.apply({name: tensor.bfloat16() for name, tensor in state.items()})
    with pytest.raises(WeightsError, match="the buffer 'factors' to hold the values that it had"):
        plan.apply({**state, "factors": 2 * state["factors"]})


def test_key_biases_are_unobservable() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.joined, self.output = nn.Linear(WIDTH, 3 * INNER), nn.Linear(INNER, OUT)

        def forward(self, x: Tensor) -> Tensor:
            query, key, value = self.joined(x).chunk(3, -1)
            return self.output((query @ key.mT).softmax(-1) @ value)

    source, target = randomise(Attention(), 1), randomise(Attention(), 2)
    plan = match(source, target, (example(0),))
    assert plan.unobservable == ("joined.bias",)
    assert plan.certificate is not None
    assert plan.certificate.unobservable == ("joined.bias",)
    assert f"{INNER} of {3 * INNER} elements of joined.bias cannot be seen in the outputs" in plan.notes


def test_a_plan_that_merges_tensors_is_saved_and_cannot_be_inverted(tmp_path) -> None:
    source = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, INNER)), nn.ReLU(), nn.Linear(INNER, OUT)
    )
    target = nn.Sequential(nn.Linear(WIDTH, INNER), nn.ReLU(), nn.Linear(INNER, OUT))
    plan = match(randomise(source, 1), randomise(target, 2), (example(0),))
    plan.save(tmp_path / "plan.json")
    read = Plan.load(tmp_path / "plan.json")
    state = source.state_dict()
    for name, tensor in plan.apply(state).items():
        assert torch.equal(tensor, read.apply(state, target.state_dict())[name])
    with pytest.raises(PlanError, match="which cannot be undone"):
        plan.invert()


@pytest.mark.parametrize("operation", ["from_file.default", "add_.Tensor", "no_such.default"])
def test_a_record_calls_no_operation_that_reads_or_changes_something_else(operation: str) -> None:
    source = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, INNER)), nn.Linear(INNER, OUT))
    target = nn.Sequential(nn.Linear(WIDTH, INNER), nn.Linear(INNER, OUT))
    data = match(randomise(source, 1), randomise(target, 2), (example(0),)).to_json()
    (program,) = data["computed"].values()
    program[-1]["call"] = operation
    with pytest.raises(WeightsError, match="torch has none that a record may call"):
        Plan.from_json(data)


def test_a_router_of_experts_is_refused() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(WIDTH, 3)
            self.experts = nn.ModuleList(nn.Linear(WIDTH, OUT) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(0, -2)
            chosen, out = self.router(flat).argmax(-1), flat.new_zeros(len(flat), OUT)
            for number, expert in enumerate(self.experts):
                (rows,) = torch.where(chosen == number)
                out = out.index_add(0, rows, expert(flat[rows]))
            return out

    with pytest.raises((CaptureError, StructureMismatch)):
        match(randomise(Routed(), 1), randomise(Routed(), 2), (example(0),))


def test_spare_rows_of_an_alphabet_in_another_order_are_zero() -> None:
    order = torch.tensor([2, 0, 3, 1])
    source, target = (
        randomise(nn.Sequential(nn.Embedding(rows, WIDTH), nn.Linear(WIDTH, OUT)), 1 + rows) for rows in (4, 6)
    )
    tokens = torch.arange(4)[None]
    plan = match(source, target, (tokens,), (order[tokens],))
    found, given = plan.apply(source.state_dict())["0.weight"], source.state_dict()["0.weight"]
    assert torch.equal(found[order], given)
    assert not bool(found[4:].any())


def test_a_plan_notes_columns_that_it_drops() -> None:
    class Padded(nn.Module):
        def __init__(self, spare: int) -> None:
            super().__init__()
            self.spare, self.inner, self.output = spare, nn.Linear(WIDTH + spare, INNER), nn.Linear(INNER, OUT)

        def forward(self, x: Tensor) -> Tensor:
            return self.output(self.inner(F.pad(x, (0, self.spare))).tanh())

    plan = match(randomise(Padded(2), 1), randomise(Padded(0), 2), (example(0),))
    (note,) = plan.notes
    assert note.startswith(
        "2 input features of inner.weight (inner) are zero on every probe and have no place in the target"
    )


class PooledLetters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, letters: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(self.table(letters))).mean(1))


def test_letters_that_look_alike_on_the_probe_are_told_apart_by_place_or_not_at_all() -> None:
    source, target = PooledLetters().eval(), PooledLetters().eval()
    alphabet = torch.tensor([1, 0, 3, 4, 2])
    letters = torch.tensor([[0, 1, 2, 2], [3, 4, 4, 2]])  # the first two occur once each, in one sequence
    plan = match(source, target, (letters,), (alphabet[letters],))
    moved = plan.apply(source.state_dict())["table.weight"]
    assert torch.equal(moved[alphabet], source.table.weight)
    assert plan.extrapolated["table.weight (table)"].startswith(
        "2 rows look alike on every probe, and are taken by the places"
    )
    with pytest.raises(StructureMismatch, match="look alike on every probe"):
        match(source, target, (letters,), (alphabet[letters].flip(1),))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_match_in_the_middle_of_inference(mode: Callable[[], Any]) -> None:
    source, target = randomise(Gated("two"), 1), Gated("fused").eval()
    with mode():
        x = torch.randn(3, WIDTH)
        target.load_state_dict(match(source, target, (x,)).apply(source.state_dict()))
        assert torch.allclose(target(x), source(x), atol=1e-5)
