"""Recipes: masking, labels, backbones, cropping and padding."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pyrosys
from pyrosys.errors import InputError
from pyrosys.training.data import Backbones, Labelled, MaskedResidues, Recipe
from pyrosys.training.data.recipes import crop_row
from pyrosys.zoo.esm import ALPHABET, ESM, ESMConfig
from pyrosys.zoo.proteinmpnn import ProteinMPNN, ProteinMPNNConfig
from tests.training.data.test_prepare import DATA

ALPHABET_MASK = ALPHABET.index["<mask>"]
STANDARD = {ALPHABET.index[letter] for letter in "ACDEFGHIKLMNPQRSTVWY"}


def make(recipe: Recipe, *rows: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    examples = [
        recipe.example({"row": place, **row}, np.random.default_rng((seed, place))) for place, row in enumerate(rows)
    ]
    return recipe.collate(examples)


@pytest.fixture(scope="module")
def backbone() -> dict[str, Any]:
    structure = pyrosys.read_structure(DATA / "1ubq.cif")
    return {"sequence": structure.sequence, "coordinates": structure.coordinates, "chain": structure.chain_index}


def test_masked_batch() -> None:
    batch = make(MaskedResidues(ALPHABET), {"sequence": "MKTAYIAKQR" * 4}, {"sequence": "GS"})
    assert torch.equal(batch["targets"], ALPHABET.encode(["MKTAYIAKQR" * 4, "GS"]))
    assert torch.equal(batch["mask"], batch["targets"] != ALPHABET.index["<pad>"])
    assert batch["chosen"].sum(1).tolist() == [6, 1]  # 15 %, and at least one
    special = torch.isin(batch["targets"], torch.tensor([ALPHABET.index[name] for name in ("<cls>", "<eos>", "<pad>")]))
    assert not (special & batch["chosen"]).any()
    same = batch["tokens"] == batch["targets"]
    assert same[~batch["chosen"]].all()


def test_shares_of_masking() -> None:
    """Of 15 % of the residues 80 % are hidden, 10 % changed to any of 20, of which one is what was there, 10 % kept."""
    generator = np.random.default_rng(0)
    rows = [{"sequence": "".join(generator.choice(list("ACDEFGHIKLMNPQRSTVWY"), 400))} for _ in range(250)]
    batch = make(MaskedResidues(ALPHABET), *rows)
    chosen = batch["chosen"]
    assert int(chosen.sum()) == 250 * 60
    hidden = (batch["tokens"] == ALPHABET_MASK)[chosen].double().mean()
    same = (batch["tokens"] == batch["targets"])[chosen].double().mean()
    assert hidden == pytest.approx(0.8, abs=0.015)  # over 4 standard deviations
    assert same == pytest.approx(0.1 + 0.1 / 20, abs=0.012)
    assert set(batch["tokens"][chosen].tolist()) == STANDARD | {ALPHABET_MASK}
    places = chosen[:, 1:-1].double().mean(0)
    assert places.std() < 0.04  # everywhere alike


def test_masking_trains_a_language_model() -> None:
    batch = make(MaskedResidues(ALPHABET), {"sequence": "MKTAYIAKQR"}, {"sequence": "GS"})
    model = ESM(ESMConfig(layers=1, width=16, heads=2))
    assert model(batch["tokens"]).shape == (2, 12, len(ALPHABET))


@pytest.mark.parametrize("shares", [(0.0, 0.8, 0.1), (1.1, 0.8, 0.1), (0.15, 0.8, 0.3), (0.15, -0.1, 0.1)])
def test_impossible_shares_are_refused(shares: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="The usual ones are"):
        MaskedResidues(ALPHABET, *shares)


def test_letters_that_a_model_lacks_are_explained() -> None:
    with pytest.raises(InputError, match="position 3 of row 0, found 'J'"):
        make(MaskedResidues(ALPHABET), {"sequence": "MKJ"})


def test_labels_of_proteins() -> None:
    batch = make(Labelled(ALPHABET), {"sequence": "MKT", "label": 0.5}, {"sequence": "GS", "label": None})
    assert batch["labels"].tolist() == [0.5, 0.0]
    assert batch["labels"].dtype == torch.float32
    assert batch["chosen"].tolist() == [True, False]
    classes = Labelled(ALPHABET, classes=("in", "out"))
    batch = make(classes, {"sequence": "MKT", "label": "out"}, {"sequence": "GS", "label": 0.0})
    assert batch["labels"].tolist() == [1, 0]
    assert batch["labels"].dtype == torch.int64


def test_labels_of_residues_are_in_line_with_tokens() -> None:
    batch = make(
        Labelled(ALPHABET, "residue", "HEC"), {"sequence": "MKTA", "label": "HC?E"}, {"sequence": "GS", "label": None}
    )
    assert batch["labels"].tolist() == [[0, 0, 2, 0, 1, 0], [0] * 6]
    assert batch["chosen"].tolist() == [[False, True, True, False, True, False], [False] * 6]
    batch = make(Labelled(ALPHABET, "residue"), {"sequence": "MK", "label": np.array([0.5, np.nan])})
    assert batch["labels"].tolist() == [[0, 0.5, 0, 0]]
    assert batch["chosen"].tolist() == [[False, True, False, False]]


@pytest.mark.parametrize(
    ("recipe", "label", "message"),
    [
        (Labelled(ALPHABET), "in", "name them in `classes`"),
        (Labelled(ALPHABET, classes=("in", "out")), "up", "Name all classes"),
        (Labelled(ALPHABET, classes=("in", "out")), 2.0, "classes from 0 to 1"),
        (Labelled(ALPHABET, classes=("in", "out")), 0.5, "classes from 0 to 1"),
        (Labelled(ALPHABET, "residue", "HEC"), "HE", "each of 3 residues"),
        (Labelled(ALPHABET, "residue"), 0.5, "each of 3 residues"),
        (Labelled(ALPHABET), np.array([0.5, 1.0]), "one label"),
    ],
)
def test_labels_that_do_not_fit_are_explained(recipe: Labelled, label: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(recipe, {"sequence": "MKT", "label": label})


def test_backbones_are_what_the_model_takes(backbone: dict[str, Any]) -> None:
    recipe = Backbones(ProteinMPNN.alphabet)
    gap = {**backbone, "coordinates": backbone["coordinates"].copy(), "sequence": "X" + backbone["sequence"][1:]}
    gap["coordinates"][4, 2] = np.nan
    short = {name: value[:30] for name, value in backbone.items()}
    batch = make(recipe, gap, short)
    chosen = batch.pop("chosen")
    model = ProteinMPNN(ProteinMPNNConfig(width=16, neighbours=8)).eval()
    alone = make(recipe, gap, seed=0)
    alone.pop("chosen")
    torch.testing.assert_close(model(**batch)[:1], model(**alone))
    assert batch["mask"].sum(1).tolist() == [75, 30]
    assert chosen.sum(1).tolist() == [74, 30]
    assert not chosen[0, 0]
    assert batch["mask"][0, 0]
    assert batch["coordinates"].isfinite().all()
    assert batch["decoding_order"].sort(1).values.tolist() == [list(range(76))] * 2
    assert "".join(ProteinMPNN.alphabet[place] for place in batch["sequence"][1, :30]) == short["sequence"]


def test_noise_has_the_deviation_that_was_asked_for(backbone: dict[str, Any]) -> None:
    noisy, clean = (make(Backbones(ProteinMPNN.alphabet, noise), *[backbone] * 20) for noise in (0.2, 0.0))
    difference = noisy["coordinates"] - clean["coordinates"]
    assert difference.std() == pytest.approx(0.2, rel=0.05)
    with pytest.raises(InputError, match="noise of at least 0"):
        Backbones(ProteinMPNN.alphabet, noise=-1)


def test_a_mask_of_the_data_set_counts(backbone: dict[str, Any]) -> None:
    mask = np.ones(76, dtype=bool)
    mask[:10] = False
    batch = make(Backbones(ProteinMPNN.alphabet), {**backbone, "mask": mask})
    assert batch["mask"].tolist() == [mask.tolist()]


@pytest.mark.parametrize(
    "recipe", [MaskedResidues(ALPHABET), Labelled(ALPHABET), Labelled(ALPHABET, "residue", "HEC"), Backbones("ACX")]
)
def test_an_empty_batch_counts_nothing(recipe: Recipe, backbone: dict[str, Any]) -> None:
    batch = recipe.collate([])
    label = "H" * 76 if isinstance(recipe, Labelled) and recipe.classes else 1.0
    full = make(recipe, {**backbone, "label": label})
    assert not batch["chosen"].any()
    assert {name: (tensor.dtype, tensor.dim()) for name, tensor in batch.items()} == {
        name: (tensor.dtype, tensor.dim()) for name, tensor in full.items()
    }


@given(st.integers(1, 100), st.integers(0, 2**32))
def test_contiguous_crops(size: int, seed: int) -> None:
    row = {"row": 0, "sequence": "ACDEFGHIKLMNPQRSTVWY" * 3, "label": np.arange(60)}
    cropped = crop_row(row, size, False, ("sequence", "label"), np.random.default_rng(seed))
    places = cropped["label"]
    assert len(places) == len(cropped["sequence"]) == min(size, 60)
    assert (np.diff(places) == 1).all()
    assert cropped["sequence"] == "".join(row["sequence"][place] for place in places)


def test_contiguous_crops_begin_everywhere() -> None:
    row = {"row": 0, "sequence": "ACDEF"}
    generator = np.random.default_rng(0)
    found = {crop_row(row, 3, False, ("sequence",), generator)["sequence"] for _ in range(100)}
    assert found == {"ACD", "CDE", "DEF"}


def test_spatial_crops_are_the_nearest_residues(backbone: dict[str, Any]) -> None:
    row = {"row": 0, **backbone, "coordinates": backbone["coordinates"].copy()}
    row["coordinates"][10] = np.nan
    cropped = crop_row(row, 20, True, Recipe.by_residue, np.random.default_rng(3))
    places = cropped["place"]
    assert (np.diff(places) > 0).all()
    assert 10 not in places
    alpha = row["coordinates"][:, 1]
    inside = [
        center
        for center in places
        if set(np.argsort(np.nan_to_num(np.linalg.norm(alpha - alpha[center], axis=1), nan=np.inf))[:20]) == set(places)
    ]
    assert inside  # one of them is the centre
    np.testing.assert_array_equal(cropped["coordinates"], row["coordinates"][places])
    batch = make(Backbones(ProteinMPNN.alphabet), cropped)
    assert batch["residue_index"].tolist() == [places.tolist()]
