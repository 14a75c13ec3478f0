"""The plan that a conversion script stands for, read off what it does to numbered elements.

A script that moves weights from one layout into another is run on tensors whose elements all differ, twice, with other values
each time. What holds one element's value in both runs takes that element, and what is equal in both runs is a constant.
Everything else is computed, which is refused.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyrosys.adapters.assemble import axes_of
from pyrosys.adapters.layout import strided_axes
from pyrosys.adapters.piece import Axis, Piece
from pyrosys.adapters.plan import Plan, specs_of
from pyrosys.adapters.precision import default_dtype
from pyrosys.errors import PlanError

__all__ = ["plan_from_function"]

State = dict[str, Tensor]


def plan_from_function(convert: Callable[[State], Mapping[str, Any]], source: Mapping[str, Tensor]) -> Plan:
    """See `Plan.from_function`."""
    source = {name: tensor for name, tensor in source.items() if isinstance(tensor, Tensor)}
    sizes = [tensor.numel() for tensor in source.values()]
    keys = [_Numbering(sum(sizes), seed) for seed in (1, 2)]
    runs: list[State] = []
    for key in keys:
        parts = key.values.split(sizes)
        state = {name: part.reshape(source[name].shape).clone() for name, part in zip(source, parts, strict=True)}
        with default_dtype(torch.float64):
            made = convert(state)
        runs.append({name: tensor for name, tensor in made.items() if isinstance(tensor, Tensor)})
    if runs[0].keys() != runs[1].keys():
        raise PlanError(
            "Expected a conversion that makes the same tensors each time, found one that looks at their values."
        )
    bounds = torch.tensor([0, *sizes]).cumsum(0)
    pieces = {
        name: _pieces(name, (first, runs[1][name]), keys, list(source), bounds) for name, first in runs[0].items()
    }
    used = {p.source for steps in pieces.values() for p in steps}
    target = {
        name: dataclasses.replace(spec, dtype=_dtype(pieces[name], source)) for name, spec in specs_of(runs[0]).items()
    }
    return Plan(
        pieces={name: tuple(steps) for name, steps in pieces.items()},
        source=specs_of(source),
        target=target,
        unused=tuple(n for n in source if n not in used),
        filled=tuple(n for n, steps in pieces.items() if any(p.source is None for p in steps)),
        notes=("read off a conversion; no model was run",),
    )


def _dtype(steps: list[Piece], source: Mapping[str, Tensor]) -> str:
    """The dtype of the first source of a tensor; that of constants is left to be float32."""
    first = next((source[p.source].dtype for p in steps if p.source is not None), torch.float32)
    return str(first).removeprefix("torch.")


class _Numbering:
    """Values for all elements: whole numbers in some order, by which an element is found, plus fractions that prove it."""

    def __init__(self, total: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(total, generator=generator)
        fractions = torch.rand(total, generator=generator, dtype=torch.float64) * 0.8 + 0.1
        self.values = order + 1 + fractions
        self.element = torch.argsort(order)

    def elements(self, values: Tensor) -> Tensor:
        """Which element has each value; -1 where none has."""
        whole = values.nan_to_num(0.0).floor().clamp(0, len(self.element)).to(torch.int64)
        if not len(self.element):
            return torch.full_like(whole, -1)
        element = self.element[(whole - 1).clamp(min=0)]
        return torch.where((whole > 0) & (self.values[element] == values), element, -1)


def _pieces(
    name: str, made: tuple[Tensor, Tensor], keys: list[_Numbering], names: list[str], bounds: Tensor
) -> list[Piece]:
    """The steps that set a tensor, from what two runs put into it."""
    first = made[0]
    one, two = (t.detach().reshape(-1).to(torch.float64) for t in made)
    if first.shape != made[1].shape:
        raise PlanError(f"Expected a conversion that gives {name!r} one shape, found one that looks at values.")
    origin = keys[0].elements(one)
    moved = (origin >= 0) & (origin == keys[1].elements(two))
    constant = (one == two) & ~moved
    if not bool((moved | constant).all()):
        raise PlanError(
            f"Expected a conversion that moves elements, found that {int((~moved & ~constant).sum())} elements of {name!r} are "
            "computed from others. Match the two models instead."
        )
    tensor = torch.searchsorted(bounds, origin, right=True) - 1
    steps = [_constant(name, at, one) for at in _runs_of_value(constant, one)]
    for place in torch.unique(tensor[~constant]).tolist():
        mine = torch.nonzero((tensor == place) & ~constant).reshape(-1)
        theirs = origin[mine] - bounds[place]
        steps.append(_piece(name, names[place], mine, theirs, tuple(first.shape)))
    return steps


def _runs_of_value(constant: Tensor, values: Tensor) -> list[Tensor]:
    """Positions of each constant."""
    return [torch.nonzero(constant & (values == v)).reshape(-1) for v in torch.unique(values[constant])]


def _constant(name: str, at: Tensor, values: Tensor) -> Piece:
    axes = axes_of(at - at[0], torch.zeros_like(at))
    return Piece(name, None, int(at[0]), 0, tuple(a for a in axes if a.length > 1), 0.0, float(values[at[0]]))


def _piece(name: str, source: str, mine: Tensor, theirs: Tensor, shape: tuple[int, ...]) -> Piece:
    start, begin = int(mine[0]), int(theirs[0])
    axes = _axes(mine - start, theirs - begin, shape)
    return Piece(name, source, start, begin, tuple(axes)).simplified()


def _axes(mine: Tensor, theirs: Tensor, shape: tuple[int, ...]) -> list[Axis]:
    """Paired positions as loops; rows in no regular order as a list of rows."""
    regular = strided_axes(mine, theirs)
    if regular is not None:
        return [Axis(*axis) for axis in regular]
    for cut in range(1, len(shape)):
        width = torch.Size(shape[cut:]).numel()
        if width == 1 or len(mine) % width:
            continue
        rows, columns = mine.reshape(-1, width), theirs.reshape(-1, width)
        alike = bool((rows - rows[:, :1] == rows[0] - rows[0, 0]).all())
        if alike and bool((columns - columns[:, :1] == columns[0] - columns[0, 0]).all()):
            outer, inner = rows[:, 0] - rows[0, 0], columns[:, 0] - columns[0, 0]
            return [*axes_of(outer, inner), *_axes(rows[0] - rows[0, 0], columns[0] - columns[0, 0], shape[cut:])]
    return axes_of(mine, theirs)
