"""Losses of structures: what moves them and what does not, and the implementations of OpenFold and OpenFold 3."""

import math

import pytest
import torch
from torch import Tensor

from pyrosys.losses import Frames, distogram_loss, frame_aligned_point_error, smooth_lddt_loss
from tests.losses.oracles import openfold, openfold3


def rotations(*shape: int) -> Tensor:
    matrix = torch.linalg.qr(torch.randn(*shape, 3, 3, dtype=torch.double)).Q
    return matrix * torch.linalg.det(matrix)[..., None, None]


def chain(length: int, batch: int = 2, atoms: int = 3) -> Tensor:
    """Coordinates of the extent of a small protein, (batch, length, atoms, 3)."""
    steps = torch.randn(batch, length, 1, 3, dtype=torch.double)
    return (3.8 * torch.nn.functional.normalize(steps, dim=-1)).cumsum(1) + torch.randn(
        batch, length, atoms, 3, dtype=torch.double
    )


def frames_of(points: Tensor) -> Frames:
    return Frames.from_points(*points.unbind(2))


def masks(length: int) -> Tensor:
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[0, -3:] = mask[1, 4] = False
    return mask


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


def test_distogram_is_that_of_openfold_off_the_diagonal() -> None:
    points, mask, logits = chain(25, atoms=1).squeeze(2), masks(25), torch.randn(2, 25, 25, 64, dtype=torch.double)
    logits = logits + logits.transpose(1, 2)
    for row in range(2):
        sure = logits[[row]].clone()
        sure[:, range(25), range(25), 0] = 1e4  # no error on the diagonal, which they count
        with openfold() as (loss, _):
            theirs = loss.distogram_loss(sure, points[[row]], mask[[row]].double(), eps=0)
        residues = mask[row].sum()
        ours = distogram_loss(logits[[row]], points[[row]], mask[[row]]).value
        torch.testing.assert_close(ours, theirs * residues / (residues - 1))


def test_distances_fall_into_the_right_bins() -> None:
    edges = torch.linspace(2.3125, 21.6875, 63)
    middles = torch.cat([edges[:1] - 0.1, (edges[1:] + edges[:-1]) / 2, edges[-1:] + 100])
    for bin, length in enumerate(middles.tolist()):
        points = torch.tensor([[[0.0, 0.0, 0.0], [0.0, length, 0.0]]])
        logits = torch.zeros(1, 2, 2, 64)
        logits[..., bin] = 50.0
        assert distogram_loss(logits, points, torch.ones(1, 2, dtype=torch.bool)).value == 0


def test_the_diagonal_of_a_distogram_does_not_count() -> None:
    points, logits = chain(9, atoms=1).squeeze(2), torch.randn(2, 9, 9, 64, dtype=torch.double)
    expected = distogram_loss(logits, points, masks(9)).value
    logits[:, range(9), range(9)] = torch.nan
    torch.testing.assert_close(distogram_loss(logits, points, masks(9)).value, expected)


@pytest.mark.parametrize("radius", [15.0, 30.0])
def test_smooth_lddt_is_that_of_openfold3(radius: float) -> None:
    points, truth, mask = (x.squeeze(2) for x in (chain(40, atoms=1), chain(40, atoms=1), masks(40)[..., None]))
    nucleotide = torch.full((1, 40), int(radius == 30))
    for row in range(2):
        batch = {
            "ground_truth": {"atom_positions": truth[[row]], "atom_resolved_mask": mask[[row]].double()},
            "token_mask": torch.ones(1, 40),
            "num_atoms_per_token": torch.ones(1, 40, dtype=torch.long),
            "is_dna": nucleotide,
            "is_rna": torch.zeros(1, 40),
        }
        with openfold3("core.loss.diffusion") as theirs:
            expected = theirs.smooth_lddt_loss(points[[row]], batch, torch.ones(1, 40), 1e-9)
        ours = smooth_lddt_loss(points[[row]], truth[[row]], mask[[row]], radius=radius)
        torch.testing.assert_close(ours.value, expected[0], rtol=1e-5, atol=0)


def test_smooth_lddt_does_not_see_rigid_motion() -> None:
    points, truth, mask = (x.squeeze(2) for x in (chain(12, atoms=1), chain(12, atoms=1), masks(12)[..., None]))
    moved = points @ rotations(2) + 5
    torch.testing.assert_close(smooth_lddt_loss(moved, truth, mask).value, smooth_lddt_loss(points, truth, mask).value)


def test_smooth_lddt_at_its_limits() -> None:
    points, mask = chain(12, atoms=1).squeeze(2), masks(12)
    kept = sum(1 / (1 + math.exp(-limit)) for limit in (0.5, 1, 2, 4)) / 4
    assert smooth_lddt_loss(points, points, mask).value.item() == pytest.approx(1 - kept)
    assert smooth_lddt_loss(1e4 * points, points, mask).value.item() == pytest.approx(1)
    assert smooth_lddt_loss(points, 1e4 * points, mask).count == 0  # nothing has a neighbour
