"""How the names in a checkpoint relate to those of the model it was written from: by one prefix, or not at all.

Wrappers put a prefix before every name (`module.`, `_orig_mod.`, `model.`), and so does a model that holds another. No
prefix is known here: it is the one under which the checkpoint has every tensor of the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrosys.errors import WeightsError

__all__ = ["Reading", "read_names"]

_ANCHORS = 3
"""Tensors by which prefixes are found: one is enough, and more give a better message where it is missing."""
_SHOWN = 6


@dataclass(frozen=True)
class Reading:
    """One way to read a checkpoint.

    Attributes:
        prefix: What its names have before those of the model.
        own: What the model's names have before those of the checkpoint, when it is the model that is wrapped.
        names: From the model's names to those in the checkpoint, where they are there.
    """

    prefix: str
    own: str
    names: dict[str, str]

    def covers(self, groups: Sequence[Sequence[str]]) -> bool:
        """Whether every tensor has one of its names in the checkpoint."""
        inside = (group for group in groups if any(name.startswith(self.own) for name in group))
        return all(any(name in self.names for name in group) for group in inside)

    def __str__(self) -> str:
        return repr(self.prefix) if self.prefix else "no prefix"


def read_names(
    groups: Sequence[Sequence[str]],
    shapes: Mapping[str, tuple[int, ...]],
    wrapped: Sequence[str],
    weights: Mapping[str, Tensor],
    prefix: str | None = None,
) -> tuple[Reading, list[str]]:
    """Find the one prefix under which a checkpoint holds a model.

    Args:
        groups: For every tensor that the model needs, its names; one of them is enough.
        shapes: Shapes by the model's names, including names of tensors that may be absent.
        wrapped: What the model's own names may have in front that the checkpoint's lack.
        weights: The checkpoint.
        prefix: The prefix, where the caller says it.

    Returns:
        The reading, and names of the checkpoint that belong to it and that the model does not know. Where there is no
        complete reading, the one that comes closest.

    Raises:
        WeightsError: Two prefixes give complete models with different values.
    """
    every = list(_readings(groups, shapes, wrapped, weights))
    readings = [r for r in every if prefix is None or r.prefix == prefix]
    complete = [r for r in readings if r.covers(groups)]
    fitting = [r for r in complete if all(tuple(weights[c].shape) == shapes[n] for n, c in r.names.items())]
    if not complete:
        best = max(readings, key=lambda r: len(r.names), default=Reading(prefix or "", "", {}))
        return best, _unknown(best, [], weights)
    first, *others = sorted(fitting or complete, key=lambda r: -len(r.names))
    different = [r for r in others if not _equal(first, r, weights)]
    if different and fitting:
        listing = ", ".join(map(str, (first, *different)[:_SHOWN]))
        raise WeightsError(
            f"The checkpoint holds the model {1 + len(different)} times, with different values: {listing}. "
            "Say which one is meant: pass prefix, or --prefix on the command line."
        )
    return first, _unknown(first, [r for r in every if r.covers(groups)], weights)


def _readings(
    groups: Sequence[Sequence[str]],
    shapes: Mapping[str, tuple[int, ...]],
    wrapped: Sequence[str],
    weights: Mapping[str, Tensor],
) -> Iterator[Reading]:
    """Every pair of prefixes under which one of the model's tensors is in the checkpoint; shortest first, no two alike."""
    found: list[dict[str, str]] = []
    for own in dict.fromkeys(("", *wrapped)):
        prefixes: set[str] = {""}
        anchors = [[name for name in group if name.startswith(own)] for group in groups]
        for name in itertools.chain(*[names for names in anchors if names][:_ANCHORS]):
            bare = name.removeprefix(own)
            here = {c.removesuffix(bare) for c in weights if c.endswith(bare)}
            prefixes |= {p for p in here if p and not p[-1].isalnum()}
        for prefix in sorted(prefixes, key=lambda p: (len(p), p)):
            pairs = ((n, prefix + n.removeprefix(own)) for n in shapes if n.startswith(own))
            names = {name: theirs for name, theirs in pairs if theirs in weights}
            if names not in found:
                found.append(names)
                yield Reading(prefix, own, names)


def _unknown(reading: Reading, others: Sequence[Reading], weights: Mapping[str, Tensor]) -> list[str]:
    known = {name for other in (reading, *others) for name in other.names.values()}
    return [name for name in weights if name.startswith(reading.prefix) and name not in known]


def _equal(one: Reading, other: Reading, weights: Mapping[str, Tensor]) -> bool:
    shared = ((name, other.names[key]) for key, name in one.names.items() if key in other.names)
    return all(a == b or torch.equal(weights[a], weights[b]) for a, b in shared)
