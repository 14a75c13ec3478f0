"""Measure the data of training: preparation, random access and padding, on sequences with the lengths of proteins."""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pyrosys.training.data import DataModule, Dataset, MaskedResidues, Sampler, padding_waste, prepare
from pyrosys.zoo.esm import ALPHABET

ITEMS = 50_000
READS = 20_000
LETTERS = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", dtype=np.uint8)
PEAK = """
import resource, sys
from pyrosys.training.data import prepare
prepare(sys.argv[1], sys.argv[2], identity=None, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def protein_lengths(items: int) -> np.ndarray:
    """Lengths as in Swiss-Prot, cut off at 1022: a median of about 290 residues and a long tail."""
    drawn = np.random.default_rng(0).lognormal(np.log(294), 0.67, items)
    return np.clip(drawn, 16, 1022).astype(np.int64)


def write_fasta(path: Path, items: int) -> None:
    """Write random sequences of such lengths."""
    generator = np.random.default_rng(1)
    with path.open("wb") as file:
        for number, length in enumerate(protein_lengths(items)):
            file.write(b">%d\n%s\n" % (number, generator.choice(LETTERS, length).tobytes()))


def measure_padding() -> None:
    lengths = protein_lengths(ITEMS) + 2
    for window in (1024, 8192):
        waste = padding_waste(Sampler(np.arange(ITEMS), lengths, 8192, window=window).batches(0), lengths)
        print(f"padding, budget of 8192 tokens, window of {window}: {waste:.1%}")
    at_random = np.array_split(np.random.default_rng(0).permutation(ITEMS), ITEMS // 24)
    print(f"padding, batches of 24 at random: {padding_waste(at_random, lengths):.1%}")


def measure_preparation(folder: Path) -> None:
    for items in (ITEMS // 10, ITEMS):
        fasta = folder / f"{items}.fasta"
        write_fasta(fasta, items)
        start = time.perf_counter()
        arguments = [sys.executable, "-c", PEAK, str(fasta), str(folder / f"peak-{items}")]
        peak = int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout) // 1024
        seconds = time.perf_counter() - start
        size = os.stat(fasta).st_size >> 20
        print(f"prepare {items:,} sequences ({size} MiB): {items / seconds:,.0f} a second, peak memory {peak} MiB")


def measure_reading(folder: Path) -> None:
    order = np.random.default_rng(0).integers(ITEMS, size=READS).tolist()
    for format in ("parquet", "arrow"):
        path = folder / format
        prepare(folder / f"{ITEMS}.fasta", path, identity=None, format=format, fractions=(1, 0, 0))
        for cache in (1 << 20, 256 << 20):
            dataset = Dataset(path, cache=cache)
            start = time.perf_counter()
            dataset.read(order, ["sequence"])
            rate = READS / (time.perf_counter() - start)
            print(f"{format}, random access, cache of {cache >> 20} MiB: {rate:,.0f} rows a second")
            if format == "arrow":
                break  # it has no cache
        data = DataModule(path, MaskedResidues(ALPHABET))
        start = time.perf_counter()
        tokens = sum(int(batch["mask"].sum()) for batch in itertools.islice(data.epoch(0), 200))
        print(f"{format}, masked batches: {tokens / (time.perf_counter() - start):,.0f} tokens a second")


def main() -> None:
    measure_padding()
    with tempfile.TemporaryDirectory() as folder:
        measure_preparation(Path(folder))
        measure_reading(Path(folder))


if __name__ == "__main__":
    main()
