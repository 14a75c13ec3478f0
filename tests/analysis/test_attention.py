"""Attention: what heads attend to, in maps and in numbers."""

import math

import pytest
import torch
from torch import nn

from pyrosys import Inputs
from pyrosys.analysis import attention_maps, attention_statistics
from pyrosys.zoo.esm import ESM, ESMConfig


@pytest.fixture
def model() -> ESM:
    return ESM(ESMConfig(layers=2, width=16, heads=4)).eval()


def test_maps_are_those_that_the_blocks_compute(model: ESM) -> None:
    tokens = model.alphabet.encode(["MKTAYI", "GS"])
    maps = attention_maps(model, Inputs(tokens))
    with torch.no_grad():
        x, mask = model._embed_tokens(tokens)
        for name, block in zip(maps, model.layers, strict=True):
            x, weights = block.with_weights(x, mask=mask)  # pyright: ignore[reportCallIssue]
            torch.testing.assert_close(maps[name], weights)
    for weights in maps.values():
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 8))
        assert (weights[1, ..., 4:] == 0).all()  # padding


def test_heads_that_attend_to_all_alike_have_the_largest_entropy(model: ESM) -> None:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.zero_()
                module.bias.zero_()
    lengths = (6, 3)
    found = attention_statistics(model, [Inputs(model.alphabet.encode(["A" * length])) for length in lengths])
    tokens = [length + 2 for length in lengths]
    entropy = sum(n * math.log(n) for n in tokens) / sum(tokens)
    distance = sum((n**2 - 1) / 3 for n in tokens) / sum(tokens)  # the mean of |i - j| over all pairs, times n
    for heads in found.values():
        assert heads.entropy == pytest.approx([entropy] * 4)
        assert heads.distance == pytest.approx([distance] * 4)


def test_models_without_attention_have_none() -> None:
    assert attention_maps(nn.Linear(3, 3), Inputs(torch.randn(2, 3))) == {}
    assert attention_statistics(nn.Linear(3, 3), [Inputs(torch.randn(2, 3))]) == {}
