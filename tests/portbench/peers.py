"""What else brings weights from one implementation into another: by names, by order, by shapes.

Each function takes the source's state and the target, and returns a state for the target. An error counts as a refusal.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

__all__ = ["MODULES", "PEERS", "State"]

State = dict[str, Tensor]


def same_names(state: State, target: nn.Module) -> State:
    """`load_state_dict(strict=True)`: names and shapes have to agree."""
    return state


def same_shapes(state: State, target: nn.Module) -> State:
    """Both sides sorted by shape, and paired in this order."""
    left, right = (sorted(tensors.items(), key=_shape) for tensors in (state, target.state_dict()))
    return {name: value for (_, value), (name, _) in zip(left, right, strict=True)}


def weightbridge(state: State, target: nn.Module) -> State:
    import weightbridge  # pyright: ignore[reportMissingImports]

    return weightbridge.adapt(state, target.state_dict())


def timm(state: State, target: nn.Module) -> State:
    """Pairs tensors in the order in which they were registered."""
    from timm.models._helpers import remap_state_dict  # pyright: ignore[reportMissingImports]

    return remap_state_dict(state, target)


def _shape(entry: tuple[str, Tensor]) -> tuple[Any, ...]:
    return tuple(entry[1].shape)


MODULES = {"timm": "timm.models._helpers", "weightbridge": "weightbridge"}
"""What the peers from other packages import."""

PEERS: dict[str, Callable[[State, nn.Module], State]] = {
    "load_state_dict": same_names,
    "sorted by shape": same_shapes,
} | {peer.__name__: peer for peer in (timm, weightbridge) if importlib.util.find_spec(peer.__name__)}
