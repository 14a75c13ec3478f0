"""The verbs of masked language models, on a tiny ESM."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrosys import language
from pyrosys.errors import InputError
from pyrosys.zoo.esm import ESM, ESMConfig

SEQUENCES = ["MKTAYIAKQR", "GS", "W", "ACDEFGHIKLMNPQRSTVWY", "MKTAY"]


def sharp(config: ESMConfig) -> ESM:
    """A model with weights so large that every residue matters to every other."""
    model = ESM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@pytest.fixture(scope="module")
def model() -> ESM:
    torch.manual_seed(0)
    return sharp(ESMConfig(layers=3, width=20, heads=2))


@pytest.fixture(scope="module")
def short_model() -> ESM:
    torch.manual_seed(0)
    return sharp(ESMConfig(layers=2, width=20, heads=2, positions=12))


def test_embeddings_are_those_of_each_alone(model: ESM) -> None:
    for sequence, embedding in zip(SEQUENCES, model.embed(SEQUENCES), strict=True):
        assert embedding.shape == (len(sequence), 20)
        torch.testing.assert_close(embedding, model.encode(model.alphabet.encode([sequence]))[0, 1:-1])
        torch.testing.assert_close(embedding, model.embed([sequence])[0])


@pytest.mark.parametrize("batch_tokens", [1, 12, 30, 10_000])
def test_batches_change_nothing(model: ESM, batch_tokens: int) -> None:
    for verb in (model.embed, model.logits, model.contacts):
        for one, other in zip(verb(SEQUENCES), verb(SEQUENCES, batch_tokens=batch_tokens), strict=True):
            torch.testing.assert_close(one, other)


def test_batches_are_bounded(model: ESM, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[torch.Size] = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda tokens, layer: shapes.append(tokens.shape) or encode(tokens, layer))
    model.embed(["A" * length for length in [3, 30, 4, 5, 3, 3, 29, 4]], batch_tokens=24)
    assert shapes == [(4, 6), (2, 7), (1, 31), (1, 32)]


def test_layers_count_from_what_goes_in(model: ESM) -> None:
    tokens = model.alphabet.encode(["MKTAY"])
    for layer in range(4):
        (embedding,) = model.embed(["MKTAY"], layer=layer)
        assert torch.equal(embedding, model.embed(["MKTAY"], layer=layer - 4)[0])
        torch.testing.assert_close(embedding, model.encode(tokens, layer)[0, 1:-1])
    assert torch.equal(model.embed(["MKTAY"])[0], model.embed(["MKTAY"], layer=3)[0])
    for layer in (4, -5):
        with pytest.raises(InputError, match=f"a layer from -4 to 3, found {layer}"):
            model.embed(["MKTAY"], layer=layer)


def test_pooling(model: ESM) -> None:
    per_residue = model.embed(SEQUENCES)
    torch.testing.assert_close(model.embed(SEQUENCES, pool="mean"), torch.stack([x.mean(0) for x in per_residue]))
    start = torch.stack([model.encode(model.alphabet.encode([sequence]))[0, 0] for sequence in SEQUENCES])
    torch.testing.assert_close(model.embed(SEQUENCES, pool="cls"), start)
    unknown: Any = "max"
    with pytest.raises(InputError, match="'mean', 'cls' or None, found 'max'"):
        model.embed(SEQUENCES, pool=unknown)


def test_an_iterator_is_read_as_it_is_used(model: ESM) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        for sequence in itertools.cycle(SEQUENCES):
            read += 1
            yield sequence

    results = model.embed(endless(), pool="mean", batch_tokens=40)
    assert read == 0
    first = list(itertools.islice(results, 7))
    torch.testing.assert_close(torch.stack(first[:5]), model.embed(SEQUENCES, pool="mean"))
    assert torch.equal(first[0], first[5])
    assert 7 <= read <= 40 * language.READ_AHEAD
    assert [x.shape for x in model.logits(iter(SEQUENCES))] == [(len(sequence), 33) for sequence in SEQUENCES]


def test_no_sequences_give_no_results(model: ESM) -> None:
    assert model.embed([]) == model.logits([]) == model.contacts([]) == []


def test_results_can_be_trained_on(model: ESM) -> None:
    embedding = model.embed(["MKTAY"])[0]
    assert not embedding.is_inference()
    assert not embedding.requires_grad
    weight = torch.zeros(20, dtype=torch.float64, requires_grad=True)
    (embedding @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, embedding.sum(0))


def test_logits_are_those_of_forward(model: ESM) -> None:
    sequence = "MK<mask>AYI"
    torch.testing.assert_close(model.logits([sequence])[0], model(model.alphabet.encode([sequence]))[0, 1:-1])


def test_mistakes_are_found_before_the_work(model: ESM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "encode", lambda tokens, layer: pytest.fail("computed"))
    with pytest.raises(InputError, match=r"In sequence 2: .* position 3, found 'J'"):
        model.embed(["MKT", "AAJ"])
    with pytest.raises(InputError, match=r"a single string\. Put it in a list"):
        model.embed("MKTAY")


def test_length_limits_are_said(short_model: ESM, model: ESM) -> None:
    assert (short_model.longest, model.longest) == (10, None)
    assert short_model.embed(["A" * 10])[0].shape == (10, 20)
    for ask in (
        lambda: short_model.embed(["A", "A" * 11]),
        lambda: short_model.logits(["A", "A" * 11]),
        lambda: short_model.score("A" * 11, "A1G"),
        lambda: short_model.pseudo_perplexity("A" * 11),
    ):
        with pytest.raises(InputError, match=r"at most 10 residues, .* found 11"):
            ask()
    assert model.embed(["A" * 1500])[0].shape == (1500, 20)


def log_probabilities(model: ESM, sequence: str) -> Tensor:
    with torch.no_grad():
        return model(model.alphabet.encode([sequence]))[0, 1:-1].log_softmax(-1)


def difference(prediction: Tensor, place: int, wild_type: str, mutant: str) -> float:
    index = ESM.alphabet.index
    return float(prediction[place, index[mutant]] - prediction[place, index[wild_type]])


def test_masked_marginals_hide_mutated_positions_together(model: ESM) -> None:
    one = log_probabilities(model, "MK<mask>AYI")
    both = log_probabilities(model, "M<mask>TA<mask>I")
    expected = [
        difference(one, 2, "T", "S"),
        difference(both, 1, "K", "R") + difference(both, 4, "Y", "F"),
        difference(one, 2, "T", "V"),
    ]
    scores = model.score("MKTAYI", ["T3S", "Y5F:K2R", "T3V"])
    assert scores == pytest.approx(expected)
    assert model.score("MKTAYI", "Y5F:K2R") == pytest.approx(expected[1])
    apart = model.score("MKTAYI", "Y5F") + model.score("MKTAYI", "K2R")
    assert abs(apart - expected[1]) > 1e-6


def test_wildtype_marginals_hide_nothing(model: ESM) -> None:
    whole = log_probabilities(model, "MKTAYI")
    expected = difference(whole, 1, "K", "R") + difference(whole, 4, "Y", "F")
    assert model.score("MKTAYI", "K2R:Y5F", "wildtype-marginal") == pytest.approx(expected)


def test_scores_are_positive_for_what_the_model_prefers(model: ESM) -> None:
    prediction = log_probabilities(model, "MKTAYI")
    variants = [f"{old}{place}{new}" for place, old in enumerate("MKTAYI", 1) for new in "ACDEFGHIKLMNPQRSTVWY"]
    scores = model.score("MKTAYI", variants, "wildtype-marginal")
    assert min(scores) < 0.0 < max(scores)
    for variant, score in zip(variants, scores, strict=True):
        old, new = (prediction[int(variant[1]) - 1, ESM.alphabet.index[letter]] for letter in (variant[0], variant[2]))
        assert (score > 0) == bool(new > old)
        assert (score == 0) == (variant[0] == variant[2])


def test_variants_at_one_position_share_a_prediction(model: ESM, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = 0
    encode = model.encode

    def count(tokens: Tensor) -> Tensor:
        nonlocal sequences
        sequences += len(tokens)
        return encode(tokens)

    monkeypatch.setattr(model, "encode", count)
    scores = model.score("MKTAYI", [f"{wild_type}{n}G" for _ in range(3) for n, wild_type in enumerate("MKTAYI", 1)])
    assert sequences == 6
    assert scores == pytest.approx(scores[:6] * 3)


@pytest.mark.parametrize(
    ("mutations", "message"),
    [
        ("A42", "such as A42G.*found 'A42'"),
        ("42G", "such as A42G"),
        ("M1", "such as A42G"),
        ("M0K", "such as A42G"),
        ("M1J", "in the letters LAGV"),
        ("M1K:", "found '' in 'M1K:'"),
        ("M7K", "a position from 1 to 6, found 7 in 'M7K'"),
        ("K1M", "Expected M at position 1, as in the sequence, found K in 'K1M'"),
        ("M1K:M1L", "one mutation at position 1, found two"),
    ],
)
def test_variants_that_do_not_fit_are_refused(model: ESM, mutations: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.score("MKTAYI", ["M1K", mutations])


def test_unknown_methods_are_refused(model: ESM) -> None:
    unknown: Any = "likelihood"
    with pytest.raises(InputError, match="'masked-marginal' or 'wildtype-marginal', found 'likelihood'"):
        model.score("MKTAYI", "M1K", unknown)


@pytest.mark.parametrize("batch_tokens", [1, 20, 4096])
def test_pseudo_perplexity_hides_one_residue_at_a_time(model: ESM, batch_tokens: int) -> None:
    sequence = "MKTAYI"
    total = 0.0
    for place, letter in enumerate(sequence):
        prediction = log_probabilities(model, f"{sequence[:place]}<mask>{sequence[place + 1 :]}")
        total += float(prediction[place, model.alphabet.index[letter]])
    perplexity = model.pseudo_perplexity(sequence, batch_tokens=batch_tokens)
    assert perplexity == pytest.approx(math.exp(-total / 6))


def test_pseudo_perplexity_of_a_guess_is_the_vocabulary() -> None:
    guess = ESM(ESMConfig(layers=1, width=8, heads=2))
    torch.nn.init.zeros_(guess.embedding.weight)
    assert guess.pseudo_perplexity("MKTAYI") == pytest.approx(33.0)


def test_pseudo_perplexity_needs_to_know_the_residues(model: ESM) -> None:
    with pytest.raises(InputError, match="without <mask>, found one at position 3"):
        model.pseudo_perplexity("MK<mask>A")
