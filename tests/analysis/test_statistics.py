"""Summaries of numbers, against numpy, and which numbers they are of."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from pyrosys import Inputs
from pyrosys.analysis import Summary, activation_statistics, weight_statistics
from pyrosys.analysis.observe import batches_of, blocks, observe
from pyrosys.errors import InputError
from pyrosys.zoo.esm import ESM, ESMConfig
from pyrosys.zoo.proteinmpnn import ProteinMPNN, ProteinMPNNConfig


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_summaries_are_those_of_numpy_however_numbers_arrive(offset: float) -> None:
    parts = [offset + torch.randn(size, dtype=torch.double) for size in (1, 500, 3)]
    found = Summary.of(parts)
    whole = torch.cat(parts).numpy()
    assert found.count == 504
    assert found.mean == pytest.approx(whole.mean(), rel=1e-12)
    assert found.deviation == pytest.approx(whole.std(), rel=1e-9)
    assert (found.smallest, found.largest) == (whole.min(), whole.max())


def test_zeros_and_what_is_not_finite_are_counted_and_left_out() -> None:
    found = Summary.of([torch.tensor([0.0, 4.0, torch.nan, torch.inf]), torch.zeros(0)])
    assert (found.count, found.not_finite, found.zeros, found.mean) == (4, 2, 0.5, 2.0)
    assert math.isnan(Summary.of([torch.tensor([torch.nan])]).mean)


def test_low_precision_is_summed_in_double() -> None:
    numbers = torch.full((100_000,), 1.0, dtype=torch.bfloat16)
    assert Summary.of([numbers]).mean == 1.0


def test_weights_belong_to_the_module_that_owns_them() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Sequential(nn.ReLU(), nn.LayerNorm(5)))
    found = weight_statistics(model)
    assert {name: summary.count for name, summary in found.items()} == {"0": 20, "1.1": 10}
    assert found["1.1"].mean == 0.5


def test_activations_are_what_modules_return_over_all_batches() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU()).train()
    batches = [Inputs(torch.randn(2, 3)), Inputs(torch.randn(7, 3))]
    found = activation_statistics(model, batches)
    outputs = torch.cat([model(*batch.args) for batch in batches]).detach()
    assert found["1"] == found[""]
    assert found["1"].mean == pytest.approx(float(outputs.mean()))
    assert found["1"].zeros == pytest.approx(float((outputs == 0).float().mean()))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_go_when_a_model_fails() -> None:
    model = nn.Sequential(nn.Linear(3, 5))
    with pytest.raises(RuntimeError):
        activation_statistics(model, [Inputs(torch.randn(2, 4))])
    assert not any(module._forward_hooks for module in model.modules())


def test_the_first_tensor_of_any_output_is_seen() -> None:
    class Several(nn.Module):
        def forward(self, x):
            return {"index": x.long(), "both": (None, [x + 1])}

    seen = []
    observe(Several(), [Inputs(torch.zeros(2))], lambda name, tensor: seen.append((name, tensor)))
    assert [(name, tensor.tolist()) for name, tensor in seen] == [("", [1.0, 1.0])]


def test_blocks_are_what_a_model_stacks() -> None:
    found = blocks(ProteinMPNN(ProteinMPNNConfig(width=16, neighbours=8)))
    assert len(found) == 6
    nested = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    assert blocks(nested) == ["0", "1"]
    assert blocks(nn.Linear(2, 2)) == []


def test_sequences_are_run_one_by_one() -> None:
    model = ESM(ESMConfig(layers=1, width=16, heads=2))
    assert [batch.args[0].shape for batch in batches_of(model, sequences=["MKT", "G"])] == [(1, 5), (1, 3)]
    assert len(batches_of(model)) == 1


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (nn.Linear(3, 3), {}, "found none"),
        (nn.Linear(3, 3), {"sequences": ["MKT"]}, "found a Linear"),
        (ESM(ESMConfig(layers=1, width=16, heads=2)), {"sequences": []}, "found none"),
        (ESM(ESMConfig(layers=1, width=16, heads=2)), {"sequences": ["M?"]}, "'?'"),
        (ESM(ESMConfig(layers=1, width=16, heads=2, positions=7)), {"sequences": ["MKTAYIA"]}, "at most 5 residues"),
    ],
)
def test_what_cannot_be_run_is_explained(model: nn.Module, arguments: dict, message: str) -> None:
    with pytest.raises(InputError) as raised:
        batches_of(model, **arguments)
    assert message in str(raised.value)


def test_numbers_do_not_depend_on_numpy_printing() -> None:
    assert isinstance(Summary.of([torch.ones(2)]).mean, float)
    assert not isinstance(Summary.of([torch.ones(2)]).mean, np.floating)
