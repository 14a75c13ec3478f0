"""A step of a plan as views: which slices of which tensor go where, and with which axes swapped.

A piece counts elements of contiguous tensors in nested loops. A person thinks in rows, heads and transposes. The loops are cut
where they cross from one dimension of a tensor into the next; then each lies in one dimension, and a dimension with several
loops is one that is seen as several (heads of rows).
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

from pyrosys.adapters.piece import Axis, Piece

__all__ = ["Index", "Step", "View", "views_of"]

Index = slice | int | tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class View:
    """`tensor.reshape(shape)[index]`.

    Attributes:
        tensor: shape of the tensor.
        shape: the shape that it is seen in.
        index: one entry for each dimension of `shape`.
        loops: which loop runs along each dimension of the result.
    """

    tensor: tuple[int, ...]
    shape: tuple[int, ...]
    index: tuple[Index, ...]
    loops: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Shape of the result."""
        return tuple(
            len(range(*i.indices(n))) if isinstance(i, slice) else len(i)
            for n, i in zip(self.shape, self.index, strict=True)
            if not isinstance(i, int)
        )

    @property
    def whole(self) -> bool:
        """Whether all elements are taken, in their order."""
        return all(i == slice(None) for i in self.index)

    @property
    def box(self) -> tuple[tuple[int, int], ...] | None:
        """First index and length in each dimension of the tensor, when the elements fill a box of it in their order."""
        found = []
        parts = iter(zip(self.shape, self.index, strict=True))
        for size in self.tensor:
            outer, index = next(parts)
            inner = size // outer
            if isinstance(index, tuple) or (isinstance(index, slice) and index.step is not None):
                return None
            taken = range(outer)[index] if isinstance(index, slice) else range(index, index + 1)
            found.append((taken.start * inner, len(taken) * inner))
            while inner > 1:
                part, rest = next(parts)
                if rest != slice(None):
                    return None
                inner //= part
        return tuple(found)

    @property
    def subscript(self) -> str:
        """What is written between brackets; empty when all is taken."""
        return _subscript(self.index)

    def __str__(self) -> str:
        """The view as Python, to be put after the name of a tensor."""
        text = "" if self.shape == self.tensor else f".reshape({', '.join(map(str, self.shape))})"
        return text if self.whole else f"{text}[{self.subscript}]"


@dataclasses.dataclass(frozen=True)
class Step:
    """`target view = source view, axes in this order`; the source is None for a step that sets a constant."""

    target: View
    source: View | None
    order: tuple[int, ...]

    @property
    def straight(self) -> bool:
        """Whether the axes keep their order."""
        return self.order == tuple(range(len(self.order)))

    @property
    def reorder(self) -> str:
        """What swaps the axes, as Python."""
        if self.straight:
            return ""
        return ".T" if self.order == (1, 0) else f".permute({', '.join(map(str, self.order))})"


def views_of(piece: Piece, target: Sequence[int], source: Sequence[int] | None) -> Step | None:
    """A piece as views of tensors of these shapes; None where slices and swapped axes do not say it."""
    target = tuple(target)
    if source is None:
        filled = dataclasses.replace(piece, axes=tuple(dataclasses.replace(a, source=0) for a in piece.axes))
        loops = _cut([a for a in filled.axes if a.length > 1], target, ())
        view = None if loops is None else _view(loops, "target", piece.target_offset, target)
        return None if view is None else Step(view, None, ())
    source = tuple(source)
    loops = _cut([a for a in piece.axes if a.length > 1], target, source)
    if loops is None or any(a.source == 0 for a in loops):
        return None
    into = _view(loops, "target", piece.target_offset, target)
    out = _view(loops, "source", piece.source_offset, source)
    if into is None or out is None:
        return None
    return Step(into, out, tuple(out.loops.index(loop) for loop in into.loops))


