"""Find published weights by structure: entries that fit a model, or a part of it, whatever anything is called.

Fingerprints name candidates. They do not see activations and epsilons, so a candidate is a candidate until `pyrosys.load`
has matched and run both models, which it always does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from pyrosys import catalogue
from pyrosys.adapters.capture import Capture, OutputSelector, as_inputs, capture
from pyrosys.adapters.card import CardSide
from pyrosys.adapters.fingerprint import NOTHING, of_outputs, of_structure
from pyrosys.adapters.match import match_sides
from pyrosys.adapters.sides import ModuleSide
from pyrosys.adapters.structure import Structure
from pyrosys.entry import STRUCTURE, is_web_address
from pyrosys.errors import InputError, PyrosysError, SourceError, WeightsError
from pyrosys.hub import fetch
from pyrosys.hub.digest import Expected, file_sha256
from pyrosys.hub.files import replacing
from pyrosys.hub.manifest import MANIFEST, read_manifest
from pyrosys.hub.strict_json import parse_object
from pyrosys.porting import calling

__all__ = ["Found", "Record", "find", "write_index"]

INDEX_FORMAT = "pyrosys-index/1"
FINGERPRINTS = catalogue.CARDS / "fingerprints.json.gz"
MOST_QUESTIONS = 48  # structures to ask a hub for, the largest first

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Found:
    """Weights whose structure fits a model or a part of it.

    Attributes:
        entry: What `pyrosys.load` takes: a name of a catalogue, an address, a folder.
        part: The submodule of the published model that fits; empty for the whole, and for what it begins with.
        into: The submodule of the model that it fits; empty for the whole.
        also: Other submodules of the model that it fits as well, such as all layers that are alike.
        coverage: The share of the model's parameters that lie in ``into``.
        fingerprint: What both have in common.
        evidence: ``fingerprint``; ``engine`` if both were also matched, which is tried for files of others in a layout that the
            zoo knows; ``shapes`` if nothing else is known, and `pyrosys.port` needs the source.
        weights_licence: As the publisher stated it.
        beginning: Whether it is only what the published model begins with, such as a trunk without its head.
    """

    entry: str
    part: str
    into: str
    also: tuple[str, ...]
    coverage: float
    fingerprint: str | None
    evidence: str
    weights_licence: str | None
    beginning: bool = False

    def to_json(self) -> dict[str, Any]:
        """The attributes as plain data."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Record:
    """What an index knows of one entry, or of the weights files of others.

    Attributes:
        entry: What `pyrosys.load` takes.
        fingerprints: Of the whole, under the empty name, and of parts; several of each, in and out of their places.
        weights_licence: As stated.
        beginnings: Fingerprints of what the whole begins with.
        tensors: Names and shapes, for files without a structure card.
    """

    entry: str
    fingerprints: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    weights_licence: str | None = None
    beginnings: Sequence[str] = ()
    tensors: Mapping[str, Sequence[int]] | None = None

    @staticmethod
    def of_structure(entry: str, structure: Mapping[str, Any]) -> Record:
        """What ``structure.json`` says.

        Raises:
            WeightsError: It is malformed.
        """
        try:
            inside, parts = structure["fingerprints"], structure["parts"]
            prints = {"": [structure["fingerprint"], *structure["outputs_alone"]]}
            for name, part in parts.items():
                prints[name] = list(dict.fromkeys([part["fingerprint"], inside.get(name, part["fingerprint"])]))
            known = {"weights_licence": structure["licences"]["weights"], "beginnings": structure["beginnings"]}
            return Record.from_json({"entry": entry, "fingerprints": prints, **known})
        except (KeyError, TypeError, AttributeError) as error:
            raise WeightsError(
                f"Expected the structure card of an entry at {entry}, found one without {error}."
            ) from error

    @staticmethod
    def from_json(data: Any) -> Record:
        """Read a record from an index.

        Raises:
            WeightsError: It is malformed.
        """
        try:
            record = Record(**data)
            texts = [
                record.entry,
                *record.fingerprints,
                *(p for prints in record.fingerprints.values() for p in prints),
            ]
            sound = all(isinstance(text, str) for text in texts) and isinstance(
                record.weights_licence, (str, type(None))
            )
            for shape in (record.tensors or {}).values():
                sound = sound and isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape)
        except (TypeError, AttributeError) as error:
            raise WeightsError(f"Expected a record of an index, found {data!r:.100}: {error}.") from error
        if not sound:
            raise WeightsError(f"Expected a record of an index, found {data!r:.100}.")
        return record

    def to_json(self) -> dict[str, Any]:
        """The record as plain data."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value}


def find(
    model: nn.Module,
    hub: str | Path | Sequence[str | Path] | None = None,
    *,
    inputs: Any = None,
    output: OutputSelector | None = None,
    token: str | None = None,
    offline: bool | None = None,
) -> list[Found]:
    """List published entries whose structure fits a model or any of its submodules.

    Args:
        model: Any module; its parameters may be on meta.
        hub: Where to look: a directory of entries, the address of a hub, an index file or its address, or several of
            these; by default, the catalogue and, unless offline, the Hugging Face Hub (``HF_ENDPOINT``).
        inputs: Example arguments of the model; by default its `example_input_array`.
        output: From the model's output to the tensors that count.
        token: For the hub.
        offline: Whether to do without the network; by default as ``PYROSYS_OFFLINE`` or ``HF_HUB_OFFLINE`` say.

    Returns:
        What was found, the largest coverage first.

    Raises:
        SourceError: A place that was named cannot be searched.
        InputError: There are no inputs.

    Example:
        >>> from pyrosys.zoo.esm import ESM, SIZES
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = ESM(SIZES["esm2-8m"])
        >>> find(model, offline=True)[0].entry
        'esm2-8m'
    """
    wanted = _Wanted.of(model, inputs, output)
    if hub is None:
        records = list(_catalogue_records())
        if not _is_offline(offline):
            try:
                records += _hub_records(None, wanted.prints(), token)
            except SourceError as error:
                logger.warning("Only the catalogue was searched: %s", error)
    else:
        places = [hub] if isinstance(hub, (str, Path)) else hub
        records = [record for place in places for record in _records(place, wanted, token, offline)]
    found = [hit for record in records for hit in wanted.hits(record)]
    return sorted(found, key=lambda hit: (-hit.coverage, hit.evidence, hit.entry, hit.part))


def write_index(path: str | Path, addresses: Iterable[str | Path], *, token: str | None = None) -> list[Record]:
    """Write an index file: what `find` needs to know of entries, and of safetensors files of others.

    Of files without a structure card only the headers are read, on a hub by asking for that range of the file.

    Args:
        path: The file to write, JSON.
        addresses: Folders of entries, ``hf://`` addresses, or ``organisation/name``.
        token: For the hub.

    Raises:
        SourceError: An address cannot be reached.
        WeightsError: An entry is malformed.
    """
    records = [_indexed(str(address), token) for address in addresses]
    with replacing(Path(path)) as file:
        data = {"format": INDEX_FORMAT, "entries": [record.to_json() for record in records]}
        file.write(f"{json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False)}\n".encode())
    return records


# The model


@dataclasses.dataclass
class _Wanted:
    """What a model and its submodules are known by."""

    model: nn.Module
    inputs: Any
    output: OutputSelector | None
    modules: dict[str, list[str]]
    share: dict[str, float]
    operations: dict[str, int]
    shapes: list[tuple[int, ...]]

    @staticmethod
    def of(model: nn.Module, inputs: Any, output: OutputSelector | None) -> _Wanted:
        if inputs is None:
            inputs = getattr(model, "example_input_array", None)
        if inputs is None:
            raise InputError(
                f"Expected inputs to run {type(model).__name__} on, found none. Pass a tuple or a dict of arguments."
            )
        runnable = calling(model)
        captured = capture(runnable, as_inputs(inputs)[0], output=output)
        structure = Structure(captured)
        modules = {name: [print_] for name, print_ in of_structure(structure).parts.items()}
        modules[""] = _whole_prints(captured)
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        total = max(1, sum(sizes.values()))
        share = {
            name: sum(size for key, size in sizes.items() if not name or key.startswith(f"{name}.")) / total
            for name in modules
        }
        places = [f"{place.scope}." for place in structure.places if place.kind != "elements"]
        operations = {name: sum(place.startswith(f"{name}." if name else "") for place in places) for name in modules}
        shapes = sorted(map(_plain, captured.tensors.values()))
        return _Wanted(runnable, inputs, output, modules, share, operations, shapes)

    def prints(self) -> list[str]:
        """Fingerprints worth asking for, of the largest submodules first."""
        names = sorted(self.modules, key=lambda name: -self.share[name])
        return [p for p in dict.fromkeys(p for name in names for p in self.modules[name]) if p not in NOTHING]

    def hits(self, record: Record) -> Iterator[Found]:
        """Where a record fits; not again inside of what fits as a whole, and no single matrix inside of the model."""
        if record.tensors is not None:
            yield from self._by_shape(record)
            return
        places = dict.fromkeys(record.beginnings, ("", True))
        for part in reversed(list(record.fingerprints)):
            places |= {p: (part, False) for p in record.fingerprints[part] if p not in NOTHING}
        taken: list[str] = []
        hits: dict[tuple[str, bool, str], list[str]] = {}
        for name in sorted(self.modules, key=lambda name: (name.count(".") + bool(name), name)):
            fitting = next((p for p in self.modules[name] if p in places), None)
            if fitting is None or any(not above or name.startswith(f"{above}.") for above in taken):
                continue
            part, beginning = places[fitting]
            if self.operations[name] > 1 or not name or not (part or beginning):
                taken.append(name)
                hits.setdefault((part, beginning, fitting), []).append(name)
        for (part, beginning, fitting), (first, *others) in hits.items():
            yield Found(
                entry=record.entry,
                part=part,
                into=first,
                also=tuple(others),
                coverage=self.share[first],
                fingerprint=fitting,
                evidence="fingerprint",
                weights_licence=record.weights_licence,
                beginning=beginning,
            )

    def _by_shape(self, record: Record) -> Iterator[Found]:
        """A file without a structure card: one in a layout that the zoo knows, or one with tensors of the same shapes."""
        assert record.tensors is not None
        shapes = {name: tuple(shape) for name, shape in record.tensors.items()}
        for known in _catalogue_records():
            for hit in self.hits(known) if catalogue.published(known.entry) is None else ():
                layout = catalogue.Layout.of(known.entry)
                if not hit.part and not hit.into and layout.fits(shapes):
                    evidence = "engine" if self._confirmed(layout) else "fingerprint"
                    yield dataclasses.replace(
                        hit, entry=record.entry, evidence=evidence, weights_licence=record.weights_licence
                    )
                    return
        if sorted(map(_plain, shapes.values())) == self.shapes:
            yield Found(record.entry, "", "", (), 1.0, None, "shapes", record.weights_licence)

    def _confirmed(self, layout: catalogue.Layout) -> bool:
        """Whether the engine carries random weights of a layout into the model.

        It can tell where the model takes the layout's example, or was given the same one; loading tells in any case.
        """
        for inputs in (layout.example, self.inputs):
            with contextlib.suppress(PyrosysError):
                match_sides(CardSide(layout.card), ModuleSide(self.model, as_inputs(inputs)[:1], self.output))
                return True
        return False


def _whole_prints(captured: Capture) -> list[str]:
    return list(dict.fromkeys([of_structure(Structure(captured)).whole, *of_outputs(captured)]))


def _plain(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape whatever way round: transposed, or with an axis of one."""
    return tuple(sorted(side for side in shape if side != 1))


