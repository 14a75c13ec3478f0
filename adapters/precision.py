"""Run a model in float64 throughout, also where its code asks for less.

Many models compute rotary tables, softmax or one-hot features in float32 whatever the precision of their weights. Two
implementations then differ by rounding where they agree in mathematics. Here every request for a floating-point type is
answered with float64, so that what remains is mathematics.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyrosys.adapters.nodes import map_leaves

__all__ = ["PlainMode", "Widen", "default_dtype", "wide", "widest"]

_REAL = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_COMPLEX = {torch.complex32, torch.complex64, torch.complex128}


def wide(args: Any) -> Any:
    """Arguments with every floating-point type replaced by its widest."""
    return map_leaves(widest, args) if _asks_for_type(args) else args


def _asks_for_type(args: Any) -> bool:
    """Whether any argument is a type, which few operations take."""
    for value in args.values() if isinstance(args, dict) else args:
        if isinstance(value, torch.dtype) or (isinstance(value, (tuple, list, dict)) and _asks_for_type(value)):
            return True
    return False


def widest(value: Any) -> Any:
    """The widest type for a floating-point type; anything else as it is."""
    if not isinstance(value, torch.dtype):
        return value
    return torch.float64 if value in _REAL else torch.complex128 if value in _COMPLEX else value


class PlainMode(TorchDispatchMode):
    """A mode that does nothing about compilation: torch would turn it off and on again around every operation."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class Widen(PlainMode):
    """Answers every request for a floating-point type with float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*wide(args), **wide(kwargs or {}))


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new tensors of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
