"""Hidden tokens: how many, which, and what stands in their place."""

import pytest
import torch

from pyrosys.errors import InputError
from pyrosys.losses import hide_tokens
from pyrosys.zoo.esm import ALPHABET, END, MASK

LETTERS = torch.tensor([ALPHABET.index[letter] for letter in "ACDEFGHIKLMNPQRSTVWY"])


def test_fractions_are_those_of_the_paper() -> None:
    tokens = torch.full((500, 1000), ALPHABET.index["-"])  # a letter that is never drawn
    seen, chosen = hide_tokens(tokens, tokens > 0, hidden=MASK, others=LETTERS)
    hidden, drawn = seen == MASK, torch.isin(seen, LETTERS)
    assert chosen.float().mean() == pytest.approx(0.15, abs=0.002)
    assert hidden[chosen].float().mean() == pytest.approx(0.8, abs=0.005)
    assert drawn[chosen].float().mean() == pytest.approx(0.1, abs=0.005)
    assert (seen == tokens)[chosen].float().mean() == pytest.approx(0.1, abs=0.005)
    assert torch.equal(seen[~chosen], tokens[~chosen])
    counts = torch.bincount(seen[drawn], minlength=len(ALPHABET))[LETTERS]
    assert counts.min() > 0.8 * counts.max()


def test_what_may_not_be_chosen_is_not() -> None:
    tokens = ALPHABET.encode(["MKTAYIAKQR", "GS"])
    residues = torch.isin(tokens, LETTERS)
    seen, chosen = hide_tokens(tokens, residues, hidden=MASK, others=LETTERS, fraction=1.0)
    assert torch.equal(chosen, residues)
    assert torch.equal(seen[~residues], tokens[~residues])
    assert (seen == END).sum() == 2
    seen, chosen = hide_tokens(tokens, residues, hidden=MASK, others=LETTERS, fraction=0.0)
    assert not chosen.any()
    assert torch.equal(seen, tokens)


def test_a_seed_decides() -> None:
    tokens = torch.randint(4, 24, (5, 50))

    def hide(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return hide_tokens(tokens, tokens > 0, hidden=MASK, others=LETTERS, generator=generator).tokens

    assert torch.equal(hide(1), hide(1))
    assert not torch.equal(hide(1), hide(2))


def test_impossible_fractions_are_refused() -> None:
    with pytest.raises(InputError, match=r"found 15.0"):
        hide_tokens(
            torch.ones(1, 1, dtype=torch.long), torch.ones(1, 1) > 0, hidden=MASK, others=LETTERS, fraction=15.0
        )
