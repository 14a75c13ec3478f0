"""Checkpoints without code: what shapes allow, what evidence prefers, and that only outputs of the original settle it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import pyrosys
from pyrosys.errors import InputError, StructureMismatch
from tests.adapters.twins import randomise

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(4, 30, (2, 9), generator=torch.Generator().manual_seed(0))


def perceptron(seed: int) -> nn.Module:
    return randomise(nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5), nn.LayerNorm(5)), seed)


class Square(nn.Module):
    """Three layers of one shape, each of which does something else."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(6, 6, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.second(torch.tanh(self.first(x)))))


class Sum(nn.Module):
    """Two layers that can be exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 5, bias=False), nn.Linear(6, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x).tanh() + self.right(x).tanh()


def nameless(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = ["qo", "ba", "zu", "ki", "re", "mo"]
    return {name: tensor.clone() for name, tensor in zip(names[: len(state)], state.values(), strict=True)}


def bert(seed: int) -> nn.Module:
    config = BertConfig(vocab_size=33, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    return randomise(BertModel(config, add_pooling_layer=False), seed)


def elsewhere(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """BERT's tensors as another code may keep them: fused, matrices the other way round, under other names."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".self." in name:
            if ".query." in name:
                parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
                fused = torch.cat(parts)
                found[f"h.{name.split('.')[2]}.mix.{name.rpartition('.')[2]}"] = fused.T if fused.dim() == 2 else fused
        else:
            turned = tensor.T.contiguous() if "dense.weight" in name else tensor
            found[name.replace("encoder.layer", "h").replace("attention.output", "out").replace("dense", "lin")] = (
                turned
            )
    return found


def test_shapes_without_choice_are_still_only_shapes() -> None:
    source, target = perceptron(1), perceptron(2)
    found = pyrosys.candidates(nameless(source.state_dict()), target, (X,))
    assert found.settled is None
    assert found.exhaustive
    assert "Undetermined" in found.report()
    best = found.ranked[0].plan.apply(nameless(source.state_dict()))
    assert all(torch.equal(best[name], tensor) for name, tensor in source.state_dict().items() if tensor.dim() == 2)
    assert best["3.weight"].mean() > best["3.bias"].mean()  # gains are around one
    assert found.ranked[0].plan.checked == "shapes"


@pytest.mark.parametrize("spelling", [dict, nameless])
def test_expected_outputs_settle_it(spelling: Any) -> None:
    source, target = perceptron(1), perceptron(2)
    state = spelling(source.state_dict())
    found = pyrosys.candidates(state, target, (X,), expected=source(X))
    assert found.settled is not None
    assert found.settled.plan.checked == "expected outputs"
    target.load_state_dict(found.settled.plan.apply(state))
    torch.testing.assert_close(target(X), source(X))


def test_the_question_tells_the_candidates_apart() -> None:
    source, target = randomise(Square(), 1), randomise(Square(), 2)
    state = nameless(source.state_dict())
    found = pyrosys.candidates(state, target, (X,))
    assert found.exhaustive
    assert len(found.ranked) == 6 * 8  # orders of three, each as it is or transposed
    assert found.question is not None
    truth = source(X)[found.question.position].item()
    distances = [abs(answer - truth) for answer in found.question.answers]
    settled = pyrosys.candidates(state, target, (X,), expected=source(X)).settled
    assert settled is not None
    layouts = [candidate.layout for candidate in found.ranked[: len(distances)]]
    if settled.layout in layouts:
        assert min(distances) == distances[layouts.index(settled.layout)] < 1e-5
    assert min(abs(a - b) for a in found.question.answers for b in found.question.answers if a != b) > 1e-3
    assert str(found.question.position[0]) in found.report()


def test_candidates_of_one_function_need_no_choice() -> None:
    source, target = randomise(Sum(), 1), randomise(Sum(), 2)
    state = nameless(source.state_dict())
    settled = pyrosys.candidates(state, target, (X,), expected=source(X)).settled
    assert settled is not None
    target.load_state_dict(settled.plan.apply(state))
    torch.testing.assert_close(target(X + 1), source(X + 1))


def test_inputs_that_show_too_little_settle_nothing() -> None:
    source, target = randomise(Square(), 1), randomise(Square(), 2)
    nothing = torch.zeros(4, 6)
    found = pyrosys.candidates(nameless(source.state_dict()), target, (nothing,), expected=source(nothing))
    assert found.settled is None
    assert found.question is not None


def test_a_tensor_that_the_inputs_do_not_show_settles_nothing() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.rare = nn.Linear(6, 5), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.main(x) + torch.relu(x[..., :1]) * self.rare(x).sum(-1, keepdim=True)

    source, target = randomise(Gated(), 1), randomise(Gated(), 2)
    dark = torch.cat([-X[:, :1].abs(), X[:, 1:]], -1)
    found = pyrosys.candidates(source.state_dict(), target, (dark,), expected=source(dark))
    assert found.settled is None
    assert found.question is not None
    bright = torch.cat([X[:, :1].abs(), X[:, 1:]], -1)
    assert pyrosys.candidates(source.state_dict(), target, (bright,), expected=source(bright)).settled is not None


def test_a_fused_and_transposed_layout_is_found() -> None:
    source, target = bert(1), bert(2)
    state = elsewhere(source.state_dict())
    expected = source(TOKENS).last_hidden_state
    ported = pyrosys.port(state, target, inputs={"input_ids": TOKENS}, expected=expected)
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor), name
    assert ported.certificate.max_difference < 1e-5
    assert ported.certificate.compared is not None
    assert "expected outputs" in ported.plan.report()
    assert all(name.endswith("key.bias") for name in ported.plan.unobservable)


def test_a_stack_and_its_layers() -> None:
    source, target = bert(1), bert(2)
    stacked: dict[str, Tensor] = {}
    for name, tensor in source.state_dict().items():
        if ".layer.0." in name:
            stacked[name.replace(".layer.0.", ".all.")] = torch.stack(
                [tensor, source.state_dict()[name.replace("0", "1")]]
            )
        elif ".layer." not in name:
            stacked[name] = tensor
    pyrosys.port(stacked, target, inputs={"input_ids": TOKENS}, expected=source(TOKENS).last_hidden_state)
    torch.testing.assert_close(target(TOKENS).last_hidden_state, source(TOKENS).last_hidden_state)


def test_no_guess_is_loaded() -> None:
    source, target = bert(1), bert(2)
    before = copy.deepcopy(target.state_dict())
    inputs = {"input_ids": TOKENS}
    with pytest.raises(StructureMismatch, match=r"allow 400 or more layouts.*What would settle it: output\["):
        pyrosys.port(source.state_dict(), target, inputs=inputs)
    wrong = source(TOKENS).last_hidden_state + 1e-2
    with pytest.raises(StructureMismatch, match="None of the .* layouts"):
        pyrosys.port(source.state_dict(), target, inputs=inputs, expected=wrong)
    with pytest.raises(InputError, match="found both"):
        pyrosys.port(source.state_dict(), target, source=source, inputs=inputs, expected=wrong)
    with pytest.raises(InputError, match="outputs of shapes"):
        pyrosys.candidates(source.state_dict(), target, inputs, expected=wrong[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_another_size_is_refused() -> None:
    with pytest.raises(StructureMismatch, match=r"found none by shape"):
        pyrosys.candidates(perceptron(1).state_dict(), nn.Sequential(nn.Linear(6, 8)), (X,))
    with pytest.raises(StructureMismatch, match="wanted twice"):
        pyrosys.candidates({"one": torch.randn(5, 6)}, Sum(), (X,))
