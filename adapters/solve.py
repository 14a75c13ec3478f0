"""Give a tensor that the target computes from several parameters a wanted value.

Three ways, each tried on random numbers, none of which knows the operations involved:

- both models compute it in the same way: their parameters correspond one to one;
- one parameter carries it while the others are neutral: the matrix beside a low-rank update of zero;
- one parameter is the wanted value and another a factor that makes up for what becomes of it: weight norm.
"""

import dataclasses
import itertools
from typing import Any

import torch
from torch import Tensor, fx

from pyrosys.adapters.piece import Axis, Piece
from pyrosys.adapters.program import Program
from pyrosys.errors import StructureMismatch

__all__ = ["Solution", "solve"]

aten = torch.ops.aten
_CLOSE = 1e-9


@dataclasses.dataclass
class Solution:
    """Steps for the parameters of a computed tensor, and parameters that follow from others."""

    pieces: list[Piece]
    solved: dict[str, Program] = dataclasses.field(default_factory=dict)


def solve(root: fx.Node, sources: dict[str, fx.Node], pieces: list[Piece]) -> Solution:
    """Steps that make the target's computed tensor what its pieces ask for.

    Args:
        root: the node of the target that computes it.
        sources: the source's nodes, parameters or computed too, by the names that the pieces give them.
        pieces: what the tensor's elements are to be, as if it were a parameter.

    Raises:
        StructureMismatch: none of the ways works.
    """
    program = Program.of(root)
    shapes = {n.meta["parameter"]: tuple(n.meta["shape"]) for n in program.nodes if n.op == "placeholder"}
    if sum(p.count for p in pieces) == torch.Size(program.shape).numel():
        names = {p.source for p in pieces}
        straight = all(torch.equal(p.numbers("target"), p.numbers("source")) for p in pieces)
        if len(names) == 1 and straight and all((p.scale, p.shift) == (1.0, 0.0) for p in pieces):
            source = sources.get(names.pop() or "")
            if source is not None and source.op != "placeholder":
                twins = _twins(program, shapes, Program.of(source))
                if twins is not None:
                    return Solution([_copy(mine, theirs, shapes[mine]) for mine, theirs in twins.items()])
        for found in (_carried(program, shapes, pieces), _scaled(program, shapes, pieces)):
            if found is not None:
                return found
    raise StructureMismatch(
        f"The target computes a tensor from {', '.join(shapes)} in {root.meta.get('scope')!r} ({root.target}), and nothing found "
        "gives it the source's value. Merge it into a plain parameter first."
    )


def _copy(target: str, source: str, shape: tuple[int, ...]) -> Piece:
    numel = torch.Size(shape).numel()
    return Piece(target, source, 0, 0, (Axis(numel, 1, 1),) if numel > 1 else ())


def _draw(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() <= _CLOSE * b.abs().max().clamp(min=1e-300)).all())


def _twins(program: Program, shapes: dict[str, tuple[int, ...]], other: Program) -> dict[str, str] | None:
    """Which parameter of another program stands for which of this one, if the two compute alike."""
    theirs = {n.meta["parameter"]: tuple(n.meta["shape"]) for n in other.nodes if n.op == "placeholder"}
    if len(theirs) != len(shapes) or len(shapes) > 5:
        return None
    drawn = _draw(shapes, 1)
    wanted = program.run(drawn)
    for names in itertools.permutations(theirs):
        pairs = dict(zip(shapes, names, strict=True))
        if all(torch.Size(shapes[a]).numel() == torch.Size(theirs[b]).numel() for a, b in pairs.items()):
            found = other.run({b: drawn[a].reshape(theirs[b]) for a, b in pairs.items()})
            if _equal(found, wanted):
                return pairs
    return None


def _carried(program: Program, shapes: dict[str, tuple[int, ...]], pieces: list[Piece]) -> Solution | None:
    """One parameter as the result itself, with the others zero or one."""
    drawn = _draw(shapes, 2)
    for carrier in shapes:
        if torch.Size(shapes[carrier]).numel() != torch.Size(program.shape).numel():
            continue
        for neutral in (0.0, 1.0):
            others = [n for n in shapes if n != carrier]
            values = drawn | {n: torch.full(shapes[n], neutral, dtype=torch.float64) for n in others}
            if _equal(program.run(values).reshape(shapes[carrier]), drawn[carrier]):
                fills = [Piece.everywhere(n, torch.Size(shapes[n]).numel(), neutral) for n in others]
                return Solution([*(dataclasses.replace(p, target=carrier) for p in pieces), *fills])
    return None


def _scaled(program: Program, shapes: dict[str, tuple[int, ...]], pieces: list[Piece]) -> Solution | None:
    """One parameter as the wanted value, and a factor that makes up for what the program makes of it."""
    if len(shapes) != 2:
        return None
    drawn = _draw(shapes, 3)
    for carrier, factor in (list(shapes), list(shapes)[::-1]):
        if shapes[carrier] != program.shape or len(shapes[factor]) != len(program.shape):
            continue
        dims = [d for d, n in enumerate(shapes[factor]) if n == 1 and program.shape[d] != 1]
        recovery = _recovery(program, carrier, factor, shapes, dims)
        found = recovery.run(drawn)
        if _equal(program.run(drawn | {factor: found}), drawn[carrier]):
            return Solution([dataclasses.replace(p, target=carrier) for p in pieces], {factor: recovery})
    return None


def _recovery(
    program: Program, carrier: str, factor: str, shapes: dict[str, tuple[int, ...]], dims: list[int]
) -> Program:
    """The mean ratio between a parameter and what a program makes of it while the factor is one."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    first: Any = None
    for node in program.nodes:
        if node.meta.get("parameter") == factor:
            copy = graph.get_attr("constant_one")
            copy.meta.update(constant=torch.ones(shapes[factor], dtype=torch.float64), data=False)
        else:
            copy = graph.node_copy(node, copies.__getitem__)
        copy.meta = {**node.meta, **copy.meta} if copy.op == "get_attr" else dict(node.meta)
        copies[node] = copy
        first = copy if node.meta.get("parameter") == carrier else first
    ratio = graph.call_function(aten.div.Tensor, (first, copies[program.nodes[-1]]))
    ratio.meta.update(shape=program.shape, dtype=torch.float64)
    mean = graph.call_function(aten.mean.dim, (ratio, dims, True))
    mean.meta.update(shape=shapes[factor], dtype=torch.float64)
    return Program(tuple(graph.nodes))
