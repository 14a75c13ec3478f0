"""A plan in words."""

from typing import TYPE_CHECKING

from pyrosys.adapters.piece import Axis, Piece

if TYPE_CHECKING:
    from pyrosys.adapters.plan import Plan

__all__ = ["report"]


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
        steps = plan.pieces.get(plan.target_ties.get(name, name))
        if steps is not None:
            tied = f"  (tied to {plan.target_ties[name]})" if name in plan.target_ties else ""
            lines.append(
                f"  {name:<{width}}  <-  {' ; '.join(_words(plan, s) for s in steps[:3])}{_more(len(steps) - 3)}{tied}"
            )
    for title, names in (
        ("Keeps the target's own value", plan.kept),
        ("Not reached by the outputs", plan.unreached),
        ("Source tensors not used", plan.unused),
        ("Set to the value that does nothing", plan.filled),
        ("Follows from other tensors of the target", tuple(plan.solved)),
        ("Cannot be seen in the outputs, placed by structure", plan.unobservable),
        ("Must be neutral in the source", plan.zero),
    ):
        if names:
            lines.append(f"{title}: {', '.join(names)}")
    for name, note in plan.extrapolated.items():
        lines.append(f"Continued beyond the probe: {name}: {note}")
    lines += [f"Note: {note}" for note in plan.notes]
    lines.append(f"Checked: {plan.checked}")
    if plan.certificate is not None:
        lines += [f"  {line}" for line in str(plan.certificate).splitlines()]
    return "\n".join(lines)


def _more(count: int) -> str:
    return f" ; and {count} more" if count > 0 else ""


def _words(plan: "Plan", piece: Piece) -> str:
    if piece.source is None:
        return f"{piece.shift:g}"
    target, source = plan.target[piece.target].shape, plan.source_spec(piece.source).shape
    text = piece.source
    if piece.source in plan.computed:
        text = f"what the source computes from {', '.join(plan.computed[piece.source].inputs)}"
    if not piece.is_whole(target, source):
        text += f"[{_loops(piece, source)}]"
    if piece.scale != 1.0:
        text = f"{piece.scale:g} * {text}"
    return text if piece.shift == 0.0 else f"{text} {piece.shift:+g}"


def _loops(piece: Piece, source: tuple[int, ...]) -> str:
    """Rows, transposition and permutations of a piece, as far as they have a short name."""
    if len(source) == 2 and len(piece.axes) == 2 and all(a.regular for a in piece.axes):
        outer, inner = piece.axes
        if outer.source == 1 and inner.source == source[1]:
            return (
                f"rows {piece.source_offset // source[1]}:{piece.source_offset // source[1] + inner.length}, transposed"
            )
        if inner.source == 1 and outer.source == source[1]:
            first = piece.source_offset % source[1]
            return f"columns {first}:{first + inner.length}"
    if len(piece.axes) == 1 and piece.axes[0].regular and piece.axes[0].source == 1:
        step = source[-1] if len(source) > 1 else 1
        if piece.source_offset % step == 0 and piece.axes[0].length % step == 0:
            return f"rows {piece.source_offset // step}:{(piece.source_offset + piece.axes[0].length) // step}"
    return f"from {piece.source_offset}, " + " x ".join(_axis(a) for a in piece.axes)


def _axis(axis: Axis) -> str:
    return f"{axis.length} by {axis.source}" if axis.regular else f"{axis.length} listed"
