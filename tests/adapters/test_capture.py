"""A recorded pass computes what the model computes, whatever the model writes into memory on the way."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyrosys.adapters.capture import Inputs, capture
from pyrosys.adapters.execute import execute


def turned(x: Tensor) -> Tensor:
    x = x * 2
    x.transpose_(0, 1)
    x.add_(1)
    return x.unsqueeze_(0).squeeze_(0).t_().contiguous()


def turned_after_a_write(x: Tensor) -> Tensor:
    x = x * 2
    x[0] = 3
    part = x[1:]
    x.t_()
    x[:, 2].mul_(2)
    return torch.cat([x.reshape(-1), part.reshape(-1)])


def halves(x: Tensor) -> Tensor:
    one, two = x.sin().chunk(2, -1)
    one.add_(two).sigmoid_()
    return one * two


def overlapping(x: Tensor) -> Tensor:
    x = x.sin()
    left, right = x[:, :3], x[:, 2:]
    left.mul_(2)
    return torch.cat([left, right, x], -1)


def twice(x: Tensor) -> Tensor:
    x = x.sin()
    first, last = x[0], x[-1]
    first.add_(last)
    last.mul_(first)
    first.sub_(1)
    return torch.stack([first, last, x[1]])


def by_columns(x: Tensor) -> Tensor:
    x = x.sin().t()
    rows, rest = x[:2], x[2:]
    rows.add_(1)
    return torch.cat([rest, x], 0)


class Writing(nn.Module):
    def __init__(self, write: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.write = nn.Parameter(torch.randn(4, 6, dtype=torch.float64)), write

    def forward(self, x: Tensor) -> Tensor:
        return self.write(self.weight + x)


@pytest.mark.parametrize("write", [turned, turned_after_a_write, halves, overlapping, twice, by_columns])
def test_what_is_recorded_is_what_is_computed(write: Callable[[Tensor], Tensor]) -> None:
    model, x = Writing(write), torch.randn(4, 6, dtype=torch.float64)
    captured = capture(model, Inputs(x))
    values = dict(execute(captured, dict(model.named_parameters())))
    with torch.no_grad():
        torch.testing.assert_close(values[captured.outputs[0]], model(x))


def test_views_that_nothing_was_written_into_are_not_read_again() -> None:
    captured = capture(Writing(halves), Inputs(torch.randn(4, 6)))
    assert not any("index_put" in str(node.target) for node in captured.graph.nodes)
