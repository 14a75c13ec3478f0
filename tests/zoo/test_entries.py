"""The models that come with the package as published entries, and how the language model among them was measured."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pyrosys
from pyrosys.catalogue import ENTRIES
from pyrosys.zoo.esm import ESM, ESMConfig
from tests.reference.language_model import LETTERS, masked_perplexity, ngram_perplexity

NAME = "pyrosys-lm-1m"
UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"


def test_language_model_is_there_without_network_and_training() -> None:
    script = (
        f"import socket, sys; socket.socket.connect = None; import pyrosys; pyrosys.load({NAME!r}); print(*sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"pyrosys.training", "pyrosys.analysis", "ray", "peft", "mlflow", "pyarrow"} & set(result.stdout.split())


def test_language_model_predicts_what_it_did_when_it_was_published() -> None:
    model = pyrosys.load(NAME)
    assert isinstance(model, ESM)
    assert model.pseudo_perplexity(UBIQUITIN) == pytest.approx(16.3424, rel=1e-4)


def test_catalogue_and_card_say_what_it_is() -> None:
    entry = json.loads((ENTRIES / NAME / "structure.json").read_text())
    card, readme = pyrosys.info(NAME), (ENTRIES / NAME / "README.md").read_text()
    assert card["weights_licence"] == entry["licences"]["weights"] == "Apache-2.0"
    assert (ENTRIES / NAME / "model.safetensors").stat().st_size < 5_000_000
    perplexity = entry["provenance"]["perplexity"]
    assert perplexity["language model"] < min(value for name, value in perplexity.items() if name != "language model")
    page = (Path(__file__).parents[2] / ".github" / "docs" / "training.md").read_text()
    for name in ("language model", "unigram", "2 preceding", "2 surrounding"):
        assert f"{perplexity[name]:.2f}" in readme
        assert f"{perplexity[name]:.2f}" in page


def random_sequences(count: int) -> list[str]:
    generator = np.random.default_rng(0)
    return ["".join(generator.choice(list(LETTERS), 60)) for _ in range(count)]


@pytest.mark.parametrize("places", [(), (-1,), (-1, 1)])
def test_letters_at_random_are_predicted_no_better_than_by_a_guess(places: tuple[int, ...]) -> None:
    sequences = random_sequences(400)
    assert 19.9 < ngram_perplexity(sequences[:300], sequences[300:], places) < 24


def test_letters_that_follow_from_their_neighbours_are_predicted() -> None:
    sequences = ["ACD" * 30] * 4
    assert ngram_perplexity(sequences, sequences, ()) == pytest.approx(3, rel=1e-2)
    assert ngram_perplexity(sequences, sequences, (-1,)) < 1.1


def test_perplexity_of_a_model_that_knows_nothing_is_its_vocabulary() -> None:
    model = ESM(ESMConfig(layers=1, width=16, heads=2)).eval()
    for parameter in model.head.parameters():
        parameter.data.zero_()
    assert masked_perplexity(model, [*random_sequences(3), "XX"]) == pytest.approx(len(model.alphabet), rel=1e-5)
