"""Steps of plans as slices and swapped axes: they say what the elements say."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyrosys.adapters.piece import Axis, Piece
from pyrosys.adapters.views import views_of


def evaluated(piece: Piece, target: tuple[int, ...], source: tuple[int, ...]) -> torch.Tensor | None:
    """The target's elements as the views say, or None where there are no views."""
    step = views_of(piece, target, source)
    if step is None:
        return None
    assert step.source is not None
    numbers = torch.arange(torch.Size(source).numel()).reshape(source)
    value = eval(f"numbers{step.source}{step.reorder}", {"numbers": numbers})
    out = torch.full(target, -1)
    out.view(step.target.shape)[step.target.index] = value
    if step.target.box is not None:
        boxed = torch.full(target, -1)
        at = tuple(slice(first, first + length) for first, length in step.target.box)
        boxed[at] = value.reshape(boxed[at].shape)
        assert torch.equal(boxed, out)
    return out


@st.composite
def moves(draw: st.DrawFn) -> tuple[Piece, tuple[int, ...], tuple[int, ...]]:
    """A slice of a tensor of some view, its axes swapped, into a slice of another."""
    factors = draw(st.lists(st.integers(2, 4), min_size=1, max_size=4))
    starts = [draw(st.integers(0, n - 1)) for n in factors]
    lengths = [draw(st.integers(1, n - a)) for n, a in zip(factors, starts, strict=True)]
    order = draw(st.permutations(range(len(factors))))
    strides = [torch.Size(factors[i + 1 :]).numel() for i in range(len(factors))]
    swapped = [factors[i] for i in order]
    into = [torch.Size(swapped[i + 1 :]).numel() for i in range(len(factors))]
    axes = tuple(Axis(lengths[i], into[k], strides[i]) for k, i in enumerate(order))
    first = sum(a * s for a, s in zip(starts, strides, strict=True))
    first_into = sum(starts[i] * s for i, s in zip(order, into, strict=True))
    piece = Piece("t", "s", first_into, first, axes).simplified()
    return piece, draw(merged(swapped)), draw(merged(factors))


@st.composite
def merged(draw: st.DrawFn, factors: list[int]) -> tuple[int, ...]:
    """Neighbouring dimensions of a shape merged at random."""
    cuts = [0, *sorted(draw(st.sets(st.integers(1, len(factors)))) | {len(factors)})]
    return tuple(torch.Size(factors[a:b]).numel() for a, b in itertools.pairwise(cuts))


@given(moves())
def test_views_take_and_set_the_elements_of_the_piece(move: tuple[Piece, tuple[int, ...], tuple[int, ...]]) -> None:
    piece, target, source = move
    wanted = torch.full(target, -1)
    piece.run(wanted, torch.arange(torch.Size(source).numel()))
    found = evaluated(piece, target, source)
    assert found is not None
    assert torch.equal(found, wanted)


def said(piece: Piece, target: tuple[int, ...], source: tuple[int, ...]) -> str:
    step = views_of(piece, target, source)
    assert step is not None
    assert step.source is not None
    return f"{step.source}{step.reorder}"


@pytest.mark.parametrize(
    ("piece", "target", "source", "words"),
    [
        (Piece("t", "s", 0, 0, (Axis(15, 1, 1),)), (3, 5), (3, 5), ""),
        (Piece("t", "s", 0, 15, (Axis(15, 1, 1),)), (3, 5), (9, 5), "[3:6]"),
        (Piece("t", "s", 0, 0, (Axis(3, 5, 1), Axis(5, 1, 3))), (3, 5), (5, 3), ".T"),
        (Piece("t", "s", 0, 3, (Axis(3, 5, 1), Axis(5, 1, 9))), (3, 5), (5, 9), "[:, 3:6].T"),
        (Piece("t", "s", 0, 5, (Axis(3, 5, 10), Axis(5, 1, 1))), (3, 5), (6, 5), "[1:6:2]"),
        (
            Piece("t", "s", 0, 4, (Axis(2, 4, 12), Axis(4, 1, 1))),
            (8,),
            (24,),
            ".reshape(2, 12)[:, 4:8]",
        ),
        (Piece("t", "s", 0, 0, (Axis(3, 2, (4, 0, 8)), Axis(2, 1, 1))), (3, 2), (5, 2), "[[2, 0, 4]]"),
    ],
)
def test_views_say_rows_transposes_and_heads(
    piece: Piece, target: tuple[int, ...], source: tuple[int, ...], words: str
) -> None:
    assert said(piece, target, source) == words
    wanted = torch.full(target, -1)
    piece.run(wanted, torch.arange(torch.Size(source).numel()))
    found = evaluated(piece, target, source)
    assert found is not None
    assert torch.equal(found, wanted)


def test_a_run_that_ends_within_a_row_has_no_slices() -> None:
    assert views_of(Piece("t", "s", 0, 0, (Axis(7, 1, 1),)), (7,), (2, 5)) is None
