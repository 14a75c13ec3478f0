"""Time loading a published entry that was verified before, beside mapping its weights with safetensors and ``assign=True``.

Both build the model without weights first. Every load is a process of its own, since the peak of memory is that of a
process; the two take turns, and each figure is a ratio of two medians of one run. ``--layers`` and ``--width`` choose the
size: ``--layers 33 --width 1280`` is ESM-2 650M, an entry of 2.6 GB.
"""

import argparse
import importlib
import json
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
from pyrosys.zoo.esm import ESM, ESMConfig

HEADS = 20


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", choices=("pyrosys", "safetensors"), help=argparse.SUPPRESS)
    parser.add_argument("--entry", type=Path, help="an entry that this has published before, to use again")
    return parser.parse_args()


def configuration(options: argparse.Namespace) -> ESMConfig:
    return ESMConfig(layers=options.layers, width=options.width, heads=HEADS)


def load_with_safetensors(options: argparse.Namespace) -> nn.Module:
    with torch.device("meta"):
        model = ESM(configuration(options)).eval()
    model.load_state_dict(load_file(options.entry / "model.safetensors"), assign=True)
    return model


def measure(options: argparse.Namespace) -> None:
    """Load once, read every weight once, and print what it took."""
    torch.set_num_threads(1)
    importlib.import_module("pyrosys.entry")  # imports are not loading
    before = memory("VmRSS")
    start = time.perf_counter()
    model = pyrosys.load(options.entry) if options.measure == "pyrosys" else load_with_safetensors(options)
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
        if options.entry is None:
            options.entry = publish(Path(folder), options)
        size = sum(path.stat().st_size for path in options.entry.glob("model*.safetensors"))
        print(f"an entry with {size / 1e9:.2f} GB of weights, ESM of {options.layers} layers, width {options.width}")
        start = time.perf_counter()
        run("pyrosys", options)
        print(f"verified in a process of its own in {time.perf_counter() - start:.1f} s")
        turns = [(run("pyrosys", options), run("safetensors", options)) for _ in range(options.repeats)]
        for what in ("load", "load and read"):
            ours, theirs = (statistics.median(turn[side][what] for turn in turns) for side in (0, 1))
            print(f"{what}: {ours:.3f} s, safetensors {theirs:.3f} s, ratio {ours / theirs:.2f}")
        for side, name in enumerate(("pyrosys", "safetensors")):
            peak = max(turn[side]["memory"] for turn in turns)
            print(f"peak memory of {name}: {peak / 1e9:.2f} GB, {peak / size:.3f} of the weights")


def publish(directory: Path, options: argparse.Namespace) -> Path:
    torch.manual_seed(0)
    model = ESM(configuration(options)).eval()
    pyrosys.publish(model, "lab/model", hub=directory, weights_licence="MIT", shard_size=2**40)
    return directory / "lab" / "model"


if __name__ == "__main__":
    main()
