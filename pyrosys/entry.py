"""Published entries: folders that hold a model's weights together with all that is needed to use them by structure.

| File | What it holds |
|---|---|
| ``model.safetensors``, or shards and their index | every tensor of the state, in canonical bytes |
| ``config.json`` | class and constructor configuration |
| ``structure.json`` | the structure card, cards of parts, fingerprints, licences, origin |
| ``probe.safetensors`` | example inputs, and the outputs to expect within a tolerance |
| ``README.md`` | the model card |
| ``model.sig`` | a signature, if there is one |
| ``manifest.json`` | digest and size of each of the other files |

Everything in an entry is data, and whoever wrote it is a stranger: files are checked against the manifest, JSON is parsed
strictly, a recorded graph is checked before it runs, and classes are built only if they belong to the zoo.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyrosys.adapters.capture import Inputs, OutputSelector, capture
from pyrosys.adapters.card import CardSide, StructureCard
from pyrosys.adapters.execute import execute
from pyrosys.adapters.match import match_sides
from pyrosys.adapters.records import MALFORMED
from pyrosys.adapters.sides import ModuleSide
from pyrosys.errors import InputError, SourceError, VerificationError, WeightsError
from pyrosys.hub import check_finite, fetch, read_weights
from pyrosys.hub.digest import Expected
from pyrosys.hub.manifest import MANIFEST, check_files, manifest_digest
from pyrosys.hub.safetensors_file import SafetensorsFile
from pyrosys.hub.sources import Source
from pyrosys.hub.strict_json import parse_object
from pyrosys.hub.weights import shapes_of
from pyrosys.model import Model
from pyrosys.porting import calling, state_for
from pyrosys.verified import note_verified, was_verified

__all__ = [
    "CONFIG",
    "PROBE",
    "README",
    "STRUCTURE",
    "Entry",
    "Probe",
    "entry_address",
    "fetch_entry",
    "is_entry",
    "is_web_address",
    "open_first",
    "run_card",
    "run_model",
]

CONFIG, STRUCTURE, PROBE, README = "config.json", "structure.json", "probe.safetensors", "README.md"
NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\w[\w.-]*)?", re.ASCII)
PROBE_FORMAT = "pyrosys-probe/1"
LARGEST_JSON = 500_000_000  # bytes
LARGE = (
    1 << 28
)  # elements beyond which a model is run operation by operation, so that it is not copied to double precision
COUNT = 4096  # what a number in a configuration may be, however small the tensors are


@dataclasses.dataclass(frozen=True)
class Probe:
    """Example inputs and the outputs to expect.

    Attributes:
        inputs: The tensors among the arguments, in order.
        outputs: The output tensors that count, in float64.
        tolerances: For each output, the largest absolute difference that rounding explains.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]
    tolerances: list[float]

    def metadata(self) -> dict[str, str]:
        """What is kept in the header of the file."""
        return {"pyrosys": PROBE_FORMAT, "tolerances": json.dumps(self.tolerances)}

    def tensors(self) -> dict[str, Tensor]:
        """What is kept as data in the file."""
        named = {"input": self.inputs, "output": self.outputs}
        return {f"{kind}.{i}": tensor for kind, tensors in named.items() for i, tensor in enumerate(tensors)}

    @staticmethod
    def read(path: Path) -> Probe:
        """Read the file.

        Raises:
            WeightsError: It is not a sound probe.
        """
        file = SafetensorsFile(path)
        if file.metadata.get("pyrosys") != PROBE_FORMAT:
            raise WeightsError(f"Expected {path} to be of format {PROBE_FORMAT!r}, found {file.metadata!r:.100}.")
        inputs, outputs = (
            [
                file[f"{kind}.{i}"]
                for i in range(sum(name.startswith(f"{kind}.") for name in file))
                if f"{kind}.{i}" in file
            ]
            for kind in ("input", "output")
        )
        try:
            tolerances = [float(value) for value in json.loads(file.metadata.get("tolerances", ""))]
        except (ValueError, TypeError) as error:
            raise WeightsError(f"Expected {path} to state a tolerance for each output, found: {error}.") from error
        if len(inputs) + len(outputs) != len(file) or not outputs or len(tolerances) != len(outputs):
            raise WeightsError(f"Expected {path} to hold inputs, outputs and their tolerances, found {sorted(file)}.")
        return Probe(inputs, outputs, tolerances)

    def compare(self, found: list[Tensor], what: str) -> None:
        """Compare outputs with those on record.

        Raises:
            VerificationError: They differ by more than rounding.
        """
        if [tuple(t.shape) for t in found] != [tuple(t.shape) for t in self.outputs]:
            shapes = [tuple(t.shape) for t in found]
            raise VerificationError(
                f"Expected {what} to give {[tuple(t.shape) for t in self.outputs]}, found {shapes}."
            )
        for number, (theirs, ours, allowed) in enumerate(zip(self.outputs, found, self.tolerances, strict=True)):
            difference = float((theirs.double() - ours.double()).abs().max()) if ours.numel() else 0.0
            if not difference <= allowed:
                raise VerificationError(
                    f"Expected {what} to give the outputs on record, found that output {number} differs by "
                    f"{difference:.3g}, where rounding explains {allowed:.3g}. Do not use it."
                )


