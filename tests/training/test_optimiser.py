"""The learning rate's schedule, and which parameters decay."""

import pytest
import torch
from torch import nn

from pyrosys.errors import InputError
from pyrosys.training import Optimiser


def test_learning_rate_rises_to_its_largest_and_falls_to_its_final_part() -> None:
    for schedule in ("linear", "cosine"):
        optimiser = Optimiser(warmup=4, schedule=schedule, final=0.2)
        scales = [optimiser.scale(step, 50) for step in range(51)]
        assert scales[:4] == [0.25, 0.5, 0.75, 1.0]
        assert scales[3:] == sorted(scales[3:], reverse=True)
        assert scales[27] == pytest.approx(0.6)  # half way
        assert scales[50] == pytest.approx(0.2)
        assert optimiser.scale(90, 50) == pytest.approx(0.2)
    assert Optimiser(schedule="constant").scale(30, 50) == 1.0


def test_only_matrices_decay() -> None:
    layer = nn.Linear(3, 2)
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    optimiser, _ = Optimiser(learning_rate=0.1, weight_decay=0.5).build(layer.parameters(), 10)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    torch.testing.assert_close(layer.weight, before["weight"] * (1 - 0.1 * 0.5))
    torch.testing.assert_close(layer.bias, before["bias"])


def test_what_is_not_trained_is_not_built_into_the_optimiser() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.requires_grad_(False)
    optimiser, _ = Optimiser().build(layer.parameters(), 10)
    assert [parameter is layer.bias for group in optimiser.param_groups for parameter in group["params"]] == [True]


@pytest.mark.parametrize(
    "wrong",
    [{"learning_rate": 0}, {"weight_decay": -1}, {"momentum": 1}, {"warmup": -1}, {"schedule": "x"}, {"final": 2}],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"Expected .*{next(iter(wrong))}"):
        Optimiser(**wrong)  # type: ignore[arg-type]
