"""Positions: learned ones count real tokens, rotary ones show attention only distances."""

import copy

import pytest
import torch

from pyrosys.errors import InputError
from pyrosys.modules import LearnedPosition, RotaryPosition


def test_learned_positions_count_real_tokens() -> None:
    position = LearnedPosition(6, 4, padding=1)
    assert position.weight.shape == (8, 4)
    x = position(torch.tensor([[True, True, True], [True, False, True]]))
    assert torch.equal(x[0], position.weight[2:5])
    assert torch.equal(x[1], position.weight[[2, 1, 3]])


def test_learned_positions_come_to_an_end() -> None:
    position = LearnedPosition(6, 4, padding=1)
    assert torch.equal(position(torch.ones(1, 6, dtype=torch.bool))[0, -1], position.weight[-1])
    with pytest.raises(InputError, match=r"at most 6 tokens.*found 7"):
        position(torch.ones(1, 7, dtype=torch.bool))


def test_rotation_is_multiplication_by_unit_complex_numbers() -> None:
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    turned, same = RotaryPosition(8).double()(x, x)
    angles = torch.arange(9, dtype=torch.float64)[:, None] * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    expected = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(turned, torch.cat((expected.real, expected.imag), -1), rtol=0, atol=1e-6)
    assert torch.equal(turned, same)


def test_the_first_position_is_not_turned() -> None:
    x = torch.randn(1, 2, 5, 6)
    assert torch.equal(RotaryPosition(6)(x, x)[0][:, :, 0], x[:, :, 0])


def test_products_depend_on_distance_alone() -> None:
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).expand(2, 1, 1, 12, 8)
    query, key = RotaryPosition(8).double()(query, key)
    products = (query @ key.mT)[0, 0]
    for distance in range(-11, 12):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert not torch.allclose(products[0, 1], products[0, 2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_leaves_the_frequencies_alone(dtype: torch.dtype) -> None:
    position = RotaryPosition(8)
    halved = copy.deepcopy(position).to(dtype)
    assert torch.equal(halved.frequencies, position.frequencies)
    query, key = halved(*torch.randn(2, 1, 1, 1000, 8).to(dtype))
    assert query.dtype == key.dtype == dtype
    assert position.double().frequencies.dtype == torch.float64


def test_frequencies_are_kept_with_the_weights() -> None:
    with torch.device("meta"):
        position = RotaryPosition(8)
    rounded = RotaryPosition(8).frequencies.half().float()  # as in checkpoints trained in half precision
    position.load_state_dict({"frequencies": rounded}, assign=True)
    assert torch.equal(position.frequencies, rounded)
