"""Plans as text: what is written does what the plan does, and what cannot be written is refused."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pyrosys
from pyrosys import Plan
from pyrosys.adapters.export_transformers import conversions
from pyrosys.adapters.piece import Axis, Piece
from pyrosys.adapters.template import code, fold, folded_lines, name, render
from pyrosys.errors import InputError, PlanError, PyrosysError
from tests.adapters.pairs import PAIRS

State = dict[str, Tensor]


def run(text: str, state: State) -> State:
    """What an exported function makes."""
    space: dict[str, Any] = {}
    exec(compile(text, "convert.py", "exec"), space)
    return space["convert"](state)


def read_off(convert: Callable[[State], State], **shapes: tuple[int, ...]) -> tuple[Plan, State]:
    """The plan of a conversion, and a state to try it on."""
    generator = torch.Generator().manual_seed(0)
    names = {key.replace("__", "."): shape for key, shape in shapes.items()}
    state = {key: torch.randn(shape, generator=generator) for key, shape in names.items()}
    return Plan.from_function(convert, state), state


def same(found: State, wanted: State) -> bool:
    return found.keys() == wanted.keys() and all(
        torch.equal(found[n], wanted[n]) and found[n].dtype == wanted[n].dtype and found[n].is_contiguous()
        for n in wanted
    )


LAYERS = {f"h__{i}__{part}": shape for i in range(3) for part, shape in (("qkv", (12, 4)), ("norm", (4,)))}


def layers(state: State) -> State:
    out = {}
    for i in range(3):
        out[f"layers.{i}.query"], out[f"layers.{i}.key"], out[f"layers.{i}.value"] = state[f"h.{i}.qkv"].chunk(3)
        out[f"layers.{i}.norm"] = state[f"h.{i}.norm"]
    return out


def experts(state: State) -> State:
    gate = torch.stack([state[f"experts.{e}.gate"] for e in range(4)])
    up = torch.stack([state[f"experts.{e}.up"] for e in range(4)])
    return {
        "gate_up": torch.cat([gate, up], dim=1),
        "down": torch.stack([state[f"experts.{e}.down"].T for e in range(4)]),
    }


EXPERTS = {f"experts__{e}__{part}": (5, 3) for e in range(4) for part in ("gate", "up")} | {
    f"experts__{e}__down": (3, 5) for e in range(4)
}

CONVERSIONS: dict[str, tuple[Callable[[State], State], dict[str, tuple[int, ...]]]] = {
    "renamed": (lambda s: {"b": s["a"]}, {"a": (2, 3)}),
    "transposed": (lambda s: {"b": s["a"].T.contiguous()}, {"a": (2, 3)}),
    "permuted": (lambda s: {"b": s["a"].permute(2, 0, 1).contiguous()}, {"a": (2, 3, 4)}),
    "reshaped": (lambda s: {"b": s["a"].reshape(6, 1)}, {"a": (2, 3)}),
    "a number": (lambda s: {"b": s["a"][1].clone()}, {"a": (3,)}),
    "rows": (lambda s: {"b": s["a"][2:5].clone(), "c": s["a"][:2].clone()}, {"a": (6, 2)}),
    "every second row": (lambda s: {"b": s["a"][1::2].clone()}, {"a": (6, 2)}),
    "columns": (lambda s: {"b": s["a"][:, 1:3].contiguous()}, {"a": (2, 4)}),
    "joined": (lambda s: {"c": torch.cat([s["a"], s["b"]])}, {"a": (2, 3), "b": (4, 3)}),
    "joined columns": (lambda s: {"c": torch.cat([s["b"], s["a"]], 1)}, {"a": (3, 2), "b": (3, 4)}),
    "heads": (
        lambda s: {"c": torch.stack([s["a"].reshape(2, 3, 5), s["b"].reshape(2, 3, 5)], 1).reshape(12, 5)},
        {"a": (6, 5), "b": (6, 5)},
    ),
    "even and odd": (lambda s: {"c": torch.stack([s["a"], s["b"]], 1).reshape(12, 5)}, {"a": (6, 5), "b": (6, 5)}),
    "rotary order": (lambda s: {"b": s["a"].reshape(2, 3, 2, 5).transpose(1, 2).reshape(12, 5)}, {"a": (12, 5)}),
    "rows in some order": (lambda s: {"b": s["a"][[3, 0, 4, 1]]}, {"a": (5, 3)}),
    "columns in some order": (lambda s: {"b": s["a"][:, [2, 0, 1]].contiguous()}, {"a": (4, 3)}),
    "padded": (lambda s: {"b": torch.cat([s["a"], torch.zeros(2, 3)])}, {"a": (4, 3)}),
    "constant": (lambda s: {"b": torch.ones(3)}, {"a": (1,)}),
    "layers": (layers, LAYERS),
    "stack": (lambda s: {"w": torch.stack([s[f"h.{i}.norm"] for i in range(3)])}, LAYERS),
    "unstacked": (lambda s: {f"w.{i}": s["a"][i].clone() for i in range(4)}, {"a": (4, 2, 3)}),
    "experts": (experts, EXPERTS),
    "two grids": (
        lambda s: {f"a.{i}.b.{j}": s["a"][i, 2 * j].clone() for i in range(2) for j in range(3)},
        {"a": (2, 6, 3)},
    ),
}


@pytest.mark.parametrize("which", CONVERSIONS)
def test_a_function_does_what_the_conversion_does(which: str) -> None:
    convert, shapes = CONVERSIONS[which]
    plan, state = read_off(convert, **shapes)
    made = run(plan.export("python"), state)
    assert same(made, {n: t.contiguous() for n, t in convert(state).items()})
    assert same(made, plan.apply(state))


@pytest.mark.parametrize(
    "pair",
    [
        p
        for p in PAIRS
        if p.name
        in {
            "gpt-2 | split",
            "llama | everything",
            "bert encoder | transposed, per head",
            "norm less one",
            "llama | grouped",
        }
    ],
    ids=lambda p: p.name,
)
def test_a_function_does_what_a_found_plan_does(pair: Any) -> None:
    source, target = pair.source(), pair.target()
    plan = pyrosys.match(
        source,
        target,
        pair.inputs(0),
        pair.target_inputs and pair.target_inputs(0),
        source_output=pair.source_output,
        target_output=pair.target_output,
    )
    made = run(plan.export("python"), source.state_dict())
    wanted = plan.apply(source.state_dict())
    assert same(made, {n: t for n, t in wanted.items() if n not in plan.kept})


class Normed(nn.Module):
    """A weight norm, spelled out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 6))
        self.outer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).relu())


