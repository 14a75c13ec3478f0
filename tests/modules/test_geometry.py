"""Geometry: oracles, and what moves with a structure and what does not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from biotite.structure.io import pdb
from torch import Tensor

from pyrosys.modules.geometry import (
    AlphaCarbonGeometry,
    BackboneGeometry,
    alpha_carbon_frames,
    distance,
    nearest_neighbours,
    pair_features,
    quaternion,
    radial_basis,
    virtual_beta_carbon,
)

DATA = Path(__file__).parents[1] / "data"


def random_rotation(*shape: int) -> Tensor:
    """Rotation matrices, by the QR decomposition of random ones."""
    rotation = torch.linalg.qr(torch.randn(*shape, 3, 3, dtype=torch.double)).Q
    return rotation * torch.linalg.det(rotation)[..., None, None]


def helix(length: int) -> Tensor:
    """CA atoms of an ideal helix, shape (1, length, 3)."""
    turn = torch.arange(length, dtype=torch.double) * np.deg2rad(100)
    return torch.stack([2.3 * turn.cos(), 2.3 * turn.sin(), 1.5 * torch.arange(length)], -1)[None]


def test_distance_is_euclidean_and_has_a_gradient_at_zero():
    assert distance(torch.zeros(3), torch.tensor([3.0, 4.0, 0.0])) == pytest.approx(5.0)
    point = torch.zeros(3, requires_grad=True)
    distance(point, torch.zeros(3)).backward()
    assert point.grad is not None
    assert not point.grad.any()


def test_radial_basis_peaks_at_its_centres():
    basis = radial_basis(torch.linspace(2, 22, 16))
    assert basis.shape == (16, 16)
    assert torch.equal(basis.diagonal(), torch.ones(16))
    assert torch.equal(basis.argmax(-1), torch.arange(16))


def test_radial_basis_falls_to_1_over_e_at_one_spread():
    assert radial_basis(torch.tensor(3.25), count=16)[0] == pytest.approx(np.exp(-1), rel=1e-6)


def test_radial_basis_keeps_the_precision_of_the_distances():
    assert radial_basis(torch.tensor([5.0], dtype=torch.double)).dtype == torch.double


def test_nearest_neighbours_are_those_of_a_full_sort():
    points, mask = torch.randn(2, 11, 3), torch.ones(2, 11, dtype=torch.bool)
    expected = torch.cdist(points, points).argsort(-1)[..., :4]
    found = nearest_neighbours(points, mask, 4)
    assert torch.equal(found, expected)
    assert torch.equal(found[..., 0], torch.arange(11).expand(2, -1))


def test_there_are_no_more_neighbours_than_residues():
    points, mask = torch.randn(1, 5, 3), torch.ones(1, 5, dtype=torch.bool)
    assert nearest_neighbours(points, mask, 48).shape == (1, 5, 5)


def test_residues_that_are_not_real_are_no_neighbours_while_others_are_left():
    points, mask = torch.randn(1, 9, 3), torch.ones(1, 9, dtype=torch.bool)
    mask[0, [0, 4]] = False
    found = nearest_neighbours(points, mask, 7)[mask]
    assert not torch.isin(found, torch.tensor([0, 4])).any()
    assert torch.isin(nearest_neighbours(points, mask, 9)[mask][:, 7:], torch.tensor([0, 4])).all()


def test_the_virtual_beta_carbon_is_where_the_real_one_is():
    atoms = pdb.PDBFile.read(DATA / "1ubq.pdb").get_structure(model=1)
    found = []
    for residue in np.unique(atoms.res_id[~atoms.hetero]):
        here = atoms[(atoms.res_id == residue) & ~atoms.hetero]
        place = {name: torch.from_numpy(position) for name, position in zip(here.atom_name, here.coord, strict=True)}
        if "CB" in place:
            backbone = torch.stack([place[name] for name in ("N", "CA", "C", "O")])
            found.append((virtual_beta_carbon(backbone) - place["CB"]).norm())
    assert len(found) == 70  # all but six glycines
    assert torch.stack(found).mean() < 0.2
    assert torch.stack(found).max() < 0.4


def test_the_virtual_beta_carbon_knows_left_from_right():
    backbone = torch.randn(4, 3)
    mirror = torch.tensor([1.0, 1.0, -1.0])
    assert not torch.allclose(virtual_beta_carbon(backbone * mirror), virtual_beta_carbon(backbone) * mirror)


def test_frames_are_orthonormal():
    frames = alpha_carbon_frames(helix(9), torch.ones(1, 9, dtype=torch.bool))[0, 1:-2]
    torch.testing.assert_close(frames @ frames.mT, torch.eye(3).double().expand(6, 3, 3))
    torch.testing.assert_close(torch.linalg.det(frames), torch.ones(6).double())


def test_frames_turn_with_the_structure_and_do_not_move_with_it():
    points, mask, rotation = helix(9), torch.ones(1, 9, dtype=torch.bool), random_rotation()
    turned = alpha_carbon_frames(points @ rotation.mT + 5.0, mask)
    torch.testing.assert_close(turned, alpha_carbon_frames(points, mask) @ rotation.mT)


def test_frames_have_no_normal_at_the_ends_and_at_breaks():
    points = helix(12)
    points[:, 6:] += 20.0
    frames = alpha_carbon_frames(points, torch.ones(1, 12, dtype=torch.bool))
    normal = frames[0, :, 1].abs().amax(-1) > 0
    assert normal.tolist() == [False, *[True] * 4, False, False, *[True] * 3, False, False]
    assert not frames[0, [0, 10, 11]].any()


def test_frames_are_the_same_with_padding():
    points, mask = helix(9), torch.arange(13)[None] < 9
    padded = alpha_carbon_frames(torch.cat([points, torch.zeros(1, 4, 3)], 1), mask)
    assert torch.equal(padded[:, :9], alpha_carbon_frames(points, mask[:, :9]))
    assert not padded[:, 9:].any()


def test_a_quaternion_stands_for_its_rotation():
    rotation = random_rotation(50)
    x, y, z, w = quaternion(rotation).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    torch.testing.assert_close(torch.stack([torch.stack(row, -1) for row in rows], -2), rotation)
    assert (w >= 0).all()


def test_the_quaternion_of_no_rotation():
    assert quaternion(torch.eye(3)).tolist() == [0.0, 0.0, 0.0, 1.0]


def test_pair_features_go_from_the_residue_to_its_neighbour():
    points = {"left": torch.zeros(1, 2, 3), "right": torch.tensor([[[3.0, 0.0, 0.0], [0.0, 7.0, 0.0]]])}
    features = pair_features(points, torch.tensor([[[1], [0]]]), ("left-right", "right-left"), 4)
    expected = radial_basis(torch.tensor([[7.0, 3.0], [3.0, 7.0]]), 4).flatten(1)
    torch.testing.assert_close(features[0, :, 0], expected)


@pytest.mark.parametrize(("geometry", "width"), [(BackboneGeometry(16), 400), (AlphaCarbonGeometry(16), 151)])
def test_features_have_their_width(geometry, width):
    coordinates, mask = torch.randn(2, 7, 4, 3), torch.ones(2, 7, dtype=torch.bool)
    features = geometry(coordinates, mask, nearest_neighbours(coordinates[:, :, 1], mask, 3))
    assert features.shape == (2, 7, 3, geometry.width)
    assert geometry.width == width


def test_all_pairs_of_atoms_are_there_once():
    names = ("N", "CA", "C", "O", "CB")
    assert sorted(BackboneGeometry.pairs) == sorted(f"{a}-{b}" for a in names for b in names)
    names = ("before", "here", "after")
    assert sorted(AlphaCarbonGeometry.pairs) == sorted(f"{a}-{b}" for a in names for b in names)


def test_backbone_features_do_not_change_when_the_structure_moves():
    coordinates, mask = 8 * torch.randn(1, 9, 4, 3, dtype=torch.double), torch.ones(1, 9, dtype=torch.bool)
    neighbours = nearest_neighbours(coordinates[:, :, 1], mask, 9)
    moved = coordinates @ random_rotation().mT + 30.0
    features = BackboneGeometry(16)
    torch.testing.assert_close(features(moved, mask, neighbours), features(coordinates, mask, neighbours))


def test_directions_of_neighbours_turn_with_the_structure():
    coordinates, mask = torch.zeros(1, 9, 4, 3).double(), torch.ones(1, 9, dtype=torch.bool)
    coordinates[:, :, 1] = helix(9)
    neighbours = nearest_neighbours(coordinates[:, :, 1], mask, 9)
    features = AlphaCarbonGeometry(16)
    before, after = (
        features(x, mask, neighbours)[..., -7:-4] for x in (coordinates, coordinates @ random_rotation().mT)
    )
    torch.testing.assert_close(after, before)