def _strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def _cut(axes: list[Axis], target: Sequence[int], source: Sequence[int]) -> list[Axis] | None:
    """Loops that stay inside one dimension of either tensor."""
    done: list[Axis] = []
    todo = axes[::-1]
    while todo:
        axis = todo.pop()
        inner = min(
            (m for side, shape in (("target", target), ("source", source)) for m in _crossings(axis, side, shape)),
            default=None,
        )
        if inner is None:
            done.append(axis)
        elif not axis.regular or axis.length % inner:
            return None
        else:
            assert isinstance(axis.target, int)
            assert isinstance(axis.source, int)
            todo.append(Axis(inner, axis.target, axis.source))
            todo.append(Axis(axis.length // inner, axis.target * inner, axis.source * inner))
    return done


def _crossings(axis: Axis, side: str, shape: Sequence[int]) -> list[int]:
    """Lengths at which a loop steps from one dimension into the next."""
    step = axis.target if side == "target" else axis.source
    if not isinstance(step, int) or step <= 0:
        return []
    return [
        stride // step
        for stride in set(_strides(shape))
        if step < stride < step * axis.length and stride % step == 0 and stride // step > 1
    ]


def _view(axes: list[Axis], side: str, offset: int, tensor: tuple[int, ...]) -> View | None:
    """The view of one tensor along which the loops run; None where there is none."""
    if not all(tensor):
        return None
    homes: dict[int, list[tuple[int, int, tuple[int, ...] | None]]] = {}
    strides = _strides(tensor)
    for number, axis in enumerate(axes):
        steps = axis.target if side == "target" else axis.source
        low = steps if isinstance(steps, int) else functools.reduce(math.gcd, (s for s in steps if s), 0)
        home = next((d for d, stride in enumerate(strides) if low and stride <= low and tensor[d] > 1), None)
        if home is None or low % strides[home] or (isinstance(steps, int) and steps < 0):
            return None
        places = None if isinstance(steps, int) else tuple(s // strides[home] for s in steps)
        homes.setdefault(home, []).append((low // strides[home], number, places))
    shape: list[int] = []
    index: list[Index] = []
    order: list[int] = []
    for dimension, size in enumerate(tensor):
        start = offset // strides[dimension]
        offset %= strides[dimension]
        found = _within(size, start, sorted(homes.get(dimension, ()), reverse=True), axes)
        if found is None:
            return None
        shape += found[0]
        index += found[1]
        order += [number for _, number, _ in sorted(homes.get(dimension, ()), reverse=True)]
    if any(isinstance(i, tuple) for i in index) and sum(not isinstance(i, slice) for i in index) > 1:
        return None  # positions listed in several dimensions would be taken pairwise
    return View(tensor, tuple(shape), tuple(index), tuple(order))


def _within(
    size: int, start: int, loops: list[tuple[int, int, tuple[int, ...] | None]], axes: list[Axis]
) -> tuple[list[int], list[Index]] | None:
    """One dimension as one or several, and what is taken of each."""
    if not loops:
        return [size], [start] if size > 1 else [slice(None)]
    if len(loops) == 1:
        step, number, places = loops[0]
        length = axes[number].length
        if places is not None:
            at = tuple(start + p for p in places)
            return ([size], [at]) if all(0 <= a < size for a in at) else None
        taken = range(start, start + step * (length - 1) + 1, step)
        return ([size], [_slice(taken, size)]) if taken[-1] < size else None
    shape: list[int] = []
    index: list[Index] = []
    outer = size
    for step, number, places in loops:
        if outer % step:
            return None
        count, first = outer // step, start // step
        start %= step
        length = axes[number].length
        at = [first + p // step for p in places] if places is not None else range(first, first + length)
        if not all(0 <= a < count for a in at) or (places is not None and any(p % step for p in places)):
            return None
        shape.append(count)
        index.append(tuple(at) if places is not None else _slice(range(first, first + length), count))
        outer = step
    if outer > 1:
        shape.append(outer)
        index.append(start)
    elif start:
        return None
    return shape, index


def _slice(taken: range, size: int) -> slice:
    if taken == range(size):
        return slice(None)
    return slice(taken.start, taken[-1] + 1, taken.step if taken.step > 1 else None)


def _subscript(index: tuple[Index, ...]) -> str:
    """What is written between brackets; whole dimensions at the end are left out."""
    kept = list(index)
    while kept and kept[-1] == slice(None):
        kept.pop()
    return ", ".join(_entry(i) for i in kept)


def _entry(index: Index) -> str:
    if isinstance(index, int):
        return str(index)
    if isinstance(index, tuple):
        return f"[{', '.join(map(str, index))}]"
    text = f"{index.start or ''}:{'' if index.stop is None else index.stop}"
    return text if index.step is None else f"{text}:{index.step}"
