"""One tensor for all layers in one model, a copy for each in the other."""

import copy

import pytest
import torch
from torch import Tensor, nn

from pyrosys import Plan, StructureMismatch, match
from pyrosys.errors import WeightsError
from tests.adapters.twins import randomise

WIDTH, LENGTH, LAYERS = 6, 5, 3
PLACES = torch.arange(LENGTH * LENGTH).reshape(LENGTH, LENGTH) % 7


class Table(nn.Module):
    """A bias for each pair of places, and what they have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(PLACES).squeeze(-1) + x @ x.mT


class Query(nn.Module):
    """What a learned vector gives with each place."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.query).square()


MAKE = {
    "table": Table,
    "two tables": lambda: nn.ModuleList([Table(), Table()]),
    "norm": lambda: nn.LayerNorm(WIDTH),
    "map": lambda: nn.Linear(WIDTH, WIDTH),
    "two norms": lambda: nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)]),
    "query": Query,
    "branch": lambda: nn.LayerNorm(WIDTH),
}


class Layers(nn.Module):
    """Layers that all read something of the first input: by one module, or each by its own.

    Args:
        kind: what they read it by; a branch gives its outcome to the sum at the end, as all others do.
        copies: how many there are of it.
    """

    def __init__(self, kind: str, copies: int) -> None:
        super().__init__()
        self.kind = kind
        self.shared = nn.ModuleList(MAKE[kind]() for _ in range(copies))
        self.reads = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))

    def forward(self, first: Tensor) -> Tensor:
        x, branches = first, []
        for depth in range(LAYERS):
            found = self.seen(self.shared[depth % len(self.shared)], first, self.reads[depth], x)
            if self.kind == "branch":
                branches.append(torch.tanh(self.layers[depth](found)))
            else:
                x = x + torch.tanh(self.layers[depth](x) + found)
        return torch.stack(branches).sum(0) if branches else x

    def seen(self, shared: nn.Module, first: Tensor, read: nn.Module, x: Tensor) -> Tensor:
        if self.kind == "table":
            return shared(first).softmax(-1) @ read(x)
        if self.kind == "two tables":
            one, two = shared.children()
            return one(first).softmax(-1) @ read(x) + two(first).sigmoid() @ x
        if self.kind == "two norms":
            one, two = shared.children()
            return read(one(first)) * two(first)
        return read(shared(first).relu())


def layers(kind: str, copies: int, seed: int) -> nn.Module:
    return randomise(Layers(kind, copies), seed)


def with_equal_copies(model: nn.Module) -> nn.Module:
    shared = model.get_submodule("shared")
    for name, module in shared.named_children():
        if name != "0":
            module.load_state_dict(shared.get_submodule("0").state_dict())
    return model


def example(seed: int) -> Tensor:
    return torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed))


def assert_ported(plan: Plan, source: nn.Module, target: nn.Module) -> None:
    source, target = source.double(), target.double()
    target.load_state_dict(plan.apply(source.state_dict()))
    x = example(1).double()
    with torch.no_grad():
        torch.testing.assert_close(target(x), source(x))


@pytest.mark.parametrize("kind", MAKE)
def test_every_copy_takes_what_the_other_model_shares(kind: str) -> None:
    source, target = layers(kind, 1, 1), layers(kind, LAYERS, 2)
    assert_ported(match(source, target, (example(0),)), source, target)


@pytest.mark.parametrize("kind", MAKE)
def test_equal_copies_become_one(kind: str) -> None:
    source, target = with_equal_copies(layers(kind, LAYERS, 1)), layers(kind, 1, 2)
    plan = match(source, target, (example(0),))
    assert_ported(plan, source, target)
    changed = copy.deepcopy(source)
    with torch.no_grad():
        next(changed.get_submodule("shared.2").parameters()).add_(1)
    with pytest.raises(WeightsError, match="equal"):
        plan.apply(changed.state_dict())


@pytest.mark.parametrize("kind", MAKE)
def test_copies_that_differ_are_not_made_one(kind: str) -> None:
    with pytest.raises(StructureMismatch):
        match(layers(kind, LAYERS, 1), layers(kind, 1, 2), (example(0),))
