"""Small data sets that the tests of training data share."""

from pathlib import Path

import numpy as np
import pytest

from pyrosys.training.data import prepare

LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))


def random_sequences(count: int, seed: int = 0, longest: int = 90) -> list[str]:
    """Sequences of different lengths that have nothing to do with each other."""
    generator = np.random.default_rng(seed)
    return ["".join(generator.choice(LETTERS, length)) for length in generator.integers(5, longest, count)]


def write_fasta(path: Path, sequences: list[str]) -> Path:
    path.write_text("".join(f">{path.stem}-{number}\n{text}\n" for number, text in enumerate(sequences)))
    return path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 300 sequences in 100 clusters, in several files of several row groups."""
    folder = tmp_path_factory.mktemp("prepared")
    rows = [f"{number},{text},c{number % 100}" for number, text in enumerate(random_sequences(300))]
    (folder / "table.csv").write_text("\n".join(["name,sequence,cluster", *rows]) + "\n")
    prepare(folder / "table.csv", folder / "set", fractions=(0.8, 0.1, 0.1))
    return folder / "set"
