"""Say where two models part: the first paired place whose values differ, or the first whose upstream structure differs."""

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

__all__ = ["difference_under_colours", "difference_under_plan", "structural_difference"]

_CLOSE = 1e-9


def difference_under_plan(
    sides: tuple[Colouring, Colouring],
    pairs: list[tuple[Place, Place]],
    target: Side,
    plan: Plan,
    state: Mapping[str, Tensor],
) -> str:
    """The first paired contraction whose inputs differ when both graphs run on a source state and what the plan makes of it."""
    own = {n: torch.zeros(t.shape, dtype=t.dtype) if t.is_meta else t for n, t in target.state().items()}
    states = state, plan.apply(state, own)
    try:
        values = [dict(execute(side.structure.capture, s)) for side, s in zip(sides, states, strict=True)]
    except (RuntimeError, PyrosysError) as error:
        return f"The first place could not be located ({error})."
    return _first_difference(sides, pairs, values[0], values[1]) or (
        "First difference: the outputs; every paired projection before them receives the same data. "
        + _constants_between(sides, None, None)
    )


def difference_under_colours(sides: tuple[Colouring, Colouring]) -> str | None:
    """The first contraction whose inputs differ when both models run on equal made-up parameters, if any do.

    Args:
        sides: both models under colours that come from structure alone, just run.
    """
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
) -> str | None:
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
            before = f"everything up to {_where(done)} agrees; " if done is not None else ""
            return (
                f"First difference: {before}the input of {_where(theirs)} (source: {_where(mine)}) differs by {gap:.2e} of {size:.2e}. "
                + _constants_between(sides, mine, theirs)
            )
        done = theirs
    return None


def _where(place: Place | None) -> str:
    return repr(place.scope or "the top level") if place is not None else "the start"


def _sorted_rows(geometry: Contraction, values: Mapping[fx.Node, Any]) -> Tensor:
    """The data a contraction receives, reduced so that neither row order nor column order matters."""
    data = geometry.data_grid(values[geometry.data].detach().to(torch.float64))
    rows = torch.stack([data.sum(-1), (data * data).sum(-1), data.abs().sum(-1)], -1).reshape(-1, 3)
    return torch.sort(rows, dim=0).values


def _constants_between(sides: tuple[Colouring, Colouring], mine: Place | None, theirs: Place | None) -> str:
    """Operations and plain-number arguments that only one side has, upstream to the previous contraction."""
    left = _region(sides[0].structure, mine)
    right = _region(sides[1].structure, theirs)
    only_left, only_right = left - right, right - left
    if not only_left and not only_right:
        return "The operations before it are the same; compare masks, positions and other inputs."
    return f"Before it, only the source has {_listing(only_left)}; only the target has {_listing(only_right)}."


def _listing(counter: Counter[str]) -> str:
    return ", ".join(sorted(counter)[:6]) or "nothing"


def _region(structure: Structure, place: Place | None) -> Counter[str]:
    stack = list(structure.capture.outputs) if place is None else [structure.role[place.node][1].data]
    seen: set[fx.Node] = set()
    found: Counter[str] = Counter()
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
            numbers = [f"{a:g}" for a in _numbers(args_of(node))]
            found[f"{name}({', '.join(numbers)})" if numbers else name] += 1
        stack.extend(tensor_arguments(node))
    return found


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


def structural_difference(structures: tuple[Structure, Structure]) -> str:
    """The first contraction of the target whose upstream structure occurs nowhere in the source."""
    left, right = (_upstream_hashes(s) for s in structures)
    known = set(left.values())
    previous = "the inputs"
    count = (len(left), len(right))
    for place, value in right.items():
        if value not in known:
            shape = tuple(place.operand.meta["shape"])
            return (
                f"They agree up to {previous}; the target's {_where(place)} with a parameter of shape {shape} has no counterpart there "
                f"({count[0]} contractions and look-ups in the source, {count[1]} in the target)."
            )
        previous = _where(place)
    known = set(right.values())
    for place, value in left.items():
        if value not in known:
            shape = tuple(place.operand.meta["shape"])
            return (
                f"The source's {_where(place)} with a parameter of shape {shape} has no counterpart in the target "
                f"({count[0]} contractions and look-ups in the source, {count[1]} in the target)."
            )
    return "Every projection has a counterpart with the same upstream structure; they differ in what happens between projections."


def _upstream_hashes(structure: Structure) -> dict[Place, str]:
    from pyrosys.adapters.fingerprint import upstream

    return upstream(structure)