def test_what_a_model_computes_from_its_parameters_is_a_function_of_its_own() -> None:
    source, target = Normed(), nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    plan = pyrosys.match(source, target, (torch.randn(5, 4),))
    text = plan.export("python")
    assert text.count("def computed_") == 1
    made, wanted = run(text, source.state_dict()), plan.apply(source.state_dict())
    torch.testing.assert_close(made, wanted, rtol=0, atol=0)
    back = pyrosys.match(target, source, (torch.randn(5, 4),))
    made = run(back.export("python"), target.state_dict())
    torch.testing.assert_close(made, back.apply(target.state_dict()), rtol=0, atol=0)


def test_layers_are_loops() -> None:
    plan, _ = read_off(layers, **LAYERS)
    text = plan.export("python")
    assert 'out[f"layers.{i}.key"] = take(f"h.{i}.qkv", 12, 4)[4:8].clone()' in text
    assert text.count("for i in range(3):") == 1
    plan, _ = read_off(experts, **EXPERTS)
    assert "for n in range(4)" in plan.export("python")


def test_a_function_checks_what_it_takes() -> None:
    plan, state = read_off(layers, **LAYERS)
    text = plan.export("python")
    with pytest.raises(ValueError, match=r"shape \(4,\), found \(5,\)"):
        run(text, state | {"h.1.norm": torch.zeros(5)})
    with pytest.raises(KeyError):
        run(text, {n: t for n, t in state.items() if n != "h.1.norm"})
    plan.equal = {"h.1.norm": "h.2.norm"}
    plan.zero = {"h.0.norm": (Piece.everywhere("h.0.norm", 4, 0.0),)}
    text = plan.export("python")
    with pytest.raises(ValueError, match="h.0.norm.* has to be 0 everywhere"):
        run(text, state)
    with pytest.raises(ValueError, match="has to equal"):
        run(text, state | {"h.0.norm": torch.zeros(4)})
    run(text, state | {"h.0.norm": torch.zeros(4), "h.1.norm": state["h.2.norm"]})


