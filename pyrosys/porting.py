"""From file to model: move a checkpoint into another implementation of the same model, with proof that both agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyrosys.adapters.candidates import candidates
from pyrosys.adapters.capture import Inputs, as_inputs, named_state, shadow
from pyrosys.adapters.card import CardSide, StructureCard
from pyrosys.adapters.certificate import Certificate
from pyrosys.adapters.fingerprint import cuts, of_outputs, of_structure
from pyrosys.adapters.match import match_wholes
from pyrosys.adapters.names import listing
from pyrosys.adapters.plan import Plan
from pyrosys.adapters.search import Whole
from pyrosys.adapters.sides import ModuleSide
from pyrosys.adapters.structure import Structure
from pyrosys.errors import InputError, PlanError, StructureMismatch, WeightsError
from pyrosys.hub import check_finite, fetch, read_weights
from pyrosys.hub.weights import find_state
from pyrosys.naming import read_names

if TYPE_CHECKING:
    from pyrosys.entry import Entry

__all__ = ["Port", "calling", "form_of", "port", "state_for"]


@dataclasses.dataclass(frozen=True)
class Port:
    """What `port` gives.

    Attributes:
        model: The target, with its new weights.
        plan: Where each of them came from.
        certificate: What was run and how close the two were.
    """

    model: nn.Module
    plan: Plan
    certificate: Certificate

    @property
    def coverage(self) -> float:
        """The share of the model's parameters that came from the source; the rest keeps its values (`plan.kept`)."""
        sizes = {name: parameter.numel() for name, parameter in self.model.named_parameters()}
        kept = sum(sizes.get(name, 0) for name in self.plan.kept)
        return 1.0 - kept / max(1, sum(sizes.values()))


