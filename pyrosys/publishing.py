"""Publish a model: weights, configuration, structure card, probe and model card, in one step and only if they load back."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from pyrosys.adapters.capture import Inputs, OutputSelector, as_inputs, evaluation_mode, quiet_kernels
from pyrosys.adapters.card import CardSide, StructureCard
from pyrosys.adapters.certificate import versions
from pyrosys.adapters.fingerprint import NOTHING, cuts, of_outputs
from pyrosys.adapters.match import match_sides
from pyrosys.adapters.sides import ModuleSide
from pyrosys.adapters.verify import rounding_response
from pyrosys.catalogue import example_of, model_class
from pyrosys.entry import CONFIG, PROBE, README, STRUCTURE, Entry, Probe, is_web_address, run_model
from pyrosys.errors import InputError, PublishError, PyrosysError, WeightsError
from pyrosys.hub import check_finite, read_weights, tensor_digest, write_weights
from pyrosys.hub.cache import Cache
from pyrosys.hub.directory import move_entry, present_entry, staging, tidy
from pyrosys.hub.files import replacing, require_space
from pyrosys.hub.manifest import MANIFEST, manifest_digest, write_manifest
from pyrosys.hub.model_card import ModelCard
from pyrosys.hub.shards import SHARD_SIZE, write_shards
from pyrosys.hub.tensor_bytes import tensor_bytes
from pyrosys.porting import calling, state_for

__all__ = ["Published", "publish"]

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
MOST_PARTS = 16


@dataclasses.dataclass(frozen=True)
class Published:
    """What `publish` has done, or with ``dry_run`` would do.

    Attributes:
        address: Where the entry is, as `pyrosys.load` takes it.
        files: Name and size of each file.
        fingerprint: Of the whole.
        parts: Fingerprints of the submodules that can be loaded on their own, by name.
        digest: SHA-256 of the manifest, which stands for all files.
        revision: The commit on a hub.
        tag: The tag on a hub.
        unreached: Tensors that the outputs do not depend on; they are published, but cannot be placed by structure.
    """

    address: str
    files: dict[str, int]
    fingerprint: str
    parts: dict[str, str]
    digest: str
    revision: str | None = None
    tag: str | None = None
    unreached: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [self.address, *(f"  {name:<36}{size:>16,} bytes" for name, size in self.files.items())]
        lines += [f"  fingerprint {self.fingerprint}", f"  digest {self.digest}"]
        lines += [f"  {label} {value}" for label, value in (("commit", self.revision), ("tag", self.tag)) if value]
        if self.unreached:
            lines.append(f"  not placed by structure: {', '.join(self.unreached)}")
        return "\n".join(lines)


def publish(
    model: nn.Module,
    name: str,
    *,
    hub: str | Path | None = None,
    inputs: Any = None,
    output: OutputSelector | None = None,
    weights_licence: str | None = None,
    code_licence: str | None = None,
    base_model: str | None = None,
    doi: str | None = None,
    description: str = "",
    provenance: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    private: bool = False,
    tag: str | None = None,
    shard_size: int = SHARD_SIZE,
    sign_key: str | Path | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> Published:
    """Publish a model as an entry that anyone's structurally equivalent model can find and load.

    The entry is written, loaded back and compared before anything is sent. On a hub it arrives in one commit on top of
    what was there, and a tag; in a directory by one move. The same model gives the same bytes, but for a signature.

    Args:
        model: Any module with its weights.
        name: ``organisation/name``.
        hub: The address of a hub (by default ``HF_ENDPOINT``, or the Hugging Face Hub), or a directory that serves as one.
        inputs: Example arguments that show what the model does; by default its `example_input_array`, and for a model of the
            zoo what the cards of its published files have.
        output: From the model's output to the tensors that count.
        weights_licence: Licence of the weights, such as ``MIT``.
        code_licence: Licence of the code that computes the model.
        base_model: The entry that this one was made from.
        doi: Of the paper.
        description: What a reader should know.
        provenance: Anything else about the origin, as plain data.
        tags: Further tags.
        config: Constructor configuration, as plain data; a model of the zoo has its own.
        private: Whether a repository that is created is private.
        tag: A tag for the commit; by default one made of the entry's digest.
        shard_size: How many bytes a file of weights may have.
        sign_key: A private key (PEM) to sign the entry with; needs ``pyrosys[sign]``.
        token: For the hub; by default that of ``hf auth login`` or ``HF_TOKEN``.
        dry_run: Write and verify the entry, and say what would go where; send nothing.

    Raises:
        PublishError: The entry does not load back equal, or the hub does not take it.
        InputError: There are no inputs, or an argument cannot be used.
        WeightsError: The model holds NaN, infinity, or what is no tensor.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> with tempfile.TemporaryDirectory() as hub:
        ...     publish(model, "lab/small", hub=hub, inputs=(torch.randn(4, 3),)).files["model.safetensors"]
        416
    """
    if not NAME.fullmatch(name):
        raise InputError(f"Expected a name as organisation/name, of letters, digits, dots, dashes, found {name!r}.")
    directory = None if hub is None or is_web_address(hub) else Path(hub).expanduser()
    with staging(directory or Cache().root / "publishing") as staged:
        parent = None
        if directory is not None:
            tidy(directory / name)
            parent = present_entry(directory / name)
        card, unreached = _write(
            staged,
            model,
            name,
            inputs=inputs,
            output=output,
            about={
                "licences": {"weights": weights_licence, "code": code_licence},
                "doi": doi,
                "provenance": {"base_model": base_model, "description": description, **(provenance or {})},
            },
            tags=tags,
            config=config,
            shard_size=shard_size,
            sign_key=sign_key,
        )
        published = Published(
            address=f"hf://{name}" if directory is None else str(directory / name),
            files={path.name: path.stat().st_size for path in sorted(staged.iterdir())},
            fingerprint=card.fingerprint,
            parts={part: data["fingerprint"] for part, data in Entry(staged).structure["parts"].items()},
            digest=manifest_digest(staged),
            unreached=unreached,
        )
        if dry_run:
            return published
        if directory is not None:
            if parent != published.digest:
                move_entry(staged, directory / name, parent)
            return published
        from pyrosys.hub.hub_client import on_hub  # the hub's client takes a while to import
        from pyrosys.hub.upload import upload_entry

        message = f"Publish {card.name} ({card.fingerprint[:21]})"
        with on_hub(None if hub is None else str(hub)):
            uploaded = upload_entry(staged, name, token=token, private=private, tag=tag, message=message)
        return dataclasses.replace(
            published, address=f"{published.address}@{uploaded.commit}", revision=uploaded.commit, tag=uploaded.tag
        )


# Writing


def _write(
    folder: Path,
    model: nn.Module,
    name: str,
    *,
    inputs: Any,
    output: OutputSelector | None,
    about: dict[str, Any],
    tags: Sequence[str],
    config: Mapping[str, Any] | None,
    shard_size: int,
    sign_key: str | Path | None,
) -> tuple[StructureCard, tuple[str, ...]]:
    """Write the entry into a folder, the manifest last, and load it back."""
    probe = _probe_inputs(model, inputs).map(torch.Tensor.cpu)
    model = _on_processor(model)
    runnable, state = calling(model), _state(model)
    require_space(folder, sum(tensor.numel() * tensor.element_size() for tensor in state.values()))
    card = StructureCard.of(runnable, probe, name=type(model).__name__, output=output)
    parts = _parts(model, {**record_calls(model, probe), **record_calls(runnable, probe)}, card)
    example = _example(runnable, probe, output, card, state)
    write_shards(folder, state, shard_size)
    structure = _structure(model, card, parts, state, example, about)
    _write_json(folder / STRUCTURE, structure)
    _write_json(folder / CONFIG, _config(model, config))
    write_weights(folder / PROBE, example.tensors(), example.metadata())
    unreached = tuple(n for n in card.order if n not in card.captured.reached and n not in card.captured.derived)
    (folder / README).write_text(_model_card(model, name, card, parts, state, about, tags).render(), encoding="utf-8")
    if sign_key is not None:
        from pyrosys.hub.signature import sign

        sign(folder, Path(sign_key))
    write_manifest(folder)
    _load_back(folder, runnable, state, output)
    return card, unreached


def _probe_inputs(model: nn.Module, inputs: Any) -> Inputs:
    if inputs is None:
        inputs = example_of(type(model)) or getattr(model, "example_input_array", None)
    if inputs is None:
        raise InputError(
            f"Expected inputs to show what {type(model).__name__} computes, found none. Pass a tuple or a dict of arguments."
        )
    probe = as_inputs(inputs)[0]
    return Inputs(*probe.args, **dict(sorted(probe.kwargs.items())))  # as they come back from the files


def _on_processor(model: nn.Module) -> nn.Module:
    """The model, or a copy of it where it is elsewhere: entries are the same whatever device they are published from."""
    elsewhere = {t.device.type for t in (*model.parameters(), *model.buffers())} - {"cpu"}
    if "meta" in elsewhere:
        raise WeightsError(
            f"Expected {type(model).__name__} to have weights, found none (meta). Load or initialise them."
        )
    return copy.deepcopy(model).cpu() if elsewhere else model


def _state(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise WeightsError(
                f"Expected every part of the state of {type(model).__name__} to be a tensor, found {type(tensor).__name__} as "
                f"{name!r}, which an entry cannot hold."
            )
    check_finite(state)
    return {name: tensor.detach() for name, tensor in state.items()}


def _example(
    model: nn.Module, inputs: Inputs, output: OutputSelector | None, card: StructureCard, state: Mapping[str, Tensor]
) -> Probe:
    """What the model gives on the probe, and how far rounding its weights to single precision moves that."""
    side, outputs = CardSide(card, state), run_model(model, inputs, output)
    step = torch.finfo(torch.float32).eps
    responses = rounding_response(side, state, 0, torch.float64, outputs, step)
    tolerances = [
        response + 2 * step * float(tensor.abs().max() if tensor.numel() else 0.0)
        for response, tensor in zip(responses, outputs, strict=True)
    ]
    return Probe(inputs.tensors(), outputs, tolerances)


def _structure(
    model: nn.Module,
    card: StructureCard,
    parts: Mapping[str, StructureCard],
    state: Mapping[str, Tensor],
    example: Probe,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """What ``structure.json`` holds: a structure card with more about the entry."""
    integers = {
        n: [list(t.shape), _dtype(t)] for n, t in state.items() if n not in {*card.tensors, *card.captured.ties}
    }
    order = [*(n for n in card.order if n in state), *sorted(n for n in state if n not in card.tensors)]
    alphabet = getattr(model, "alphabet", None)
    tokens = getattr(alphabet, "tokens", alphabet)
    data = {
        **card.to_json(),
        "outputs_alone": of_outputs(card.captured),
        "beginnings": sorted({print_ for print_ in cuts(card.captured).values() if print_ not in NOTHING}),
        "parts": {name: part.to_json() for name, part in parts.items()},
        "integers": integers,
        "order": order,
        "digest": tensor_digest(state, order),
        "signature": {
            "inputs": [_describe(tensor) for tensor in example.inputs],
            "outputs": [_describe(tensor) for tensor in example.outputs],
        },
        "alphabet": None if tokens is None else [str(token) for token in tokens],
        "versions": versions(),
        **about,
    }
    try:
        return json.loads(json.dumps(data, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"Expected plain data about the model, found {error}. Pass text, numbers, lists and dicts."
        ) from error


def _describe(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": _dtype(tensor)}


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _config(model: nn.Module, config: Mapping[str, Any] | None) -> dict[str, Any]:
    kind, own = type(model), getattr(model, "config", None)
    if config is None and dataclasses.is_dataclass(own) and not isinstance(own, type):
        config = dataclasses.asdict(own)
    return {"class": f"{kind.__module__}:{kind.__qualname__}", "config": None if config is None else dict(config)}


def _model_card(
    model: nn.Module,
    name: str,
    card: StructureCard,
    parts: Mapping[str, StructureCard],
    state: Mapping[str, Tensor],
    about: Mapping[str, Any],
    tags: Sequence[str],
) -> ModelCard:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = {"Class": f"{type(model).__module__}:{type(model).__qualname__}", "Parameters": f"{parameters:,}"}
    if about["doi"]:
        facts["Paper"] = f"https://doi.org/{about['doi']}"
    return ModelCard(
        name=name,
        fingerprint=card.fingerprint,
        parts={part: of.fingerprint for part, of in parts.items()},
        further=_further_prints(card, parts),
        facts=facts,
        checks=[
            f"The {len(state)} tensors were read back from the files and are equal bit for bit.",
            "The recorded graph, run with these tensors, gives the outputs of the model within rounding, and so does the "
            "model filled through the structure engine, without reading a name.",
            f"Anyone can check every file against {MANIFEST}: pyrosys verify {name}.",
        ],
        weights_licence=about["licences"]["weights"],
        code_licence=about["licences"]["code"],
        base_model=about["provenance"]["base_model"],
        tags=tags,
        text=about["provenance"]["description"],
    )


def _further_prints(card: StructureCard, parts: Mapping[str, StructureCard]) -> list[str]:
    """Under which structures the entry is to be found besides those of the whole and of its parts alone.

    An output alone; a part in its place; what the model begins with, up to where a direct submodule ends.
    """
    places = [card.fingerprints[part] for part in parts if part in card.fingerprints]
    ends = [
        print_
        for node, print_ in cuts(card.captured).items()
        if any(_top(user) != _top(node) for user in node.users) and print_ not in NOTHING
    ]
    return [*of_outputs(card.captured), *places, *list(dict.fromkeys(ends))[-MOST_PARTS:]]


def _top(node: fx.Node) -> str:
    """The direct submodule in which an operation runs."""
    return str(node.meta.get("scope", "")).partition(".")[0]


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    with replacing(path) as file:
        file.write(
            f"{json.dumps(data, sort_keys=True, separators=(',', ':'), ensure_ascii=False, allow_nan=False)}\n".encode()
        )


# Parts


def _parts(model: nn.Module, calls: Mapping[str, Inputs], whole: StructureCard) -> dict[str, StructureCard]:
    """Cards of submodules, each on the inputs that it gets when the whole runs; of equal ones the first."""
    cards: dict[str, StructureCard] = {}
    known = {*NOTHING, whole.fingerprint}
    for name in sorted(calls, key=lambda name: name.count(".")):
        module = model.get_submodule(name)
        if len(cards) == MOST_PARTS or not any(True for _ in module.parameters()):
            continue
        with contextlib.suppress(PyrosysError):  # a part that cannot be recorded alone is no part to load alone
            card = StructureCard.of(module, calls[name], name=f"{whole.name}.{name}")
            if card.fingerprint not in known:
                StructureCard.from_json(json.loads(json.dumps(card.to_json(), allow_nan=False)))
                known.add(card.fingerprint)
                cards[name] = card
    return cards


def record_calls(model: nn.Module, probe: Inputs, depth: int = 2) -> dict[str, Inputs]:
    """The arguments of the first call of every submodule, down to a depth, while the model runs on a probe."""
    calls: dict[str, Inputs] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.setdefault(name, Inputs(*args, **kwargs).map(lambda tensor: tensor.detach().clone()))

        return hook

    named = [(name, module) for name, module in model.named_modules() if name and name.count(".") < depth]
    handles = [module.register_forward_pre_hook(watch(name), with_kwargs=True) for name, module in named]
    try:
        with evaluation_mode(model), quiet_kernels(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model(*probe.args, **probe.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


# Loading back


def _load_back(folder: Path, model: nn.Module, state: Mapping[str, Tensor], output: OutputSelector | None) -> None:
    """Read the entry as a stranger would: by its files alone, by its class if that is one of the zoo, and by structure.

    Raises:
        PublishError: Something does not come back as it was.
    """
    try:
        entry = Entry(folder)
        stored = read_weights(folder)
        changed = [n for n in state if n not in stored or not _identical(stored[n], state[n])]
        if changed or len(stored) != len(state):
            raise WeightsError(f"Expected every tensor as it was, found {', '.join(changed[:5]) or 'others'} changed.")
        entry.check()
        if model_class(entry.config.get("class")) is not None:
            entry.model()
        _by_structure(entry, model, output)
    except PyrosysError as error:
        raise PublishError(
            f"The entry does not load back equal to {type(model).__name__}, and nothing was published: {error}"
        ) from error


def _by_structure(entry: Entry, model: nn.Module, output: OutputSelector | None) -> None:
    """Fill an empty copy of the model through the structure engine, and run it on the probe."""
    card = entry.card()
    weights = state_for(card, entry.weights())
    side = ModuleSide(model, [card.inputs], output)
    filled = match_sides(CardSide(card, weights), side).apply(weights, side.state())
    entry.probe.compare(run_model(model, card.inputs, output, filled), "the model filled by structure")


def _identical(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and tensor_bytes(one) == tensor_bytes(other)
