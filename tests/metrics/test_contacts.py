"""Precision of contacts, against a plain count of pairs."""

import pytest
import torch

from pyrosys.errors import InputError
from pyrosys.metrics import ContactPrecision, contact_map, contact_precision


def draw(length: int = 60, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    probabilities, contacts = torch.rand(batch, length, length), torch.rand(batch, length, length) < 0.3
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[0, -10:] = mask[1, 5] = False
    return (probabilities + probabilities.mT) / 2, contacts | contacts.mT, mask


@pytest.mark.parametrize("divisor", [1, 2, 5])
@pytest.mark.parametrize(("closest", "farthest"), [(24, None), (12, 23), (6, 11)])
def test_precision_is_a_count_of_the_best_pairs(divisor: int, closest: int, farthest: int | None) -> None:
    probabilities, contacts, mask = draw()
    expected = 0.0
    for probability, contact, known in zip(probabilities, contacts, mask, strict=True):
        pairs = [
            (float(probability[i, j]), bool(contact[i, j]))
            for i in range(60)
            for j in range(i + closest, min(60, i + (farthest or 60) + 1))
            if known[i] and known[j]
        ]
        best = sorted(pairs, reverse=True)[: int(known.sum()) // divisor]
        expected += sum(hit for _, hit in best) / len(best)
    average = contact_precision(probabilities, contacts, mask, divisor=divisor, closest=closest, farthest=farthest)
    assert average.count == 2
    assert average.total.item() == pytest.approx(expected)
    metric = ContactPrecision(divisor, closest, farthest)
    for row in range(2):
        metric.update(probabilities[[row]], contacts[[row]], mask[[row]])
    assert metric.compute().item() == pytest.approx(expected / 2)


def test_a_perfect_prediction_has_a_precision_of_one_and_the_opposite_zero() -> None:
    _, contacts, mask = draw()
    assert contact_precision(contacts.float(), contacts, mask).value == 1
    assert contact_precision(-contacts.float(), contacts, mask).value == 0


def test_padding_changes_nothing() -> None:
    probabilities, contacts, mask = draw()
    padded = torch.full((2, 70, 70), torch.nan)
    padded[:, :60, :60] = probabilities
    wider = torch.ones(2, 70, 70, dtype=torch.bool)
    wider[:, :60, :60] = contacts
    longer = torch.nn.functional.pad(mask, (0, 10))
    assert contact_precision(padded, wider, longer) == contact_precision(probabilities, contacts, mask)


def test_short_proteins_are_judged_by_what_they_have() -> None:
    contacts = torch.ones(1, 26, 26, dtype=torch.bool)
    average = contact_precision(torch.rand(1, 26, 26), contacts, torch.ones(1, 26, dtype=torch.bool))
    assert average.value == 1  # of 3 pairs
    average = contact_precision(torch.rand(1, 20, 20), contacts[:, :20, :20], torch.ones(1, 20, dtype=torch.bool))
    assert average.count == 0


def test_contacts_are_close_and_known() -> None:
    points = torch.tensor([[[0.0, 0, 0], [7.9, 0, 0], [16.0, 0, 0], [0, 1, 0]]])
    mask = torch.tensor([[True, True, True, False]])
    expected = torch.zeros(1, 4, 4, dtype=torch.bool)
    expected[0, range(3), range(3)] = expected[0, 0, 1] = expected[0, 1, 0] = True
    assert torch.equal(contact_map(points, mask), expected)
    assert contact_map(points, mask, limit=8.2)[0, 1, 2]


def test_impossible_choices_are_refused() -> None:
    with pytest.raises(InputError, match="found 0 and 24"):
        contact_precision(*draw(), divisor=0)
