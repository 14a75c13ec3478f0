"""Blocks: residuals, and the order of their parts."""

import pytest
import torch
from torch import nn

from pyrosys.modules import Attention, FeedForward, PreNormBlock


@pytest.fixture
def block() -> PreNormBlock:
    return PreNormBlock(12, attention=Attention(12, 3), feed_forward=FeedForward(12, 48)).double()


X = torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def silence(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def test_with_silent_parts_it_does_nothing(block: PreNormBlock) -> None:
    assert isinstance(block.feed_forward, FeedForward)
    silence(block.attention.output)
    silence(block.feed_forward.down)
    assert torch.equal(block(X), X)


def test_what_is_added_does_not_grow_with_what_comes_in(block: PreNormBlock) -> None:
    assert isinstance(block.feed_forward, FeedForward)
    silence(block.attention.output)
    torch.testing.assert_close(block(X * 100) - X * 100, block(X) - X, rtol=1e-3, atol=1e-4)
    silence(block.feed_forward.down)
    torch.testing.assert_close(block(X * 100) - X * 100, block(X) - X, rtol=1e-3, atol=1e-4)


def test_with_weights_is_the_same(block: PreNormBlock) -> None:
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    bias = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    x, weights = block.with_weights(X, bias, mask)
    torch.testing.assert_close(block(X, bias, mask), x)
    torch.testing.assert_close(weights, block.attention.with_weights(block.attention_norm(X), bias, mask)[1])
