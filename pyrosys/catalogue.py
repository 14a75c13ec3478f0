"""The models of the zoo by name: what there is, what is known of it, and `load`, which gives it with its weights.

No table says which tensor of a published file is which of ours. For each layout of such a file there are:

| File in ``zoo/cards`` | What it is |
|---|---|
| ``<layout>.structure.json.gz`` | the structure card: what the implementation that wrote it computes, as a graph |
| ``<layout>.probe.safetensors`` | the card's example in the form that our model takes |
| ``<layout>.plan.json.gz`` | the plan that the structure engine found between the two |

`load` applies the plan and then runs the card's graph and our model with the file's weights: they have to agree.
Listing and describing models reads the cards of the families, ``zoo/*.json``, and imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import gzip
import hashlib
import importlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pyrosys.errors import InputError, SourceError, VerificationError, WeightsError
from pyrosys.hub import fetch_first

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pyrosys.adapters.capture import Inputs
    from pyrosys.adapters.card import StructureCard
    from pyrosys.adapters.plan import Plan
    from pyrosys.adapters.sides import ModuleSide
    from pyrosys.hub.sources import Source
    from pyrosys.model import Model

__all__ = [
    "CARDS",
    "Layout",
    "build",
    "example_of",
    "info",
    "knows",
    "list_models",
    "load",
    "model_class",
    "published",
    "read_family",
    "without_initialisation",
]

CARDS = Path(str(files("pyrosys.zoo"))) / "cards"
ENTRIES = CARDS.parent / "entries"  # published entries that come with the package, and a catalogue of them
Value = TypeVar("Value")
TOLERANCE = 1e-5  # of the largest output, in float64: some implementations keep constants in float32

logger = logging.getLogger(__name__)


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models of the zoo, sorted.

    Args:
        pattern: Which ones, with the wildcards ``*``, ``?`` and ``[...]``.

    Example:
        >>> list_models("esm2-1*")
        ['esm2-150m', 'esm2-15b']
    """
    return sorted(name for name in _entries() if fnmatchcase(name, pattern))


def knows(name: str) -> bool:
    """Whether this is the name of a model, of the zoo or of the user's own catalogue."""
    return name in _entries()


def published(name: str) -> list[Source] | None:
    """Where the published entry of this name is; nothing if it is a model of the zoo."""
    entry = _entry(name)
    return entry["sources"] if entry["layout"] is None else None


def info(name: str) -> dict[str, Any]:
    """What is known of a model, as plain data: size, licences, tasks, paper, sources and their digests.

    Raises:
        SourceError: There is no model of this name.

    Example:
        >>> info("proteinmpnn-v48-020")["weights_licence"]
        'MIT'
    """
    entry = _entry(name)
    known = ("family", "task", "parameters", "weights_licence", "code_licence", "paper", "doi", "reference", "layout")
    sizes = [source["size"] for source in entry["sources"] if source.get("size")]
    described = {"name": name, **{key: entry[key] for key in known}, "size": sizes[0] if sizes else None}
    return json.loads(json.dumps({**described, "sources": entry["sources"]}))


def build(name: str) -> Model:
    """Build a model of the zoo with random weights.

    Raises:
        SourceError: There is no model of this name.
    """
    kind = model_class(_entry(name)["class"])
    assert kind is not None  # the zoo's own
    return kind(importlib.import_module(kind.__module__).SIZES[name])


def model_class(reference: Any) -> type[Model] | None:
    """The class of the zoo that ``module:Class`` names; nothing else is ever imported."""
    if not any(reference == entry["class"] for entry in _zoo().values()):
        return None
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def family_class(family: str) -> type[Model]:
    """The class of the models of a family, such as ``esm``.

    Raises:
        InputError: There is no such family.
    """
    classes = {entry["family"]: entry["class"] for entry in _zoo().values()}
    kind = model_class(classes.get(family))
    if kind is None:
        raise InputError(
            f"Expected a family of the zoo among {', '.join(sorted(classes))}, found {family!r}. Choose one."
        )
    return kind