@pytest.mark.parametrize(
    ("positions", "words"), [(Axis(2, 1, 0), r"\[1:3\]"), (Axis(3, (0, 1, 3), (0, 0, 0)), r"\[\[1, 2, 4\]\]")]
)
def test_a_function_checks_parts_of_what_it_takes(positions: Axis, words: str) -> None:
    plan, state = read_off(lambda s: {"b": s["a"][5:].clone()}, a=(8,))
    step = Piece("a", None, 1, 0, (positions,), 0.0, 0.0)
    plan.zero = {"a": (step,)}
    text = plan.export("python")
    with pytest.raises(ValueError, match=rf"'a' {words} has to be 0 everywhere"):
        run(text, state)
    step.run(state["a"], None)
    assert same(run(text, state), plan.apply(state))
    with pytest.raises(PlanError, match="no operation checks that 'a.*' of the checkpoint is 0"):
        plan.export("transformers")


def test_what_keeps_a_part_of_a_tensor_is_not_written() -> None:
    plan, _ = read_off(lambda s: {"b": s["a"].clone()}, a=(8,))
    plan.pieces["b"] = (Piece("b", "a", 0, 0, (Axis(6, 1, 1),)), Piece("b", None, 6, 0, (Axis(2, 1, 0),), 1.0))
    for form in ("python", "transformers"):
        with pytest.raises(PlanError, match="part of"):
            plan.export(form)


def test_either_name_of_a_tied_tensor_will_do() -> None:
    plan, state = read_off(lambda s: {"b": s["a"].T.contiguous()}, a=(2, 3))
    plan.source_ties = {"other": "a"}
    text = plan.export("python")
    assert same(run(text, state), run(text, {"other": state["a"]}))


@pytest.mark.parametrize(
    "key", ['"]; raise SystemExit #', "a\n.b", "{x}", "back\\slash", "ünï", "a.{i}.0", "\u202e", "'''"]
)
def test_names_cannot_become_code(key: str) -> None:
    names = [key, f"w.0.{key}", f"w.1.{key}"]
    state = {n: torch.randn(2, 3) for n in names}
    plan = Plan.from_function(lambda s: {f"{n}{key}": s[n].T.contiguous() for n in names}, state)
    text = plan.export("python")
    text.encode("utf-8")
    assert same(run(text, state), plan.apply(state))


def test_what_a_plan_from_elsewhere_says_cannot_become_code() -> None:
    convert, shapes = CONVERSIONS["padded"]
    data = read_off(convert, **shapes)[0].to_json()
    data["target"]["b"][1] = "float32, dtype=print(1)"
    with pytest.raises(PlanError, match="dtype of torch"):
        Plan.from_json(data).export("python")
    plan = read_off(lambda s: {"b": s["a"]}, a=(2,))[0].to_json()
    evil = '"""\n    raise SystemExit  # \\'
    plan["kept"], plan["target"][evil] = [evil], [[2], "float32"]
    text = Plan.from_json(plan).export("python")
    assert same(run(text, {"a": torch.zeros(2)}), {"b": torch.zeros(2)})
    plan["source"][evil], plan["kept"] = [[2], "float32"], []
    with pytest.raises(PlanError, match="mean something in a pattern"):
        Plan.from_json(plan).export("transformers")


def test_arguments_of_a_recorded_operation_cannot_become_code() -> None:
    source, target = Normed(), nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    data = pyrosys.match(source, target, (torch.randn(5, 4),)).to_json()
    call = next(entry for entry in next(iter(data["computed"].values())) if "call" in entry)
    call["kwargs"] = {"dict": {"x=print(1), y": 1}}
    with pytest.raises(PlanError, match="names of arguments"):
        Plan.from_json(data).export("python")


