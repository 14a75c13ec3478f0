"""A tensor that a model computes from its parameters before it uses it: weight norm's matrix, a low-rank update and its matrix."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from pyrosys.adapters.operations import run_node
from pyrosys.adapters.records import node_from_json, node_to_json

__all__ = ["Program"]


@dataclasses.dataclass(frozen=True)
class Program:
    """Recorded operations without activations, from named tensors to one tensor.

    Attributes:
        nodes: in order of execution; the last one is the result.
    """

    nodes: tuple[fx.Node, ...]

    @staticmethod
    def of(root: fx.Node) -> "Program":
        """The program that computes a node which depends on parameters and constants only."""
        needed = {root}
        nodes = list(root.graph.nodes)
        for node in reversed(nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        return Program(tuple(n for n in nodes if n in needed))

    @property
    def inputs(self) -> list[str]:
        """Names of the tensors it reads, in order of first use."""
        return [n.meta["parameter"] for n in self.nodes if n.op == "placeholder"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return tuple(self.nodes[-1].meta["shape"])

    def run(self, tensors: Mapping[str, Tensor] | Callable[[str], Tensor]) -> Tensor:
        """The result, in float64."""
        read = tensors if callable(tensors) else tensors.__getitem__
        values: dict[fx.Node, Any] = {}
        with torch.no_grad():
            for node in self.nodes:
                if node.op == "placeholder":
                    values[node] = read(node.meta["parameter"]).to(torch.float64)
                elif node.op == "get_attr":
                    constant = node.meta["constant"]
                    values[node] = constant.to(torch.float64) if constant.is_floating_point() else constant
                else:
                    values[node] = run_node(node, values.__getitem__)
        return values[self.nodes[-1]]

    def to_json(self) -> list[Any]:
        numbers = {node: i for i, node in enumerate(self.nodes)}
        return [{**node_to_json(n, numbers), "scope": ""} for n in self.nodes]

    @staticmethod
    def from_json(data: list[Any]) -> "Program":
        graph, nodes = fx.Graph(), []
        for entry in data:
            nodes.append(node_from_json(entry, graph, nodes))
        return Program(tuple(nodes))
