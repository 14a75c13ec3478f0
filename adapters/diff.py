"""Where two models agree and where they part, for a person: `diff`, and its report on the terminal.

Two models that compute the same are shown by their plan. Two that do not are shown by an alignment of their structures, by the
operations and constants that differ, and by the first values that one has and the other has not.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from pyrosys.adapters.align import Use, align, structure_graph
from pyrosys.adapters.capture import OutputSelector
from pyrosys.adapters.locate import Mismatch, Moment, Parting
from pyrosys.adapters.match import match_sides, prepared_sides, structure_of
from pyrosys.adapters.names import folded
from pyrosys.adapters.plan import Plan
from pyrosys.adapters.report import KINDS, kinds, named_part, words
from pyrosys.adapters.sides import Side
from pyrosys.adapters.structure import Structure
from pyrosys.errors import StructureMismatch

__all__ = ["FORMAT", "Change", "Difference", "Model", "Row", "diff"]

FORMAT = "pyrosys-diff/1"


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor of one model.

    Attributes:
        name: in the state dict.
        shape: of the tensor.
        kinds: what becomes of it, as `pyrosys.adapters.report.KINDS` lists.
        text: where it comes from, or where it goes.
        others: tensors of the other model that it has to do with.
    """

    name: str
    shape: tuple[int, ...]
    kinds: tuple[str, ...]
    text: str = ""
    others: tuple[str, ...] = ()

    @property
    def lone(self) -> bool:
        """Whether it has no counterpart and would need one."""
        return "unmatched" in self.kinds


@dataclasses.dataclass(frozen=True)
class Model:
    """One side of a comparison.

    Attributes:
        name: what it is called.
        rows: its tensors by name.
        types: class of each module, by module name.
    """

    name: str
    rows: dict[str, Row]
    types: dict[str, str]

    @property
    def parameters(self) -> int:
        """Numbers in all its tensors."""
        return sum(math.prod(row.shape) for row in self.rows.values())


