"""`load`: a model by the name of a catalogue or the address of an entry, or its weights into a model of the caller's own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import nn

from pyrosys import catalogue
from pyrosys.adapters.capture import OutputSelector
from pyrosys.adapters.card import StructureCard
from pyrosys.entry import Entry, entry_address, fetch_entry, is_entry, open_first
from pyrosys.errors import InputError
from pyrosys.hub import read_weights
from pyrosys.model import Model
from pyrosys.porting import Port, form_of, port
from pyrosys.publishing import record_calls

Target = TypeVar("Target", bound=nn.Module)

__all__ = ["load"]

logger = logging.getLogger(__name__)


@overload
def load(
    name: str | Path,
    *,
    hub: str | Path | None = None,
    offline: bool | None = None,
    device: str | torch.device | None = None,
    signed_by: str | Path | None = None,
) -> Model: ...


@overload
def load(
    name: str | Path,
    *,
    into: Target,
    part: str = "",
    inputs: Any = None,
    output: OutputSelector | None = None,
    hub: str | Path | None = None,
    offline: bool | None = None,
    device: str | torch.device | None = None,
    signed_by: str | Path | None = None,
) -> Target: ...


def load(
    name: str | Path,
    *,
    into: nn.Module | None = None,
    part: str = "",
    inputs: Any = None,
    output: OutputSelector | None = None,
    hub: str | Path | None = None,
    offline: bool | None = None,
    device: str | torch.device | None = None,
    signed_by: str | Path | None = None,
) -> nn.Module:
    """Give a model with its weights, in evaluation mode, verified.

    Every tensor is accounted for. A model of the zoo computes, on an example, what the implementation that wrote its file
    computes; a published entry gives the outputs that it was published with.

    With ``into``, the weights go by structure into a model of the caller's own, whatever its parameters are called, and
    both are run and compared. How much of it they cover is logged, and `pyrosys.port` gives it together with the plan.

    Args:
        name: A name that `list_models` gives, or a published entry: ``organisation/name``, an ``hf://`` address, a folder.
        into: The module to load, which is changed only if everything fits.
        part: Name of the submodule whose weights go into it, of those that the entry has cards of.
        inputs: The example in the form that ``into`` takes, or a function that makes it from the arguments of the entry's
            example; by default they are the same.
        output: From the output of ``into`` to the tensors that count.
        hub: Where ``organisation/name`` is: the address of a hub, or a directory that serves as one.
        offline: Whether to do without the network; by default as ``PYROSYS_OFFLINE`` or ``HF_HUB_OFFLINE`` say.
        device: Where to put the model; by default where it is.
        signed_by: A public key (PEM); an entry that was not signed with it is refused. Needs ``pyrosys[sign]``.

    Raises:
        SourceError: There is no model of this name, or its weights could not be obtained.
        WeightsError: A file is not the one on record, damaged, or not complete.
        StructureMismatch: The weights do not fit ``into``.
        VerificationError: The model does not compute what it should.
    """
    source = _find_source(name, hub, offline)
    if signed_by is not None:
        if not isinstance(source, Entry):
            raise InputError(f"Expected a published entry, which may be signed, found {name}.")
        source.check_signature(Path(signed_by))
    if into is None:
        if part or inputs is not None or output is not None:
            raise InputError("Expected part, inputs and output together with into, the model that they are about.")
        if isinstance(source, Path):
            raise InputError(
                f"{name} is no published entry, only weights. Pass the model that they go into: load({str(name)!r}, into=model)."
            )
        model: nn.Module = catalogue.load(source, offline=offline) if isinstance(source, str) else source.model()
    else:
        if isinstance(source, Entry):
            ported = port(source, into, part=part, target_inputs=inputs, target_output=output)
        elif isinstance(source, str):
            ported = _port_zoo(source, into, part, inputs, output, offline)
        else:
            ported = _port_known_layout(source, into, part, inputs, output)
        _report(ported, f"{part} of {name}" if part else str(name))
        model = ported.model.eval()
    return model if device is None else model.to(device)


def _find_source(name: str | Path, hub: str | Path | None, offline: bool | None) -> Entry | Path | str:
    """A published entry, a folder of weights that is none, or the name of a model of the zoo."""
    if hub is None and isinstance(name, str) and catalogue.knows(name):
        sources = catalogue.published(name)
        return name if sources is None else open_first(sources, offline=offline)
    if hub is None and isinstance(name, str) and "/" not in name and not Path(name).exists():
        catalogue.info(name)  # raises, with names that are close
    folder = fetch_entry(name, hub=hub, offline=offline)
    return Entry(folder, entry_address(name, hub)) if is_entry(folder) else folder


def _port_zoo(
    name: str, into: nn.Module, part: str, inputs: Any, output: OutputSelector | None, offline: bool | None
) -> Port:
    """Port a model of the zoo, which has been verified against its reference, or a submodule of it."""
    model = catalogue.load(name, offline=offline)
    side = catalogue.Layout.of(name).side(model)
    source, example = side.model, side.probes[0]
    if part:
        calls = {**record_calls(model, example), **record_calls(source, example)}
        if part not in calls:
            raise InputError(
                f"Expected a submodule of {name} that runs, found {part!r}. There are: {', '.join(calls)}."
            )
        source, example = source.get_submodule(part), calls[part]
    card = StructureCard.of(source, example, name=name)
    return port(source.state_dict(), into, source=card, target_inputs=inputs, target_output=output)


def _port_known_layout(folder: Path, into: nn.Module, part: str, inputs: Any, output: OutputSelector | None) -> Port:
    """Port weights that somebody has saved in a layout that the zoo knows."""
    weights = read_weights(folder)
    layout = catalogue.layout_of({name: tuple(weights[name].shape) for name in weights})
    if layout is None or part:
        raise InputError(
            f"{folder} is no published entry, and the layout of its weights is not one that the zoo knows"
            f"{' the parts of' if part else ''}. Pass the implementation that wrote them: pyrosys.port(…, source=theirs)."
        )
    form = form_of(layout.example, inputs)
    return port(layout.relevant(weights), into, source=layout.card, target_inputs=form, target_output=output)


def _report(ported: Port, name: str) -> None:
    kind, share = type(ported.model).__name__, ported.coverage
    parameters = dict(ported.model.named_parameters())
    kept = [parameter for parameter in ported.plan.kept if parameter in parameters]
    if kept:
        shown = ", ".join(kept[:5]) + (f" and {len(kept) - 5} more" if len(kept) > 5 else "")
        logger.warning("%s covers %.1f %% of %s; these keep their values: %s", name, 100 * share, kind, shown)
    else:
        logger.info("%s covers all of %s", name, kind)
