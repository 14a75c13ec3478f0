"""Heads: the contact head's correction and symmetry, the language model head's tied weight."""

import torch
from torch import nn

from pyrosys.modules import ContactHead, LanguageModelHead
from pyrosys.modules.head import average_product_correction


def test_the_correction_takes_away_all_that_is_background() -> None:
    background = torch.rand(4, 7, 1, dtype=torch.float64) * torch.rand(4, 1, 7, dtype=torch.float64)
    torch.testing.assert_close(average_product_correction(background), torch.zeros_like(background))


def test_corrected_rows_and_columns_sum_to_zero() -> None:
    corrected = average_product_correction(torch.rand(4, 7, 7, dtype=torch.float64))
    for dimension in (-1, -2):
        torch.testing.assert_close(corrected.sum(dimension), torch.zeros(4, 7, dtype=torch.float64))


def test_empty_rows_and_columns_change_nothing() -> None:
    maps = torch.rand(4, 7, 7, dtype=torch.float64)
    padded = nn.functional.pad(maps, (0, 2, 0, 2))
    torch.testing.assert_close(average_product_correction(padded)[:, :7, :7], average_product_correction(maps))


def test_contacts_are_symmetric_probabilities() -> None:
    contacts = ContactHead(6).double()(torch.rand(2, 6, 7, 7, dtype=torch.float64) ** 8)
    torch.testing.assert_close(contacts, contacts.mT)
    assert ((contacts > 0) & (contacts < 1)).all()


def test_contacts_add_up_evidence_from_maps() -> None:
    head = ContactHead(3).double()
    nn.init.zeros_(head.regression.weight)
    with torch.no_grad():
        head.regression.weight[0, 1] = 2.0
        head.regression.bias.fill_(0.5)
    maps = torch.rand(1, 3, 7, 7, dtype=torch.float64)
    expected = 2.0 * average_product_correction(maps[:, 1] + maps[:, 1].mT) + 0.5
    torch.testing.assert_close(head(maps).logit(), expected)


def test_the_language_model_head_compares_with_embeddings() -> None:
    head = LanguageModelHead(6, 10).double()
    nn.init.normal_(head.bias)
    x, embedding = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(10, 6, dtype=torch.float64)
    transformed = head.norm(nn.functional.gelu(head.transform(x)))
    torch.testing.assert_close(head(x, embedding), transformed @ embedding.T + head.bias)