def port(
    checkpoint: str | Path | Mapping[str, Any] | Entry,
    target: nn.Module,
    *,
    source: nn.Module | StructureCard | None = None,
    part: str | bool = "",
    inputs: Any = None,
    target_inputs: Any = None,
    source_output: Callable[[Any], Any] | None = None,
    target_output: Callable[[Any], Any] | None = None,
    expected: Any = None,
    source_part: str | None = None,
    target_part: str | None = None,
    within: str | None = None,
    prefix: str | None = None,
    allow_pickle: bool = False,
    tolerance: float | None = None,
) -> Port:
    """Load a checkpoint of one implementation into another, by structure, and prove that both compute the same.

    The source is not changed. The target is changed last, when everything has been checked, or not at all.

    Args:
        checkpoint: A file, folder or address, as `pyrosys.hub.fetch` takes it, or a mapping from names to tensors.
        target: The module to load.
        source: A module with the layout of the checkpoint, or the structure card of one. A published entry has its own card.
            A plain checkpoint without either is loaded only if `expected` singles out one layout; see `pyrosys.candidates`.
        part: Name of the submodule of a published entry to load, of those that the entry has cards of. Or True, where a part
            of the target is enough: the largest that the source has too; the rest keeps its own values.
        inputs: Example arguments of the source, as for `pyrosys.match`. A card has its own.
        target_inputs: The same examples as the target takes them, when that differs; for a card, also a function that gives
            them, called with the card's example.
        source_output: From the source's output to the tensors that count. A card has chosen them.
        target_output: From the target's output to the tensors that count.
        expected: What the original gives for `inputs`, where there is no source.
        source_part: Path of the submodule of the source that counts, as for `pyrosys.match`.
        target_part: Path of the submodule of the target that counts.
        within: Which nested mapping of the checkpoint to read, as in ``"ema.weights"``, when it holds several.
        prefix: What the checkpoint's names have in front of the source's. Default: found, or a refusal if two would do.
        allow_pickle: Whether the checkpoint may be a pickled file, read in torch's restricted way that runs no code.
        tolerance: A largest absolute difference to accept instead of rounding.

    Raises:
        WeightsError: The checkpoint is damaged, or is not one of the source.
        StructureMismatch: The two implementations do not compute the same function, or nothing decides how they
            correspond.
        SourceError: The checkpoint could not be obtained.

    Example:
        >>> theirs, ours = nn.Linear(3, 2), nn.Conv1d(3, 2, 1)
        >>> x = torch.randn(4, 5, 3)
        >>> ported = port(theirs.state_dict(), ours, source=theirs, inputs=(x,), target_inputs=(x.mT,),
        ...               target_output=lambda y: y.mT)
        >>> torch.equal(ours.weight.squeeze(-1), theirs.weight)
        True
    """
    if source is None and (expected is not None or _is_bare(checkpoint)):
        bare = _open(checkpoint, allow_pickle, within)
        return _settled(
            bare, target, inputs if target_inputs is None else target_inputs, expected, target_output, tolerance
        )
    if expected is not None:
        raise InputError("Expected either a source or expected outputs, found both. A source is the better proof.")
    if source is None:
        weights: Mapping[str, Tensor]
        source, weights = _published(checkpoint, part if isinstance(part, str) else "")
    elif isinstance(part, str) and part:
        raise InputError(
            "Expected a named part together with a published entry, found another source. Pass no source, or the path of a "
            "submodule as source_part."
        )
    else:
        weights = _open(checkpoint, allow_pickle, within)
    search = part is True
    state, rest = _read(source, weights, prefix)
    if isinstance(source, StructureCard):
        if inputs is not None or source_output is not None:
            raise InputError(
                "A structure card has its own inputs and outputs. Pass target_inputs and target_output only."
            )
        target_inputs = form_of(source.inputs, target_inputs)
        if not (search or source_part or target_part):
            source = _up_to(source, ModuleSide(calling(target), as_inputs(target_inputs), target_output))
        model: nn.Module | CardSide = CardSide(source, state)
    else:
        model = _with_weights(source, state)
    plan = match_wholes(
        Whole(model, [], source_output, source_part),
        Whole(calling(target), [], target_output, target_part),
        inputs,
        target_inputs,
        part=search,
        tolerance=tolerance,
    )
    if plan.certificate is None:
        raise PlanError("Expected a plan with a certificate, found one that was not verified. Match the models again.")
    if rest:
        plan.notes = (*plan.notes, f"not of the source, and not read: {listing('tensors', rest)} of the checkpoint")
    plan.load_into(target, state)
    return Port(target, plan, plan.certificate)


def state_for(
    source: nn.Module | StructureCard,
    weights: Mapping[str, Tensor],
    prefix: str | None = None,
    *,
    values: bool = True,
) -> dict[str, Tensor]:
    """Check that weights are those of a model, tensor by tensor, and complete them with the second names of tied ones.

    The names may have a prefix, which a wrapper or a larger model put there, and so may the model's own. What a structure
    card does not use may be absent.

    Args:
        source: The model.
        weights: Tensors by name.
        prefix: What the names have in front of the model's. Default: the one that makes the model complete.
        values: Whether to look for NaN and infinity, for which all weights are read.

    Raises:
        WeightsError: Tensors are missing, unexpected, of another shape or kind, or hold NaN or infinity; or several
            prefixes give complete models.
    """
    return _read(source, weights, prefix, values)[0]


