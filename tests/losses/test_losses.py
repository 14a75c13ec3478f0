"""What every loss has in common: masks, precision, finite gradients, and averages that add up."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pyrosys.losses import (
    Average,
    Frames,
    cross_entropy,
    distogram_loss,
    frame_aligned_point_error,
    inverse_folding_loss,
    smooth_lddt_loss,
    squared_error,
)

BATCH, LENGTH = 3, 7


@dataclass(frozen=True)
class Case:
    """A loss of predictions, truth and a mask over (batch, length)."""

    loss: Callable[[Tensor, Tensor, Tensor], Average]
    prediction: tuple[int, ...]  # its shape, after the batch
    truth: tuple[int, ...] | None = None  # of numbers, in Å; classes if there is none
    pairs: bool = False  # whether predictions are for pairs of residues


def backbone_error(points: Tensor, true_points: Tensor, mask: Tensor) -> Average:
    """The error of all backbone atoms in all backbone frames; frames that a model predicts are never NaN."""
    frames = Frames.from_points(*points.where(mask[:, :, None, None], 0).unbind(2))
    true_frames = Frames.from_points(*true_points.unbind(2))
    atoms, true_atoms, atom_mask = points.flatten(1, 2), true_points.flatten(1, 2), mask.repeat_interleave(3, 1)
    return frame_aligned_point_error(frames, atoms, true_frames, true_atoms, mask, atom_mask)


CASES = {
    "cross entropy": Case(cross_entropy, (LENGTH, 5)),
    "inverse folding": Case(inverse_folding_loss, (LENGTH, 21)),
    "squared error": Case(squared_error, (LENGTH,), (LENGTH,)),
    "distogram": Case(distogram_loss, (LENGTH, LENGTH, 8), (LENGTH, 3), pairs=True),
    "aligned points": Case(backbone_error, (LENGTH, 3, 3), (LENGTH, 3, 3)),
    "smooth lddt": Case(smooth_lddt_loss, (LENGTH, 3), (LENGTH, 3)),
}


@pytest.fixture(params=CASES.values(), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def draw(case: Case, dtype: torch.dtype = torch.double) -> tuple[Tensor, Tensor, Tensor]:
    """Random predictions that are trained, truth, and a mask that is partly false in every way a structure can be."""
    prediction = (4 * torch.randn(BATCH, *case.prediction, dtype=torch.double)).to(dtype).requires_grad_()
    if case.truth is None:
        truth = torch.randint(case.prediction[-1], (BATCH, LENGTH))
    else:
        truth = 4 * torch.randn(BATCH, *case.truth, dtype=torch.double).to(dtype)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    mask[0, 4:] = mask[1, 2] = False
    return prediction, truth, mask


def gradient(average: Average, prediction: Tensor) -> Tensor:
    return torch.autograd.grad(average.value, prediction)[0]


def assert_same(first: Average, second: Average, rtol: float = 1e-7) -> None:
    torch.testing.assert_close((first.total, first.count), (second.total, second.count), rtol=rtol, atol=0)


def pad(x: Tensor, filler: float, dims: int) -> Tensor:
    """Make the first dimensions after the batch longer by two."""
    shape = [size + 2 if 1 <= dim <= dims else size for dim, size in enumerate(x.shape)]
    padded = torch.full(shape, filler, dtype=x.dtype)
    padded[tuple(slice(size) for size in x.shape)] = x
    return padded


def test_padding_changes_neither_loss_nor_gradient(case: Case) -> None:
    prediction, truth, mask = draw(case)
    expected = case.loss(prediction, truth, mask)
    longer = pad(prediction.detach(), torch.nan, 2 if case.pairs else 1).requires_grad_()
    padded = case.loss(longer, pad(truth, torch.nan if case.truth else -100, 1), pad(mask, 0, 1))
    assert_same(padded, expected)
    torch.testing.assert_close(gradient(padded, longer), pad(gradient(expected, prediction), 0, 2 if case.pairs else 1))


def test_what_is_masked_is_not_read(case: Case) -> None:
    prediction, truth, mask = draw(case)
    expected = case.loss(prediction, truth, mask)
    truth[~mask] = torch.nan if case.truth else -100
    spoilt = prediction.detach().clone()
    spoilt[~mask] = torch.inf
    if case.pairs:
        spoilt.movedim(2, 1)[~mask] = torch.nan
    assert_same(case.loss(spoilt, truth, mask), expected)
    gradients = gradient(case.loss(spoilt.requires_grad_(), truth, mask), spoilt)
    torch.testing.assert_close(gradients, gradient(expected, prediction))


def test_nothing_has_a_loss_and_a_gradient_of_zero(case: Case) -> None:
    prediction, truth, mask = draw(case)
    average = case.loss(prediction, truth, mask & False)
    assert (average.total, average.count, average.value) == (0, 0, 0)
    assert torch.equal(gradient(average, prediction), torch.zeros_like(prediction))


def test_averages_of_parts_add_up(case: Case) -> None:
    prediction, truth, mask = draw(case)
    parts = [case.loss(prediction[rows], truth[rows], mask[rows]) for rows in (slice(0, 1), slice(1, 3))]
    assert_same(parts[0] + parts[1], case.loss(prediction, truth, mask))


def test_losses_are_not_negative_and_fall_along_their_gradient(case: Case) -> None:
    prediction, truth, mask = draw(case)
    average = case.loss(prediction, truth, mask)
    step = 1e-3 * torch.nn.functional.normalize(gradient(average, prediction).flatten(), dim=0).view_as(prediction)
    assert 0 <= case.loss(prediction - step, truth, mask).value < average.value


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4])
def test_gradients_are_finite_at_the_extremes(case: Case, scale: float) -> None:
    prediction, truth, mask = draw(case, torch.float32)
    scaled = (prediction.detach() * scale).requires_grad_()
    average = case.loss(scaled, truth, mask)
    assert average.value.isfinite()
    assert gradient(average, scaled).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_reduction_is_in_single_precision_or_better(case: Case, dtype: torch.dtype) -> None:
    prediction, truth, mask = draw(case, dtype)
    average = case.loss(prediction, truth, mask)
    assert average.total.dtype == average.count.dtype == torch.promote_types(dtype, torch.float32)
    double = case.loss(prediction.double(), truth if case.truth is None else truth.double(), mask)
    # Frames are made outside the loss, in the precision of the points.
    tolerance = 0.05 if case.loss is backbone_error and dtype.itemsize < 4 else 1e-5
    torch.testing.assert_close(average.value.double(), double.value, rtol=tolerance, atol=0)


def test_mixed_precision_does_not_reach_into_losses(case: Case) -> None:
    prediction, truth, mask = draw(case, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        average = case.loss(prediction, truth, mask)
    assert_same(average, case.loss(prediction, truth, mask), rtol=1e-6)


def test_an_average_is_of_items_and_not_of_averages() -> None:
    few, many = Average(torch.tensor(8.0), torch.tensor(2.0)), Average(torch.tensor(6.0), torch.tensor(6.0))
    assert (few + many).value == 14 / 8
