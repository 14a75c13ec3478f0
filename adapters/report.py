"""A plan in words."""

import re
from typing import TYPE_CHECKING

import torch

from pyrosys.adapters.piece import Axis, Piece
from pyrosys.adapters.views import views_of

if TYPE_CHECKING:
    from pyrosys.adapters.plan import Plan

__all__ = ["KINDS", "facts", "kinds", "named_part", "report", "words"]


def report(plan: "Plan") -> str:
    """One line per target tensor, then what is kept, unused, filled or assumed, then what was checked."""
    width = max((len(n) for n in plan.target), default=0)
    lines = [f"Plan: {len(plan.target)} target tensors from {len(plan.source)} source tensors"]
    if plan.parts is not None:
        source, target = plan.parts
        lines.append(f"Only a part: {source} of the source, {target} of the target")
        lines.append(
            f"Sets {100 * plan.coverage:.1f} % of the target's elements; the rest keeps the target's own values"
        )
    for name in plan.target:
        text = words(plan, name)
        if text:
            tied = f"  (tied to {plan.target_ties[name]})" if name in plan.target_ties else ""
            lines.append(f"  {name:<{width}}  <-  {text}{tied}")
    lines += [f"{title}: {', '.join(names)}" for title, names in facts(plan)]
    lines.append(f"Checked: {plan.checked}")
    if plan.certificate is not None:
        lines += [f"  {line}" for line in str(plan.certificate).splitlines()]
    return "\n".join(lines)


def facts(plan: "Plan") -> list[tuple[str, tuple[str, ...]]]:
    """What else is to be known of a plan: titles, each with the tensors it is about, or with sentences."""
    found = [
        ("Keeps the target's own value", plan.kept),
        ("Keeps it in part", tuple(n for n, steps in plan.pieces.items() if any(s.keeps for s in steps))),
        ("Not reached by the outputs", plan.unreached),
        ("Source tensors not used", plan.unused),
        ("Set to the value that does nothing", plan.filled),
        ("Follows from other tensors of the target", tuple(plan.solved)),
        ("Cannot be seen in the outputs, placed by structure", plan.unobservable),
        (
            "Must be neutral in the source",
            tuple(named_part(step, plan.source[n].shape) for n, steps in plan.zero.items() for step in steps),
        ),
        *(("Continued beyond the probe", (f"{name}: {note}",)) for name, note in plan.extrapolated.items()),
        *(("Note", (note,)) for note in plan.notes),
    ]
    return [(title, names) for title, names in found if names]


def _more(count: int) -> str:
    return f" ; and {count} more" if count > 0 else ""


def words(plan: "Plan", name: str) -> str:
    """What fills a target tensor, in words; empty where the plan does not fill it."""
    steps = plan.pieces.get(plan.target_ties.get(name, name), ())
    return f"{' ; '.join(_words(plan, s) for s in steps[:3])}{_more(len(steps) - 3)}"


def kinds(plan: "Plan", name: str) -> tuple[str, ...]:
    """What happens to the elements that fill a target tensor: some of `KINDS`, in that order."""
    found: set[str] = set()
    first = plan.target_ties.get(name, name)
    if first != name:
        found.add("tied")
    if first in plan.solved:
        found.add("computed")
    elif first not in plan.pieces:
        found.add("unreached" if name in plan.unreached else "kept")
    steps = plan.pieces.get(first, ())
    if len({(s.source, s.scale, s.shift) for s in steps}) > 1:
        found.add("joined")
    for step in steps:
        found |= _kinds(plan, step)
    return tuple(k for k in KINDS if k in found) or ("copied",)


KINDS = {
    "copied": "the same tensor",
    "reshaped": "the same numbers in another shape",
    "transposed": "two axes swapped",
    "part": "some of a larger tensor",
    "joined": "several tensors in one",
    "reordered": "rows, columns or heads in another order",
    "scaled": "times or plus a number",
    "computed": "calculated from other tensors",
    "constant": "set to a number",
    "tied": "a second name of another tensor",
    "kept": "the target's own value",
    "unreached": "the outputs do not depend on it",
    "corresponds": "stands at the same place of the structure",
    "resized": "stands at the same place and has another size",
    "unmatched": "has no counterpart",
    "unused": "nothing takes it",
}
"""What may become of a tensor, and what that means."""


def _kinds(plan: "Plan", piece: Piece) -> set[str]:
    if piece.source is None:
        return {"kept" if piece.keeps else "constant"}
    found = {"computed"} if piece.source in plan.computed else set[str]()
    if piece.scale != 1.0 or piece.shift != 0.0:
        found.add("scaled")
    target, source = plan.target[piece.target].shape, plan.source_spec(piece.source).shape
    if piece.count < torch.Size(source).numel():
        found.add("part")
    step = views_of(piece, target, source)
    if (
        step is None
        or step.source is None
        or any(isinstance(i, tuple) for i in step.source.index)
        or step.target.box is None
    ):
        found.add("reordered")
    elif not step.straight:
        plain = step.source.shape == source and step.target.shape == target and len(step.order) == 2
        found.add("transposed" if plain else "reordered")
    elif "part" not in found and target != source and piece.count == torch.Size(target).numel():
        found.add("reshaped")
    return found


def named_part(piece: Piece, shape: tuple[int, ...]) -> str:
    """The elements of a tensor that a constant step sets, as Python."""
    step = views_of(piece, shape, None)
    if step is None:
        return f"{piece.target} (at {piece.count} places)"
    return f"{piece.target}{'' if step.target.whole else _LONG_LIST.sub(_SHORT, str(step.target))}"


def _words(plan: "Plan", piece: Piece) -> str:
    if piece.keeps:
        return "its own values"
    if piece.source is None:
        return f"{piece.shift:g}"
    target, source = plan.target[piece.target].shape, plan.source_spec(piece.source).shape
    text = piece.source
    if piece.source in plan.computed:
        text = f"what the source computes from {', '.join(plan.computed[piece.source].inputs)}"
    step = views_of(piece, target, source)
    if step is None or step.source is None:
        text += f"[from {piece.source_offset}, {' x '.join(_axis(a) for a in piece.axes)}]"
    else:
        text += _LONG_LIST.sub(_SHORT, f"{step.source}{step.reorder}")
        if step.source.whole and step.straight and source != target and piece.count == torch.Size(target).numel():
            text += f" as {' x '.join(map(str, target)) or 'a number'}"
    if piece.scale != 1.0:
        text = f"{piece.scale:g} * {text}"
    return text if piece.shift == 0.0 else f"{text} {piece.shift:+g}"


_LONG_LIST = re.compile(r"(\[\d+(?:, \d+){5})(?:, \d+)+\]")
_SHORT = r"\1, …]"


def _axis(axis: Axis) -> str:
    return f"{axis.length} by {axis.source}" if axis.regular else f"{axis.length} listed"