def _read(
    source: nn.Module | StructureCard, weights: Mapping[str, Tensor], prefix: str | None, values: bool = True
) -> tuple[dict[str, Tensor], list[str]]:
    """The state of a model from a checkpoint, as `state_for` says, and names in the checkpoint that are not of the model."""
    own: dict[str, Tensor] = {}
    if isinstance(source, StructureCard):
        shapes, dtypes = source.tensors, {name: getattr(torch, dtype) for name, dtype in source.dtypes.items()}
        used = {
            node.meta["parameter"] for node in source.captured.graph.nodes if node.op == "placeholder" and node.users
        }
        ties, optional, title = source.captured.ties, shapes.keys() - used, source.name
        wrapped: list[str] = []
    else:
        own = {key: tensor for key, tensor in source.state_dict().items() if isinstance(tensor, Tensor)}
        shapes = {key: tuple(tensor.shape) for key, tensor in own.items()}
        dtypes = {key: tensor.dtype for key, tensor in own.items()}
        ties, optional, title = named_state(source)[1], set[str](), type(source).__name__
        wrapped = _common_prefixes([key for key, _ in source.named_parameters(remove_duplicate=False)])
    groups: dict[str, list[str]] = {}
    for key in (*shapes, *ties):
        groups.setdefault(ties.get(key, key), []).append(key)
    needed = [members for first, members in groups.items() if first not in optional]
    every = {**shapes, **{second: shapes[first] for second, first in ties.items() if first in shapes}}
    reading, unexpected = read_names(needed, every, wrapped, weights, prefix)
    missing = [m for m in needed if m[0].startswith(reading.own) and not any(member in reading.names for member in m)]
    if missing or unexpected:
        raise WeightsError(
            f"Expected the {len(shapes)} tensors of {title}, found {len(weights)}: "
            f"{'; '.join(filter(None, (listing('missing', [m[0] for m in missing]), listing('unexpected', unexpected))))}. "
            "Pass a source that the checkpoint was written from."
        )
    state: dict[str, Tensor] = {}
    for first, members in groups.items():
        found = next((member for member in members if member in reading.names), None)
        if found is not None:
            theirs = reading.names[found]
            tensor = _fitting(theirs, weights[theirs], tuple(every[found]), dtypes[first if first in dtypes else found])
            state |= {member: tensor for member in members if member in shapes}
        elif not first.startswith(reading.own):  # what a wrapper keeps for itself
            state |= {member: own[member] for member in members}
    if values:
        check_finite({key: state[key] for key in groups if key in state})
    rest = sorted(set(weights) - set(reading.names.values()))
    return {key: state[key] for key in shapes if key in state}, rest


def _common_prefixes(names: list[str]) -> list[str]:
    """Paths that all the names begin with, longest first."""
    steps = names[0].split(".")[:-1] if names else []
    paths = [".".join(steps[:count]) + "." for count in range(len(steps), 0, -1)]
    return [path for path in paths if all(name.startswith(path) for name in names)]


def calling(model: nn.Module, method: str | None = None) -> nn.Module:
    """The model with another method in place of ``forward``, which is what the engine calls; it shares the model's tensors.

    Args:
        model: Any module; left as it is.
        method: By default the one that a model of the zoo names, and ``forward`` for other modules.
    """
    method = method or str(getattr(model, "complete_method", "forward"))
    if method == "forward":
        return model
    kind, twin = type(model), shadow(model)
    if not callable(getattr(kind, method, None)):
        raise InputError(f"Expected a method of {kind.__name__}, found {method!r}. Name one that takes the inputs.")
    twin.__class__ = type(kind.__name__, (kind,), {"forward": getattr(kind, method)})
    return twin


def form_of(example: Inputs, inputs: Any) -> Any:
    """An example in the form that another model takes.

    Args:
        example: The example.
        inputs: That form of it, or a function that makes it, called with its arguments; by default it is the same.
    """
    if callable(inputs):
        return inputs(*example.args, **example.kwargs)
    return example if inputs is None else inputs


def _up_to(card: StructureCard, target: ModuleSide) -> StructureCard:
    """The card up to where the target ends: another output of it is the last place that has the target's structure.

    A trunk without the head that it was published with ends within the card.
    """
    captured = target.capture()
    wanted = of_structure(Structure(captured)).whole
    if wanted in (card.fingerprint, *of_outputs(card.captured)):
        return card
    shapes = {tuple(output.meta["shape"]) for output in captured.outputs}
    places = [n for n, found in cuts(card.captured).items() if found == wanted and n.meta.get("shape") in shapes]
    if not places:
        return card
    return dataclasses.replace(card, captured=dataclasses.replace(card.captured, outputs=places[-1:]))


