"""Attention, against torch's own and by what must not change it."""

import pytest
import torch
from torch import nn

from pyrosys.errors import InputError
from pyrosys.modules import Attention, RotaryPosition

MASK = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])


@pytest.fixture
def attention() -> Attention:
    return Attention(12, 3).double()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 7, 12, dtype=torch.float64)


def test_it_computes_what_torch_computes(attention: Attention, x: torch.Tensor) -> None:
    reference = nn.MultiheadAttention(12, 3, batch_first=True).double()
    parts = (attention.query, attention.key, attention.value)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        reference.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        reference.out_proj.weight.copy_(attention.output.weight)
        reference.out_proj.bias.copy_(attention.output.bias)
    expected, expected_weights = reference(x, x, x, key_padding_mask=~MASK, average_attn_weights=False)
    result, weights = attention.with_weights(x, mask=MASK)
    torch.testing.assert_close(attention(x, mask=MASK), expected)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(weights, expected_weights)


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("biased", [False, True])
def test_with_weights_is_the_same(x: torch.Tensor, mask: torch.Tensor | None, biased: bool) -> None:
    attention = Attention(12, 3, position=RotaryPosition(4)).double()
    bias = torch.randn(2, 3, 7, 7, dtype=torch.float64) if biased else None
    result, weights = attention.with_weights(x, bias, mask)
    torch.testing.assert_close(attention(x, bias, mask), result)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 7, dtype=torch.float64))
    if mask is not None:
        assert torch.equal(weights > 0, mask[:, None, None].expand_as(weights))


def test_what_is_not_real_is_not_seen(attention: Attention, x: torch.Tensor) -> None:
    changed = torch.where(MASK[..., None], x, torch.randn_like(x))
    assert torch.equal(attention(x, mask=MASK)[MASK], attention(changed, mask=MASK)[MASK])
    torch.testing.assert_close(attention(x, mask=MASK)[1, :4], attention(x[1:, :4])[0])


def test_a_bias_can_shut_out_the_future(attention: Attention, x: torch.Tensor) -> None:
    future = torch.full((7, 7), -torch.inf, dtype=torch.float64).triu(1)
    causal = attention(x, future.expand(2, 3, 7, 7))
    torch.testing.assert_close(causal[:, :5], attention(x[:, :5], future[:5, :5].expand(2, 3, 5, 5)))


def test_without_positions_order_does_not_matter(attention: Attention, x: torch.Tensor) -> None:
    order = torch.randperm(7)
    torch.testing.assert_close(attention(x[:, order]), attention(x)[:, order])


def test_with_positions_it_does(x: torch.Tensor) -> None:
    attention = Attention(12, 3, position=RotaryPosition(4)).double()
    order = torch.arange(6, -1, -1)
    assert (attention(x[:, order]) - attention(x)[:, order]).abs().max() > 1e-3


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(InputError, match="5 heads divide, found 12"):
        Attention(12, 5)