class Entry:
    """An entry in a local folder, whose files are as its manifest says.

    Args:
        folder: Where it lies.
        address: Where it came from, for messages.

    Raises:
        WeightsError: The folder is no entry, is incomplete or damaged.
    """

    def __init__(self, folder: Path, address: str | None = None) -> None:
        self.folder, self.address = folder, address or str(folder)
        self.files = check_files(folder)
        missing = [name for name in (CONFIG, STRUCTURE, PROBE, README) if name not in self.files]
        if missing:
            raise WeightsError(
                f"Expected the entry {self.address} to hold {', '.join(missing)}, found none. Fetch it again."
            )

    @staticmethod
    def open(name: str | Path, *, hub: str | Path | None = None, offline: bool | None = None) -> Entry:
        """Fetch an entry, if need be, and check its files.

        Args:
            name: ``organisation/name``, an ``hf://`` address, or a folder.
            hub: Where ``organisation/name`` is: the address of a hub, or a directory that serves as one.
            offline: Whether to do without the network.

        Raises:
            SourceError: It could not be obtained.
            WeightsError: It is not an entry, or not a sound one.
        """
        folder, address = fetch_entry(name, hub=hub, offline=offline), entry_address(name, hub)
        if not folder.is_dir():
            raise WeightsError(f"Expected {address} to be a published entry, which is a folder, found a file.")
        return Entry(folder, address)

    @property
    def pinned_address(self) -> str:
        """The address of what the entry is now, whatever is published under its name later; for a folder, its path."""
        if not self.address.startswith("hf://"):
            return str(self.folder.resolve())
        return f"{self.address.partition('@')[0]}@{self.folder.name}"  # a snapshot is called by its commit

    # What is in it

    @functools.cached_property
    def structure(self) -> dict[str, Any]:
        """The content of ``structure.json``."""
        return self._json(STRUCTURE)

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        return self._json(CONFIG)

    @functools.cached_property
    def probe(self) -> Probe:
        """Example inputs and expected outputs."""
        return Probe.read(self.folder / PROBE)

    @property
    def parts(self) -> list[str]:
        """Names of the submodules that can be loaded on their own."""
        return list(self._parts())

    def card(self, part: str = "") -> StructureCard:
        """The structure card of the whole, or of a part."""
        data = self.structure
        if part:
            if part not in self._parts():
                known = ", ".join(self.parts) or "none"
                raise InputError(f"Expected a part that {self.address} has a card of, found {part!r}. It has: {known}.")
            data = self._parts()[part]
        try:
            return StructureCard.from_json(data)
        except MALFORMED as error:
            where = f"part {part!r} of {self.address}" if part else self.address
            raise WeightsError(f"The structure card of {where} is damaged: {type(error).__name__}: {error}.") from error

    def weights(self, part: str = "") -> Mapping[str, Tensor]:
        """The tensors of the whole, or of a part, by the names that the card has for them.

        Counters and other integers, which no structure depends on, are left out.
        """
        weights, prefix = read_weights(self.folder), f"{part}." if part else ""
        integers = self.structure.get("integers", {})
        names = {
            name.removeprefix(prefix): name for name in weights if name.startswith(prefix) and name not in integers
        }
        return {name: weights[stored] for name, stored in names.items()}

    def _parts(self) -> dict[str, Any]:
        parts = self.structure.get("parts", {})
        if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
            raise WeightsError(
                f"Expected {STRUCTURE} of {self.address} to map parts to cards. Do not trust this entry."
            )
        return parts

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if path.stat().st_size > LARGEST_JSON:
            raise WeightsError(
                f"Expected {path} to have at most {LARGEST_JSON:,} bytes, found {path.stat().st_size:,}."
            )
        return parse_object(path.read_bytes(), str(path))

    # What it is good for

    def check(self) -> None:
        """Run the card's graph with the entry's weights on the probe.

        Raises:
            VerificationError: The outputs are not those on record.
            WeightsError: The weights are not those of the card.
        """
        facts = {"entry": manifest_digest(self.folder), "class": "its card"}
        if was_verified(**facts):
            return
        card = self.card()
        if not _equal(card.inputs.tensors(), self.probe.inputs):
            raise WeightsError(
                f"Expected the probe of {self.address} to have the inputs of its structure card. Fetch it again."
            )
        state = state_for(card, self.weights())
        self.probe.compare(run_card(card, state), f"the structure card of {self.address}")
        note_verified(**facts)

    def model(self) -> Model:
        """The model of the zoo that the entry holds, with its weights, in evaluation mode, verified on the probe.

        What was verified before and has not changed since is not run again: its weights are mapped into memory.

        Raises:
            InputError: Its class is not one of the zoo.
            WeightsError: The weights are not those of its class and configuration.
            VerificationError: It does not give the outputs on record.
        """
        weights = read_weights(self.folder)
        shapes = shapes_of(weights)
        with torch.device("meta"):
            model = self._build(shapes)
        facts = {"entry": manifest_digest(self.folder), "class": type(model).__qualname__}
        verified = was_verified(**facts)
        if {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == shapes:
            model.load_state_dict(dict(weights), assign=True)
        else:  # another version of the class: its names may differ, its structure may not
            model = self._matched(model, shapes)
        if not verified:
            self.verify(model)
            note_verified(**facts)
        return model

    def verify(self, model: nn.Module) -> None:
        """Run a model that takes the arguments of the card's on the probe.

        Raises:
            VerificationError: It does not give the outputs on record.
        """
        check_finite(model.state_dict())
        self.probe.compare(run_model(calling(model), self.card().inputs), f"{type(model).__name__} from {self.address}")

    def _matched(self, empty: Model, shapes: Mapping[str, tuple[int, ...]]) -> Model:
        """The model with weights that have other names than it has."""
        if sum(t.numel() for t in empty.state_dict().values()) != sum(map(math.prod, shapes.values())):
            raise WeightsError(
                f"Expected the weights of {self.address} to be those of its {CONFIG}, found another number."
            )
        model, card = self._build(shapes), self.card()
        state = state_for(card, self.weights())
        plan = match_sides(CardSide(card, state), ModuleSide(calling(model), [card.inputs], None))
        plan.load_into(model, state)
        return model

    def check_signature(self, public_key: Path) -> None:
        """Check that the entry was signed with the private key that belongs to a public one.

        Raises:
            IntegrityError: It was not signed, not with that key, or has been changed since.
            MissingExtra: ``pyrosys[sign]`` is not installed.
        """
        from pyrosys.hub.signature import check_signature

        check_signature(self.folder, public_key)

    def _build(self, shapes: Mapping[str, tuple[int, ...]]) -> Model:
        """A model of the zoo of the entry's class and configuration, without its weights, which have these shapes."""
        from pyrosys.catalogue import model_class

        name, fields = self.config.get("class"), self.config.get("config")
        kind = model_class(name)
        if kind is None:
            raise InputError(
                f"{self.address} holds a {name!r:.100}, which is not a class of the zoo, and code of others is never run. "
                "Build the model yourself and pass it: pyrosys.load(entry, into=model)."
            )
        largest = max([COUNT, len(shapes), *(side for shape in shapes.values() for side in shape)])
        configuration = typing.get_type_hints(kind.__init__)["config"]
        if not isinstance(fields, dict) or any(type(v) is int and not 0 <= v <= largest for v in fields.values()):
            raise WeightsError(
                f"Expected {CONFIG} of {self.address} to describe a model of the size of its weights, found {fields!r:.200}."
            )
        try:
            return kind(configuration(**fields)).eval()
        except MALFORMED as error:
            raise WeightsError(f"{CONFIG} of {self.address} does not describe a {name}: {error}.") from error


def open_first(sources: Iterable[Source], *, offline: bool | None = None) -> Entry:
    """Open an entry that several places hold, trying them in turn; the digest on record is that of its manifest.

    Raises:
        SourceError: No place has it.
        IntegrityError: The only place has another one.
    """
    failures: list[Exception] = []
    for source in sources:
        address = source["uri"].removesuffix(f"/{MANIFEST}")
        try:
            entry = Entry.open(address, offline=offline)
            Expected(source.get("sha256")).check_sha256(manifest_digest(entry.folder), f"the manifest of {address}")
            return entry
        except (SourceError, WeightsError) as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    raise SourceError(
        "\n".join([f"None of {len(failures)} sources provided the entry:", *(f"- {e}" for e in failures)])
    )


def entry_address(name: str | Path, hub: str | Path | None = None) -> str:
    """The address that `pyrosys.hub.fetch` takes for an entry.

    Example:
        >>> entry_address("lab/model"), entry_address("lab/model", "/shared/hub")
        ('hf://lab/model', '/shared/hub/lab/model')
    """
    if hub is not None and not is_web_address(hub):
        return str(Path(hub).expanduser() / name)
    if isinstance(name, str) and NAME.fullmatch(name) and not Path(name).is_dir():
        return f"hf://{name}"
    return str(name)


def fetch_entry(name: str | Path, *, hub: str | Path | None = None, offline: bool | None = None) -> Path:
    """Fetch what is under the name or address of an entry; the arguments are those of `Entry.open`.

    Raises:
        SourceError: It could not be obtained.
    """
    address = entry_address(name, hub)
    if not address.startswith("hf://"):
        return fetch(address, offline=offline)
    from pyrosys.hub.hub_client import on_hub  # the hub's client takes a while to import

    with on_hub(str(hub) if hub is not None else None):
        return fetch(address, offline=offline)


def is_entry(folder: Path) -> bool:
    """Whether a folder holds an entry, finished or damaged, and not only weights."""
    return any((folder / name).exists() for name in (MANIFEST, STRUCTURE))


def is_web_address(hub: str | Path) -> bool:
    """Whether a hub is a server, not a directory."""
    return re.match("https?://", str(hub)) is not None


def run_card(card: StructureCard, state: Mapping[str, Tensor]) -> list[Tensor]:
    """Outputs of a recorded graph under a state, in float64.

    Raises:
        WeightsError: The graph cannot be run.
    """
    try:
        return CardSide(card, state).run(state, 0, torch.float64)
    except MALFORMED as error:
        raise WeightsError(
            f"The structure card {card.name!r:.100} cannot be run: {type(error).__name__}: {error}."
        ) from error


def run_model(
    model: nn.Module, inputs: Inputs, output: OutputSelector | None = None, state: Mapping[str, Tensor] | None = None
) -> list[Tensor]:
    """Outputs of a model that count, in float64; a large model is run operation by operation.

    Args:
        model: Any module.
        inputs: Its arguments.
        output: From its output to the tensors that count.
        state: Values to run it with instead of its own.
    """
    side = ModuleSide(model, [inputs], output)
    state = side.state() if state is None else state
    if sum(tensor.numel() for tensor in state.values()) <= LARGE:
        return side.run(state, 0, torch.float64)
    captured = capture(model, inputs, output=output)
    found = {node: value for node, value in execute(captured, state) if node in captured.outputs}
    return [found[node] for node in captured.outputs]


def _equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(left, right, strict=True)
    )