def _is_bare(checkpoint: Any) -> bool:
    """Whether a checkpoint is tensors only; an entry is a folder or lies at a hub."""
    return isinstance(checkpoint, Mapping) or (isinstance(checkpoint, (str, Path)) and Path(checkpoint).is_file())


def _settled(
    weights: Mapping[str, Tensor],
    target: nn.Module,
    inputs: Any,
    expected: Any,
    target_output: Callable[[Any], Any] | None,
    tolerance: float | None,
) -> Port:
    """Load the one layout that gives the expected outputs.

    Raises:
        StructureMismatch: Nothing says which layout is right; the message ranks those that fit.
    """
    found = candidates(weights, calling(target), inputs, expected, output=target_output, tolerance=tolerance)
    if found.settled is None or found.settled.plan.certificate is None:
        raise StructureMismatch(
            "Expected a source for the checkpoint, a module or a structure card, found none; shapes and values do not decide "
            f"how its tensors go into {type(target).__name__}: they allow {found.count}. Pass a source, or outputs of the original "
            f"as expected. What would settle it: {found.question or 'any of its outputs'}. pyrosys.candidates ranks the layouts."
        )
    plan = found.settled.plan
    check_finite(weights)
    plan.load_into(target, weights)
    return Port(target, plan, found.settled.plan.certificate)


def _published(checkpoint: Any, part: str) -> tuple[StructureCard, Mapping[str, Tensor]]:
    """The structure card and the weights of an entry or of a part of it, after a check that they are what was published."""
    from pyrosys.entry import Entry

    if not isinstance(checkpoint, (str, Path, Entry)):
        raise InputError(
            "Expected the source that the checkpoint is for, found none. Pass a module or a structure card."
        )
    entry = checkpoint if isinstance(checkpoint, Entry) else Entry.open(checkpoint)
    entry.check()
    return entry.card(part), entry.weights(part)


def _open(
    checkpoint: str | Path | Mapping[str, Any] | Entry, allow_pickle: bool, within: str | None
) -> Mapping[str, Tensor]:
    if isinstance(checkpoint, (str, Path)):
        return read_weights(fetch(checkpoint), allow_pickle=allow_pickle, within=within)
    if not isinstance(checkpoint, Mapping):
        raise InputError(
            f"Expected a path, an address or a mapping from names to tensors, found {type(checkpoint).__name__}."
        )
    if within is not None or any(isinstance(value, Mapping) for value in checkpoint.values()):
        return find_state(checkpoint, "the checkpoint", within)
    for name, tensor in checkpoint.items():
        if not isinstance(tensor, Tensor):
            raise WeightsError(f"Expected {name!r} to be a tensor, found {type(tensor).__name__}. Pass a state dict.")
    return checkpoint


def _with_weights(source: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the module that holds a state; the original keeps its own."""
    copy, ties = shadow(source), named_state(source)[1]
    copy.load_state_dict(state, assign=True)
    for second, first in ties.items():
        (module, name), (origin, known) = (_home(copy, key) for key in (second, first))
        tensors = module._parameters if name in module._parameters else module._buffers
        tensors[name] = getattr(origin, known)
    return copy


def _home(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def _fitting(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor in the wider of its own precision and the model's."""
    if tuple(tensor.shape) != shape:
        raise WeightsError(
            f"Expected {name!r} of shape {shape}, found {tuple(tensor.shape)}. "
            "Build the source with the configuration of the checkpoint."
        )
    if tensor.is_floating_point() != dtype.is_floating_point:
        raise WeightsError(
            f"Expected {name!r} as {dtype}, found {tensor.dtype}. Check that the checkpoint is the right one."
        )
    return tensor.detach().to(torch.promote_types(tensor.dtype, dtype) if dtype.is_floating_point else dtype)
