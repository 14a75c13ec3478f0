"""Plans are applied without copies where none are needed, and into memory that is there."""

import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pyrosys
from pyrosys.adapters.plan import Plan
from pyrosys.errors import PlanError, StructureMismatch, WeightsError

State = dict[str, Tensor]
SOURCE = {
    "table": torch.randn(7, 6),
    "qkv": torch.randn(12, 4),
    "fused": torch.randn(6, 4),
    "turned": torch.randn(3, 5),
    "kernel": torch.randn(4, 6, 1),
    "bias": torch.randn(()),
}


def script(state: State) -> State:
    """Renamed, split and fused again, joined, transposed, reshaped."""
    query, key, value = state["qkv"].chunk(3)
    return {
        "embedding": state["table"],
        "query": query,
        "rest": torch.cat([value, key]),
        "again": torch.cat(state["fused"].chunk(2)),
        "matrix": state["turned"].T,
        "linear": state["kernel"].squeeze(-1),
        "offset": state["bias"].reshape(1),
    }


@pytest.fixture
def plan() -> Plan:
    return Plan.from_function(script, SOURCE)


def target_for(state: Mapping[str, Tensor], device: str = "cpu") -> nn.Module:
    module = nn.Module()
    for name, tensor in state.items():
        module.register_parameter(name, nn.Parameter(torch.zeros(tensor.shape, device=device)))
    return module


