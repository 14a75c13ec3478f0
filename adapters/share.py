"""Compute once what a model computes twice in two ways.

A model that runs its trunk again for a second output, with attention spelled differently, has every projection twice in its
graph. Two contractions with the same operand whose results are equal on random parameters are one.
"""

import dataclasses

import torch
from torch import Tensor, fx

from pyrosys.adapters.capture import EQUAL_HERE, Capture, with_outputs
from pyrosys.adapters.execute import execute
from pyrosys.adapters.structure import Structure
from pyrosys.adapters.verify import random_state

__all__ = ["replaced", "share_equal_work"]

_LIMIT = 1 << 27


def share_equal_work(captured: Capture) -> Capture:
    """The same pass without repeated projections; the capture itself when no parameter is used twice."""
    structure = Structure(captured)
    by_operand: dict[fx.Node, list[fx.Node]] = {}
    for place in structure.places:
        if place.kind == "contract":
            by_operand.setdefault(place.operand, []).append(place.node)
    repeated = {node for nodes in by_operand.values() if len(nodes) > 1 for node in nodes}
    size = sum(torch.Size(shape).numel() for shape in captured.tensors.values())
    if not repeated or size > _LIMIT:
        return captured
    shapes = {name: torch.empty(shape, device="meta") for name, shape in captured.tensors.items()}
    values: dict[fx.Node, Tensor] = {}
    for node, value in execute(captured, random_state(structure, shapes, seed=3)):
        if node in repeated:
            values[node] = value
    instead: dict[fx.Node, fx.Node] = {}
    for nodes in by_operand.values():
        kept: list[fx.Node] = []
        for node in nodes:
            if len(nodes) > 1:
                twin = next((k for k in kept if _equal(values[k], values[node])), None)
                if twin is not None:
                    instead[node] = twin
                    twin.meta[EQUAL_HERE] = True
                    continue
            kept.append(node)
    return replaced(captured, instead) if instead else captured


def replaced(captured: Capture, instead: dict[fx.Node, fx.Node]) -> Capture:
    """The pass with other nodes instead of some, in place, and with what is then computed twice computed once."""
    for node, twin in instead.items():
        node.replace_all_uses_with(twin)
    outputs = with_outputs(captured.graph, [instead.get(o, o) for o in captured.outputs])
    return dataclasses.replace(captured, outputs=outputs)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() <= 1e-9 * a.abs().max()).all())
