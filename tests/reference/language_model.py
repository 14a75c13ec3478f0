"""Measure the small language model that comes with the package, and publish it into the package.

Run ``make train-default``, which prepares the data and trains before. What is measured is held out: proteins of the test
split, whose clusters are neither in training nor in validation. Every residue of a standard amino acid is predicted once:
by the language model while it and about a seventh of the others are hidden, by n-grams from the letters next to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray

import pyrosys
from pyrosys.catalogue import ENTRIES
from pyrosys.hub.manifest import MANIFEST, manifest_digest
from pyrosys.language import MaskedLanguageModel
from pyrosys.training.data import Dataset

NAME = "pyrosys-lm-1m"
BUILD = Path("build", NAME)
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
OTHER = len(LETTERS)  # any other letter, or beyond an end
GROUPS = 7  # of residues that are hidden together
BEFORE, BETWEEN = (-1, -2, -3, -4), (-1, 1, -2, 2)  # places relative to the residue, the most telling first


def main() -> None:
    """Measure, publish and print."""
    dataset = Dataset(BUILD / "proteins")
    splits, names = dataset.codes("split")
    train, test = (read(dataset, np.flatnonzero(splits == names.index(name))) for name in ("train", "test"))
    model = pyrosys.load(BUILD / "run" / "entries" / NAME)
    assert isinstance(model, MaskedLanguageModel)
    perplexities = {"language model": masked_perplexity(model, test), "unigram": ngram_perplexity(train, test, ())}
    for label, places in {"preceding": BEFORE, "surrounding": BETWEEN}.items():
        for size in range(1, len(places) + 1):
            perplexities[f"{size} {label}"] = ngram_perplexity(train, test, places[:size])
    publish(model, dataset, perplexities)
    for name, perplexity in perplexities.items():
        print(f"{name:<16} {perplexity:.2f}")


def read(dataset: Dataset, rows: ndarray) -> list[str]:
    """The sequences of rows."""
    return [row["sequence"] for row in dataset.read(rows.tolist(), ["sequence"])]


def masked_perplexity(model: MaskedLanguageModel[Any], sequences: Sequence[str]) -> float:
    """Perplexity of a language model, each residue hidden once."""
    generator, index = torch.Generator().manual_seed(0), model.alphabet.index
    total, count = 0.0, 0
    hidden, expected = [], []
    for sequence in sequences:
        group = torch.randint(GROUPS, (len(sequence),), generator=generator).tolist()
        for number in range(GROUPS):
            chosen = [own == number for own in group]
            known = [place for place, letter in enumerate(sequence) if chosen[place] and letter in LETTERS]
            if known:
                letters = zip(sequence, chosen, strict=True)
                hidden.append("".join(model.alphabet.mask if own else letter for letter, own in letters))
                expected.append((known, [index[sequence[place]] for place in known]))
    for logits, (places, tokens) in zip(model.logits(iter(hidden)), expected, strict=True):
        log_probabilities = logits[places].float().log_softmax(-1)
        total -= float(log_probabilities[range(len(places)), tokens].double().sum())
        count += len(places)
    return math.exp(total / count)


def ngram_perplexity(train: Sequence[str], test: Sequence[str], places: Sequence[int]) -> float:
    """Perplexity of the letter given those at places relative to it, shorter contexts mixed in.

    Source:
        Witten and Bell 1991, https://doi.org/10.1109/18.87000: a context is trusted as far as it was seen more often than
        with a new letter.
    """
    seen, asked = windows(train, places), windows(test, places)
    probabilities = np.full(len(asked), 1 / len(LETTERS))
    base = OTHER + 1
    for size in range(len(places) + 1):
        context, wanted = (x[:, 1 : size + 1] @ base ** np.arange(size, dtype=np.int64) for x in (seen, asked))
        times = np.bincount(context, minlength=base**size)
        pairs, pair_times = np.unique(context * base + seen[:, 0], return_counts=True)
        kinds = np.bincount(pairs // base, minlength=base**size)
        pair = wanted * base + asked[:, 0]
        found = np.minimum(np.searchsorted(pairs, pair), len(pairs) - 1)
        together = np.where(pairs[found] == pair, pair_times[found], 0)
        weight = times[wanted] + kinds[wanted]
        mixed = (together + kinds[wanted] * probabilities) / np.maximum(weight, 1)
        probabilities = np.where(weight > 0, mixed, probabilities)
    return float(np.exp(-np.log(probabilities).mean()))


def windows(sequences: Sequence[str], places: Sequence[int]) -> ndarray:
    """For each residue of a standard amino acid its letter, and the letters at the places relative to it."""
    margin = max(map(abs, places), default=0)
    table = np.full(128, OTHER, dtype=np.int64)
    table[[ord(letter) for letter in LETTERS]] = np.arange(len(LETTERS))
    gap = "-" * margin
    letters = table[np.frombuffer((gap + gap.join(sequences) + gap).encode(), dtype=np.uint8)]
    centres = np.flatnonzero(letters != OTHER)
    return np.stack([letters[centres + place] for place in (0, *places)], axis=1)


def publish(model: MaskedLanguageModel[Any], dataset: Dataset, perplexities: dict[str, float]) -> None:
    """Write the entry, and its card in the catalogue."""
    assert dataset.manifest is not None
    run = json.loads((BUILD / "run" / "settings.json").read_text())
    best = {
        label: min(v for name, v in perplexities.items() if label in name) for label in ("preceding", "surrounding")
    }
    description = (
        f"A small language model in the form of ESM-2, trained for {run['steps']:,} steps on "
        f"{dataset.manifest['splits']['train']:,} proteins of six bacteria (RefSeq proteomes as shipped in the Python package "
        "carveme 1.6.6, Apache-2.0), split from others by clusters of 50 % identity. It is a "
        "default that needs no network, for trying things out; take ESM-2 for work. "
        f"Perplexity on held-out clusters, with a seventh of the residues hidden: {perplexities['language model']:.2f}; "
        f"unigram: {perplexities['unigram']:.2f}; best n-gram of preceding letters: {best['preceding']:.2f}, of letters on "
        f"both sides: {best['surrounding']:.2f}. The command make train-default reproduces it."
    )
    published = pyrosys.publish(
        model,
        f"{ENTRIES.name}/{NAME}",
        hub=ENTRIES.parent,
        weights_licence="Apache-2.0",
        code_licence="Apache-2.0",
        description=description,
        provenance={"data": dataset.digest, "perplexity": perplexities},
    )
    (ENTRIES / f".{NAME}.lock").unlink(missing_ok=True)
    folder = ENTRIES / NAME
    card = {
        "family": "esm",
        "class": "pyrosys.zoo.esm:ESM",
        "task": ["embed", "logits", "score", "pseudo_perplexity"],
        "paper": "",
        "doi": "",
        "reference": "PyroSys",
        "code_licence": "Apache-2.0",
        "entries": {
            NAME: {
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "weights_licence": "Apache-2.0",
                "layout": None,
                "fingerprint": published.fingerprint,
                "sources": [
                    {
                        "uri": f"{NAME}/{MANIFEST}",
                        "sha256": manifest_digest(folder),
                        "size": (folder / MANIFEST).stat().st_size,
                    }
                ],
            }
        },
    }
    (ENTRIES / f"{NAME}.json").write_text(f"{json.dumps(card, indent=2)}\n")


if __name__ == "__main__":
    main()
