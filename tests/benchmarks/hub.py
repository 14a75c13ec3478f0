"""Time loading a published entry that was verified before, beside mapping its weights with safetensors and ``assign=True``.

Both build the model without weights first. Every load is a process of its own, since the peak of memory is that of a
process; the two take turns, and each figure is a ratio of two medians of one run. ``--layers`` and ``--width`` choose the
size: ``--layers 33 --width 1280`` is ESM-2 650M, an entry of 2.6 GB.

The entry is written with random weights and noted as verified: what is timed comes after that.
"""

import argparse
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

import pyrosys
from pyrosys.entry import CONFIG, PROBE, README, STRUCTURE
from pyrosys.hub import write_weights
from pyrosys.hub.manifest import manifest_digest, write_manifest
from pyrosys.verified import note_verified
from pyrosys.zoo.esm import ESM, ESMConfig

HEADS = 20


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", choices=("pyrosys", "safetensors"), help=argparse.SUPPRESS)
    parser.add_argument("--entry", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def configure(options: argparse.Namespace) -> ESMConfig:
    return ESMConfig(layers=options.layers, width=options.width, heads=HEADS)


def load_with_safetensors(options: argparse.Namespace) -> nn.Module:
    with torch.device("meta"):
        model = ESM(configure(options)).eval()
    model.load_state_dict(load_file(options.entry / "model.safetensors"), assign=True)
    return model


def measure(options: argparse.Namespace) -> None:
    """Load once, read every weight once, and print what it took."""
    torch.set_num_threads(1)
    load = pyrosys.load  # imports what it needs; the other's imports are above
    before = memory("VmRSS")
    start = time.perf_counter()
    model = load(options.entry) if options.measure == "pyrosys" else load_with_safetensors(options)
    loaded = time.perf_counter()
    for tensor in model.state_dict().values():
        tensor.sum()
    read = time.perf_counter()
    peak = memory("VmHWM") - before
    print(json.dumps({"load": loaded - start, "load and read": read - start, "memory": peak}))


def memory(kind: str) -> int:
    """Bytes of memory that this process has (``VmRSS``), or has had at most (``VmHWM``)."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def run(kind: str, options: argparse.Namespace) -> dict[str, float]:
    sizes = ["--layers", str(options.layers), "--width", str(options.width)]
    command = [sys.executable, "-m", "tests.benchmarks.hub", *sizes, "--entry", str(options.entry), "--measure", kind]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    options = parse()
    if options.measure:
        measure(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYROSYS_CACHE"] = str(Path(folder) / "cache")
        options.entry = Path(folder) / "entry"
        write_entry(options.entry, options)
        size = sum(path.stat().st_size for path in options.entry.glob("model*.safetensors"))
        print(f"an entry with {size / 1e9:.2f} GB of weights, ESM of {options.layers} layers, width {options.width}")
        run("pyrosys", options)  # the files are hashed once
        turns = [(run("pyrosys", options), run("safetensors", options)) for _ in range(options.repeats)]
        for what in ("load", "load and read"):
            ours, theirs = (statistics.median(turn[side][what] for turn in turns) for side in (0, 1))
            print(f"{what}: {ours:.3f} s, safetensors {theirs:.3f} s, ratio {ours / theirs:.2f}")
        for side, name in enumerate(("pyrosys", "safetensors")):
            peak = max(turn[side]["memory"] for turn in turns)
            print(f"peak memory of {name}: {peak / 1e9:.2f} GB, {peak / size:.3f} of the weights")


def write_entry(folder: Path, options: argparse.Namespace) -> None:
    """Write the files that loading reads, and stand-ins for those that only verification reads."""
    configuration = configure(options)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ESM(configuration).state_dict().items()}
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    write_weights(folder / "model.safetensors", {n: torch.randn(s, generator=generator) for n, s in shapes.items()})
    config = {"class": "pyrosys.zoo.esm:ESM", "config": dataclasses.asdict(configuration)}
    for name, content in {CONFIG: config, STRUCTURE: {}, PROBE: {}, README: {}}.items():
        (folder / name).write_text(json.dumps(content))
    write_manifest(folder)
    note_verified(entry=manifest_digest(folder), **{"class": "ESM"})


if __name__ == "__main__":
    main()
