"""Feed-forward: the exact GELU, one token at a time."""

import math

import torch

from pyrosys.modules import FeedForward


def test_the_activation_is_the_exact_gelu() -> None:
    feed_forward = FeedForward(5, 20).double()
    x = torch.randn(2, 3, 5, dtype=torch.float64) * 3
    hidden = feed_forward.up(x)
    expected = feed_forward.down(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))
    torch.testing.assert_close(feed_forward(x), expected, rtol=0, atol=1e-12)


def test_tokens_do_not_see_each_other() -> None:
    feed_forward = FeedForward(5, 20)
    x = torch.randn(2, 3, 5)
    changed = x.clone()
    changed[:, 1] += 1
    same = feed_forward(x) == feed_forward(changed)
    assert same[:, [0, 2]].all()
    assert not same[:, 1].all()