def assert_holds(module: nn.Module, expected: Mapping[str, Tensor]) -> None:
    state = module.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def shares(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def test_what_is_renamed_or_reshaped_is_not_copied(plan: Plan) -> None:
    made = plan.apply(SOURCE)
    origin = {"embedding": "table", "again": "fused", "linear": "kernel", "offset": "bias"}
    for name, expected in script(SOURCE).items():
        assert torch.equal(made[name], expected)
        assert torch.equal(plan.tensor(name, SOURCE), expected)
        assert made[name].is_contiguous()
        for tensor in (made[name], plan.tensor(name, SOURCE)):
            assert any(shares(tensor, other) for other in SOURCE.values()) == (name in origin)
            if name in origin:
                assert shares(tensor, SOURCE[origin[name]])


def test_a_source_that_is_a_stretch_of_a_longer_tensor(plan: Plan) -> None:
    whole = torch.randn(15, 4)
    source = SOURCE | {"qkv": whole[2:14], "turned": torch.randn(5, 3).T}
    made = plan.apply(source)
    assert all(torch.equal(made[name], expected) for name, expected in script(source).items())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_load_into_is_apply_and_load(plan: Plan, device: str) -> None:
    module = target_for(script(SOURCE), device)
    places = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    plan.load_into(module, SOURCE)
    assert_holds(module, script(SOURCE))
    assert not any(shares(one, other) for one in module.state_dict().values() for other in SOURCE.values())
    if device == "cpu":
        assert places == {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}


def test_load_into_another_precision(plan: Plan) -> None:
    module = target_for(script(SOURCE)).to(torch.bfloat16)
    plan.load_into(module, SOURCE)
    assert_holds(module, {name: tensor.to(torch.bfloat16) for name, tensor in script(SOURCE).items()})


class Watched(Mapping[str, Tensor]):
    """Tensors made when asked for, of which no more than a few may be held at once."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.given: list[weakref.ref[Tensor]] = []
        self.most = 0

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.state[name].clone()
        self.given.append(weakref.ref(tensor))
        self.most = max(self.most, sum(reference() is not None for reference in self.given))
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self.state

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


def test_load_into_holds_one_source_tensor_at_a_time() -> None:
    source = {str(i): torch.randn(3, 2) for i in range(20)}
    plan = Plan.from_function(lambda state: {"all": torch.cat([*state.values()]), "last": state["19"].T}, source)
    watched, module = Watched(source), target_for({"all": torch.zeros(60, 2), "last": torch.zeros(2, 3)})
    plan.load_into(module, watched)
    assert torch.equal(module.state_dict()["all"], torch.cat([*source.values()]))
    assert watched.most <= 2  # the last one, and the one that replaces it


def test_load_into_tensors_that_the_source_shares() -> None:
    module = target_for({"left": torch.zeros(3, 3), "right": torch.zeros(3, 3)})
    nn.init.normal_(module.get_parameter("left"))
    nn.init.normal_(module.get_parameter("right"))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    plan = Plan.from_function(lambda state: {"left": state["right"].T, "right": state["left"]}, before)
    plan.load_into(module, module.state_dict())
    assert_holds(module, {"left": before["right"].T, "right": before["left"]})


def test_load_into_a_module_that_loads_in_a_way_of_its_own(plan: Plan) -> None:
    def double(state: State, *_: object) -> None:
        state.update({name: 2 * tensor for name, tensor in state.items()})

    module = target_for(script(SOURCE))
    module._register_load_state_dict_pre_hook(double)
    plan.load_into(module, SOURCE)
    assert_holds(module, {name: 2 * tensor for name, tensor in script(SOURCE).items()})


def test_load_into_changes_nothing_where_something_does_not_fit(plan: Plan) -> None:
    expected = script(SOURCE)
    module = target_for(expected)
    with pytest.raises(WeightsError, match="'qkv'"):
        plan.load_into(module, {name: tensor for name, tensor in SOURCE.items() if name != "qkv"})
    assert_holds(module, {name: torch.zeros_like(tensor) for name, tensor in expected.items()})
    module = target_for(expected | {"query": torch.zeros(4, 5)}, "meta")
    with pytest.raises(WeightsError, match="'query'"):
        plan.load_into(module, SOURCE)
    module = target_for(expected, "meta")
    with pytest.raises(WeightsError, match="'table'"):
        plan.load_into(module, SOURCE | {"table": torch.zeros(6, 7)})
    assert all(tensor.is_meta for tensor in module.state_dict().values())


class Tied(nn.Module):
    """A head on the table of the embedding, and another that nothing reads."""

    def __init__(self, split: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.layers = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)] if split else [nn.Linear(6, 6)])
        self.unread = nn.Linear(2, 2)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        return self.head(torch.cat([layer(x).tanh() for layer in self.layers], -1))


@pytest.mark.parametrize(("split", "joined"), [(True, False), (False, True)])
def test_tied_and_unread_tensors(split: bool, joined: bool) -> None:
    source, target = Tied(split), Tied(joined)
    tokens = torch.arange(14).reshape(2, 7) % 7
    plan = pyrosys.match(source, target, (tokens,))
    own = target.unread.weight.clone()
    expected = {n: t.clone() for n, t in plan.apply(source.state_dict(), target.state_dict()).items()}
    plan.load_into(target, source.state_dict())
    assert_holds(target, expected)
    assert target.head.weight is target.table.weight
    assert torch.equal(target.unread.weight, own)
    torch.testing.assert_close(target(tokens), source(tokens))


class Turned(nn.Module):
    """Attention with rotary positions, which feel the bias of a key; queries, keys and values from one map or from three."""

    def __init__(self, joined: bool) -> None:
        super().__init__()
        self.joined, widths = joined, (12,) if joined else (4, 4, 4)
        self.maps = nn.ModuleList(nn.Linear(6, width, bias=joined or i != 1) for i, width in enumerate(widths))
        self.output = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.maps[0](x).chunk(3, -1) if self.joined else [one(x) for one in self.maps]
        angle = torch.arange(x.shape[-2])[:, None] * torch.tensor([1.0, 0.3]).to(x)
        query, key = (self.turned(part, angle.cos(), angle.sin()) for part in (query, key))
        scores = query @ key.mT
        return self.output(scores.softmax(-1) @ value)

    @staticmethod
    def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def rotary(zero: bool) -> tuple[Turned, Turned, Tensor]:
    source = Turned(joined=True)
    with torch.no_grad():
        source.maps[0].get_parameter("bias").normal_()
        if zero:
            source.maps[0].get_parameter("bias")[4:8] = 0
    return source, Turned(joined=False), torch.randn(2, 5, 6)


def test_a_part_of_a_fused_bias_has_to_be_zero(tmp_path: Path) -> None:
    source, target, x = rotary(zero=True)
    plan = pyrosys.match(source, target, (x,))
    plan.load_into(target, source.state_dict())
    torch.testing.assert_close(target(x), source(x))
    assert "Must be neutral in the source: maps.0.bias[4:8]" in plan.report()
    plan.save(tmp_path / "plan.json")
    read = Plan.load(tmp_path / "plan.json")
    assert read.zero == plan.zero
    wrong = source.state_dict() | {"maps.0.bias": torch.ones(12)}
    for one in (plan, read, read.invert().invert()):
        one.apply(source.state_dict())
        with pytest.raises(WeightsError, match=r"'maps.0.bias\[4:8\]' to be 0 everywhere.*Use a target that has"):
            one.apply(wrong)
    plan.verify(source, target, (torch.randn(3, 4, 6),))
    back = read.invert()
    assert back.filled == ("maps.0.bias",)
    made = back.apply(target.state_dict())
    assert all(torch.equal(made[name], tensor) for name, tensor in source.state_dict().items())


def test_a_part_of_a_fused_bias_that_is_not_zero_is_refused() -> None:
    source, target, x = rotary(zero=False)
    with pytest.raises(
        StructureMismatch, match=r"bias 'maps.0.bias\[4:8\]' has nowhere to go: the target adds nothing"
    ):
        pyrosys.match(source, target, (x,))
    with pytest.raises(StructureMismatch, match="has nowhere to go"):
        pyrosys.match(source.to("meta"), target, (x,))


def test_the_inverse_asks_for_what_was_filled() -> None:
    source, target, x = rotary(zero=True)
    plan = pyrosys.match(target, source, (x,)).invert()
    plan.apply(source.state_dict())
    with pytest.raises(WeightsError, match=r"maps.0.bias\[4:8\]"):
        plan.apply(rotary(zero=False)[0].state_dict())


def test_a_plan_from_elsewhere_asks_for_numbers_inside_tensors() -> None:
    data = Plan.from_function(lambda state: {"b": state["a"]}, {"a": torch.zeros(4)}).to_json()
    for wanted in ([{"source": None, "to": 2, "loops": [[3, 1, 0]]}], [{"source": "a", "to": 0, "loops": []}]):
        with pytest.raises(PlanError):
            Plan.from_json(data | {"zero": {"a": wanted}})
    assert Plan.from_json(data | {"zero": {"a": 1.0}}).zero["a"][0].shift == 1.0


class InOne(nn.Module):
    """Maps with all their parameters in one vector, and one more that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(6 * 5 + 7 + 5 * 3))

    def forward(self, x: Tensor) -> Tensor:
        inner, _, outer = self.vector.split([30, 7, 15])
        return (x @ inner.view(6, 5)).tanh() @ outer.view(5, 3)


def test_what_no_output_reads_is_kept() -> None:
    source = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False))
    target, x = InOne(), torch.randn(4, 6)
    plan = pyrosys.match(source, target, (x,))
    assert "Keeps it in part: vector" in plan.report()
    assert plan.coverage == pytest.approx(45 / 52)
    state, own = source.state_dict(), target.vector.detach().clone()
    for made in (plan.apply(state)["vector"], Plan.from_json(plan.to_json()).tensor("vector", state, {"vector": own})):
        assert torch.equal(made[30:37], own[30:37])
    with pytest.raises(PlanError, match="does not set in full"):
        Plan.from_json(plan.to_json()).apply(state)
    wide = {name: tensor.double() for name, tensor in state.items()}
    assert torch.equal(plan.apply(wide)["vector"][30:37], own[30:37].double())
    plan.load_into(target, state)
    assert torch.equal(target.vector[30:37], own[30:37])
    torch.testing.assert_close(target(x), source(x))
    with pytest.raises(WeightsError, match="found none for 'vector'"):
        plan.load_into(InOne().to("meta"), state)
