"""Regenerate by machine the hand-written mappings with which `transformers` loads checkpoints of other layouts.

For every type of model that the installed release has such a mapping for, a small model is made, and its weights are saved,
which puts them into the layout of the published checkpoints by running the mapping backwards. From what that does to numbered
elements a plan is read (`Plan.from_function`), turned round, and exported as renamings and converters. Then the two mappings
load the same checkpoint: they agree if every tensor is equal. Both are then tried on a model with another width and one layer
more, which the exported mapping has never seen.

    python -m tests.portbench.conversions [TYPE ...] [--write-docs]
"""

import argparse
import contextlib
import copy
import io
import logging
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from pyrosys import Plan
from pyrosys.adapters.export_transformers import conversions
from pyrosys.errors import PlanError

__all__ = ["Outcome", "compare", "types"]

DOCUMENT = Path(__file__).parents[2] / ".github" / "docs" / "conversions.md"
PAGE = """\
# Mappings of transformers, regenerated

`transformers` loads checkpoints of older or foreign layouts by mappings that are written by hand for each type of model. This
page compares them with mappings that were made by machine. It is written by

```sh
python -m tests.portbench.conversions --write-docs
```

For each type of model with a mapping, a small model with random weights is made. The hand-written mapping, run backwards,
puts numbered elements into the layout of published checkpoints. From that the plan is read (`pyrosys.Plan.from_function`),
turned round, and exported (`plan.export("transformers")`). Both mappings then load one checkpoint. They agree if every tensor
is equal, bit by bit, to that of the model that was saved. Both are tried again on a model with one layer more and another
width, which the exported mapping has not seen.

What this shows: a plan can be written as renamings and converters, with patterns that hold for other depths, and such a
mapping need not be written by hand once there is one example of what it has to do. What it does not show: that the layout of
a checkpoint is found without such an example. A checkpoint has no code to read a structure from; here, the hand-written
mapping is the example.

With transformers {version}: {types} types of models have a mapping; {tried} could be built in a small size and are changed by
it ({unbuilt} could not be built, {quiet} are saved as they are).

| outcome | types |
|---|---|
| the two mappings agree | {agree} |
| and also at another size | {larger} |
| refused: operations of the library do not express the plan in the patterns that are tried | {refused} |
| the two mappings differ | {differs} |

| type | class | outcome | rules |
|---|---|---|---|
{rows}
"""
LARGEST = 60_000_000  # parameters of a small model
SECONDS = 120


@dataclass(frozen=True)
class Outcome:
    """What came of one type of model.

    Args:
        type: of the configuration.
        model: Class that was built.
        result: `"equal"`, `"equal, also at another size"`, `"refused"`, `"differs"`, `"nothing to do"` or `"not built"`.
        detail: Why, or how many rules each mapping has.
    """

    type: str
    model: str
    result: str
    detail: str


def types() -> dict[str, list[str]]:
    """Types of models with a mapping, and the classes to try for each."""
    from transformers.conversion_mapping import _build_checkpoint_conversion_mapping
    from transformers.models.auto import modeling_auto as auto

    known = set(_build_checkpoint_conversion_mapping())
    tables = [
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES,
        auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
        auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
        auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_MAPPING_NAMES,
    ]
    found: dict[str, list[str]] = {}
    for table in tables:
        for kind, names in table.items():
            for name in [names] if isinstance(names, str) else names:
                found.setdefault(kind, []).append(name)
    return {
        kind: list(dict.fromkeys(names)) for kind, names in sorted(found.items()) if kind in known or known & set(names)
    }


