"""Perplexity, pseudo-perplexity and recovery: what they are of, and what they leave out."""

import math

import pytest
import torch
import torchmetrics.text
from torchmetrics import Metric

from pyrosys.losses import cross_entropy
from pyrosys.metrics import Mean, Perplexity, PseudoPerplexity, SequenceRecovery
from pyrosys.zoo.esm import ESM, ESMConfig


def test_perplexity_is_that_of_torchmetrics() -> None:
    logits, tokens, mask = torch.randn(3, 11, 20), torch.randint(20, (3, 11)), torch.rand(3, 11) < 0.5
    ours, theirs = Perplexity(), torchmetrics.text.Perplexity(ignore_index=-100)
    for rows in (slice(0, 1), slice(1, 3)):
        ours.update(logits[rows], tokens[rows], mask[rows])
        theirs.update(logits[rows], tokens[rows].masked_fill(~mask[rows], -100))
    torch.testing.assert_close(ours.compute(), theirs.compute())


def test_the_mean_of_a_loss_weighs_items_and_not_batches() -> None:
    logits, labels, mask = torch.randn(3, 11, 20), torch.randint(20, (3, 11)), torch.rand(3, 11) < 0.5
    mask[0] = False
    mask[0, 0] = True
    metric = Mean()
    for rows in (slice(0, 1), slice(1, 3)):
        metric.update(cross_entropy(logits[rows], labels[rows], mask[rows]))
    torch.testing.assert_close(metric.compute(), cross_entropy(logits, labels, mask).value)


def test_pseudo_perplexity_is_the_mean_of_what_the_model_says() -> None:
    model, sequences = ESM(ESMConfig(layers=1, width=16, heads=2)).eval(), ["MKTAYI", "GS"]
    metric = PseudoPerplexity()
    log_probabilities, mask = torch.full((2, 6), torch.nan), torch.zeros(2, 6, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        for place, residue in enumerate(sequence):
            hidden = f"{sequence[:place]}<mask>{sequence[place + 1 :]}"
            prediction = model.logits([hidden])[0][place].log_softmax(-1)
            log_probabilities[row, place] = prediction[model.alphabet.index[residue]]
            mask[row, place] = True
    metric.update(log_probabilities, mask)
    expected = sum(model.pseudo_perplexity(sequence) for sequence in sequences) / 2
    assert metric.compute().item() == pytest.approx(expected, rel=1e-5)


def test_recovery_is_per_residue_or_per_protein() -> None:
    native = torch.tensor([[1, 2, 3, 4], [1, 9, 9, 9], [5, 5, 5, 5]])
    predicted = torch.tensor([[1, 2, 0, 0], [1, 9, 9, 9], [5, 5, 5, 5]])
    mask = torch.tensor([[True] * 4, [True, False, False, False], [False] * 4])
    for per_protein, expected in ((False, 3 / 5), (True, 3 / 4)):
        metric = SequenceRecovery(per_protein)
        metric.update(predicted, native, mask)
        assert metric.compute().item() == pytest.approx(expected)


@pytest.mark.parametrize("metric", [Perplexity(), SequenceRecovery(), SequenceRecovery(per_protein=True)])
def test_nothing_has_no_value(metric: Metric) -> None:
    first = torch.zeros(1, 3, 20) if isinstance(metric, Perplexity) else torch.zeros(1, 3, dtype=torch.long)
    metric.update(first, torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3, dtype=torch.bool))
    assert math.isnan(metric.compute())
    metric.reset()


def test_reset_forgets() -> None:
    metric, mask = SequenceRecovery(), torch.ones(1, 3, dtype=torch.bool)
    metric.update(torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.long), mask)
    metric.reset()
    metric.update(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.long), mask)
    assert metric.compute() == 1
