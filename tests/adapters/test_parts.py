"""Parts of models: what is found, what is listed as not covered, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from esm.model.esm2 import ESM2
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertForTokenClassification, BertModel, EsmConfig, EsmModel

import pyrosys
from pyrosys.adapters.part import Value
from pyrosys.errors import InputError, StructureMismatch
from tests.adapters.twins import randomise

TOKENS = torch.randint(4, 24, (2, 9), generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(1))


def bert(kind: Any, layers: int, seed: int) -> Any:
    config = BertConfig(
        vocab_size=33, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=24
    )
    return randomise(kind(config), seed)


def fair_esm(layers: int, seed: int) -> Any:
    return randomise(ESM2(num_layers=layers, embed_dim=16, attention_heads=2), seed)


def esm_model(layers: int, seed: int) -> Any:
    config = EsmConfig(
        vocab_size=33,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        mask_token_id=32,
        pad_token_id=1,
        position_embedding_type="rotary",
        token_dropout=True,
        layer_norm_eps=1e-5,
    )
    return randomise(EsmModel(config, add_pooling_layer=False), seed)


class Regressor(nn.Module):
    """A trunk between a first and a last layer of its own."""

    def __init__(self, columns: int, transposed: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(columns, 6)
        self.trunk = Convolved() if transposed else nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.trunk(self.first(x)))


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.outward, self.inward = nn.Conv1d(8, 6, 1), nn.Conv1d(6, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.outward(nn.functional.gelu(self.inward(x.mT))).mT


class Towers(nn.Module):
    """Two towers of one structure on the same input."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.Sequential(nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 4)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return (self.left(x) * self.right(x)).sum(-1)


class Headed(nn.Module):
    def __init__(self, *heads: nn.Module) -> None:
        super().__init__()
        self.trunk, self.heads = nn.Sequential(nn.Linear(10, 8), nn.Tanh()), nn.ModuleList(heads)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.trunk(x)
        return [head(x) for head in self.heads]


def covered(plan: pyrosys.Plan) -> set[str]:
    return {name for name in plan.target if name not in plan.kept}


def test_an_encoder_into_a_model_with_another_head() -> None:
    source, target = bert(BertForMaskedLM, 2, 1), bert(BertForTokenClassification, 2, 2)
    inputs = {"input_ids": TOKENS}
    with pytest.raises(StructureMismatch):
        pyrosys.match(source, target, inputs)
    head = target.get_submodule("classifier").weight.clone()
    plan = pyrosys.match(source, target, inputs, part=True)
    target.load_state_dict(plan.apply(source.state_dict()))
    expected = source.get_submodule("bert")(TOKENS).last_hidden_state
    torch.testing.assert_close(target.get_submodule("bert")(TOKENS).last_hidden_state, expected)
    assert torch.equal(target.get_submodule("classifier").weight, head)
    assert plan.unreached == ("classifier.weight", "classifier.bias")
    assert all(name.startswith("cls.") for name in plan.unused)
    assert 0.9 < plan.coverage < 1
    assert "Only a part: bert of the source" in plan.report()
    assert plan.certificate is not None
    assert plan.certificate.compared == "BertForMaskedLM (bert); BertForTokenClassification (bert)"
    assert "part of the models only" in str(plan.certificate)


def test_a_plan_for_a_part_is_kept_and_verified_again(tmp_path: Path) -> None:
    source, target = bert(BertForMaskedLM, 1, 1), bert(BertModel, 1, 2)
    plan = pyrosys.match(source, target, {"input_ids": TOKENS}, part=True)
    plan.save(tmp_path / "plan.json")
    read = pyrosys.Plan.load(tmp_path / "plan.json")
    assert read.parts == plan.parts
    assert read.certificate == plan.certificate
    for verified in (plan.verify(source, target), read.verify(source, target, {"input_ids": TOKENS})):
        assert verified.max_difference < 1e-5
        assert verified.compared is not None
    assert read.invert().parts == (read.parts[1], read.parts[0]) if read.parts else False


