"""Run a recorded graph on real numbers."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from pyrosys.adapters.capture import Capture
from pyrosys.adapters.operations import run_node

__all__ = ["execute"]


def execute(captured: Capture, state: Mapping[str, Tensor]) -> Iterator[tuple[fx.Node, Any]]:
    """Yield every node with its value in float64, in order; a value is let go after its last use.

    Args:
        captured: the recorded forward pass.
        state: tensors by name; either name of a tied tensor will do.
    """
    aliases: dict[str, list[str]] = {}
    for alias, first in captured.ties.items():
        aliases.setdefault(first, []).append(alias)
    last: dict[fx.Node, fx.Node] = {a: node for node in captured.graph.nodes for a in node.all_input_nodes}
    spent: dict[fx.Node, list[fx.Node]] = {}
    for argument, node in last.items():
        spent.setdefault(node, []).append(argument)
    # `as_strided` counts from the beginning of the memory that a tensor is part of.
    own_memory = any(node.target is torch.ops.aten.as_strided.default for node in captured.graph.nodes)
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in captured.graph.nodes:
            if node.op == "placeholder" and node.users:
                name = node.meta["parameter"]
                found = next(n for n in (name, *aliases.get(name, ())) if n in state)
                values[node] = state[found].to(torch.float64, copy=own_memory)
            elif node.op == "get_attr":
                constant = node.meta["constant"]
                values[node] = constant.to(torch.float64) if constant.is_floating_point() else constant
            elif node.op == "call_function":
                values[node] = run_node(node, values.__getitem__)
            else:
                continue
            yield node, values[node]
            for argument in spent.get(node, ()):
                values.pop(argument, None)
