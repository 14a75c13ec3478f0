"""From file to model: what is accepted, what is refused, and that nothing is half done."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pyrosys
from pyrosys.adapters.fill import fill
from pyrosys.errors import InputError, PyrosysError, StructureMismatch, WeightsError
from pyrosys.hub import write_weights

State = dict[str, Tensor]


class Theirs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.both = nn.Linear(6, 10)
        self.out = nn.Linear(5, 6)
        self.decoder = nn.Linear(6, 7, bias=False)
        self.decoder.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        gate, value = self.both(self.table(tokens)).chunk(2, dim=-1)
        return self.decoder(self.out(torch.sigmoid(gate) * value))


class Ours(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(5, 6)
        self.value, self.gate = nn.Linear(6, 5), nn.Linear(6, 5)
        self.letters = nn.Parameter(torch.randn(7, 6))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.letters[tokens]
        return self.output(self.value(x) * self.gate(x).sigmoid()) @ self.letters.T


class Other(Ours):
    def forward(self, tokens: Tensor) -> Tensor:
        x = self.letters[tokens]
        return self.output(self.value(x) * self.gate(x).tanh()) @ self.letters.T


TOKENS = torch.arange(14).reshape(2, 7) % 7


@pytest.fixture
def trained() -> Theirs:
    return Theirs()


@pytest.fixture
def checkpoint(trained: Theirs, tmp_path: Path) -> Path:
    path = tmp_path / "theirs.safetensors"
    write_weights(path, trained.state_dict())
    return path


@pytest.fixture
def unchanged() -> Iterator[Ours]:
    """A target that has to be the same after the test."""
    target = Ours()
    before = copy.deepcopy(target.state_dict())
    yield target
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_port_gives_the_function_of_the_checkpoint(trained: Theirs, checkpoint: Path) -> None:
    source, target = Theirs(), Ours()
    before = copy.deepcopy(source.state_dict())
    ported = pyrosys.port(checkpoint, target, source=source, inputs=(TOKENS,))
    assert ported.model is target
    assert ported.certificate is ported.plan.certificate
    torch.testing.assert_close(target(TOKENS), trained(TOKENS))
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())
    assert source.decoder.weight is source.table.weight


def test_port_into_a_target_on_meta(trained: Theirs, checkpoint: Path) -> None:
    with torch.device("meta"):
        source, target = Theirs(), Ours()
    pyrosys.port(checkpoint, target, source=source, inputs=(TOKENS,))
    torch.testing.assert_close(target(TOKENS), trained(TOKENS))


def test_port_by_structure_card(trained: Theirs, tmp_path: Path) -> None:
    pyrosys.StructureCard.of(Theirs(), (TOKENS,)).save(tmp_path / "card.json.gz")
    card = pyrosys.StructureCard.load(tmp_path / "card.json.gz")
    target = Ours()
    pyrosys.port(trained.state_dict(), target, source=card)
    torch.testing.assert_close(target(TOKENS), trained(TOKENS))
    with pytest.raises(InputError, match="its own inputs"):
        pyrosys.port(trained.state_dict(), target, source=card, inputs=(TOKENS,))


def test_one_name_of_a_tied_tensor_is_enough(trained: Theirs) -> None:
    state = trained.state_dict()
    del state["table.weight"]
    target = Ours()
    pyrosys.port(state, target, source=Theirs(), inputs=(TOKENS,))
    torch.testing.assert_close(target(TOKENS), trained(TOKENS))


def test_pickles_are_read_where_allowed(trained: Theirs, tmp_path: Path, unchanged: Ours) -> None:
    path = tmp_path / "theirs.pt"
    torch.save({"epoch": 3, "model": trained.state_dict()}, path)
    with pytest.raises(WeightsError, match="allow_pickle=True"):
        pyrosys.port(path, unchanged, source=Theirs(), inputs=(TOKENS,))
    target = Ours()
    pyrosys.port(path, target, source=Theirs(), inputs=(TOKENS,), allow_pickle=True)
    torch.testing.assert_close(target(TOKENS), trained(TOKENS))


def without(state: State) -> None:
    del state["both.bias"]


def more(state: State) -> None:
    state["extra"] = torch.zeros(3)


def wider(state: State) -> None:
    state["out.weight"] = torch.zeros(6, 6)


def whole_numbers(state: State) -> None:
    state["out.weight"] = torch.zeros(6, 5, dtype=torch.int64)


def not_a_number(state: State) -> None:
    state["out.bias"][2] = torch.nan


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without, "missing 'both.bias'"),
        (more, "unexpected 'extra'"),
        (wider, r"'out.weight' of shape \(6, 5\), found \(6, 6\)"),
        (whole_numbers, "'out.weight' as torch.float32, found torch.int64"),
        (not_a_number, "NaN or infinity in 1 tensors: 'out.bias'"),
    ],
)
def test_damaged_states_are_refused(damage: Callable[[State], None], message: str, unchanged: Ours) -> None:
    state = {name: tensor.clone() for name, tensor in Theirs().state_dict().items()}
    damage(state)
    with pytest.raises(WeightsError, match=message):
        pyrosys.port(state, unchanged, source=Theirs(), inputs=(TOKENS,))


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-9])
    return path


def with_code(path: Path) -> Path:
    torch.save({"model": nn.Linear(2, 2)}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def without_a_shard(path: Path) -> Path:
    index = path.with_suffix(".safetensors.index.json")
    index.write_text('{"metadata": {}, "weight_map": {"table.weight": "absent.safetensors"}}')
    return index


@pytest.mark.parametrize("damage", [truncated, with_code, without_a_shard])
def test_damaged_files_are_refused(damage: Callable[[Path], Path], checkpoint: Path, unchanged: Ours) -> None:
    with pytest.raises(PyrosysError):
        pyrosys.port(damage(checkpoint), unchanged, source=Theirs(), inputs=(TOKENS,), allow_pickle=True)


def test_another_function_is_refused(checkpoint: Path) -> None:
    target = Other()
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(StructureMismatch):
        pyrosys.port(checkpoint, target, source=Theirs(), inputs=(TOKENS,))
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_fill_shares_what_it_may() -> None:
    a, b, c, d = (nn.Linear(3, 3) for _ in range(4))
    d.weight = a.weight  # tied
    target = nn.ModuleDict({"a": a, "b": b, "c": c, "d": d})
    c.weight.requires_grad_(False)
    whole = torch.randn(12, 3)
    state = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    state |= {"a.weight": whole[:3], "d.weight": whole[:3], "b.weight": whole[2:5], "c.weight": whole[6:9].mT}
    state["a.bias"] = state["a.bias"].double()
    expected = {name: tensor.clone() for name, tensor in state.items()}
    fill(target, state, share=True)
    for name, tensor in target.state_dict().items():
        torch.testing.assert_close(tensor, expected[name].to(tensor.dtype))
        assert tensor.is_contiguous()
    assert a.weight.data_ptr() == whole.data_ptr()
    assert d.weight is a.weight
    assert a.bias.dtype == torch.float32
    assert not c.weight.requires_grad
    with torch.no_grad():
        a.weight.zero_()  # overlaps with nothing
    torch.testing.assert_close(b.weight, expected["b.weight"])
    fill(target, expected)
    expected["b.weight"].zero_()  # without sharing, nothing is taken
    assert b.weight.count_nonzero()
