"""Frames and the error of points in them: what moves it and what does not, and OpenFold."""

import pytest
import torch
from torch import Tensor

from pyrosys.losses import Frames, frame_aligned_point_error
from tests.losses.oracles import openfold
from tests.losses.structures import chain, frames_of, masks, rotations


def test_frames_are_rotations_that_put_the_points_where_they_belong() -> None:
    points = chain(20)
    rotation, origin = frames_of(points)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.double).expand_as(rotation))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(2, 20, dtype=torch.double))
    first, centre, last = ((points - origin[:, :, None]) @ rotation).unbind(2)
    assert centre.abs().max() < 1e-12
    assert last[..., 1:].abs().max() < 1e-12  # on the first axis
    assert first[..., 2].abs().max() < 1e-12  # in the plane of the first two, on the side of the second
    assert (first[..., 1] > 0).all()
    assert (last[..., 0] > 0).all()


def aligned(points: Tensor, truth: Tensor, mask: Tensor, clamp: float | None = 10.0) -> Tensor:
    frames, true_frames = frames_of(points), frames_of(truth)
    atom_mask = mask.repeat_interleave(3, 1)
    return frame_aligned_point_error(
        frames, points.flatten(1, 2), true_frames, truth.flatten(1, 2), mask, atom_mask, clamp=clamp
    ).value


def test_aligned_points_do_not_see_rigid_motion_but_see_reflection() -> None:
    points, truth, mask = chain(12), chain(12), masks(12)
    rotation, shift = rotations(2, 1), 50 * torch.randn(2, 1, 1, 3, dtype=torch.double)
    moved = points @ rotation + shift
    torch.testing.assert_close(aligned(moved, truth, mask), aligned(points, truth, mask))
    torch.testing.assert_close(aligned(points, moved, mask), torch.tensor(0.001, dtype=torch.double))
    assert aligned(points, points * torch.tensor([1.0, 1.0, -1.0]), mask) > 0.1


def test_aligned_points_are_clamped_and_scaled() -> None:
    points, mask = chain(12), masks(12)
    assert aligned(points, 1000 * chain(12), mask) <= 1
    far = torch.zeros(1, 1, 3)
    frame = Frames(torch.eye(3).expand(1, 1, 3, 3), torch.zeros(1, 1, 3))
    known = torch.ones(1, 1, dtype=torch.bool)
    for clamp, expected in ((10.0, 0.5), (None, 1.5)):
        shifted = far + torch.tensor([0.0, 30.0, 0.0])
        average = frame_aligned_point_error(frame, far, frame, shifted, known, known, clamp=clamp, length_scale=20.0)
        assert average.value.item() == pytest.approx(expected)


@pytest.mark.parametrize("clamp", [None, 10.0, 3.0])
@pytest.mark.parametrize("length_scale", [10.0, 7.0])
def test_aligned_points_are_those_of_openfold(clamp: float | None, length_scale: float) -> None:
    points, truth, frame_mask = chain(25), chain(25), masks(25)
    frames, true_frames = frames_of(points), frames_of(truth)
    point_mask = torch.rand(2, 75) < 0.8
    with openfold() as (loss, rigid):
        theirs = [rigid.Rigid(rigid.Rotation(rot_mats=rotation), origin) for rotation, origin in (frames, true_frames)]
        expected = loss.compute_fape(
            *theirs,
            frame_mask.double(),
            points.flatten(1, 2),
            truth.flatten(1, 2),
            point_mask.double(),
            length_scale,
            clamp,
            eps=1e-4,
        )
    for row in range(2):
        ours = frame_aligned_point_error(
            *(Frames(frames.rotation[[row]], frames.origin[[row]]), points[[row]].flatten(1, 2)),
            *(Frames(true_frames.rotation[[row]], true_frames.origin[[row]]), truth[[row]].flatten(1, 2)),
            frame_mask[[row]],
            point_mask[[row]],
            clamp=clamp,
            length_scale=length_scale,
        )
        torch.testing.assert_close(ours.value, expected[row], rtol=1e-5, atol=0)


def test_frames_are_those_of_openfold() -> None:
    points = chain(25)
    with openfold() as (_, rigid):
        theirs = rigid.Rigid.make_transform_from_reference(*points.unbind(2), eps=0)
        rotation, origin = theirs.get_rots().get_rot_mats(), theirs.get_trans()
    ours = frames_of(points)
    torch.testing.assert_close(ours.rotation, rotation.double(), rtol=0, atol=1e-5)  # theirs is in single precision
    torch.testing.assert_close(ours.origin, origin.double(), rtol=1e-5, atol=0)
