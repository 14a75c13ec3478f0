"""Scoring and design: what the verbs promise, on a tiny random model and a real backbone."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pyrosys import inverse_folding
from pyrosys.errors import InputError
from pyrosys.inverse_folding import Score
from pyrosys.structure import Structure, read_structure
from pyrosys.zoo.proteinmpnn import ProteinMPNN, ProteinMPNNConfig

UBIQUITIN = read_structure(Path(__file__).parent / "data" / "1ubq.cif")


@pytest.fixture(scope="module")
def model() -> ProteinMPNN:
    """A model that has opinions."""
    torch.manual_seed(0)
    model = ProteinMPNN(ProteinMPNNConfig(width=16, neighbours=10, encoder_layers=1, decoder_layers=2)).eval()
    for parameter in model.requires_grad_(False).parameters():
        parameter.normal_(std=0.3)
    return model


@pytest.fixture
def structure() -> Structure:
    """Residues 1 to 12 of ubiquitin as chain A, 20 to 27 as B; A5 and B22 miss an atom, A6 is of unknown type."""
    keep = np.r_[0:12, 19:27]
    coordinates = UBIQUITIN.coordinates[keep].copy()
    coordinates[[4, 14], 3] = np.nan
    sequence = "".join(UBIQUITIN.sequence[place] for place in keep)
    sequence = sequence[:5] + "X" + sequence[6:]
    chains = np.array(["A"] * 12 + ["B"] * 8)
    return Structure("two", sequence, chains, keep + 1, np.array([""] * 20), coordinates)


def pick(log_probabilities: Tensor, sequence: str) -> Tensor:
    tokens = torch.tensor([ProteinMPNN.alphabet.index(letter) for letter in sequence])
    return log_probabilities.gather(-1, tokens[:, None]).squeeze(-1)


class TestScore:
    def test_it_is_the_log_probability_of_the_letters(self, model: ProteinMPNN, structure: Structure) -> None:
        score = model.score(structure, seed=3)
        expected = pick(model.log_probabilities(structure, seed=3)[0], structure.sequence)
        seen = torch.from_numpy(structure.mask)
        assert score.sequence == structure.sequence
        assert torch.equal(score.log_probabilities[seen], expected[seen])
        assert score.log_probabilities[~seen].isnan().all()
        assert torch.equal(score.designed, seen)
        assert (score.log_probabilities[seen] < 0).all()

    def test_averages(self, structure: Structure) -> None:
        designed = torch.arange(20) % 2 == 0
        score = Score(structure, structure.sequence, designed, -torch.arange(20.0))
        assert score.average == -9.0
        assert score.perplexity == pytest.approx(np.exp(9.0))
        assert score.chain_averages == {"A": -5.0, "B": -15.0}
        assert score.chains == {"A": structure.sequence[:12], "B": structure.sequence[12:]}

    def test_it_averages_over_orders(self, model: ProteinMPNN, structure: Structure) -> None:
        single = [model.score(structure, seed=seed).log_probabilities for seed in (5, 6, 7)]
        several = model.score(structure, seed=5, samples=3).log_probabilities
        torch.testing.assert_close(several, torch.stack(single).mean(0), equal_nan=True)
        assert not torch.allclose(single[0], single[1], equal_nan=True)

    def test_another_sequence(self, model: ProteinMPNN, structure: Structure) -> None:
        changed = "W" + structure.sequence[1:]
        score = model.score(structure, changed)
        assert score.sequence == changed
        assert score.average != model.score(structure).average
        parts = f"{changed[:12]}/{changed[12:]}"
        assert torch.equal(
            model.score(structure, parts).log_probabilities.nan_to_num(), score.log_probabilities.nan_to_num()
        )

    def test_chosen_chains_see_the_others(self, model: ProteinMPNN, structure: Structure) -> None:
        score = model.score(structure, chains=["A"])
        assert torch.equal(score.designed, torch.from_numpy(structure.mask & (structure.chain_ids == "A")))
        assert list(score.chain_averages) == ["A"]
        other = model.score(structure, structure.sequence[:12] + "W" * 8, chains=["A"])
        assert other.average != score.average
        # and are not seen by them: chain B is decoded first
        one, two = (
            model.log_probabilities(structure, start + structure.sequence[12:], chains=["A"])
            for start in ("W" * 12, "A" * 12)
        )
        assert torch.equal(one[0, 12:], two[0, 12:])

    def test_fixed_residues_do_not_count(self, model: ProteinMPNN, structure: Structure) -> None:
        score = model.score(structure, fixed={"A": [1, 2], "B": ["20"]})
        assert (~score.designed).nonzero().flatten().tolist() == [0, 1, 4, 12, 14]

    def test_letters_of_residues_that_are_not_seen_do_not_count(self, model: ProteinMPNN, structure: Structure) -> None:
        changed = structure.sequence[:4] + "W" + structure.sequence[5:]
        assert model.score(structure, changed).average == model.score(structure).average

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"sequence": "AAA"}, "20 letters"),
            ({"sequence": "B" * 20}, "with B"),
            ({"sequence": ""}, "0 letters"),
            ({"chains": ["C"]}, "among A, B"),
            ({"fixed": {"A": [99]}}, "from 1 to 12"),
            ({"chains": ["A"], "fixed": {"A": list(range(1, 13))}}, "fix less"),
            ({"samples": 0}, "at least 1 sample"),
        ],
    )
    def test_what_does_not_fit(self, model: ProteinMPNN, structure: Structure, arguments: dict, message: str) -> None:
        with pytest.raises(InputError, match=message):
            model.score(structure, **arguments)


class TestLogProbabilities:
    def test_shape_and_sum(self, model: ProteinMPNN, structure: Structure) -> None:
        log_probabilities = model.log_probabilities(structure, samples=2)
        assert log_probabilities.shape == (2, 20, 21)
        torch.testing.assert_close(log_probabilities.exp().sum(-1), torch.ones(2, 20))

    def test_memory_does_not_change_them(
        self, model: ProteinMPNN, structure: Structure, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        together, designs = model.log_probabilities(structure, samples=3), model.design(structure, samples=3)
        monkeypatch.setattr(inverse_folding, "RESIDUES_AT_ONCE", 1)
        torch.testing.assert_close(model.log_probabilities(structure, samples=3), together)
        assert [one.sequence for one in model.design(structure, samples=3)] == [one.sequence for one in designs]

    def test_unconditional_is_what_the_first_residue_gets(self, model: ProteinMPNN, structure: Structure) -> None:
        unconditional = model.unconditional(structure)
        assert unconditional.shape == (20, 21)
        others = {"A": list(range(1, 13)), "B": list(range(21, 28))}  # all but B20, so that it comes last
        last = model.log_probabilities(structure, fixed=others)[0, 12]
        assert not torch.allclose(last, unconditional[12])
        first = model.log_probabilities(structure, "".join("ACDEFGHIKLMNPQRSTVWY"), seed=1)[0]
        second = model.log_probabilities(structure, "".join("YWVTSRQPNMLKIHGFEDCA"), seed=1)[0]
        unseeing = (first == second).all(-1) & torch.from_numpy(structure.mask)
        assert unseeing.any()
        torch.testing.assert_close(first[unseeing], unconditional[unseeing])

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_precisions(self, structure: Structure, dtype: torch.dtype) -> None:
        model = ProteinMPNN(ProteinMPNNConfig(width=16, neighbours=10)).eval()
        expected = model.unconditional(structure)
        found = model.to(dtype).unconditional(structure)
        assert found.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)
        assert len(model.design(structure)) == 1


class TestDesign:
    def test_the_log_probabilities_are_those_of_its_sequence(self, model: ProteinMPNN, structure: Structure) -> None:
        for design in model.design(structure, samples=3, temperature=0.5, fixed={"A": [2, 3]}):
            again = model.score(structure, design.sequence, seed=design.seed, fixed={"A": [2, 3]})
            torch.testing.assert_close(
                design.log_probabilities, again.log_probabilities, rtol=0, atol=1e-5, equal_nan=True
            )
            assert design.average == pytest.approx(again.average, abs=1e-5)

    def test_what_is_fixed_stays(self, model: ProteinMPNN, structure: Structure) -> None:
        fixed = {"A": [1, 3, 12], "B": [27]}
        for design in model.design(structure, fixed=fixed, temperature=5.0, samples=5):
            kept = [0, 2, 4, 11, 14, 19]  # with those that have no coordinates
            assert [design.sequence[place] for place in kept] == [structure.sequence[place] for place in kept]
            assert design.sequence != structure.sequence

    def test_chains_that_are_not_chosen_stay(self, model: ProteinMPNN, structure: Structure) -> None:
        for design in model.design(structure, chains=["B"], temperature=5.0, samples=5):
            assert design.chains["A"] == structure.sequence[:12]
            assert design.chains["B"] != structure.sequence[12:]

    def test_seeds(self, model: ProteinMPNN, structure: Structure) -> None:
        several = model.design(structure, samples=4, temperature=1.0, seed=10)
        assert [design.seed for design in several] == [10, 11, 12, 13]
        assert len({design.sequence for design in several}) == 4
        for design in several:
            (alone,) = model.design(structure, temperature=1.0, seed=design.seed)
            assert alone.sequence == design.sequence
        torch.manual_seed(123)
        assert [one.sequence for one in model.design(structure, samples=4, temperature=1.0, seed=10)] == [
            one.sequence for one in several
        ]

    def test_no_letter_is_drawn_that_is_omitted(self, model: ProteinMPNN, structure: Structure) -> None:
        assert not any("X" in design.sequence[6:] for design in model.design(structure, samples=20, temperature=10.0))
        (design,) = model.design(structure, omit="ACDEFGHIKLMNPQRSTVWX", temperature=3.0)
        assert {letter for letter, chosen in zip(design.sequence, design.designed, strict=True) if chosen} == {"Y"}

    def test_residues_of_unknown_type_are_designed_and_not_counted(
        self, model: ProteinMPNN, structure: Structure
    ) -> None:
        (design,) = model.design(structure)
        assert design.sequence[5] != "X"
        same = [
            new == old
            for new, old, seen in zip(design.sequence, structure.sequence, structure.mask, strict=True)
            if seen
        ]
        assert design.recovery == sum(same) / (len(same) - 1)

    def test_a_bias_draws_letters(self, model: ProteinMPNN, structure: Structure) -> None:
        (design,) = model.design(structure, bias={"W": 100.0})
        assert all(letter == "W" for letter, chosen in zip(design.sequence, design.designed, strict=True) if chosen)
        per_residue = torch.zeros(20, 21)
        per_residue[3, ProteinMPNN.alphabet.index("H")] = 100.0
        (design,) = model.design(structure, bias=per_residue)
        assert design.sequence[3] == "H"
        assert design.sequence.count("H") < 10

    def test_temperature_zero_takes_the_best_letter(self, model: ProteinMPNN, structure: Structure) -> None:
        (design,) = model.design(structure, temperature=0.0, omit="")
        log_probabilities = model.log_probabilities(structure, design.sequence)[0]
        best = log_probabilities.argmax(-1)[design.designed]
        assert "".join(ProteinMPNN.alphabet[letter] for letter in best) == "".join(
            letter for letter, chosen in zip(design.sequence, design.designed, strict=True) if chosen
        )

    def test_letters_are_drawn_as_often_as_they_are_probable(self, model: ProteinMPNN, structure: Structure) -> None:
        others = {"A": list(range(1, 13)), "B": list(range(21, 28))}
        expected = model.log_probabilities(structure, fixed=others)[0, 12].exp()
        drawn = [
            one.sequence[12] for one in model.design(structure, fixed=others, temperature=1.0, samples=1000, omit="")
        ]
        found = torch.tensor([drawn.count(letter) / 1000 for letter in ProteinMPNN.alphabet])
        torch.testing.assert_close(found, expected, rtol=0, atol=0.05)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"temperature": -1.0}, "temperature"),
            ({"temperature": float("nan")}, "temperature"),
            ({"omit": "x"}, "upper case"),
            ({"omit": ProteinMPNN.alphabet}, "leave some"),
            ({"bias": {"B": 1.0}}, "letters among"),
            ({"bias": torch.zeros(21)}, r"\(20, 21\)"),
            ({"samples": -1}, "at least 1 sample"),
            ({"chains": []}, "among A, B"),
        ],
    )
    def test_what_does_not_fit(self, model: ProteinMPNN, structure: Structure, arguments: dict, message: str) -> None:
        with pytest.raises(InputError, match=message):
            model.design(structure, **arguments)


def test_a_trace_needs_a_model_of_its_own(model: ProteinMPNN) -> None:
    trace = np.full((20, 4, 3), np.nan, np.float32)
    trace[:, 1] = UBIQUITIN.coordinates[:20, 1]
    chains, numbers, codes = np.array(["A"] * 20), np.arange(20), np.array([""] * 20)
    structure = Structure("trace", UBIQUITIN.sequence[:20], chains, numbers, codes, trace)
    with pytest.raises(InputError, match="CA atoms only"):
        model.score(structure)
    alpha_carbon = ProteinMPNN(ProteinMPNNConfig(width=16, neighbours=10, alpha_carbon_only=True))
    assert alpha_carbon.score(structure).average < 0


def test_verbs_leave_the_model_as_it_was(structure: Structure) -> None:
    model = ProteinMPNN(ProteinMPNNConfig(width=16, neighbours=10))
    state = torch.get_rng_state()
    assert model.training
    assert model.score(structure).average == model.score(structure).average  # no dropout
    assert model.training
    model.eval().design(structure)
    assert not model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.score(structure).log_probabilities.requires_grad


def test_missing_residues_change_nothing_that_is_seen(model: ProteinMPNN) -> None:
    """A gap of three, listed or not."""

    def columns(places: np.ndarray) -> dict:
        letters = "".join(UBIQUITIN.sequence[place] for place in places)
        names = ("chain_ids", "residue_numbers", "insertion_codes")
        return {"sequence": letters, **{name: getattr(UBIQUITIN, name)[places] for name in names}}

    gap = np.r_[0:10, 13:30]
    listed = UBIQUITIN.coordinates[:30].copy()
    listed[10:13] = np.nan
    whole = dataclasses.replace(UBIQUITIN, coordinates=listed, **columns(np.arange(30)))
    short = dataclasses.replace(whole, coordinates=listed[gap], **columns(gap))
    torch.testing.assert_close(model.unconditional(whole)[gap], model.unconditional(short))
