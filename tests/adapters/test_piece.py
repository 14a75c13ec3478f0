"""Steps of plans move the elements that their numbers say."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyrosys.adapters.piece import Axis, Piece


def steps(length: int) -> st.SearchStrategy[int | tuple[int, ...]]:
    positions = st.lists(st.integers(0, 40), min_size=length, max_size=length, unique=True).map(tuple)
    return st.sampled_from([1, 2, 3, 5, 12, -1, -3]) | positions


@st.composite
def pieces(draw: st.DrawFn) -> tuple[Piece, int, int]:
    """A step, and the sizes of tensors that it fits into."""
    lengths = draw(st.lists(st.integers(1, 5), max_size=3))
    axes = tuple(Axis(n, draw(steps(n)), draw(steps(n))) for n in lengths)
    starts, sizes = [], []
    for side in ("target", "source"):
        lines = [axis.positions(side) for axis in axes]
        starts.append(draw(st.integers(0, 3)) - sum(int(line.min()) for line in lines))
        sizes.append(starts[-1] + sum(int(line.max()) for line in lines) + draw(st.integers(1, 3)))
    source, scale, shift = draw(st.sampled_from([("s", 1.0, 0.0), ("s", 2.5, 1.5), (None, 0.0, 1.5)]))
    piece = Piece("t", source, starts[0], starts[1], axes, scale, shift)
    assume(len(torch.unique(piece.numbers("target"))) == piece.count)
    return piece, sizes[0], sizes[1]


@given(pieces(), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), st.integers(0, 3))
def test_run_moves_what_the_numbers_say(case: tuple[Piece, int, int], dtype: torch.dtype, before: int) -> None:
    piece, into, size = case
    source = torch.randn(size + before)[before:]  # a stretch of a longer tensor
    found = torch.full((into + before,), -9.0, dtype=dtype)[before:]
    expected = found.clone()
    value = source[piece.numbers("source").reshape(-1)].double() * piece.scale + piece.shift
    expected[piece.numbers("target").reshape(-1)] = value.to(dtype)
    piece.run(found, None if piece.source is None else source)
    assert torch.equal(found, expected)


class Largest(TorchDispatchMode):
    """Notes how many elements the largest tensor has that operations make, views of others left out."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {a.untyped_storage().data_ptr() for a in (*args, *(kwargs or {}).values()) if isinstance(a, Tensor)}
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in known:
            self.made = max(self.made, result.numel())
        return result


ROWS = tuple(int(i) * 30 for i in torch.randperm(1000, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("axes", "scale", "most"),
    [
        ((Axis(30_000, 1, 1),), 1.0, 0),
        ((Axis(30, 1000, 1), Axis(1000, 1, 30)), 1.0, 0),
        ((Axis(1000, -30, 30), Axis(30, 1, 1)), 1.0, 1000),  # one number per row
        ((Axis(1000, 30, ROWS), Axis(30, 1, 1)), 1.0, 1000),
        ((Axis(1000, ROWS, 30), Axis(30, 1, 1)), 1.0, 1000),
        ((Axis(30_000, 1, 1),), 2.0, 512),
    ],
    ids=["whole", "transposed", "reversed", "rows from a list", "rows to a list", "scaled"],
)
def test_run_needs_no_memory_of_the_size_of_the_tensor(
    axes: tuple[Axis, ...], scale: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrosys.adapters.piece._PART", 512)
    offset = 29_970 if axes[0].target == -30 else 0
    piece = Piece("t", "s", offset, 0, axes, scale)
    target, source = torch.zeros(30_000), torch.randn(30_000)
    with Largest() as largest:
        piece.run(target, source)
    assert largest.made <= most
    expected = torch.empty(30_000)
    expected[piece.numbers("target").reshape(-1)] = scale * source[piece.numbers("source").reshape(-1)]
    assert torch.equal(target, expected)
