"""Rank correlation, as scipy has it."""

import pytest
import torch
from scipy import stats

from pyrosys.metrics import Spearman


@pytest.mark.parametrize("levels", [1000, 5])
def test_spearman_is_that_of_scipy_with_ties_and_without(levels: int) -> None:
    truth = torch.randint(levels, (4, 25)).double()
    prediction = (truth + levels / 3 * torch.randn(4, 25)).round()
    mask = torch.rand(4, 25) < 0.8
    metric = Spearman()
    for row in range(4):
        spoilt = prediction[[row]].masked_fill(~mask[[row]], torch.nan)
        metric.update(spoilt, truth[[row]], mask[[row]])
    expected, _ = stats.spearmanr(prediction[mask].numpy(), truth[mask].numpy())
    assert metric.compute().item() == pytest.approx(expected, rel=1e-6)


def test_order_is_all_that_counts() -> None:
    numbers, mask = torch.randn(50, dtype=torch.double), torch.ones(50, dtype=torch.bool)
    for prediction, expected in ((numbers.exp(), 1), (-(numbers**3), -1)):
        metric = Spearman()
        metric.update(prediction, numbers, mask)
        assert metric.compute().item() == pytest.approx(expected)


@pytest.mark.parametrize("prediction", [torch.zeros(0), torch.zeros(1), torch.zeros(5)])
def test_without_an_order_there_is_no_value(prediction: torch.Tensor) -> None:
    metric = Spearman()
    metric.update(prediction, torch.arange(len(prediction)).float(), torch.ones(len(prediction), dtype=torch.bool))
    assert metric.compute().isnan()