def load(name: str, *, offline: bool | None = None, device: str | torch.device | None = None) -> Model:
    """Give a model with its weights, in evaluation mode, verified.

    Every tensor of the file is accounted for, and on an example the model computes what the implementation that wrote
    the file computes. What was verified before and has not changed since is not run again.

    Args:
        name: A name that `list_models` gives.
        offline: Whether to do without the network; by default as ``PYROSYS_OFFLINE`` or ``HF_HUB_OFFLINE`` say.
        device: Where to put the model; by default the processor.

    Raises:
        SourceError: There is no model of this name, or its weights could not be obtained.
        WeightsError: The file is not the one on record, damaged, or not complete.
        VerificationError: The model does not compute what it should.
    """
    from pyrosys.adapters.fill import fill
    from pyrosys.hub import read_weights
    from pyrosys.porting import state_for
    from pyrosys.verified import note_verified, was_verified

    entry = _entry(name)
    path = fetch_first(entry["sources"], offline=offline)
    pinned = all(source.get("sha256") for source in entry["sources"])
    layout = Layout.of(name)
    facts = {"name": name, "weights": _digest(path), "layout": layout.digest()}
    verified = was_verified(**facts)
    weights = layout.relevant(read_weights(path, allow_pickle=pinned))
    state = state_for(layout.card, weights, values=not verified)
    with without_initialisation():
        model = build(name).eval()
    plan = layout.plan(model, state)
    fill(model, plan.apply(state, model.state_dict()), share=True)
    if not verified:
        layout.verify(model, state, name)
        note_verified(**facts)
    return model if device is None else model.to(device)


def example_of(kind: type) -> Inputs | None:
    """An example that shows all of what a class of the zoo computes, as the cards of published files have it."""
    reference = f"{kind.__module__}:{kind.__qualname__}"
    name = next((name for name, entry in _zoo().items() if entry["class"] == reference), None)
    return None if name is None else Layout.of(name).example


def layout_of(shapes: Mapping[str, tuple[int, ...]]) -> Layout | None:
    """The layout that tensors of these names and shapes are in, of those that the zoo knows."""
    layouts = {entry["layout"]: name for name, entry in _zoo().items()}
    return next((layout for layout in map(Layout.of, layouts.values()) if layout.fits(shapes)), None)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the files of one implementation are laid out, and how to compare that implementation with our model.

    Attributes:
        name: Of the files in ``zoo/cards``.
        output: The method of our model whose outputs all weights go into.
        config: What to change in the configuration for the example to be small; no weight depends on it.
        ignored: Tensors of published files that the implementation does not use, with wildcards.
    """

    name: str
    output: str = "forward"
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str) -> Layout:
        """The layout of the published file of a model of the zoo."""
        entry = _entry(name)
        return cls(entry["layout"], **{"ignored": tuple(entry.get("ignored", ())), **entry.get("verification", {})})

    @functools.cached_property
    def card(self) -> StructureCard:
        """The structure of the implementation."""
        from pyrosys.adapters.card import StructureCard

        return StructureCard.load(self.path("structure.json.gz"))

    @property
    def example(self) -> Inputs:
        """The card's example in the form that our model takes."""
        from safetensors.torch import load_file

        from pyrosys.adapters.capture import Inputs

        tensors = load_file(self.path("probe.safetensors"))
        return Inputs(*(tensors[key] for key in sorted(tensors)))

    def path(self, kind: str) -> Path:
        """Where a file of this layout lies."""
        return CARDS / f"{self.name}.{kind}"

    def digest(self) -> str:
        """One digest for all that the layout says: its files in ``zoo/cards``, and what goes with them."""
        digest = hashlib.sha256(repr((self.output, sorted(self.config.items()), self.ignored)).encode())
        for kind in ("structure.json.gz", "probe.safetensors", "plan.json.gz"):
            path = self.path(kind)
            digest.update(path.read_bytes() if path.exists() else b"")
        return digest.hexdigest()

    def relevant(self, weights: Mapping[str, Value]) -> Mapping[str, Value]:
        """The weights without what published files hold beside those of the implementation."""
        known = {*self.card.tensors, *self.card.captured.ties}
        extra = [name for name in weights if name not in known]
        ignored = {name for name in extra if any(fnmatchcase(name, pattern) for pattern in self.ignored)}
        return {name: weights[name] for name in weights if name not in ignored} if ignored else weights

    def fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether tensors of these names and shapes are those of a published file of this layout."""
        known, ties = self.card.tensors, self.card.captured.ties
        named = {ties.get(name, name): shapes[name] for name in self.relevant(shapes)}
        return named.keys() >= self.card.captured.reached and all(known.get(n) == shape for n, shape in named.items())

    def plan(self, model: Model, state: Mapping[str, Tensor]) -> Plan:
        """The plan from the layout to our model: the one on record, or where that does not fit, one found now."""
        from pyrosys.adapters.card import CardSide
        from pyrosys.adapters.match import match_sides

        recorded = self._recorded_plan()
        if recorded is not None and _fits(recorded, model):
            return recorded
        logger.warning(
            "No plan on record fits %s to our model; matching them by structure, which takes minutes.", self.name
        )
        return match_sides(CardSide(self.card, state), self.side(model))

    def side(self, model: Model) -> ModuleSide:
        """Our model as the engine runs it to compare it with the card; it shares the model's weights."""
        from pyrosys.adapters.capture import shadow
        from pyrosys.adapters.sides import ModuleSide
        from pyrosys.porting import calling

        twin = shadow(model)
        twin.config = dataclasses.replace(model.config, **self.config)
        twin = calling(twin, self.output)
        return ModuleSide(twin.eval(), [self.example], None)

    def verify(self, model: Model, state: Mapping[str, Tensor], name: str) -> None:
        """Run the card's graph with the file's weights and our model on the same example.

        Raises:
            VerificationError: They do not agree.
        """
        import torch

        from pyrosys.adapters.card import CardSide

        expected = CardSide(self.card, state).run(state, 0, torch.float64)
        side = self.side(model)
        found = side.run(side.state(), 0, torch.float64)
        for theirs, ours in zip(expected, found, strict=True):
            difference, scale = float((theirs - ours).abs().max()), float(theirs.abs().max())
            if not difference <= TOLERANCE * scale:
                raise VerificationError(
                    f"Expected {name} to compute what {self.card.name} computes with the same weights, found outputs "
                    f"up to {scale:.3g} that differ by {difference:.3g}. Report this; the model has not been loaded."
                )

    def _recorded_plan(self) -> Plan | None:
        from pyrosys.adapters.plan import Plan

        path = self.path("plan.json.gz")
        if not path.exists():
            return None
        try:
            data = json.loads(gzip.decompress(path.read_bytes()))
        except (ValueError, EOFError, OSError) as error:
            raise WeightsError(f"The plan {path} is damaged: {error}. Install the package again.") from error
        return Plan.from_json(data, str(path))


