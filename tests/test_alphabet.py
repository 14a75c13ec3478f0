"""Tokenisation, against the reference implementation's and against mistakes."""

import pytest
from esm.data import Alphabet as Reference
from torch import equal

from pyrosys.alphabet import Alphabet
from pyrosys.errors import InputError
from pyrosys.zoo.esm import ALPHABET

TINY = Alphabet(("<start>", "<pad>", "<end>", "A", "C", "<mask>"), "AC", start="<start>", end="<end>")


def test_tokens_are_those_of_the_reference() -> None:
    reference = Reference.from_architecture("ESM-1b")
    assert list(ALPHABET.tokens) == reference.all_toks
    assert ALPHABET.index == reference.tok_to_idx
    assert len(ALPHABET) == 33


def test_a_batch_is_that_of_the_reference() -> None:
    sequences = ["MKTAYIAKQRQISFVKSHFSRQ", "XBUZO.-", "A", "MK<mask>L<mask>"]
    _, _, tokens = Reference.from_architecture("ESM-1b").get_batch_converter()([("", one) for one in sequences])
    assert equal(ALPHABET.encode(sequences), tokens)


def test_decoding_undoes_encoding() -> None:
    assert ALPHABET.decode(ALPHABET.encode(["MK<mask>L", "A"])[1].tolist()) == "<cls>A<eos><pad><pad><pad>"
    assert ALPHABET.decode(ALPHABET.encode(["MK<mask>L", "A"])[0, 1:-1].tolist()) == "MK<mask>L"


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("", "at least one residue"),
        ("CAJ", "at position 3, found 'J'. Write an unknown residue as X"),
        ("CaA", "at position 2, found 'a'. Write letters in upper case"),
        ("C A", "at position 2, found ' '"),
        ("A\n", "at position 2, found '.n'"),
        ("A<mask>*", "at position 3, found '[*]'"),
        ("A<pad>C", "at position 2, found '<'"),
    ],
)
def test_what_is_no_residue_is_refused(sequence: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TINY.encode(["A", sequence])
