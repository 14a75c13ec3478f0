"""Hashes of colours and sketches, the numbers made up from them, and work on large tensors block by block."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["HASH", "deepen", "in_blocks", "largest", "mix", "once", "uniform"]

_HASH_BITS = 42
HASH = (1 << _HASH_BITS) - 1
"""The bits of a sketch that hold a hash; those above hold a depth."""

_MULTIPLIER = np.uint64(6364136223846793005)
_INCREMENT = np.uint64(1442695040888963407)
_STEPS = tuple(
    (np.uint64(shift), np.uint64(factor)) for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
)
_EMPTY = np.zeros((), dtype=np.uint64)
_BLOCK = 1 << 14  # elements that stay in the processor's cache from the first step to the last


def mix(*parts: Any) -> Tensor:
    """A 62-bit hash of integer tensors that broadcast together (splitmix64 finaliser, Steele et al. 2014)."""
    total, parts = (np.array(_begun(parts[0])), parts[1:]) if isinstance(parts[0], int) else (_EMPTY.copy(), parts)
    for part in parts:
        x = np.asarray(part, dtype=np.int64).view(np.uint64)
        np.multiply(total, _MULTIPLIER, out=total)
        if x.shape in ((), total.shape):
            np.add(total, x, out=total)
        else:
            total = np.asarray(np.add(total, x, order="C"))  # it may broadcast
        flat = total.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            _finalise(flat[start : start + _BLOCK])
    total &= np.uint64(0x3FFFFFFFFFFFFFFF)
    return torch.from_numpy(total.view(np.int64))


@functools.lru_cache(1 << 12)
def _begun(first: int) -> np.uint64:
    """The hash of one number."""
    total = np.full((), first, dtype=np.int64).view(np.uint64)
    _finalise(total)
    return total[()]


def _finalise(x: np.ndarray) -> None:
    """The steps of the hash, in place."""
    shifted = np.empty_like(x)
    x += _INCREMENT
    for shift, factor in _STEPS:
        np.right_shift(x, shift, out=shifted)
        x ^= shifted
        x *= factor
    np.right_shift(x, np.uint64(31), out=shifted)
    x ^= shifted


def uniform(colour: Tensor, salt: int) -> Tensor:
    """A number in ±[0.5, 1.5] per colour."""
    x = mix(salt, colour)
    size = (x & 0xFFFFFFFF).to(torch.float64).mul_(2.0**-32).add_(0.5)
    sign = x.bitwise_right_shift_(40).bitwise_and_(1).mul_(2).sub_(1)
    return size.mul_(sign)


def deepen(sketch: Tensor, colours: Tensor, salt: int) -> Tensor:
    """One level deeper: depth in the high bits so that the deepest chain wins a maximum, a hash below."""

    def deeper(sketch: Tensor, colours: Tensor) -> Tensor:
        whole = sketch.to(torch.int64)
        found = mix(salt, colours, whole).bitwise_and_(HASH)
        return found.bitwise_or_(whole.bitwise_right_shift_(_HASH_BITS).add_(1).bitwise_left_shift_(_HASH_BITS))

    return in_blocks(deeper, np.broadcast_shapes(sketch.shape, colours.shape), sketch, colours)


def in_blocks(do: Callable[..., Tensor], shape: tuple[int, ...], *tensors: Tensor) -> Tensor:
    """What `do` makes of tensors, block by block, so that what it needs on the way stays small.

    Args:
        do: works on each position of the leading dimension by itself.
        shape: of the result; the tensors broadcast along its leading dimension.
        tensors: of as many dimensions as the result.

    Returns:
        The results, joined, in float64; they are to be read only.
    """
    repeated = _repeated(shape, tensors)
    if repeated:
        narrow = [1 if d in repeated else size for d, size in enumerate(shape)]
        return in_blocks(do, tuple(narrow), *(_narrowed(t, len(shape), repeated) for t in tensors)).expand(shape)
    found = torch.empty(shape, dtype=torch.float64)
    lead = next((d for d, size in enumerate(shape) if size > 1), 0)
    elements = max(t.numel() for t in (found, *tensors))
    if elements <= _BLOCK:
        return found.copy_(do(*tensors))
    rows = max(1, _BLOCK * shape[lead] // elements)
    for start in range(0, shape[lead], rows):
        count = min(rows, shape[lead] - start)
        parts = (t if t.shape[lead] == 1 else t.narrow(lead, start, count) for t in tensors)
        found.narrow(lead, start, count).copy_(do(*parts))
    return found


def once(do: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """What a pointwise `do` makes of tensors that broadcast together, worked out once where all of them repeat one element.

    As long as all features of a place have one colour, what is said of large tensors is said of a single column.
    """
    if all(t.numel() <= _BLOCK or 0 not in t.stride() for t in tensors):
        return do(*tensors)
    shape = np.broadcast_shapes(*(t.shape for t in tensors))  # torch's own is slow
    repeated = _repeated(shape, tensors)
    if not repeated:
        return do(*tensors)
    return do(*(_narrowed(t, len(shape), repeated) for t in tensors)).expand(shape)


def largest(a: Tensor, b: Tensor) -> Tensor:
    """The larger of two tensors that broadcast together, element by element."""
    return once(torch.maximum, a, b)


def _repeated(shape: tuple[int, ...], tensors: tuple[Tensor, ...]) -> list[int]:
    """Dimensions of a shape along which each of the tensors, which broadcast to it, repeats one element."""
    if all(t.numel() <= _BLOCK or 0 not in t.stride() for t in tensors):
        return []
    rank = len(shape)
    return [
        d
        for d in range(rank)
        if shape[d] > 1
        and all(d < rank - t.dim() or t.shape[d - rank] == 1 or t.stride(d - rank) == 0 for t in tensors)
    ]


def _narrowed(x: Tensor, rank: int, repeated: list[int]) -> Tensor:
    """A tensor without the repetition along some dimensions, counted in as many as `rank`."""
    for d in repeated:
        if d >= rank - x.dim() and x.shape[d - rank] > 1:
            x = x.narrow(d - rank, 0, 1)
    return x
