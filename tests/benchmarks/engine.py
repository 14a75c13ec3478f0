"""Time the structure engine: capture and fingerprint at full size, matching by depth, and applying a plan.

Each figure stands beside what a user would do instead, where there is such a thing, as a ratio of two durations of one run.
`capture`, `match` and `apply` choose what is timed.

A plan is applied to a file of random weights of an ESM, which other code could have written: under other names; with query, key
and value in one matrix; with the three interleaved by head and the pairs of rotary positions side by side; with every matrix
transposed. `--layers` and `--width` choose the size: `--layers 33 --width 1280` is ESM-2 650M, a file of 2.6 GB. Each load is a
process of its own, since the peak of memory is that of a process; two take turns, and what is said is the median ratio of
the processor times of a pair. The file is in the system's cache.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import pyrosys
from pyrosys.hub import read_weights, write_weights
from pyrosys.zoo.esm import ESM, ESMConfig
from tests.benchmarks.hub import memory

HEADS = 20
REPEATS = 5
DEEP = (590, 64, 4)  # ten thousand tensors
SIZES = {"8M": (6, 320, 20), "15B": (48, 5120, 40)}


def reference(layers: int, width: int, heads: int, device: str) -> Any:
    """The transformers library's ESM-2; its table of rotary frequencies is real even when the rest is on meta."""
    from transformers import EsmConfig, EsmForMaskedLM

    config = EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        layer_norm_eps=1e-5,
        position_embedding_type="rotary",
        token_dropout=True,
    )
    with torch.device(device):
        model = EsmForMaskedLM(config)
    rotary: Any = type(model.esm.rotary_embeddings)
    model.esm.rotary_embeddings = rotary(config)
    return model.eval()


def tokens() -> Tensor:
    """Two sequences in which every letter occurs, one of them padded."""
    found = torch.full((2, 29), 1)
    found[0] = torch.tensor([0, *(t for t in range(3, 29)), 32, 2])
    found[1, :20] = torch.tensor([0, *range(5, 23), 2])
    return found