def _digest(path: Path) -> str:
    """The digest of a weights file, with that of its shards if it is an index; known from when it was fetched."""
    from pyrosys.hub.cache import Cache
    from pyrosys.hub.shard_index import INDEX_SUFFIX, read_index

    shards = sorted(set(read_index(path).values())) if path.name.endswith(INDEX_SUFFIX) else []
    return "+".join(Cache().sha256(file) for file in (path, *(path.parent / shard for shard in shards)))


def _fits(plan: Plan, model: Model) -> bool:
    own = model.state_dict()
    return plan.target.keys() == own.keys() and all(
        tuple(own[n].shape) == spec.shape for n, spec in plan.target.items()
    )


@contextmanager
def without_initialisation() -> Iterator[None]:
    """Build models without drawing random weights, for those whose weights do not matter or come later."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Skip(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return args[0] if func in (torch.Tensor.normal_, torch.Tensor.uniform_) else func(*args, **(kwargs or {}))

    with Skip():
        yield


def _entries() -> dict[str, dict[str, Any]]:
    """Every model's card, with what its family shares; a name of the zoo stands for nothing else."""
    from pyrosys.own_catalogue import read

    return {**read(), **_packaged(), **_zoo()}


@functools.cache
def _zoo() -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(CARDS.parent.glob("*.json")):
        entries |= read_family(path)
    return entries


@functools.cache
def _packaged() -> dict[str, dict[str, Any]]:
    """The published entries that come with the package."""
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(ENTRIES.glob("*.json")):
        found = read_family(path)
        for source in (source for entry in found.values() for source in entry["sources"]):
            source["uri"] = str(ENTRIES / source["uri"])
        entries |= found
    return entries


def read_family(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of one catalogue file by name, each with what they share."""
    family = json.loads(path.read_text(encoding="utf-8"))
    return {name: {**family, **entry} for name, entry in family.pop("entries").items()}


def _entry(name: str) -> dict[str, Any]:
    entries = _entries()
    if name in entries:
        return entries[name]
    close = difflib.get_close_matches(name, entries, n=3)
    hint = f"Did you mean {' or '.join(close)}?" if close else "list_models() gives all names."
    raise SourceError(f"Expected the name of a model of the zoo, found {name!r}. {hint}")
