"""Token embedding: padding, and the scale of token dropout."""

import pytest
import torch
from torch import nn

from pyrosys.modules import TokenEmbedding

TOKENS = torch.tensor([[3, 5, 9, 4, 6], [3, 9, 4, 1, 1]])  # 9 is masked, 1 is padding


@pytest.fixture
def embedding() -> TokenEmbedding:
    return TokenEmbedding(10, 6, padding=1, dropped=9).double()


def test_without_token_dropout_it_is_a_table() -> None:
    plain = TokenEmbedding(10, 6, padding=1)
    assert torch.equal(plain(TOKENS), nn.functional.embedding(TOKENS, plain.weight))


def test_padding_and_masked_tokens_embed_to_zero(embedding: TokenEmbedding) -> None:
    zero = (TOKENS == 1) | (TOKENS == 9)
    assert torch.equal(embedding(TOKENS).abs().sum(-1) == 0, zero)


def test_the_others_make_up_for_them(embedding: TokenEmbedding) -> None:
    x = embedding(TOKENS)
    torch.testing.assert_close(x[0, 1], embedding.weight[5] * 0.88 / (4 / 5))
    torch.testing.assert_close(x[1, 0], embedding.weight[3] * 0.88 / (2 / 3))  # of three, padding is not counted


def test_on_average_as_in_training_nothing_is_scaled(embedding: TokenEmbedding) -> None:
    tokens = torch.tensor([[5] * 88 + [9] * 12])
    torch.testing.assert_close(embedding(tokens)[0, 0], embedding.weight[5])


def test_counts_are_exact_in_bfloat16() -> None:
    embedding = TokenEmbedding(10, 6, padding=1, dropped=9).bfloat16()
    tokens = torch.tensor([[5] * 700 + [9] * 301])
    torch.testing.assert_close(embedding(tokens)[0, 0], (embedding.weight[5].double() * 0.88 / (700 / 1001)).bfloat16())


def test_padding_learns_nothing(embedding: TokenEmbedding) -> None:
    embedding(TOKENS).sum().backward()
    assert embedding.weight.grad is not None
    assert torch.equal(embedding.weight.grad.abs().sum(1) > 0, torch.tensor([n in (3, 4, 5, 6) for n in range(10)]))