@dataclasses.dataclass(frozen=True)
class Change:
    """Operations, with their constants, that only one side does on the way to corresponding places.

    Attributes:
        source, target: the operations.
        places: modules that are reached so, source and target.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    places: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Difference:
    """Where two models agree and where they part.

    Attributes:
        source, target: the models with their tensors.
        plan: the verified plan from source to target, when they compute the same.
        reason: why they do not match, when they do not.
        parting: the first place where they part, when it is known.
        changes: operations and constants that differ on the way to places that correspond.
    """

    source: Model
    target: Model
    plan: Plan | None = None
    reason: str = ""
    parting: Parting | None = None
    changes: tuple[Change, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether the two compute the same function, which a verified plan proves."""
        return self.plan is not None and self.plan.checked != "structure"

    def report(self) -> str:
        """The comparison for a terminal."""
        return "\n".join(_report(self))

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain data; see `FORMAT` for the version."""
        moments = self.parting.moments if self.parting is not None else (None, None)
        return {
            "format": FORMAT,
            "equal": self.equal,
            "reason": self.reason,
            "source": _model_json(self.source),
            "target": _model_json(self.target),
            "parting": None
            if self.parting is None
            else {
                "sentence": self.parting.sentence,
                "source": self.parting.source,
                "target": self.parting.target,
                "values": [_moment_json(m) for m in moments],
            },
            "changes": [dataclasses.asdict(change) for change in self.changes],
            "plan": None if self.plan is None else self.plan.to_json(),
        }

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """The comparison as one page that needs nothing else; written to a file when a path is given."""
        from pyrosys.adapters.page import page

        text = page(self)
        if path is not None:
            pathlib.Path(path).write_text(text, encoding="utf-8")
        return text

    def _repr_html_(self) -> str:
        from pyrosys.adapters.page import fragment

        return fragment(self)

    def __repr__(self) -> str:
        verdict = "the same function" if self.equal else "different"
        return f"<Difference: {self.source.name} and {self.target.name}, {verdict}>"


def diff(
    source: Any,
    target: nn.Module,
    inputs: Any = None,
    target_inputs: Any = None,
    *,
    source_output: OutputSelector | None = None,
    target_output: OutputSelector | None = None,
    tolerance: float | None = None,
) -> Difference:
    """Say where two models agree and where they part; arguments are those of `pyrosys.match`.

    Raises:
        CaptureError: a model does not run on the inputs, or does something that cannot be recorded.

    Example:
        >>> import torch, pyrosys
        >>> a = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.GELU(), torch.nn.Linear(5, 2))
        >>> b = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.SiLU(), torch.nn.Linear(5, 2))
        >>> found = pyrosys.diff(a, b, (torch.randn(4, 3),))
        >>> found.equal, found.changes[0].source, found.changes[0].target
        (False, ('gelu',), ('silu',))
    """
    sides = prepared_sides(source, target, inputs, target_inputs, source_output, target_output)
    try:
        return of_plan(match_sides(*sides, tolerance), sides)
    except StructureMismatch as error:
        return _of_mismatch(error, sides)


# Two models that match


def of_plan(plan: Plan, sides: tuple[Side, Side] | None = None) -> Difference:
    """The comparison that a plan stands for."""
    goes: dict[str, dict[str, None]] = {}
    target = {}
    for name, spec in plan.target.items():
        steps = plan.pieces.get(plan.target_ties.get(name, name), ())
        others = tuple(dict.fromkeys(n for step in steps for n in plan.reads(step)))
        for other in others:
            goes.setdefault(other, {})[name] = None
        target[name] = Row(name, spec.shape, kinds(plan, name), _target_text(plan, name), others)
    source = {}
    for name, spec in plan.source.items():
        others = tuple(goes.get(plan.source_ties.get(name, name), ()))
        source[name] = Row(
            name, spec.shape, _source_kinds(plan, name, others), _source_text(plan, name, others), others
        )
    names, types = _names(sides)
    return Difference(Model(names[0], source, types[0]), Model(names[1], target, types[1]), plan)


def _names(sides: tuple[Side, Side] | None) -> tuple[tuple[str, str], tuple[dict[str, str], dict[str, str]]]:
    if sides is None:
        return ("source", "target"), ({}, {})
    return (sides[0].name, sides[1].name), (_types(sides[0]), _types(sides[1]))


def _types(side: Side) -> dict[str, str]:
    """Class of each module of a side; none for a structure card, which has no code."""
    model = getattr(side, "model", None)
    return {name: type(m).__name__ for name, m in model.named_modules()} if isinstance(model, nn.Module) else {}


def _target_text(plan: Plan, name: str) -> str:
    if name in plan.solved:
        return f"follows from {', '.join(plan.solved[name].inputs)}"
    return words(plan, name)


def _source_kinds(plan: Plan, name: str, others: Sequence[str]) -> tuple[str, ...]:
    if others:
        found = {kind for other in others for kind in kinds(plan, other)} - {"tied", "joined", "kept", "unreached"}
        return tuple(k for k in KINDS if k in found) or ("copied",)
    return ("unused",)


def _source_text(plan: Plan, name: str, others: Sequence[str]) -> str:
    if name in plan.zero:
        parts = [(named_part(step, plan.source[name].shape), step.shift) for step in plan.zero[name]]
        wanted = [f"{part.removeprefix(name)} has to be {value:g} everywhere".strip() for part, value in parts]
        return "; ".join([*([_listed(others)] if others else []), *wanted])
    if name in plan.equal:
        return f"has to equal {plan.equal[name]}"
    if name in plan.constants:
        return "a constant of the target"
    return _listed(others)


# Two models that do not


def _of_mismatch(error: StructureMismatch, sides: tuple[Side, Side]) -> Difference:
    found = error.found if isinstance(error.found, Mismatch) else None
    structures = (structure_of(sides[0]), structure_of(sides[1])) if found is None else found.structures
    graphs = structure_graph(structures[0]), structure_graph(structures[1])
    pairs = [(graphs[0].nodes[a]["use"], graphs[1].nodes[b]["use"]) for a, b in align(*graphs)]
    names, types = _names(sides)
    if found is not None and found.plan is not None:
        shown = of_plan(found.plan, sides)
        models = shown.source, shown.target
    else:
        rows = _aligned(pairs, structures, sides)
        models = Model(names[0], rows[0], types[0]), Model(names[1], rows[1], types[1])
    parting = None if found is None else found.parting
    return Difference(*models, None, str(error), parting, _changes(pairs))


def _aligned(
    pairs: list[tuple[Use, Use]], structures: tuple[Structure, Structure], sides: tuple[Side, Side]
) -> tuple[dict[str, Row], dict[str, Row]]:
    """Rows of both models from uses that correspond."""
    links: tuple[dict[str, dict[str, bool]], dict[str, dict[str, bool]]] = ({}, {})
    for uses in pairs:
        tensors = [_tensors(use, structure) for use, structure in zip(uses, structures, strict=True)]
        alike = uses[0].label == uses[1].label
        shapes = [
            [structure.capture.tensors[n] for n in names] for names, structure in zip(tensors, structures, strict=True)
        ]
        one_to_one = shapes[0] == shapes[1] or len(tensors[0]) == len(tensors[1])
        for here, there in ((0, 1), (1, 0)):
            for position, name in enumerate(tensors[here]):
                others = [tensors[there][position]] if one_to_one else tensors[there]
                links[here].setdefault(name, {}).update(dict.fromkeys(others, alike))
    return _rows(links[0], structures[0], sides[0]), _rows(links[1], structures[1], sides[1])


def _tensors(use: Use, structure: Structure) -> list[str]:
    """Names of the tensors in some uses of parameters."""
    roots = (r for p in use.places for r in ([p.source] if p.source is not None else structure.sources(p.operand)))
    return list(dict.fromkeys(r.meta["parameter"] for r in roots))


def _rows(links: dict[str, dict[str, bool]], structure: Structure, side: Side) -> dict[str, Row]:
    ties, reached = structure.capture.ties, structure.reached()
    rows = {}
    for name, tensor in side.state().items():
        first = ties.get(name, name)
        found = links.get(first, {})
        kind = "unmatched" if first in reached else "unreached"
        if found:
            kind = "corresponds" if any(found.values()) else "resized"
        every = ("tied", kind) if first != name else (kind,)
        rows[name] = Row(name, tuple(tensor.shape), tuple(k for k in KINDS if k in every), _listed(found), tuple(found))
    return rows


def _changes(pairs: list[tuple[Use, Use]]) -> tuple[Change, ...]:
    """Operations that differ on the way to corresponding uses, those of one kind together."""
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], list[tuple[str, str]]] = {}
    for mine, theirs in pairs:
        only = (
            tuple((mine.operations - theirs.operations).elements()),
            tuple((theirs.operations - mine.operations).elements()),
        )
        if only != ((), ()):
            found.setdefault((_counted(only[0]), _counted(only[1])), []).append((_home(mine), _home(theirs)))
    return tuple(Change(source, target, tuple(places)) for (source, target), places in found.items())


def _counted(names: Iterable[str]) -> tuple[str, ...]:
    """Names in order, a repeated one once with its number."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return tuple(name if n == 1 else f"{n} x {name}" for name, n in counts.items())