# Where to look


def _records(place: str | Path, wanted: _Wanted, token: str | None, offline: bool | None) -> Iterable[Record]:
    if is_web_address(place) and not str(place).endswith(".json"):
        return _hub_records(str(place), wanted.prints(), token)
    if str(place).endswith(".json"):
        return _index_records(fetch(place, offline=offline))
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise SourceError(
            f"Expected a directory of entries, the address of a hub, or an index file (.json) at {place}, found none."
        )
    return list(_directory_records(folder))


def _catalogue_records() -> Iterator[Record]:
    """The models of the zoo, whose fingerprints are on record, and the entries of the user's own catalogue."""
    from pyrosys.entry import open_first

    prints: dict[str, dict[str, Any]] = json.loads(gzip.decompress(FINGERPRINTS.read_bytes()))
    for name in catalogue.list_models():
        sources = catalogue.published(name)
        licence = catalogue.info(name)["weights_licence"]
        if sources is None:
            yield Record(name, weights_licence=licence, **prints.get(name, {}))
        else:
            try:
                yield Record.of_structure(name, open_first(sources, offline=True).structure)
            except PyrosysError as error:
                logger.warning("%s of your catalogue was left out: %s", name, error)


def _directory_records(folder: Path) -> Iterator[Record]:
    for pattern in (MANIFEST, f"*/{MANIFEST}", f"*/*/{MANIFEST}"):
        for manifest in sorted(folder.glob(pattern)):
            if any(name.startswith(".") for name in manifest.relative_to(folder).parts):
                continue
            try:
                yield _entry_record(str(manifest.parent), manifest.parent)
            except PyrosysError as error:
                logger.warning("%s was left out: %s", manifest.parent, error)