def median(action: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median duration in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def time_capture() -> None:
    probe = tokens()
    inputs = pyrosys.Inputs(input_ids=probe, attention_mask=(probe != 1).long())
    for name, size in SIZES.items():
        model = reference(*size, "meta")
        seconds = median(lambda model=model: pyrosys.fingerprint(model, inputs, output=lambda o: o.logits), 3)
        print(f"capture and fingerprint of ESM-2 {name} on meta: {seconds:.2f} s")
    print(f"largest memory so far: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def time_match(options: argparse.Namespace) -> None:
    """Time deep models and the one of the size that is asked for: ESM of transformers against ours, on all threads."""
    threads = torch.get_num_threads()
    shallow = None
    for layers in (6, 24, 96):
        tensors, seconds = match_once(layers, 32, 4)
        shallow = shallow or seconds / layers
        print(
            f"match of {layers} layers, {tensors} tensors: {seconds:.1f} s, {seconds / layers / shallow:.2f} times as much "
            "per layer as 6"
        )
    tensors, seconds = match_once(*DEEP)
    print(f"match of {DEEP[0]} layers of width {DEEP[1]}, {tensors} tensors: {seconds:.1f} s")
    torch.set_num_threads(os.cpu_count() or 1)
    tensors, seconds = match_once(options.layers, options.width, HEADS)
    print(f"match of {options.layers} layers of width {options.width}, {tensors} tensors: {seconds:.1f} s")
    torch.set_num_threads(threads)


def match_once(layers: int, width: int, heads: int) -> tuple[int, float]:
    """The number of tensors of a model, and seconds that a match takes."""
    theirs = reference(layers, width, heads, "cpu")
    ours = ESM(ESMConfig(layers=layers, width=width, heads=heads)).eval()
    probe = tokens()
    inputs = pyrosys.Inputs(input_ids=probe, attention_mask=(probe != 1).long())
    start = time.perf_counter()
    pyrosys.match(theirs, ours, inputs, (probe,), source_output=lambda o: o.logits)
    return len(ours.state_dict()), time.perf_counter() - start


State = dict[str, Tensor]
PROJECTIONS = ("query", "key", "value")


def renamed(state: State) -> State:
    return {f"model.{name}": tensor for name, tensor in state.items()}


def fused(state: State) -> State:
    """Query, key and value in one matrix, one below the other."""
    found = dict(state)
    for kind in ("weight", "bias"):
        parts = [found.pop(f"layers.0.attention.{name}.{kind}") for name in PROJECTIONS]
        found[f"layers.0.attention.all.{kind}"] = torch.cat(parts)
    return found


def interleaved(state: State) -> State:
    """Query, key and value of the first head, then those of the second; features that rotate together are neighbours."""
    found = dict(state)
    for kind in ("weight", "bias"):
        parts = [found.pop(f"layers.0.attention.{name}.{kind}") for name in PROJECTIONS]
        query, key, value = (part.reshape(HEADS, -1, *part.shape[1:]) for part in parts)
        query, key = (part.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2) for part in (query, key))
        found[f"layers.0.attention.all.{kind}"] = torch.stack((query, key, value), 1).flatten(0, 2)
    return found


def transposed(state: State) -> State:
    return {name: tensor.T.contiguous() if tensor.ndim == 2 else tensor for name, tensor in state.items()}


LAYOUTS = {layout.__name__: layout for layout in (renamed, fused, interleaved, transposed)}


def plan_from(layout: str, layers: int, width: int) -> pyrosys.Plan:
    """The plan from a layout to ours: read off a model of one layer, since all layers are alike."""
    state = model_of(1, width, "cpu").state_dict()
    one = pyrosys.Plan.from_function(LAYOUTS[layout], state).invert()

    def repeated(
        of_one: dict[str, Any], change: Callable[[Any, str], Any] = lambda value, number: value
    ) -> dict[str, Any]:
        return {
            name.replace("layers.0.", f"layers.{i}."): change(value, f"layers.{i}.")
            for name, value in of_one.items()
            for i in range(layers if "layers.0." in name else 1)
        }

    def moved(steps: Any, number: str) -> Any:
        def there(name: str) -> str:
            return name.replace("layers.0.", number)

        return tuple(dataclasses.replace(s, target=there(s.target), source=there(s.source)) for s in steps)

    return pyrosys.Plan(repeated(one.pieces, moved), repeated(one.source), repeated(one.target))


def model_of(layers: int, width: int, device: str) -> ESM:
    with torch.device(device):
        return ESM(ESMConfig(layers=layers, width=width, heads=HEADS, contacts=False)).eval()


def time_apply(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        for layout in options.layouts:
            plan = plan_from(layout, options.layers, options.width)
            plan.save(options.folder / "plan.json")
            write_weights(
                options.folder / "weights.safetensors", {n: torch.randn(s.shape) for n, s in plan.source.items()}
            )
            size = (options.folder / "weights.safetensors").stat().st_size
            largest = 4 * max(torch.Size(s.shape).numel() for s in plan.target.values())
            print(f"{layout}: {len(plan.target)} tensors, {size / 1e9:.2f} GB, the largest {largest / 1e9:.3f} GB")
            run("copy", options)
            turns = [(run("apply", options), run("copy", options)) for _ in range(options.repeats)]
            speed = statistics.median(copied["seconds"] / applied["seconds"] for applied, copied in turns)
            print(f"  loaded at {speed:.2f} of the speed of copying the tensors of the file into memory that is there")
            peak = max(applied["memory"] for applied, _ in turns)
            print(f"  memory beside the model, at most: {peak / 1e9:.3f} GB")
            if layout == "transposed":
                turned = statistics.median(
                    run("transpose", options)["seconds"] / applied["seconds"] for applied, _ in turns
                )
                print(f"  loaded at {turned:.2f} of the speed at which torch copies them transposed")
            if layout == "renamed":
                time_assign(options, plan)


def time_assign(options: argparse.Namespace, plan: pyrosys.Plan) -> None:
    path = options.folder / "weights.safetensors"
    model = model_of(options.layers, options.width, "meta")

    def applied() -> None:
        model.load_state_dict(plan.apply(read_weights(path)), assign=True)

    def assigned() -> None:
        state = load_file(path)
        model.load_state_dict({name: state[f"model.{name}"] for name in plan.target}, assign=True)

    ratios = [median(applied, 3) / median(assigned, 3) for _ in range(options.repeats)]
    print(
        f"  applied and assigned in {statistics.median(ratios):.2f} times the time of load_file, renamed and assigned"
    )


def load(options: argparse.Namespace) -> None:
    """Load once and print what it took."""
    torch.set_num_threads(1)
    path = options.folder / "weights.safetensors"
    plan = pyrosys.Plan.load(options.folder / "plan.json")
    if options.load != "apply":
        specs = plan.source if options.load == "copy" else plan.target
        places = {name: torch.ones(spec.shape) for name, spec in specs.items()}
        before, start = prepared(path)
        state = load_file(path)
        for name, place in places.items():
            place.copy_(state[name].mT if options.load == "transpose" and place.ndim == 2 else state[name])
        del state  # both ways count from the opening of the file to its release
    else:
        model = model_of(options.layers, options.width, "meta").to_empty(device="cpu")
        for tensor in model.state_dict().values():
            tensor.fill_(1.0)
        before, start = prepared(path)
        plan.load_into(model, read_weights(path))
    seconds = time.process_time() - start
    print(json.dumps({"seconds": seconds, "memory": memory("VmHWM") - before}))


def prepared(path: Path) -> tuple[int, float]:
    """Bytes of memory and seconds of processor time so far, with the file in the system's cache and the peak forgotten."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS"), time.process_time()


def run(kind: str, options: argparse.Namespace) -> dict[str, float]:
    sizes = ["--layers", str(options.layers), "--width", str(options.width)]
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.engine",
        "apply",
        *sizes,
        "--folder",
        str(options.folder),
        "--load",
        kind,
    ]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["capture", "match", "apply"], default=["capture", "match", "apply"])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--load", choices=("apply", "copy", "transpose"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    torch.set_num_threads(1)
    options = parse()
    if options.load:
        load(options)
        return
    if "capture" in options.what:
        time_capture()
    if "match" in options.what:
        time_match(options)
    if "apply" in options.what:
        time_apply(options)


if __name__ == "__main__":
    main()