def test_an_unknown_form_is_refused(tmp_path: Path) -> None:
    plan, _ = read_off(layers, **LAYERS)
    with pytest.raises(InputError, match="'python' or 'transformers'"):
        plan.export("jax")
    path = tmp_path / "convert.py"
    assert plan.export("python", path) == path.read_text(encoding="utf-8")


# Lines


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12, unique=True),
    st.integers(0, 2),
    st.integers(1, 5),
)
def test_loops_run_through_the_lines_that_they_stand_for(grid: list[tuple[int, int]], start: int, step: int) -> None:
    lines = [[*code("out["), *name(f"a.{i}.b{j}.{j}"), *code(f"] = f({start + step * i}, {j}, 7)")] for i, j in grid]
    blocks = "\n".join(str(loop) for loop in folded_lines(lines))
    for text in ("\n".join(map(render, lines)), blocks):
        space: dict[str, Any] = {"out": {}, "f": lambda *x: x}
        exec(text, space)
        assert space["out"] == {f"a.{i}.b{j}.{j}": (start + step * i, j, 7) for i, j in grid}


def test_lines_without_a_step_are_not_a_loop() -> None:
    assert fold([code("f(1)"), code("f(2)"), code("f(4)")], "i") is None
    assert fold([code("f(1)"), code("g(2)")], "i") is None
    assert fold([code("f(2)"), code("f(1)")], "i") is None
    line = fold([code("f(3, 1)"), code("f(5, 1)")], "i")
    assert line is not None
    assert render(line) == "f(2 * i + 3, 1)"


# Plans of scripts


def test_a_script_that_computes_is_refused() -> None:
    for convert in (
        lambda s: {"b": s["a"] + 1},
        lambda s: {"b": s["a"] * 2},
        lambda s: {"b": s["a"].mean(0)},
        lambda s: {"b": s["a"].sort(0).values},
    ):
        with pytest.raises(PlanError, match=r"computed from others"):
            Plan.from_function(convert, {"a": torch.zeros(3, 2)})
    with pytest.raises(PlanError, match="looks at"):
        Plan.from_function(lambda s: {f"b{int(s['a'][0])}": s["a"]}, {"a": torch.zeros(3)})


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_a_plan_of_a_script_does_what_the_script_does(rows: int, columns: int, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(rows)))
    state = {"a": torch.randn(rows, columns), "b": torch.randn(columns)}

    def convert(s: State) -> State:
        return {"x": torch.cat([s["a"][order], s["b"][None]]), "y": torch.full((2,), 3.0), "z": s["a"].T.contiguous()}

    plan = Plan.from_function(convert, state)
    assert same(plan.apply(state), convert(state))
    assert Plan.from_json(plan.to_json()).pieces == plan.pieces


def test_numbers_in_the_middle_are_moved_too() -> None:
    state = {"a": torch.randn(3)}
    plan = Plan.from_function(lambda s: {"b": s["a"].clone()}, state)
    assert not plan.filled
    assert same(plan.apply(state), {"b": state["a"]})


# The mapping of transformers


def loaded(target: Any, mapping: list[Any], state: State, monkeypatch: pytest.MonkeyPatch) -> State:
    """What `from_pretrained` makes of a state under a mapping."""
    from transformers import modeling_utils

    monkeypatch.setattr(modeling_utils, "get_model_conversion_mapping", lambda *_, **__: mapping)
    model, report = type(target).from_pretrained(
        None, config=target.config, state_dict=dict(state), output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return dict(model.state_dict())


def small(kind: type[Any], **changes: Any) -> Any:
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
    }
    return kind(**(sizes | changes))


