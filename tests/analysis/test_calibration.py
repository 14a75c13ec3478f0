"""Calibration, against torchmetrics and against models whose certainty is known."""

import math

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from pyrosys.analysis import Calibration, calibrate
from pyrosys.errors import InputError
from pyrosys.zoo.esm import ESM, ESMConfig


def draw() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return 3 * torch.randn(4, 50, 5), torch.randint(5, (4, 50)), torch.rand(4, 50) < 0.7


def test_error_and_accuracy_are_those_of_torchmetrics() -> None:
    logits, labels, mask = draw()
    found = Calibration.of(logits, labels, mask)
    error = multiclass_calibration_error(logits[mask], labels[mask], num_classes=5, n_bins=15)
    accuracy = multiclass_accuracy(logits[mask], labels[mask], num_classes=5, average="micro")
    assert found.error == pytest.approx(error.item(), rel=1e-5)
    assert found.accuracy == pytest.approx(accuracy.item())
    assert found.count == int(mask.sum())
    expected = torch.nn.functional.cross_entropy(logits[mask], labels[mask]).exp()
    assert found.perplexity == pytest.approx(expected.item(), rel=1e-5)


def test_parts_add_up() -> None:
    logits, labels, mask = draw()
    first, second = (Calibration.of(logits[rows], labels[rows], mask[rows]) for rows in (slice(1), slice(1, 4)))
    whole = Calibration.of(logits, labels, mask)
    assert (first + second).error == pytest.approx(whole.error)
    assert (first + second).counts == whole.counts
    assert (first + second).perplexity == pytest.approx(whole.perplexity)


def test_labels_drawn_from_the_predictions_are_calibrated() -> None:
    logits = 2 * torch.randn(1, 50_000, 4)
    labels = torch.distributions.Categorical(logits=logits).sample()
    assert Calibration.of(logits, labels, labels >= 0).error < 0.01
    assert Calibration.of(4 * logits, labels, labels >= 0).error > 0.1  # too sure


def test_nothing_has_no_value() -> None:
    logits, labels, mask = draw()
    found = Calibration.of(logits, labels, mask & False)
    assert math.isnan(found.error)
    assert math.isnan(found.accuracy)
    assert math.isnan(found.perplexity)


def test_hidden_residues_are_a_share_of_each_sequence_and_a_seed_decides() -> None:
    model = ESM(ESMConfig(layers=1, width=16, heads=2)).train()
    found = calibrate(model, ["MKTAYIAKQR" * 2, "G"], fraction=0.25)
    assert found.count == 6
    assert model.training
    assert calibrate(model, ["MKTAYIAKQR" * 2, "G"], fraction=0.25) == found
    assert calibrate(model, ["MKTAYIAKQR" * 2, "G"], fraction=0.25, seed=1) != found


def test_what_is_hidden_is_not_seen() -> None:
    model = ESM(ESMConfig(layers=1, width=16, heads=2)).eval()
    everything = [calibrate(model, [letter * 5], fraction=1.0).confidence for letter in "AW"]
    assert everything[0] == everything[1]


@pytest.mark.parametrize("arguments", [([],), (["MKT"],)])
def test_impossible_choices_are_refused(arguments: tuple) -> None:
    with pytest.raises(InputError, match="Expected"):
        calibrate(ESM(ESMConfig(layers=1, width=16, heads=2)), *arguments, fraction=15.0 if arguments[0] else 0.15)