def _home(use: Use) -> str:
    return use.places[0].scope if use.places else "outputs"


# In words


def _listed(names: Iterable[str]) -> str:
    """Names in few words."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _report(found: Difference) -> list[str]:
    source, target = found.source.name, found.target.name
    if found.plan is not None:
        return [f"{source} and {target} compute the same function.", "", found.plan.report()]
    lines = [f"{source} and {target} do not compute the same function.", "", found.reason]
    if found.parting is not None and any(found.parting.moments):
        lines += [
            "",
            "First values that differ, with equal parameters on both sides:",
            *_moments(found.parting.moments),
        ]
    if found.changes:
        lines += ["", "Operations on the way to corresponding places that only one side has:"]
        for change in found.changes:
            lines += [f"  {_scopes(change.places)}", f"    source: {_or_nothing(change.source)}"]
            lines += [f"    target: {_or_nothing(change.target)}"]
    for title, model in (("source", found.source), ("target", found.target)):
        rows = model.rows.values()
        lone = [row.name for row in rows if row.lone]
        resized = [row.name for row in rows if "resized" in row.kinds]
        lines += ["", f"Tensors of the {title}: {len(rows)}, of which {len(lone)} have no counterpart"]
        lines += [f"  {pattern}{_times(n)}" for pattern, n in folded(lone)]
        if resized:
            lines += ["  of another size in the two models:"]
            lines += [f"  {pattern}{_times(n)}" for pattern, n in folded(resized)]
    return lines


def _or_nothing(operations: Sequence[str]) -> str:
    return ", ".join(operations) or "nothing"


def _times(count: int) -> str:
    return f"  ({count} tensors)" if count > 1 else ""


def _scopes(places: Sequence[tuple[str, str]]) -> str:
    """Modules of both sides, once where they have the same name."""
    texts = [", ".join(pattern or "the top level" for pattern, _ in folded(p[i] for p in places)) for i in (0, 1)]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]}  |  {texts[1]}"


MOMENT_ROWS = ("module", "operation", "shape", "mean", "deviation", "largest")


def moment_cells(moment: Moment | None) -> tuple[str, ...]:
    """A value of one model as texts, in the order of `MOMENT_ROWS`."""
    if moment is None:
        return ("no such value", "", "", "", "", "")
    shape = " x ".join(map(str, moment.shape)) or "a number"
    numbers = (f"{x:.9g}" for x in (moment.mean, moment.deviation, moment.largest))
    return (moment.scope or "the top level", moment.operation, shape, *numbers)


def _moments(moments: tuple[Moment | None, Moment | None]) -> list[str]:
    left, right = ["source", *moment_cells(moments[0])], ["target", *moment_cells(moments[1])]
    width = max(map(len, left))
    rows = zip(("", *MOMENT_ROWS), left, right, strict=True)
    return [f"  {name:<9}  {a:<{width}}  {b}".rstrip() for name, a, b in rows]


# As plain data


def _model_json(model: Model) -> dict[str, Any]:
    tensors = {
        row.name: {"shape": list(row.shape), "kinds": list(row.kinds), "text": row.text, "others": list(row.others)}
        for row in model.rows.values()
    }
    return {"name": model.name, "tensors": tensors}


def _moment_json(moment: Moment | None) -> dict[str, Any] | None:
    if moment is None:
        return None
    return {k: _finite(v) if isinstance(v, float) else v for k, v in dataclasses.asdict(moment).items()}


def _finite(number: float) -> float | str:
    """A number; infinities and what is not a number, which JSON lacks, in words."""
    return number if math.isfinite(number) else str(number)