def test_transformers_loads_one_of_its_models_from_another_by_an_exported_mapping(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = transformers.LlamaForCausalLM(small(transformers.LlamaConfig)).eval()
    target: Any = transformers.Phi3ForCausalLM(small(transformers.Phi3Config, rms_norm_eps=1e-6)).eval()
    tokens = torch.arange(14).reshape(2, 7)
    plan = pyrosys.match(source, target, {"input_ids": tokens}, source_output=logits, target_output=logits)
    text = plan.export("transformers")
    space: dict[str, Any] = {}
    exec(text, space)
    for mapping in (space["mapping"](), conversions(plan)):
        assert same(loaded(target, mapping, source.state_dict(), monkeypatch), plan.apply(source.state_dict()))
    assert len(space["mapping"]()) == 2
    deeper = transformers.LlamaForCausalLM(small(transformers.LlamaConfig, num_hidden_layers=12)).eval()
    target = transformers.Phi3ForCausalLM(small(transformers.Phi3Config, rms_norm_eps=1e-6, num_hidden_layers=12))
    made = loaded(target, space["mapping"](), deeper.state_dict(), monkeypatch)
    joined = torch.cat([getattr(deeper.model.layers[11].self_attn, f"{x}_proj").weight for x in "qkv"])
    assert torch.equal(made["model.layers.11.self_attn.qkv_proj.weight"], joined)


def logits(output: Any) -> Tensor:
    return output.logits


REFUSED = {
    "padded": "set to 0",
    "constant": "set to 1",
    "unstacked": "no chain",
    "rows in some order": "no chain",
    "heads": "no chain",
    "reshaped": "no chain",
    "two grids": "no chain",
    "columns": "no chain",
    "every second row": "no chain",
    "columns in some order": "no chain",
    "permuted": "no chain",
    "a number": "no chain",
    "rows": "no chain",
    "rotary order": "configuration as config",
}


@pytest.mark.parametrize("which", CONVERSIONS)
def test_a_mapping_does_what_the_conversion_does_or_is_refused(which: str) -> None:
    convert, shapes = CONVERSIONS[which]
    plan, _ = read_off(convert, **shapes)
    if which in REFUSED:
        with pytest.raises(PlanError, match=REFUSED[which]) as caught:
            plan.export("transformers")
        assert any(repr(n) in str(caught.value) for n in plan.target)
    else:
        assert "def mapping():" in plan.export("transformers")


@pytest.mark.parametrize("part", [None, "vision_config"])
def test_heads_are_reordered_with_the_number_of_heads_in_the_configuration(part: str | None) -> None:
    plan, _ = read_off(*CONVERSIONS["rotary order"][:1], **CONVERSIONS["rotary order"][1])
    heads = SimpleNamespace(num_attention_heads=2)
    config = heads if part is None else SimpleNamespace(vision_config=heads)
    text = plan.export("transformers", config=config)
    assert f"PermuteForRope(subconfig_key={part!r}" in text
    with pytest.raises(PlanError, match="no chain"):
        plan.export("transformers", config=SimpleNamespace(num_attention_heads=3))


def test_names_that_change_places_are_kept_apart() -> None:
    plan, _ = read_off(lambda s: {"a.w": s["b.w"], "b.w": s["a.w"]}, a__w=(2, 3), b__w=(2, 3))
    assert {type(rule).__name__ for rule in conversions(plan)} == {"WeightConverter"}
    shifted = {f"norm.{i}.w": (3,) for i in range(4)}
    plan = Plan.from_function(
        lambda s: {f"norm.{i + 1}.w": s[f"norm.{i}.w"] for i in range(4)},
        {n: torch.zeros(s) for n, s in shifted.items()},
    )
    assert len(conversions(plan)) == 4


def test_an_unused_tensor_does_not_take_the_place_of_a_target() -> None:
    plan, _ = read_off(lambda s: {"b": s["a"]}, a=(2, 3), b=(2, 3))
    rules = conversions(plan)
    assert next((rule.source_patterns, rule.target_patterns) for rule in rules) == (["^b"], ["unused.b"])


def test_a_name_that_means_something_in_a_pattern_is_refused() -> None:
    plan = Plan.from_function(lambda s: {"b": s["a+"]}, {"a+": torch.zeros(2)})
    with pytest.raises(PyrosysError, match="mean something in a pattern"):
        conversions(plan)
