"""Reading `torch.fx` nodes."""

from collections.abc import Callable
from typing import Any

from torch import fx

__all__ = ["args_of", "drop_unused", "leaves", "map_leaves", "target_of"]


def args_of(node: fx.Node) -> tuple[Any, ...]:
    """A node's positional arguments; what they are depends on its operation, which no annotation knows."""
    return node.args


def target_of(node: fx.Node) -> Any:
    """A node's operation."""
    return node.target


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """The same nest of tuples, lists and dictionaries with `function` of every leaf.

    Arguments of operations are shallow nests of built-in types; `torch.utils._pytree`, which knows many more, takes ten times as long.
    """
    kind = type(value)
    if kind is tuple:
        return tuple([map_leaves(function, v) for v in value])
    if kind is list or isinstance(value, list):
        return [map_leaves(function, v) for v in value]
    if kind is dict or isinstance(value, dict):
        return {k: map_leaves(function, v) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return kind(*[map_leaves(function, v) for v in value])
    if isinstance(value, tuple):
        return kind([map_leaves(function, v) for v in value])
    return function(value)


def leaves(value: Any) -> list[Any]:
    """The leaves of a nest of tuples, lists and dictionaries."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return [value]
    found = []
    for v in value:
        if isinstance(v, (tuple, list, dict)):
            found += leaves(v)
        else:
            found.append(v)
    return found


def drop_unused(graph: fx.Graph) -> None:
    """Remove what no output needs, in place; what has an effect beside its result has none in a recorded pass."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op in ("call_function", "get_attr"):
            graph.erase_node(node)
