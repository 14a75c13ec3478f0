"""Say where two models part: the first paired place whose values differ, or the first whose upstream structure differs."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from pyrosys.adapters.colour import Colouring
from pyrosys.adapters.contraction import Contraction
from pyrosys.adapters.execute import execute
from pyrosys.adapters.nodes import args_of
from pyrosys.adapters.operations import tensor_arguments
from pyrosys.adapters.plan import Plan
from pyrosys.adapters.sides import Side
from pyrosys.adapters.structure import Place, Structure
from pyrosys.errors import PyrosysError

__all__ = [
    "Mismatch",
    "Moment",
    "Parting",
    "difference_under_colours",
    "difference_under_plan",
    "operation",
    "region",
    "region_nodes",
    "structural_difference",
    "where",
]

_CLOSE = 1e-9


@dataclasses.dataclass(frozen=True)
class Moment:
    """A value of one model.

    Attributes:
        scope: module that computes it.
        operation: what computes it, with its plain numbers.
        shape: of the value.
        mean, deviation, largest: of its elements; the largest by magnitude.
    """

    scope: str
    operation: str
    shape: tuple[int, ...]
    mean: float
    deviation: float
    largest: float


@dataclasses.dataclass(frozen=True)
class Parting:
    """The first place where two models part, as a sentence and in parts.

    Attributes:
        sentence: what is to be told.
        source, target: module names; None where only one side has the place.
        moments: the first value on each side that the other does not have, where both were run on equal parameters.
    """

    sentence: str
    source: str | None = None
    target: str | None = None
    moments: tuple[Moment | None, Moment | None] = (None, None)


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """What is known of two models that did not match.

    Attributes:
        structures: of source and target.
        parting: the first place where the two part.
        plan: the plan that failed the comparison of numbers, if it came so far.
    """

    structures: tuple[Structure, Structure]
    parting: Parting
    plan: Plan | None = None


def difference_under_plan(
    sides: tuple[Colouring, Colouring],
    pairs: list[tuple[Place, Place]],
    target: Side,
    plan: Plan,
    state: Mapping[str, Tensor],
) -> Parting:
    """The first paired contraction whose inputs differ when both graphs run on a source state and what the plan makes of it."""
    own = {n: torch.zeros(t.shape, dtype=t.dtype) if t.is_meta else t for n, t in target.state().items()}
    states = state, plan.apply(state, own)
    try:
        values = [dict(execute(side.structure.capture, s)) for side, s in zip(sides, states, strict=True)]
    except (RuntimeError, PyrosysError) as error:
        return Parting(f"The first place could not be located ({error}).")
    return _first_difference(sides, pairs, values[0], values[1]) or Parting(
        "First difference: the outputs; every paired projection before them receives the same data. "
        + _constants_between(sides, None, None),
        "the outputs",
        "the outputs",
        _first_unshared(sides, (None, None), values[0], values[1]),
    )


def difference_under_colours(sides: tuple[Colouring, Colouring]) -> Parting | None:
    """The first contraction whose inputs differ when both models run on equal made-up parameters, if any do.

    Args:
        sides: both models under colours that come from structure alone.
    """
    for side in sides:
        side.run(keep=True)
    by_colour = {
        int(colour): place
        for place, family in reversed(sides[0].families.items())
        if place.kind == "contract"
        for colour in torch.unique(family.features)
    }
    pairs = []
    for place, family in sides[1].families.items():
        if place.kind == "contract":
            mine = next((by_colour[int(c)] for c in torch.unique(family.features) if int(c) in by_colour), None)
            if mine is not None:
                pairs.append((mine, place))
    return _first_difference(sides, pairs, sides[0].values, sides[1].values)


def _first_difference(
    sides: tuple[Colouring, Colouring],
    pairs: list[tuple[Place, Place]],
    left: Mapping[fx.Node, Any],
    right: Mapping[fx.Node, Any],
) -> Parting | None:
    order = {node: i for i, node in enumerate(sides[1].structure.nodes)}
    done: Place | None = None
    for mine, theirs in sorted(pairs, key=lambda pair: order[pair[1].node]):
        if theirs.kind != "contract" or mine.kind != "contract":
            continue
        a = _sorted_rows(sides[0].structure.role[mine.node][1], left)
        b = _sorted_rows(sides[1].structure.role[theirs.node][1], right)
        if a.shape != b.shape:
            continue
        gap = float((a - b).abs().max())
        size = max(float(a.abs().max()), 1e-30)
        if gap > _CLOSE * size * 1e3:
            before = f"everything up to {where(done)} agrees; " if done is not None else ""
            return Parting(
                f"First difference: {before}the input of {where(theirs)} (source: {where(mine)}) differs by {gap:.2e} of {size:.2e}. "
                + _constants_between(sides, mine, theirs),
                mine.scope,
                theirs.scope,
                _first_unshared(sides, (mine, theirs), left, right),
            )
        done = theirs
    return None


def where(place: Place | None) -> str:
    """The module in which a place is, in quotes."""
    return repr(place.scope or "the top level") if place is not None else "the start"


def _first_unshared(
    sides: tuple[Colouring, Colouring],
    places: tuple[Place | None, Place | None],
    left: Mapping[fx.Node, Any],
    right: Mapping[fx.Node, Any],
) -> tuple[Moment | None, Moment | None]:
    """On each side, the first value on the way to a place that no node on the other side's way has, in whatever layout."""
    found = []
    for side, place, values in zip(sides, places, (left, right), strict=True):
        results = [(node, _result(values.get(node))) for node in region_nodes(side.structure, place)]
        found.append([(node, value) for node, value in results if value is not None])
    moments: list[Moment | None] = []
    for mine, others in (found, found[::-1]):
        others = [_gist(value) for _, value in others]
        first = next(((n, v) for n, v in mine if not any(_equal(_gist(v), other) for other in others)), None)
        moments.append(None if first is None else _moment(*first))
    return moments[0], moments[1]


