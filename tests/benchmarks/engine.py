"""Time the structure engine: capture and fingerprint at full size, matching by depth, and applying a plan.

Each figure stands beside what a user would do instead, where there is such a thing, as a ratio of two medians of one run.
"""

import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import EsmConfig, EsmForMaskedLM

import pyrosys
from pyrosys.zoo.esm import ESM, ESMConfig

REPEATS = 5
SIZES = {"8M": (6, 320, 20), "15B": (48, 5120, 40)}


def reference(layers: int, width: int, heads: int, device: str) -> EsmForMaskedLM:
    """The transformers library's ESM-2; its table of rotary frequencies is real even when the rest is on meta."""
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


def main() -> None:
    torch.set_num_threads(1)
    probe = tokens()
    inputs = pyrosys.Inputs(input_ids=probe, attention_mask=(probe != 1).long())

    for name, size in SIZES.items():
        model = reference(*size, "meta")
        seconds = median(lambda model=model: pyrosys.fingerprint(model, inputs, output=lambda o: o.logits), 3)
        print(f"capture and fingerprint of ESM-2 {name} on meta: {seconds:.2f} s")
    print(f"largest memory so far: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")

    shallow = None
    for layers in (3, 6, 12):
        theirs = reference(layers, 64, 4, "cpu")
        ours = ESM(ESMConfig(layers=layers, width=64, heads=4)).eval()

        def matched(theirs: Any = theirs, ours: Any = ours) -> pyrosys.Plan:
            return pyrosys.match(theirs, ours, inputs, (probe,), source_output=lambda o: o.logits)

        seconds = median(matched, 1)
        shallow = shallow or seconds / layers
        print(
            f"match of {layers} layers: {seconds:.1f} s, {seconds / layers / shallow:.2f} times as much per layer as 3"
        )

    theirs, ours = reference(*SIZES["8M"], "cpu"), ESM(ESMConfig(layers=6, width=320, heads=20)).eval()
    plan = pyrosys.match(theirs, ours, inputs, (probe,), source_output=lambda o: o.logits)
    state = theirs.state_dict()
    renamed = dict(zip((f"t{i}" for i in range(len(state))), state.values(), strict=True))
    applied = median(lambda: plan.apply(state))
    copied = median(lambda: {name: tensor.clone() for name, tensor in renamed.items()})
    print(
        f"plan of ESM-2 8M applied: {applied * 1e3:.1f} ms, {applied / copied:.2f} times as long as copying its tensors"
    )


if __name__ == "__main__":
    main()