SIZES = {
    "vocab_size": 120,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "dim": 32,
    "embed_dim": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "expert_ffn_hidden_size": 24,
    "ffn_hidden_size": 48,
    "num_hidden_layers": 3,
    "num_layers": 3,
    "n_layer": 3,
    "depth": 3,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "num_attention_heads": 4,
    "num_heads": 4,
    "n_head": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "max_position_embeddings": 64,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 32,
    "text_embed_dim": 32,
    "vision_embed_dim": 32,
    "out_hidden_size": 32,
    "num_mel_bins": 16,
    "mamba_d_state": 8,
    "mamba_d_head": 8,
    "mamba_n_heads": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LARGER = {
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_layers": 4,
    "depth": 4,
    "d_model": 64,
}


def shrink(config: Any, sizes: dict[str, int]) -> Any:
    """A configuration with small numbers, and those of its parts too."""
    for name, value in sizes.items():
        present = getattr(config, name, None)
        unset = name == "vocab_size" and present is None and hasattr(config, name)
        if unset or (isinstance(present, int) and not isinstance(present, bool)):
            with contextlib.suppress(AttributeError, NotImplementedError, ValueError):
                setattr(config, name, value)
    layers = next((getattr(config, n) for n in ("num_hidden_layers", "num_layers") if hasattr(config, n)), None)
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        kinds = getattr(config, name, None)
        if isinstance(kinds, list) and kinds and isinstance(layers, int):
            wanted = list(dict.fromkeys(kinds)) * layers
            with contextlib.suppress(AttributeError):
                setattr(config, name, wanted[:layers])
    for part in vars(config).values():
        if hasattr(part, "to_dict") and hasattr(part, "model_type"):
            shrink(part, sizes)
    return config


def build(kind: str, name: str, sizes: dict[str, int]) -> nn.Module:
    """A small model of one class."""
    import transformers

    config = shrink(transformers.CONFIG_MAPPING[kind](), sizes)
    make = getattr(transformers, name)
    with torch.device("meta"):
        size = sum(p.numel() for p in make(copy.deepcopy(config)).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters with small numbers set")
    model = make(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float32))
    return model.eval()


def saved(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in the layout of published checkpoints."""
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(model, dict(state)))


def loaded(model: Any, mapping: list[Any], checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a model of the same configuration into which the checkpoint was loaded by a mapping."""
    with registered(model, mapping):
        fresh, report = type(model).from_pretrained(
            None, config=copy.deepcopy(model.config), state_dict=dict(checkpoint), output_loading_info=True
        )
    if report["missing_keys"] or report["mismatched_keys"]:
        raise ValueError(f"{len(report['missing_keys'])} missing, {len(report['mismatched_keys'])} of other shapes")
    return dict(fresh.state_dict())


@contextlib.contextmanager
def registered(model: Any, mapping: list[Any]) -> Iterator[None]:
    """`transformers` with one mapping in place of all that it has."""
    from transformers import conversion_mapping, modeling_utils

    def alone(*_: Any, **__: Any) -> list[Any]:
        return copy.deepcopy(mapping)

    with contextlib.ExitStack() as stack:
        for module in (conversion_mapping, modeling_utils):
            stack.enter_context(mock.patch.object(module, "get_model_conversion_mapping", alone))
        yield


def compare(kind: str, names: list[str]) -> Outcome:
    """The two mappings on one type of model."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    reasons: list[str] = []
    quiet: Outcome | None = None
    for name in names:
        try:
            model: Any = build(kind, name, SIZES)
            theirs = get_model_conversion_mapping(model, add_legacy=False)
            state = dict(model.state_dict())
            layout = saved(model, state)
        except Exception as error:
            reasons.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            continue
        if {n: t.shape for n, t in layout.items()} == {n: t.shape for n, t in state.items()}:
            quiet = quiet or Outcome(kind, name, "nothing to do", "saved as it is")
            continue
        return mapped(kind, name, model, theirs)
    return quiet or Outcome(kind, names[0], "not built", reasons[0][:110])


def mapped(kind: str, name: str, model: Any, theirs: list[Any]) -> Outcome:
    """The two mappings on one model that one of them changes."""
    state = dict(model.state_dict())
    ties = {n for n in state if n not in dict(model.named_parameters()) and n not in dict(model.named_buffers())}
    own = {n: t for n, t in state.items() if n not in ties}
    try:
        ours = conversions(Plan.from_function(lambda numbered: saved(model, numbered), own).invert(), model.config)
    except PlanError as error:
        return Outcome(kind, name, "refused", str(error)[:160])
    counts = f"{len(ours)} rules, {len(theirs)} by hand"
    checkpoint = saved(model, own)
    try:
        first = loaded(model, theirs, checkpoint)
    except Exception as error:
        return Outcome(
            kind, name, "not built", f"by its own mapping: {type(error).__name__}: {error}".splitlines()[0][:160]
        )
    try:
        second = loaded(model, ours, checkpoint)
    except Exception as error:
        return Outcome(kind, name, "differs", f"{type(error).__name__}: {error}".splitlines()[0][:160])
    wrong = [n for n in own if not torch.equal(first[n], second[n]) or not torch.equal(second[n], own[n])]
    if wrong:
        return Outcome(kind, name, "differs", f"{len(wrong)} tensors, {wrong[0]} first")
    try:
        other: Any = build(kind, name, SIZES | LARGER)
        checkpoint = saved(other, dict(other.state_dict()))
        first, second = loaded(other, theirs, checkpoint), loaded(other, ours, checkpoint)
        same = all(torch.equal(first[n], second[n]) for n in first)
    except Exception:
        same = False
    return Outcome(kind, name, "equal, also at another size" if same else "equal", counts)


def page(outcomes: list[Outcome]) -> str:
    """The page of the documentation that has all outcomes."""
    import transformers

    counts = Counter(outcome.result for outcome in outcomes)
    tried = [o for o in outcomes if o.result not in ("not built", "nothing to do")]
    agree = counts["equal"] + counts["equal, also at another size"]
    rows = [
        f"| {o.type} | `{o.model}` | {o.result} | {o.detail if o.result.startswith('equal') else ''} |"
        for o in outcomes
        if o in tried
    ]
    return PAGE.format(
        version=transformers.__version__,
        types=len(outcomes),
        tried=len(tried),
        agree=agree,
        larger=counts["equal, also at another size"],
        refused=counts["refused"],
        differs=counts["differs"],
        unbuilt=counts["not built"],
        quiet=counts["nothing to do"],
        rows="\n".join(rows),
    )


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Stop what takes too long."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} seconds")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def main() -> int:
    """Compare all types, or those that are named, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="types of models (default: all that have a mapping)")
    parser.add_argument("--write-docs", action="store_true", help=f"write {DOCUMENT.name} of the documentation")
    options = parser.parse_args()
    if options.write_docs and options.types:
        parser.error("--write-docs needs the results of all types; name none")
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    every = types()
    outcomes = []
    for kind in options.types or every:
        try:
            with limited(SECONDS), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                outcome = compare(kind, every[kind])
        except TimeoutError as error:
            outcome = Outcome(kind, every[kind][0], "not built", str(error))
        outcomes.append(outcome)
        print(f"{outcome.type:28} {outcome.model:44} {outcome.result:28} {outcome.detail}", flush=True)
    if outcomes and all(outcome.result == "not built" for outcome in outcomes):
        print(
            f"Expected models of transformers that can be built, found none: {outcomes[0].detail}. Run it in the environment that "
            "`make test` installs; nothing was written.",
            file=sys.stderr,
        )
        return 1
    if options.write_docs:
        DOCUMENT.write_text(page(outcomes), encoding="utf-8")
    counts = Counter(outcome.result for outcome in outcomes)
    print(", ".join(f"{count} {result}" for result, count in counts.most_common()))
    return 1 if counts["differs"] else 0


if __name__ == "__main__":
    sys.exit(main())
