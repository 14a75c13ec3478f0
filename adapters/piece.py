"""One step of a plan: a strided set of elements of a target tensor takes a strided set of elements of a source tensor."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

__all__ = ["Axis", "Piece"]

Steps = int | tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Axis:
    """One loop: `length` elements, a step in each tensor, or explicit positions where there is no step."""

    length: int
    target: Steps
    source: Steps

    @property
    def regular(self) -> bool:
        return isinstance(self.target, int) and isinstance(self.source, int)


@dataclasses.dataclass(frozen=True)
class Piece:
    """`target[...] = scale * source[...] + shift` over nested loops, in element numbers of the contiguous tensors.

    Attributes:
        target, source: tensor names; `source` is None for a constant `shift`.
        target_offset, source_offset: number of the first element.
        axes: loops, outermost first.
    """

    target: str
    source: str | None
    target_offset: int
    source_offset: int
    axes: tuple[Axis, ...]
    scale: float = 1.0
    shift: float = 0.0

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
            steps = axis.target if side == "target" else axis.source
            line = torch.arange(axis.length) * steps if isinstance(steps, int) else torch.tensor(steps)
            shape = [1] * len(self.axes)
            shape[position] = axis.length
            total = total + line.reshape(shape)
        return total

    def view(self, tensor: Tensor, side: str) -> Tensor | None:
        """The side's elements as a view of a contiguous tensor, or None when a loop has no step."""
        sizes, strides = [], []
        for axis in self.axes:
            step = axis.target if side == "target" else axis.source
            if not isinstance(step, int) or step < 0:
                return None
            sizes.append(axis.length)
            strides.append(step)
        offset = self.target_offset if side == "target" else self.source_offset
        return tensor.as_strided(sizes, strides, tensor.storage_offset() + offset)

    def run(self, target: Tensor, source: Tensor | None) -> None:
        """Copy into a contiguous target tensor."""
        if source is None:
            value: Any = torch.full((), self.shift, dtype=target.dtype)
        else:
            value = self.view(source, "source")
            if value is None:
                value = source.reshape(-1)[self.numbers("source")]
            if self.scale != 1.0 or self.shift != 0.0:
                wide = value.to(torch.float64) if value.is_floating_point() else value
                value = wide * self.scale + self.shift
        into = self.view(target, "target")
        if into is None:
            target.reshape(-1)[self.numbers("target")] = value.to(target.dtype)
        else:
            into.copy_(value)

    def is_whole(self, target_shape: tuple[int, ...], source_shape: tuple[int, ...]) -> bool:
        """Whether the piece copies an entire tensor unchanged into one of the same shape."""
        numel = torch.Size(target_shape).numel()
        plain = self.scale == 1.0 and self.shift == 0.0 and self.source is not None
        straight = self.target_offset == self.source_offset == 0 and (
            self.axes == (Axis(numel, 1, 1),) or (numel == 1 and not self.axes)
        )
        return plain and straight and target_shape == source_shape

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
        if self.scale != 1.0:
            out["scale"] = self.scale
        if self.shift != 0.0 or self.source is None:
            out["shift"] = self.shift
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
        )
