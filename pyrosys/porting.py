"""From file to model: move a checkpoint into another implementation of the same model, with proof that both agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyrosys.adapters.capture import Inputs, as_inputs, named_state, shadow
from pyrosys.adapters.card import CardSide, StructureCard
from pyrosys.adapters.certificate import Certificate
from pyrosys.adapters.fingerprint import cuts, of_outputs, of_structure
from pyrosys.adapters.match import match, match_sides
from pyrosys.adapters.plan import Plan
from pyrosys.adapters.sides import ModuleSide
from pyrosys.adapters.structure import Structure
from pyrosys.errors import InputError, PlanError, WeightsError
from pyrosys.hub import check_finite, fetch, read_weights

if TYPE_CHECKING:
    from pyrosys.entry import Entry

__all__ = ["Port", "calling", "fill", "form_of", "port", "state_for"]


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
    checkpoint: str | Path | Mapping[str, Tensor] | Entry,
    target: nn.Module,
    *,
    source: nn.Module | StructureCard | None = None,
    part: str = "",
    inputs: Any = None,
    target_inputs: Any = None,
    source_output: Callable[[Any], Any] | None = None,
    target_output: Callable[[Any], Any] | None = None,
    allow_pickle: bool = False,
    tolerance: float | None = None,
) -> Port:
    """Load a checkpoint of one implementation into another, by structure, and prove that both compute the same.

    The source is not changed. The target is changed last, when everything has been checked, or not at all.

    Args:
        checkpoint: A file, folder or address, as `pyrosys.hub.fetch` takes it, or a mapping from names to tensors.
        target: The module to load.
        source: A module with the layout of the checkpoint, or the structure card of one. A published entry has its own card.
        part: Name of the submodule of a published entry to load, of those that the entry has cards of.
        inputs: Example arguments of the source, as for `pyrosys.match`. A card has its own.
        target_inputs: The same examples as the target takes them, when that differs; for a card, also a function that gives
            them, called with the card's example.
        source_output: From the source's output to the tensors that count. A card has chosen them.
        target_output: From the target's output to the tensors that count.
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
    if source is None:
        weights: Mapping[str, Tensor]
        source, weights = _published(checkpoint, part)
    elif part:
        raise InputError("Expected a part together with a published entry, found another source. Pass no source.")
    else:
        weights = _open(checkpoint, allow_pickle)
    if isinstance(source, StructureCard):
        if inputs is not None or source_output is not None:
            raise InputError(
                "A structure card has its own inputs and outputs. Pass target_inputs and target_output only."
            )
        probes = as_inputs(form_of(source.inputs, target_inputs))
        state: Mapping[str, Tensor] = state_for(source, weights)
        side = ModuleSide(calling(target), probes, target_output)
        plan = match_sides(CardSide(_up_to(source, side), state), side, tolerance)
    else:
        loaded = _with_weights(source, weights)
        state = loaded.state_dict()
        plan = match(
            loaded,
            target,
            inputs,
            target_inputs,
            source_output=source_output,
            target_output=target_output,
            tolerance=tolerance,
        )
    if plan.certificate is None:
        raise PlanError("Expected a plan with a certificate, found one that was not verified. Match the models again.")
    fill(target, plan.apply(state, target.state_dict()))
    return Port(target, plan, plan.certificate)


def state_for(source: nn.Module | StructureCard, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Check that weights are those of a model, tensor by tensor, and complete them with the second names of tied ones.

    What a structure card does not use may be absent.

    Raises:
        WeightsError: Tensors are missing, unexpected, of another shape or kind, or hold NaN or infinity.
    """
    if isinstance(source, StructureCard):
        shapes, dtypes = source.tensors, {name: getattr(torch, dtype) for name, dtype in source.dtypes.items()}
        used = {
            node.meta["parameter"] for node in source.captured.graph.nodes if node.op == "placeholder" and node.users
        }
        ties, optional, name = source.captured.ties, shapes.keys() - used, source.name
    else:
        own = {key: tensor for key, tensor in source.state_dict().items() if isinstance(tensor, Tensor)}
        shapes = {key: tuple(tensor.shape) for key, tensor in own.items()}
        dtypes = {key: tensor.dtype for key, tensor in own.items()}
        ties, optional, name = named_state(source)[1], set[str](), type(source).__name__
    groups: dict[str, list[str]] = {}
    for key in (*shapes, *ties):
        groups.setdefault(ties.get(key, key), []).append(key)
    present = {key for group in groups.values() if any(member in weights for member in group) for key in group}
    missing = [key for key in shapes if key not in present and key not in optional]
    unexpected = [key for key in weights if key not in shapes and key not in ties]
    if missing or unexpected:
        raise WeightsError(
            f"Expected the {len(shapes)} tensors of {name}, found {len(weights)}: "
            f"{'; '.join(filter(None, (_listing('missing', missing), _listing('unexpected', unexpected))))}. "
            "Pass a source that the checkpoint was written from."
        )
    state: dict[str, Tensor] = {}
    for first, members in groups.items():
        found = next((member for member in members if member in weights), None)
        if found is not None:
            shape, dtype = shapes.get(first, shapes.get(found)), dtypes.get(first, dtypes.get(found))
            assert shape is not None  # one name of a tensor is in the state, or it would not be a group
            assert dtype is not None
            tensor = _fitting(found, weights[found], tuple(shape), dtype)
            state |= {member: tensor for member in members if member in shapes}
    check_finite({key: state[key] for key in groups if key in state})
    return {key: state[key] for key in shapes if key in state}


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


def fill(target: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a complete state into a module: into its tensors, or in place of those on the meta device.

    Raises:
        WeightsError: The state does not fit; the module is unchanged.
    """
    own = {name: tensor for name, tensor in target.state_dict().items() if isinstance(tensor, Tensor)}
    wrong = [name for name in {**own, **state} if name not in own or name not in state]
    wrong += [name for name in own if name in state and own[name].shape != state[name].shape]
    if wrong:
        raise WeightsError(
            f"Expected a state that fits {type(target).__name__}, found one that does not, {_listing('at', wrong)}. "
            "Make the plan for this model."
        )
    on_meta = any(tensor.is_meta for tensor in own.values())
    unset = [name for name in state if state[name].is_meta]
    if unset:
        raise WeightsError(
            f"Expected a value for every tensor of {type(target).__name__}, found none {_listing('for', unset)}. "
            "Initialise the target before porting into it."
        )
    if on_meta:
        state = {name: tensor.to(own[name].dtype).clone() for name, tensor in state.items()}
    target.load_state_dict(state, assign=on_meta)


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


def _open(checkpoint: str | Path | Mapping[str, Tensor] | Entry, allow_pickle: bool) -> Mapping[str, Tensor]:
    if isinstance(checkpoint, (str, Path)):
        return read_weights(fetch(checkpoint), allow_pickle=allow_pickle)
    if not isinstance(checkpoint, Mapping):
        raise InputError(
            f"Expected a path, an address or a mapping from names to tensors, found {type(checkpoint).__name__}."
        )
    for name, tensor in checkpoint.items():
        if not isinstance(tensor, Tensor):
            raise WeightsError(f"Expected {name!r} to be a tensor, found {type(tensor).__name__}. Pass a state dict.")
    return checkpoint


def _with_weights(source: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the module that holds the weights; the original keeps its own."""
    state = state_for(source, weights)
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


def _listing(label: str, names: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(map(repr, names[:5]))
    return f"{label} {shown}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
