"""Small data sets for training."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

LETTERS = list("ACDEFGHIKLMNPQRSTVWY")
HALF = LETTERS[:10]


@pytest.fixture(scope="session")
def proteins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sequences that repeat short motifs, with labels that can be told from them, and backbones that are random walks."""
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(60):
        length = int(generator.integers(8, 24))
        motif = generator.choice(LETTERS, 3)
        sequence = "".join(np.resize(motif, length))
        walk = np.cumsum(generator.normal(size=(length, 1, 3)), axis=0) * 2.2 + generator.normal(size=(length, 4, 3))
        rows.append(
            {
                "sequence": sequence,
                "split": "train" if len(rows) < 44 else "validation",
                "cluster": str(len(rows) // 2),
                "coordinates": walk.reshape(length, 12).astype(np.float32).tolist(),
                "label": float(sequence.count("A") + sequence.count("L")),
                "kind": "first" if sum(letter in HALF for letter in motif) > 1 else "second",
                "states": "".join("h" if letter in HALF else "e" for letter in sequence),
            }
        )
    path = tmp_path_factory.mktemp("data") / "proteins.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path
