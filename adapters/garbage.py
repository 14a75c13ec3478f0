"""Python's search for garbage in cycles."""

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["seldom_collected"]

_SELDOM = (50_000, 20, 100)


@contextlib.contextmanager
def seldom_collected() -> Iterator[None]:
    """Search for garbage in cycles a hundred times less often.

    A graph of ten thousand nodes is made of many small objects, none of which is garbage; looking for it time and again takes
    a quarter of the time of a match. Garbage without cycles, tensors above all, is freed at once all the same.
    """
    before = gc.get_threshold()
    if not 0 < before[0] < _SELDOM[0]:  # it is switched off, or we are within another such block
        yield
        return
    gc.set_threshold(*_SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)