@pytest.mark.parametrize("search", [True, False])
def test_the_first_layers_of_a_deeper_model(search: bool) -> None:
    """In another code, whose values inside have their axes in another order."""
    deep = fair_esm(3, 3)
    shallow = esm_model(2, 4)
    named: dict[str, Any] = {"part": True}
    if not search:
        turned = {"target_output": lambda y: y[0].transpose(0, 1) if isinstance(y, tuple) else y.transpose(0, 1)}
        named = {"source_part": "layers.1", "target_part": "encoder.layer.1", **turned}
    plan = pyrosys.match(deep, shallow, (TOKENS,), {"input_ids": TOKENS}, **named)
    shallow.load_state_dict(plan.apply(deep.state_dict()))
    expected = deep(TOKENS, repr_layers=[2])["representations"][2]
    found = shallow(TOKENS, output_hidden_states=True).hidden_states[2]
    shallow.encoder.emb_layer_norm_after = nn.Identity()
    torch.testing.assert_close(shallow(TOKENS).last_hidden_state, expected)
    assert found.shape == expected.shape
    assert {n for n in shallow.state_dict() if n.startswith("encoder.emb_layer_norm_after")} <= set(plan.unreached)


def test_a_card_serves_for_a_part() -> None:
    deep, shallow = fair_esm(3, 3), fair_esm(2, 2)
    card = pyrosys.StructureCard.from_json(pyrosys.StructureCard.of(deep, (TOKENS,)).to_json())
    choices: list[dict[str, Any]] = [{"part": True}, {"source_part": "layers.1", "target_part": "layers.1"}]
    for named in choices:
        pyrosys.port(deep.state_dict(), shallow, source=card, **named)
        expected = deep(TOKENS, repr_layers=[2])["representations"][2]
        shallow.emb_layer_norm_after = nn.Identity()
        torch.testing.assert_close(shallow(TOKENS, repr_layers=[2])["representations"][2], expected)
        shallow = fair_esm(2, 5)
    with pytest.raises(InputError, match="Expected a submodule of ESM2, found 'layer.1'"):
        pyrosys.port(deep.state_dict(), shallow, source=card, source_part="layer.1")


@pytest.mark.parametrize(("search", "transposed"), [(True, False), (True, True), (False, True)])
def test_a_trunk_between_other_layers(search: bool, transposed: bool) -> None:
    """Its inputs depend on weights that differ, so it is compared on its own."""
    source, target = randomise(Regressor(10), 1), randomise(Regressor(7, transposed), 2)
    named: dict[str, Any] = {"part": True} if search else {"source_part": "trunk", "target_part": "trunk"}
    plan = pyrosys.match(source, target, (ROWS,), (ROWS[..., :7],), **named)
    target.load_state_dict(plan.apply(source.state_dict()))
    x = torch.randn(3, 6)[None]
    torch.testing.assert_close(target.get_submodule("trunk")(x), source.get_submodule("trunk")(x))
    assert covered(plan) == {name for name in target.state_dict() if name.startswith("trunk")}
    assert plan.verify(source, target).max_difference < 1e-5
    assert plan.verify(source, target, (ROWS,), (ROWS[..., :7],)).max_difference < 1e-5


def test_a_submodule_alone_as_target_and_as_source() -> None:
    whole, part = randomise(Regressor(10), 1), randomise(Convolved(), 2)
    plan = pyrosys.match(whole, part, (ROWS,), source_part="trunk")
    part.load_state_dict(plan.apply(whole.state_dict()))
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(part(x), whole.get_submodule("trunk")(x))
    other = randomise(Regressor(7), 3)
    plan = pyrosys.match(part, other, (x,), (ROWS[..., :7],), target_part="trunk")
    other.load_state_dict(plan.apply(part.state_dict()))
    torch.testing.assert_close(part(x), other.get_submodule("trunk")(x))