def _entry_record(address: str, folder: Path) -> Record:
    path = folder / STRUCTURE
    files = read_manifest(folder)
    if not path.is_file() or STRUCTURE not in files:
        raise WeightsError(f"Expected {STRUCTURE} in the entry {folder}, found none. Publish it again.")
    files[STRUCTURE].check_sha256(file_sha256(path), str(path))
    return Record.of_structure(address, parse_object(path.read_bytes(), str(path)))


def _index_records(path: Path) -> list[Record]:
    data = parse_object(path.read_bytes(), f"the index {path}")
    if data.get("format") != INDEX_FORMAT or not isinstance(data.get("entries"), list):
        raise WeightsError(f"Expected an index of format {INDEX_FORMAT!r} at {path}, found {data.get('format')!r:.60}.")
    return [Record.from_json(record) for record in data["entries"]]


def _hub_records(hub: str | None, prints: Sequence[str], token: str | None) -> list[Record]:
    """Entries on a hub that carry the tag of one of the fingerprints; the full fingerprint is in their structure card."""
    from pyrosys.hub.hub_client import api, explained, on_hub
    from pyrosys.hub.model_card import fingerprint_tag

    if len(prints) > MOST_QUESTIONS:
        logger.info("Asked for the %d largest of %d structures.", MOST_QUESTIONS, len(prints))
    candidates: dict[str, str | None] = {}
    with on_hub(hub), explained(hub or "the Hugging Face Hub"):
        client = api(token)
        for print_ in prints[:MOST_QUESTIONS]:
            candidates |= {
                model.id: model.sha for model in client.list_models(filter=fingerprint_tag(print_), full=True)
            }
    records = []
    for name, commit in candidates.items():
        address = f"hf://{name}@{commit}"
        try:
            with on_hub(hub):
                manifest, structure = (fetch(f"{address}/{file}", progress=False) for file in (MANIFEST, STRUCTURE))
            expected = read_manifest(manifest.parent).get(STRUCTURE, Expected())
            expected.check_sha256(file_sha256(structure), f"{address}/{STRUCTURE}")
            records.append(Record.of_structure(address, parse_object(structure.read_bytes(), f"{address}/{STRUCTURE}")))
        except PyrosysError as error:
            logger.warning("%s was left out: %s", address, error)
    return records


def _indexed(address: str, token: str | None) -> Record:
    """What an index says of an entry, or of the safetensors files of others."""
    from pyrosys.entry import entry_address

    address = entry_address(address)
    if not address.startswith("hf://"):
        folder = Path(address)
        if (folder / MANIFEST).is_file():
            return _entry_record(address, folder)
        from pyrosys.hub import read_weights

        weights = read_weights(fetch(address))
        return Record(address, tensors={name: list(weights[name].shape) for name in weights})
    from pyrosys.hub.headers import describe_repository

    described = describe_repository(address, token)
    if described.entry is not None:
        return _entry_record(described.address, described.entry)
    return Record(described.address, weights_licence=described.licence, tensors=described.tensors)


def _is_offline(offline: bool | None) -> bool:
    from pyrosys.hub.sources import offline_by_default

    return offline_by_default() if offline is None else offline
