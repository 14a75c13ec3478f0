"""Reading `torch.fx` nodes."""

from typing import Any

from torch import fx

__all__ = ["args_of", "target_of"]


def args_of(node: fx.Node) -> tuple[Any, ...]:
    """A node's positional arguments; what they are depends on its operation, which no annotation knows."""
    return node.args


def target_of(node: fx.Node) -> Any:
    """A node's operation."""
    return node.target
