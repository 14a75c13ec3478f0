"""A state of zeros: its products are left out where the matrix meets other states as well."""

import torch
from torch import Tensor, nn

from pyrosys import match
from pyrosys.adapters.capture import Inputs, capture
from tests.adapters.twins import randomise

WIDTH, STATE = 5, 4


class Counter(nn.Module):
    """A plain recurrent network.

    Args:
        form: whether the first state is multiplied, or its product left out and the bias added alone.
    """

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.inner, self.output = form, nn.Linear(STATE, STATE), nn.Linear(STATE, 3)
        self.input = nn.Linear(WIDTH, STATE, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        state = None if self.form == "left out" else x.new_zeros(len(x), STATE)
        for step in self.input(x).unbind(1):
            before = self.inner.bias if state is None else self.inner(state)
            state = torch.tanh(step + before)
        assert state is not None
        return self.output(state)


def example(length: int = 4) -> Tensor:
    return torch.randn(3, length, WIDTH, generator=torch.Generator().manual_seed(length))


def products(model: nn.Module, x: Tensor) -> int:
    return sum(n.target is torch.ops.aten.mm.default for n in capture(model, Inputs(x)).graph.nodes)


def test_the_product_with_the_first_state_is_left_out() -> None:
    assert products(Counter("multiplied"), example()) == products(Counter("left out"), example())


def test_a_matrix_that_meets_zeros_only_is_kept() -> None:
    assert "inner.weight" in capture(Counter("multiplied"), Inputs(example(1))).reached


def test_zeros_in_the_inputs_are_data() -> None:
    model, x = nn.Sequential(nn.Linear(WIDTH, STATE)), torch.zeros(3, WIDTH)
    assert "0.weight" in capture(model, Inputs(x)).reached


def test_a_network_that_leaves_the_first_product_out_is_matched() -> None:
    for source, target in (("multiplied", "left out"), ("left out", "multiplied")):
        one, other = randomise(Counter(source), 1), randomise(Counter(target), 2)
        other.load_state_dict(match(one, other, (example(),)).apply(one.state_dict()))
        with torch.no_grad():
            torch.testing.assert_close(other(example(6)), one(example(6)))
