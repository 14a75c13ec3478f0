"""One step of a plan: a strided set of elements of a target tensor takes a strided set of elements of a source tensor."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["Axis", "Piece"]

Steps = int | tuple[int, ...]

_PART = 1 << 18
"""Elements that are computed at once: few enough to stay in a processor's cache."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """One loop: `length` elements, a step in each tensor, or explicit positions where there is no step."""

    length: int
    target: Steps
    source: Steps

    @property
    def regular(self) -> bool:
        return isinstance(self.target, int) and isinstance(self.source, int)

    def positions(self, side: str) -> Tensor:
        """The positions in one tensor, relative to where the loop begins."""
        steps = self.target if side == "target" else self.source
        return torch.arange(self.length) * steps if isinstance(steps, int) else torch.tensor(steps)


@dataclasses.dataclass(frozen=True)
class Piece:
    """`target[...] = scale * source[...] + shift` over nested loops, in element numbers of the contiguous tensors.

    Attributes:
        target, source: tensor names; `source` is None for what the target has there itself: the `shift` is a constant if
            the `scale` is zero, and elements stay as they are if it is one.
        target_offset, source_offset: number of the first element.
        axes: loops, outermost first.
        spare: whether a constant is for elements that nothing depends on.
    """

    target: str
    source: str | None
    target_offset: int
    source_offset: int
    axes: tuple[Axis, ...]
    scale: float = 1.0
    shift: float = 0.0
    spare: bool = False

    @staticmethod
    def everywhere(target: str, numel: int, value: float) -> "Piece":
        """The step that sets all of a tensor to one number."""
        return Piece(target, None, 0, 0, (Axis(numel, 1, 0),) if numel > 1 else (), 0.0, value)

    @property
    def count(self) -> int:
        """Number of elements."""
        total = 1
        for axis in self.axes:
            total *= axis.length
        return total

    def simplified(self) -> "Piece":
        """The same elements with loops in the target's storage order and neighbouring loops merged."""
        loops = [a for a in self.axes if a.length > 1]
        loops.sort(key=lambda a: -(a.target if isinstance(a.target, int) else max(a.target)))
        merged: list[Axis] = []
        for axis in loops:
            last = merged[-1] if merged else None
            if (
                last is not None
                and last.regular
                and axis.regular
                and last.target == axis.target * axis.length
                and last.source == axis.source * axis.length
            ):
                merged[-1] = Axis(last.length * axis.length, axis.target, axis.source)
            else:
                merged.append(axis)
        return dataclasses.replace(self, axes=tuple(merged))

    def numbers(self, side: str) -> Tensor:
        """Element numbers of one side, one dimension per loop."""
        total = torch.full((), self.target_offset if side == "target" else self.source_offset)
        for position, axis in enumerate(self.axes):
            shape = [1] * len(self.axes)
            shape[position] = axis.length
            total = total + axis.positions(side).reshape(shape)
        return total

    @property
    def is_plain(self) -> bool:
        """Whether it moves elements unchanged."""
        return self.source is not None and self.scale == 1.0 and self.shift == 0.0

    @property
    def keeps(self) -> bool:
        """Whether the elements stay as the target has them."""
        return self.source is None and self.scale == 1.0

    @property
    def is_identity(self) -> bool:
        """Whether every element keeps its number and its value."""
        same = self.target_offset == self.source_offset and all(a.target == a.source for a in self.axes)
        return self.is_plain and same

    def run(self, target: Tensor, source: Tensor | None) -> None:
        """Copy from one contiguous tensor into another, in one pass where steps and types allow."""
        if self.keeps:
            return
        with torch.no_grad():
            self._ascending()._run(target, source)

    def _run(self, target: Tensor, source: Tensor | None) -> None:
        into, picks = self._grid(target, "target")
        value = self._taken(source, None if picks else into)
        if len(picks) > 1 or (picks and _overlaps(into)):
            target.view(-1)[self.numbers("target").to(target.device)] = self._changed(value).to(target)
        elif picks:
            into.index_copy_(*picks[0], self._changed(value).to(target))
        elif self.is_plain:
            if value is not into:
                into.copy_(value)
        else:
            rows = max(1, _PART // max(1, self.count // len(value))) if value.ndim else 1
            parts = zip(into.split(rows), value.split(rows), strict=True) if value.ndim else [(into, value)]
            for part, found in parts:
                part.copy_(self._changed(found))

    def _changed(self, value: Tensor) -> Tensor:
        """Elements of the source as the target has them."""
        if self.is_plain or self.source is None:
            return value
        return (value.to(torch.float64) if value.is_floating_point() else value) * self.scale + self.shift

    def holds(self, tensor: Tensor) -> bool:
        """Whether elements of a tensor are already what a constant step would set them to."""
        value, picks = self._grid(tensor.contiguous(), "target")
        for dimension, at in picks:
            value = value.index_select(dimension, at)
        return bool((value == self.shift).all())

    def _taken(self, source: Tensor | None, into: Tensor | None) -> Tensor:
        """The source's elements: a view where every loop has a step, or else a copy, in `into` if that is where they go."""
        if source is None:
            return torch.tensor(self.shift, dtype=torch.float64).expand([axis.length for axis in self.axes])
        value, picks = self._grid(source, "source")
        if len(picks) > 1 and value.numel() > 4 * self.count:
            return source.view(-1)[self.numbers("source").to(source.device)]
        fits = into is not None and self.is_plain and (into.dtype, into.device) == (value.dtype, value.device)
        for number, (dimension, at) in enumerate(picks, 1):
            out = into if fits and number == len(picks) else None
            value = torch.index_select(value, dimension, at, out=out)
        return value

    def _grid(self, tensor: Tensor, side: str) -> tuple[Tensor, list[tuple[int, Tensor]]]:
        """A view that holds the side's elements, with the dimensions that hold more and what to pick there."""
        sizes, strides, picks = [], [], []
        offset = self.target_offset if side == "target" else self.source_offset
        for dimension, axis in enumerate(self.axes):
            size, step = axis.length, axis.target if side == "target" else axis.source
            if not isinstance(step, int) or step < 0:
                at = axis.positions(side)
                offset, at = offset + int(at.min()), at - at.min()
                step = math.gcd(*at.tolist()) or 1
                size = int(at.max()) // step + 1
                picks.append((dimension, (at // step).to(tensor.device)))
            sizes.append(size)
            strides.append(step)
        return tensor.as_strided(sizes, strides, tensor.storage_offset() + offset), picks

    def _ascending(self) -> "Piece":
        """The same elements, each loop from the target's first element to its last, by steps where there are some."""
        if all(isinstance(axis.target, int) and axis.target >= 0 for axis in self.axes):
            return self
        axes, offsets = [], [self.target_offset, self.source_offset]
        for axis in self.axes:
            if isinstance(axis.target, int) and axis.target >= 0:
                axes.append(axis)
                continue
            order = axis.positions("target").argsort()
            sides = [_as_steps(axis.positions(side)[order]) for side in ("target", "source")]
            offsets = [offset + first for offset, (first, _) in zip(offsets, sides, strict=True)]
            axes.append(Axis(axis.length, sides[0][1], sides[1][1]))
        return dataclasses.replace(self, axes=tuple(axes), target_offset=offsets[0], source_offset=offsets[1])

    def is_whole(self, target_shape: tuple[int, ...], source_shape: tuple[int, ...]) -> bool:
        """Whether the piece copies an entire tensor unchanged into one of the same shape."""
        return self.is_identity and self.count == torch.Size(target_shape).numel() and target_shape == source_shape

    def inverted(self) -> "Piece":
        """The step back; only pieces with a source have one."""
        assert self.source is not None
        axes = tuple(Axis(a.length, a.source, a.target) for a in self.axes)
        inverse = Piece(
            self.source,
            self.target,
            self.source_offset,
            self.target_offset,
            axes,
            1 / self.scale,
            -self.shift / self.scale,
        )
        return inverse.simplified()

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"source": self.source, "to": self.target_offset}
        if self.source is not None:
            out["from"] = self.source_offset
        out["loops"] = [[a.length, a.target, a.source] for a in self.axes]
        if self.scale != 1.0 or self.source is None:
            out["scale"] = self.scale
        if self.shift != 0.0 or self.source is None:
            out["shift"] = self.shift
        if self.spare:
            out["spare"] = True
        return out

    @staticmethod
    def from_json(target: str, entry: dict[str, Any]) -> "Piece":
        def steps(value: Any) -> Steps:
            return int(value) if isinstance(value, int) else tuple(int(v) for v in value)

        axes = tuple(Axis(int(n), steps(t), steps(s)) for n, t, s in entry["loops"])
        return Piece(
            target,
            entry["source"],
            int(entry["to"]),
            int(entry.get("from", 0)),
            axes,
            float(entry.get("scale", 1.0 if entry["source"] is not None else 0.0)),
            float(entry.get("shift", 0.0)),
            bool(entry.get("spare", False)),
        )


def _as_steps(positions: Tensor) -> tuple[int, Steps]:
    """The first position and the step from each to the next, or 0 and the positions where there is no step."""
    first, gaps = int(positions[0]), positions.diff()
    if bool((gaps == gaps[:1]).all()):
        return first, int(gaps[0]) if len(gaps) else 1
    return 0, tuple(positions.tolist())


def _overlaps(view: Tensor) -> bool:
    """Whether two positions of a view may be one element."""
    end = 0
    for stride, size in sorted(zip(view.stride(), view.shape, strict=True)):
        if size > 1 and stride <= end:
            return True
        end += stride * (size - 1)
    return False
