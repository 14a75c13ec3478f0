"""A plan as a Python function that needs nothing but torch, for people to read and to use where this library is not installed."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from pyrosys.adapters.certificate import versions
from pyrosys.adapters.nodes import args_of
from pyrosys.adapters.piece import Piece
from pyrosys.adapters.program import Program
from pyrosys.adapters.report import named_part
from pyrosys.adapters.template import Line, code, fold, folded_lines, name, render, verbatim
from pyrosys.adapters.views import Step, views_of
from pyrosys.errors import PlanError

if TYPE_CHECKING:
    from pyrosys.adapters.plan import Plan

__all__ = ["to_python"]

_WIDE = 100  # columns after which the parts of a joined tensor have a line each
_LISTED = 1 << 16  # positions that a line may list one by one

Box = tuple[tuple[int, int], ...]


def to_python(plan: "Plan") -> str:
    """The text of a module with one function, `convert`, from the source's state dict to the target's.

    Raises:
        PlanError: the plan holds tables of numbers that are too large for a text, or keeps a part of a tensor.
    """
    return _Module(plan).text()


class _Module:
    def __init__(self, plan: "Plan"):
        self.plan = plan
        self.functions: dict[str, str] = {}
        self.helpers: set[str] = set()

    def text(self) -> str:
        plan = self.plan
        lines = [self._fill(target, plan.pieces[target]) for target in plan.target if target in plan.pieces]
        late = [self._solve(target, program) for target, program in plan.solved.items()]
        late += [
            [*code("out["), *name(alias), *code("] = out["), *name(first), *code("]")]
            for alias, first in plan.target_ties.items()
            if first in plan.pieces or first in plan.solved
        ]
        checks = self._checks()
        body = [str(loop) for part in (checks, lines, late) for loop in folded_lines(part)]
        kept = [n for n in plan.kept if plan.target_ties.get(n, n) not in plan.pieces]
        found = versions()
        head = (
            f'"""Move weights from one layout into another. Written by PyroSys {found["pyrosys"]}; needs torch only."""'
        )
        parts = [head, "", "import torch", "", ""]
        for function in self.functions.values():
            parts += [function, "", ""]
        if "scaled" in self.helpers:
            parts += [_SCALED, "", ""]
        parts += ["def convert(state):", *_docstring(len(plan.source), len(plan.target), kept), *self._take()]
        if "precision" in self.helpers:
            parts += ["    precision = next((t.dtype for t in state.values() if t.is_floating_point()), torch.float32)"]
        parts += ["    out = {}"]
        parts += [f"    {line}" for block in body for line in block.split("\n")]
        return "\n".join([*parts, "    return out", ""])

    def _take(self) -> list[str]:
        """The function that reads a tensor of the source and checks its shape."""
        ties = self.plan.source_ties
        other = {}
        for alias, first in ties.items():
            other.setdefault(first, alias)
        pairs = ", ".join(f"{render(name(a))}: {render(name(b))}" for a, b in other.items())
        also = [f"    also = {{{pairs}}}", ""] if other else [""]
        read = ["        key = key if key in state else also.get(key, key)"] if other else []
        return [
            *also,
            "    def take(key, *shape):",
            *read,
            "        if tuple(state[key].shape) != shape:",
            '            raise ValueError(f"Expected {key!r} of shape {shape}, found {tuple(state[key].shape)}.")',
            "        return state[key]",
            "",
        ]

    def _checks(self) -> list[Line]:
        """What has to hold of the source for the result to compute the same."""
        plan, lines = self.plan, list[Line]()
        for key, step in ((key, step) for key, steps in plan.zero.items() for step in steps):
            test = [
                *code("if not bool(("),
                *self._read(key),
                *self._part(step),
                *verbatim(f" == {step.shift!r}).all()):"),
            ]
            part = named_part(step, plan.source[key].shape).removeprefix(key)
            lines.append([*test, *_raise(key, f"{part} has to be {step.shift:g} everywhere".strip())])
        for key, other in plan.equal.items():
            test = [*code("if not torch.equal("), *self._read(key), *code(", "), *self._read(other), *code("):")]
            lines.append([*test, *_raise(key, f"has to equal {other!r}")])
        for key, numbers in plan.constants.items():
            spread = max(1, math.prod(plan.source[key].shape)) if numbers else 1
            step = max(1, -(-spread // 64))
            wanted = ", ".join(_number(n) for n in numbers)
            test = [
                *code("if not torch.allclose("),
                *self._read(key),
                *code(
                    f".double().flatten()[::{step}], torch.tensor([{wanted}], dtype=torch.float64), rtol=1e-6, atol=1e-30):"
                ),
            ]
            lines.append([*test, *_raise(key, "has to hold other numbers, which the target has as constants")])
        return lines

    def _part(self, piece: Piece) -> Line:
        """What takes the elements of a source tensor that a constant step sets."""
        step = views_of(piece, self.plan.source[piece.target].shape, None)
        if step is not None:
            return code(str(step.target))
        self._check_listed(piece)
        return code(f".reshape(-1)[{piece.numbers('target').reshape(-1).tolist()}]")

    # Tensors

    def _read(self, source: str) -> Line:
        """The expression of a source tensor, or of what the source computes."""
        plan = self.plan
        if source in plan.computed:
            program = plan.computed[source]
            inputs = [self._read(n) for n in program.inputs]
            call = [*code(f"{self._function(program)}("), *_joined(inputs), *code(")")]
            return [*call, *code(".to("), *inputs[0], *code(".dtype)")]
        shape = plan.source[source].shape
        return [*code("take("), *name(source), *code("".join(f", {n}" for n in shape)), *code(")")]

    def _fill(self, target: str, pieces: Sequence[Piece]) -> Line:
        """The statement that sets one tensor of the target."""
        if any(piece.keeps for piece in pieces):
            raise PlanError(
                f"Expected a plan that sets tensors in full, found one that keeps a part of the target's own {target!r}. "
                "Use plan.apply, which knows the target."
            )
        shape = self.plan.target[target].shape
        steps = [(p, views_of(p, shape, self._shape(p))) for p in pieces]
        into = [*code("out["), *name(target), *code("] = ")]
        boxes = [(step.target.box, (piece, step)) for piece, step in steps if step is not None]
        if len(boxes) == len(steps) and all(box is not None for box, _ in boxes):
            whole = tuple((0, n) for n in shape)
            found = self._join(whole, [(box, leaf) for box, leaf in boxes if box is not None], frozenset(), top=True)
            if found is not None:
                return [*into, *found]
        return self._scatter(target, steps)

    def _shape(self, piece: Piece) -> tuple[int, ...] | None:
        return None if piece.source is None else self.plan.source_spec(piece.source).shape

    def _join(
        self, region: Box, leaves: list[tuple[Box, tuple[Piece, Step]]], dropped: frozenset[int], *, top: bool = False
    ) -> Line | None:
        """The expression of a box of the target from the boxes in it; dimensions that were stacked over are dropped."""
        if len(leaves) == 1 and leaves[0][0] == region:
            shape = tuple(n for d, (_, n) in enumerate(region) if d not in dropped)
            return self._leaf(*leaves[0][1], shape, own=top)
        for d, (first, length) in enumerate(region):
            cuts = sorted({box[d][0] for box, _ in leaves})
            ends = [*cuts[1:], first + length]
            if len(cuts) == 1 or any(box[d][0] + box[d][1] > ends[cuts.index(box[d][0])] for box, _ in leaves):
                continue
            stacked = all(b - a == 1 for a, b in zip(cuts, ends, strict=True))
            parts = []
            for a, b in zip(cuts, ends, strict=True):
                slab = (*region[:d], (a, b - a), *region[d + 1 :])
                inside = [leaf for leaf in leaves if leaf[0][d][0] == a]
                parts.append(self._join(slab, inside, dropped | {d} if stacked else dropped))
            if any(part is None for part in parts):
                continue
            axis = sum(other not in dropped for other in range(d))
            call = "torch.stack" if stacked else "torch.cat"
            return _listed(call, [part for part in parts if part is not None], axis, top=top)
        return None

    def _leaf(self, piece: Piece, step: Step, shape: tuple[int, ...], *, own: bool) -> Line:
        """The expression of one piece in a given shape; `own` gives it memory of its own if it is a part of another tensor."""
        if piece.source is None or step.source is None:
            self.helpers.add("precision")
            dtype = f"torch.promote_types({_dtype(self.plan.target[piece.target].dtype)}, precision)"
            return [*code(f"torch.full({_tuple(shape)}, "), *verbatim(f"{_number(piece.shift)}, dtype={dtype})")]
        line = [*self._read(piece.source), *code(f"{step.source}{step.reorder}")]
        if tuple(step.source.sizes[i] for i in step.order) != shape:
            line += code(f".reshape({', '.join(map(str, shape))})" if shape else ".reshape(())")
        plain = piece.scale == 1.0 and piece.shift == 0.0
        if own and plain and not (step.straight and step.source.whole):
            line += code(".contiguous()" if not step.straight else ".clone()")
        if plain:
            return line
        self.helpers.add("scaled")
        return [*code("scaled("), *line, *verbatim(f", {_number(piece.scale)}, {_number(piece.shift)})")]

    def _scatter(self, target: str, steps: Sequence[tuple[Piece, Step | None]]) -> Line:
        """Statements that set a tensor part by part, where its parts lie between each other."""
        shape = self.plan.target[target].shape
        first = next((p.source for p, _ in steps if p.source is not None), None)
        assert first is not None  # constants alone fill boxes
        line = [*code(f"x = torch.empty({_tuple(shape)}, dtype="), *self._read(first), *code(".dtype)")]
        for piece, step in steps:
            if step is None:
                line += [*code("\nx.view(-1)"), *self._elements(piece)]
            else:
                view = "" if step.target.shape == shape else f".view({', '.join(map(str, step.target.shape))})"
                line += code(f"\nx{view}[{step.target.subscript or ':'}] = ")
                sizes = step.target.sizes
                line += (
                    verbatim(_number(piece.shift))
                    if piece.source is None
                    else self._leaf(piece, step, sizes, own=False)
                )
        return [*line, *code("\nout["), *name(target), *code("] = x")]

    def _elements(self, piece: Piece) -> Line:
        """An assignment element by element."""
        self._check_listed(piece)
        into = piece.numbers("target").reshape(-1).tolist()
        line = code(f"[{into}] = ")
        if piece.source is None:
            return [*line, *verbatim(_number(piece.shift))]
        taken = piece.numbers("source").reshape(-1).tolist()
        value = [*self._read(piece.source), *code(f".reshape(-1)[{taken}]")]
        if piece.scale == 1.0 and piece.shift == 0.0:
            return [*line, *value]
        self.helpers.add("scaled")
        return [*line, *code("scaled("), *value, *verbatim(f", {_number(piece.scale)}, {_number(piece.shift)})")]

    def _check_listed(self, piece: Piece) -> None:
        if piece.count > _LISTED:
            raise PlanError(
                f"The plan lists {piece.count:,} positions of {piece.target!r} one by one, too many for a text. "
                "Use plan.apply, or save the plan as JSON."
            )

    # What is computed

    def _solve(self, target: str, program: Program) -> Line:
        inputs = [[*code("out["), *name(n), *code("]")] for n in program.inputs]
        call = [*code(f"{self._function(program)}("), *_joined(inputs), *code(")")]
        return [*code("out["), *name(target), *code("] = "), *call, *code(".to("), *inputs[0], *code(".dtype)")]

    def _function(self, program: Program) -> str:
        """The name of a function that runs a program, written when it is first needed."""
        names: dict[fx.Node, str] = {}
        inputs: dict[str, str] = {}
        lines: list[str] = []
        for node in program.nodes:
            if node.op == "placeholder":
                variable = inputs.setdefault(node.meta["parameter"], f"w{len(inputs) + 1}")
                names[node] = variable
                continue
            names[node] = variable = f"x{len(names) + 1}"
            if node.op == "get_attr":
                lines.append(f"    {variable} = {_constant(node.meta['constant'])}")
            else:
                lines.append(f"    {variable} = {_call(node, names)}")
        widened = ", ".join(f"{v}.double()" for v in inputs.values())
        body = [f"    {', '.join(inputs.values())} = {widened}", *lines, f"    return {names[program.nodes[-1]]}"]
        text = "\n".join(body)
        if text not in self.functions:
            called = f"computed_{len(self.functions) + 1}"
            about = '    """What is computed from parameters before it is used."""'
            self.functions[text] = f"def {called}({', '.join(inputs.values())}):\n{about}\n{text}"
        return self.functions[text].partition("(")[0].removeprefix("def ")


_SCALED = '''def scaled(tensor, scale, shift):
    """A tensor times one number plus another, in double precision."""
    wide = tensor.double() if tensor.is_floating_point() else tensor
    return (wide * scale + shift).to(tensor.dtype)'''


def _docstring(sources: int, targets: int, kept: list[str]) -> list[str]:
    lines = [f'    """A state dict with the {targets} tensors of the target, from the {sources} of the source.']
    if kept:
        shown = ", ".join(render(name(n))[1:-1] for n in kept[:6]) + (
            f" and {len(kept) - 6} more" if len(kept) > 6 else ""
        )
        shown = shown.replace('"', "'")
        lines += [
            "",
            f"    Left out, because the target keeps its own values: {shown}.",
            "    Load with `target.load_state_dict({**target.state_dict(), **convert(state)})`.",
        ]
        return [*lines, '    """']
    return [lines[0] + '"""']


