"""Experts that activations choose: computed one by one on what chose them, or with the matrices of those that are chosen."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrosys import StructureMismatch, match
from pyrosys.errors import CaptureError
from tests.adapters.twins import randomise

WIDTH, INNER, EXPERTS = 6, 5, 3


class Experts(nn.Module):
    """A gated mixture.

    Args:
        form: `"one by one"`, in a loop over experts that something chose; `"gathered"`, with a matrix for each choice; or
            `"listed"`, as modules.
        count: how many are chosen.
        corrected: whether a bias takes part in the choice only.
    """

    def __init__(self, form: str, count: int = 2, corrected: bool = False) -> None:
        super().__init__()
        self.form, self.count = form, count
        self.gate, self.output = nn.Linear(WIDTH, EXPERTS, bias=False), nn.Linear(WIDTH, WIDTH)
        self.correction = nn.Parameter(torch.randn(EXPERTS)) if corrected else None
        if form == "listed":
            self.up = nn.ModuleList(nn.Linear(WIDTH, INNER, bias=False) for _ in range(EXPERTS))
            self.down = nn.ModuleList(nn.Linear(INNER, WIDTH, bias=False) for _ in range(EXPERTS))
        else:
            self.up = nn.Parameter(torch.randn(EXPERTS, INNER, WIDTH))
            self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        shares, chosen = self.choice(rows)
        return x + self.output(self.mixed(rows, shares, chosen).reshape(x.shape))

    def choice(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        shares = self.gate(rows).softmax(-1)
        if self.correction is not None:
            chosen = (shares + self.correction).topk(self.count, -1, sorted=False).indices
            best = shares.gather(-1, chosen)
        else:
            best, chosen = shares.topk(self.count, -1)
        return best / best.sum(-1, keepdim=True), chosen

    def mixed(self, rows: Tensor, shares: Tensor, chosen: Tensor) -> Tensor:
        if self.form == "gathered":
            assert isinstance(self.up, Tensor)
            assert isinstance(self.down, Tensor)
            each = rows.repeat_interleave(self.count, 0).unsqueeze(-1)
            found = self.down[chosen.flatten()] @ (self.up[chosen.flatten()] @ each).relu()
            return (found.unflatten(0, chosen.shape).squeeze(-1) * shares.unsqueeze(-1)).sum(1)
        total = torch.zeros_like(rows)
        for expert in F.one_hot(chosen, EXPERTS).sum((0, 1)).nonzero().flatten().tolist():
            row, place = torch.where(chosen == expert)
            found = self.expert(rows[row], expert) * shares[row, place].unsqueeze(-1)
            total = total.index_add(0, row, found)
        return total

    def expert(self, rows: Tensor, number: int) -> Tensor:
        if isinstance(self.up, nn.ModuleList) and isinstance(self.down, nn.ModuleList):
            return self.down[number](self.up[number](rows).relu())
        assert isinstance(self.up, Tensor)
        assert isinstance(self.down, Tensor)
        return F.linear(F.linear(rows, self.up[number]).relu(), self.down[number])


def mixture(seed: int, form: str, count: int = 2, corrected: bool = False) -> nn.Module:
    return randomise(Experts(form, count, corrected), seed)


def example(seed: int) -> Tensor:
    return torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("one by one", "gathered"),
        ("gathered", "one by one"),
        ("listed", "gathered"),
        ("gathered", "listed"),
        ("listed", "one by one"),
        ("one by one", "one by one"),
    ],
)
def test_a_mixture_is_matched(source: str, target: str) -> None:
    one, other = mixture(1, source).double(), mixture(2, target).double()
    plan = match(one, other, (example(0),))
    other.load_state_dict(plan.apply(one.state_dict()))
    x = example(1).double()
    with torch.no_grad():
        torch.testing.assert_close(other(x), one(x))


def test_a_choice_of_another_number_is_refused() -> None:
    with pytest.raises((CaptureError, StructureMismatch)):
        match(mixture(1, "one by one", count=2), mixture(2, "gathered", count=1), (example(0),))


@pytest.mark.parametrize("target", ["one by one", "gathered"])
def test_what_only_influences_the_choice_is_not_lost(target: str) -> None:
    source = mixture(1, "one by one", corrected=True)
    with pytest.raises((CaptureError, StructureMismatch)):
        match(source, mixture(2, target, corrected=True), (example(0),))
    with pytest.raises((CaptureError, StructureMismatch)):
        match(source, mixture(2, target), (example(0),))


class Smallest(Experts):
    """The experts with the smallest shares."""

    def choice(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        best, chosen = self.gate(rows).softmax(-1).topk(self.count, -1, largest=False)
        return best / best.sum(-1, keepdim=True), chosen


def test_the_choice_itself_is_compared() -> None:
    with pytest.raises((CaptureError, StructureMismatch)):
        match(mixture(1, "one by one"), randomise(Smallest("gathered"), 2), (example(0),))


def test_every_expert_is_compared() -> None:
    source, target = mixture(1, "one by one"), mixture(2, "gathered")
    certificate = match(source, target, (example(0),)).certificate
    assert certificate is not None
    assert any("choices" in comparison.parameters for comparison in certificate.comparisons)