def _result(value: Any) -> Tensor | None:
    """The real numbers that a node computes, the first of several results; None where there are none."""
    value = value[0] if isinstance(value, (tuple, list)) and value else value
    if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
        return value.detach().to(torch.float64)
    return None


def _gist(value: Tensor) -> tuple[int, float, float, float]:
    """What does not change when a tensor is laid out in another way."""
    return value.numel(), float(value.sum()), float((value * value).sum()), float(value.abs().sum())


def _equal(a: tuple[int, float, float, float], b: tuple[int, float, float, float]) -> bool:
    size = max(a[3], b[3])
    return (
        a[0] == b[0]
        and abs(a[1] - b[1]) <= _CLOSE * size
        and abs(a[2] - b[2]) <= _CLOSE * max(a[2], b[2])
        and abs(a[3] - b[3]) <= _CLOSE * size
    )


def _moment(node: fx.Node, value: Tensor) -> Moment:
    largest = value.reshape(-1)[value.abs().argmax()]
    return Moment(
        node.meta.get("scope", ""),
        operation(node),
        tuple(value.shape),
        float(value.mean()),
        float(value.std(correction=0)),
        float(largest),
    )


def _sorted_rows(geometry: Contraction, values: Mapping[fx.Node, Any]) -> Tensor:
    """The data a contraction receives, reduced so that neither row order nor column order matters."""
    data = geometry.data_grid(values[geometry.data].detach().to(torch.float64))
    rows = torch.stack([data.sum(-1), (data * data).sum(-1), data.abs().sum(-1)], -1).reshape(-1, 3)
    return torch.sort(rows, dim=0).values


def _constants_between(sides: tuple[Colouring, Colouring], mine: Place | None, theirs: Place | None) -> str:
    """Operations and plain-number arguments that only one side has, upstream to the previous contraction."""
    left = region(sides[0].structure, mine)
    right = region(sides[1].structure, theirs)
    only_left, only_right = left - right, right - left
    if not only_left and not only_right:
        return "The operations before it are the same; compare masks, positions and other inputs."
    return f"Before it, only the source has {_listing(only_left)}; only the target has {_listing(only_right)}."


def _listing(counter: Counter[str]) -> str:
    return ", ".join(sorted(counter)[:6]) or "nothing"


def region(structure: Structure, place: Place | None) -> Counter[str]:
    """Operations, with their plain numbers, on the way from the contractions before to a place, or to the outputs."""
    return Counter(operation(node) for node in region_nodes(structure, place))


def region_nodes(structure: Structure, place: Place | None, seen: set[fx.Node] | None = None) -> list[fx.Node]:
    """Nodes on the way from the contractions before to a place, or to the outputs, in order; views are left out.

    Args:
        structure: the model.
        place: None for the outputs.
        seen: nodes that were on the way to other places and are left out; the nodes on this way are added.
    """
    stack = list(structure.capture.outputs) if place is None else [structure.role[place.node][1].data]
    seen = set[fx.Node]() if seen is None else seen
    found: list[fx.Node] = []
    while stack:
        node = stack.pop()
        if node in seen or node.op != "call_function":
            continue
        seen.add(node)
        role = structure.role.get(node, ("plain",))
        if role[0] in ("contract", "look up"):
            continue
        name = getattr(node.target, "_opname", None)
        if name and name not in _SILENT:
            found.append(node)
        stack.extend(tensor_arguments(node))
    return sorted(found)


def operation(node: fx.Node) -> str:
    """An operation with its plain numbers and its choices, such as the approximation of an activation."""
    name = getattr(node.target, "_opname", str(node.target))
    numbers = [f"{a:g}" for a in _numbers(args_of(node))]
    numbers += [v for v in (*args_of(node), *node.kwargs.values()) if isinstance(v, str)]
    return f"{name}({', '.join(numbers)})" if numbers else name


_SILENT = {
    "view",
    "_unsafe_view",
    "t",
    "transpose",
    "permute",
    "expand",
    "clone",
    "alias",
    "unsqueeze",
    "squeeze",
    "slice",
    "reshape",
    "split",
    "_to_copy",
}


def _numbers(args: Any) -> list[float]:
    return [float(a) for a in args if isinstance(a, (int, float)) and not isinstance(a, bool)]


def structural_difference(structures: tuple[Structure, Structure]) -> Parting:
    """The first contraction of the target whose upstream structure occurs nowhere in the source."""
    left, right = (_upstream_hashes(s) for s in structures)
    known = set(left.values())
    previous = "the inputs"
    count = (len(left), len(right))
    for place, value in right.items():
        if value not in known:
            shape = tuple(place.operand.meta["shape"])
            return Parting(
                f"They agree up to {previous}; the target's {where(place)} with a parameter of shape {shape} has no counterpart there "
                f"({count[0]} contractions and look-ups in the source, {count[1]} in the target).",
                target=place.scope,
            )
        previous = where(place)
    known = set(right.values())
    for place, value in left.items():
        if value not in known:
            shape = tuple(place.operand.meta["shape"])
            return Parting(
                f"The source's {where(place)} with a parameter of shape {shape} has no counterpart in the target "
                f"({count[0]} contractions and look-ups in the source, {count[1]} in the target).",
                source=place.scope,
            )
    return Parting(
        "Every projection has a counterpart with the same upstream structure; they differ in what happens between projections."
    )


def _upstream_hashes(structure: Structure) -> dict[Place, str]:
    from pyrosys.adapters.fingerprint import upstream

    return upstream(structure)
