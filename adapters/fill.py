"""Put weights into a module: into its own tensors, or in place of them."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyrosys.adapters.names import listing
from pyrosys.errors import WeightsError

if TYPE_CHECKING:
    from pyrosys.adapters.plan import Plan

__all__ = ["fill", "fill_by_plan"]


def fill(target: nn.Module, state: Mapping[str, Tensor], *, share: bool = False) -> None:
    """Load a complete state into a module: into its tensors, or in place of those on the meta device.

    Args:
        target: The module.
        state: A value for each of its tensors.
        share: Whether the module may keep tensors of the state as its own, where they are as it needs them. They are
            then in memory once, or stay in the file that they are mapped from.

    Raises:
        WeightsError: The state does not fit; the module is unchanged.
    """
    own = _check_fit(target, {name: tensor.shape for name, tensor in state.items()})
    on_meta = any(tensor.is_meta for tensor in own.values())
    _check_set(target, (name for name in state if state[name].is_meta))
    if on_meta or share:
        state = _own_tensors(target, state, share)
    target.load_state_dict(state, assign=on_meta or share)


def fill_by_plan(target: nn.Module, plan: "Plan", source: Mapping[str, Tensor]) -> None:
    """Load what a plan makes of a state into a module, tensor by tensor, each straight into its place.

    Beside the module and the source there is never more than one tensor, unless the two share memory or the module loads its
    state in a way of its own.

    Args:
        target: The module; what is on the meta device gets memory.
        plan: Ends at the module.
        source: Read one tensor at a time.

    Raises:
        WeightsError: The module is not the one of the plan, or the source not; the module is unchanged.
    """
    own = _check_fit(target, {name: spec.shape for name, spec in plan.target.items()})
    _check_set(target, (name for name in plan.target if own[name].is_meta and not plan.sets(name)))
    places = _places(target)
    shared = _share_memory(own.values(), source.values())
    if places is None or shared:
        made = plan.apply(source, own)
        fill(target, {name: tensor.clone() for name, tensor in made.items()} if shared else made)
        return
    if any(tensor.is_meta for tensor in own.values()):
        plan.check_source(source)
        empty = {name: torch.empty_like(t, device="cpu") if t.is_meta else t for name, t in own.items()}
        target.load_state_dict(_own_tensors(target, empty, share=True), assign=True)
        places = target.state_dict()
    plan.write(source, places)


def _check_fit(target: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The module's own tensors, which have to be those of a state."""
    own = {name: tensor for name, tensor in target.state_dict().items() if isinstance(tensor, Tensor)}
    wrong = [name for name in {**own, **shapes} if name not in own or name not in shapes]
    wrong += [name for name in own if name in shapes and own[name].shape != shapes[name]]
    if wrong:
        raise WeightsError(
            f"Expected a state that fits {type(target).__name__}, found one that does not, {listing('at', wrong)}. "
            "Make the plan for this model."
        )
    return own


def _check_set(target: nn.Module, unset: Iterable[str]) -> None:
    names = list(unset)
    if names:
        raise WeightsError(
            f"Expected a value for every tensor of {type(target).__name__}, found none {listing('for', names)}. "
            "Initialise the target before porting into it."
        )


def _places(target: nn.Module) -> dict[str, Tensor] | None:
    """The tensors behind a module's state, or None where loading it is more than copying into them."""
    for module in target.modules():
        hooks = module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks
        kind = type(module)
        if hooks or not all(
            method.__module__.startswith("torch.nn.") for method in (kind.load_state_dict, kind._load_from_state_dict)
        ):
            return None
    named = dict(target.named_parameters(remove_duplicate=False)) | dict(target.named_buffers(remove_duplicate=False))
    state = target.state_dict(keep_vars=True)
    plain = all(named.get(name) is tensor for name, tensor in state.items())
    return {name: tensor.detach() for name, tensor in state.items()} if plain else None


def _share_memory(some: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    """Whether a tensor of the ones overlaps a tensor of the others."""
    spans = sorted((*_span(tensor), side) for side, tensors in enumerate((some, others)) for tensor in tensors)
    ends = [0, 0]
    for start, end, side in spans:
        if start < ends[1 - side]:
            return True
        ends[side] = max(ends[side], end)
    return False


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses that a tensor lies between."""
    if tensor.is_meta or not tensor.numel():
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.itemsize


def _own_tensors(target: nn.Module, state: Mapping[str, Tensor], share: bool) -> dict[str, Tensor]:
    """The tensors of a state for a module to keep: of its types, laid out plainly, no two in the same memory but tied ones."""
    found: dict[str, Tensor] = {}
    kept: dict[int, Tensor] = {}  # by the tensor of the module that is replaced
    places = {name: tensor for name, tensor in target.state_dict(keep_vars=True).items() if name in state}
    end = 0
    for name in sorted(places, key=lambda name: state[name].data_ptr()):
        place = places[name]
        if id(place) not in kept:
            tensor = state[name].detach().to(place.dtype)
            if not share or not tensor.is_contiguous() or tensor.data_ptr() < end:
                tensor = tensor.clone(memory_format=torch.contiguous_format)
            else:
                end = max(end, state[name].data_ptr() + state[name].nbytes)
            is_parameter = isinstance(place, nn.Parameter)
            kept[id(place)] = nn.Parameter(tensor, place.requires_grad) if is_parameter else tensor
        found[name] = kept[id(place)]
    return found