def _raise(key: str, what: str) -> Line:
    return [*code("\n    raise ValueError("), *name(f"{key!r} {what}."), *code(")")]


def _listed(call: str, parts: list[Line], axis: int, *, top: bool) -> Line:
    """A call that joins parts; parts that differ in running numbers only are a loop; at the top, long ones have many lines."""
    end = f", dim={axis})" if axis else ")"
    line = fold(parts, "n") if len(parts) > 2 else None
    loop = code(f" for n in range({len(parts)})")
    inside = _joined(parts) if line is None else [*line, *loop]
    plain = [*code(f"{call}(["), *inside, *code("]"), *code(end)]
    if not top or len(render(plain)) <= _WIDE:
        return plain
    gap = code("\n        ")
    inner = [token for part in parts for token in (*gap, *part, *code(","))]
    if line is not None:
        inner = [*gap, *line, *gap, *code(f"for n in range({len(parts)})")]
    return [*code(f"{call}(\n    ["), *inner, *code("\n    ]"), *code(f",\n    dim={axis},\n)" if axis else "\n)")]


def _joined(parts: Sequence[Line]) -> Line:
    return [token for i, part in enumerate(parts) for token in ([*code(", "), *part] if i else part)]


def _tuple(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _dtype(name: str) -> str:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise PlanError(f"Expected the name of a dtype of torch in the plan, found {name!r}.")
    return str(found)


def _number(value: float) -> str:
    value = float(value)
    return repr(value) if math.isfinite(value) else f'float("{value}")'


def _constant(tensor: Tensor) -> str:
    if tensor.numel() > _LISTED:
        raise PlanError(
            f"The plan holds a table of {tensor.numel():,} numbers, too many for a text. Use plan.apply, or save the plan as JSON."
        )
    dtype = "torch.float64" if tensor.is_floating_point() else str(tensor.dtype)
    numbers = ", ".join(_number(v) if tensor.is_floating_point() else repr(v) for v in tensor.reshape(-1).tolist())
    return f"torch.tensor([{numbers}], dtype={dtype}).reshape({_tuple(tuple(tensor.shape))})"


def _call(node: fx.Node, names: dict[fx.Node, str]) -> str:
    arguments = [_argument(a, names) for a in args_of(node)]
    if not all(key.isidentifier() for key in node.kwargs):
        raise PlanError(f"Expected names of arguments of {node.target} in the plan, found {', '.join(node.kwargs)}.")
    arguments += [f"{key}={_argument(value, names)}" for key, value in node.kwargs.items()]
    target = str(node.target)
    if target.startswith("aten."):
        return f"torch.ops.{target}({', '.join(arguments)})"
    return f"{arguments[0]}[{arguments[1]}]"


def _argument(value: Any, names: dict[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return names[value]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_argument(v, names) for v in value)}]"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, torch.dtype):
        return str(torch.float64 if value.is_floating_point else value)
    if isinstance(value, torch.device):
        return f'torch.device("{value.type}")'
    return repr(value) if isinstance(value, (bool, int, str, type(None))) else str(value)