def test_towers_of_one_structure_have_to_be_chosen() -> None:
    towers: Any = randomise(Towers(), 1)
    tower = randomise(nn.Sequential(nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 4)), 2)
    with pytest.raises(StructureMismatch, match="(left and right|right and left).*source_part"):
        pyrosys.match(towers, tower, (ROWS,), part=True)
    with pytest.raises(StructureMismatch, match="(left and right|right and left).*target_part"):
        pyrosys.match(tower, towers, (ROWS,), part=True)
    for name in ("left", "right"):
        plan = pyrosys.match(towers, tower, (ROWS,), source_part=name)
        assert torch.equal(plan.apply(towers.state_dict())["2.weight"], towers.get_submodule(f"{name}.2").weight)


def test_several_heads_and_one_more() -> None:
    source = randomise(Headed(nn.Linear(8, 3), nn.Linear(8, 2), nn.Sequential(nn.Linear(8, 5), nn.Sigmoid())), 1)
    target = randomise(
        Headed(nn.Linear(8, 2), nn.Sequential(nn.Linear(8, 7), nn.GELU(), nn.Linear(7, 4)), nn.Linear(8, 3)), 2
    )
    plan = pyrosys.match(source, target, (ROWS,), part=True)
    target.load_state_dict(plan.apply(source.state_dict()))
    (three, two, _), (found_two, _, found_three) = source(ROWS), target(ROWS)
    torch.testing.assert_close(found_two, two)
    torch.testing.assert_close(found_three, three)
    assert all(name.startswith("heads.1") for name in plan.unreached)


def test_one_layer_in_a_loop_has_a_value_for_each_call() -> None:
    class Loop(nn.Module):
        def __init__(self, times: int) -> None:
            super().__init__()
            self.layer, self.times = nn.Linear(10, 10), times

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.times):
                x = torch.tanh(self.layer(x)) + x
            return x

    assert Value.parse("layer#2") == Value("layer", 1)
    three, two = randomise(Loop(3), 1), randomise(Loop(2), 2)
    plan = pyrosys.match(three, two, (ROWS,), source_part="layer#2", target_part="layer#2")
    assert plan.coverage == 1
    with pytest.raises(StructureMismatch):
        pyrosys.match(three, two, (ROWS,), source_part="layer#3", target_part="layer#2")
    with pytest.raises(InputError, match="found 2 calls"):
        pyrosys.match(three, two, (ROWS,), target_part="layer#3")


def test_parts_that_differ_are_refused() -> None:
    class Other(Regressor):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.trunk(torch.sigmoid(self.first(x)))))

    source, target = randomise(Regressor(10), 1), randomise(Other(10), 2)
    with pytest.raises(StructureMismatch, match="do not compute the same"):
        pyrosys.match(source, target, (ROWS,))
    with pytest.raises(StructureMismatch):
        pyrosys.match(source, target, (ROWS,), source_part="last", target_part="trunk")
    plan = pyrosys.match(source, target, (ROWS,), part=True)  # what is left: the layers on their own
    assert plan.parts is not None
    with pytest.raises(StructureMismatch, match="no submodule of the two"):
        pyrosys.match(source, randomise(nn.Linear(10, 4), 3), (ROWS,), source_part="last", part=True)


def test_paths_that_are_not_there_are_refused() -> None:
    model = randomise(Headed(nn.Linear(8, 3)), 1)
    with pytest.raises(InputError, match=r"found 'head\.0'. It has 'heads\.0'"):
        pyrosys.match(model, model, (ROWS,), source_part="head.0")
    with pytest.raises(InputError, match="a list of modules is not"):
        pyrosys.match(model, model, (ROWS,), source_part="heads")
    with pytest.raises(InputError, match="as in 'encoder'"):
        pyrosys.match(model, model, (ROWS,), source_part="trunk#0")
