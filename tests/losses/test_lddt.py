"""Smooth lDDT: its limits, what it does not see, and OpenFold 3."""

import math

import pytest
import torch

from pyrosys.losses import smooth_lddt_loss
from tests.losses.oracles import openfold3
from tests.losses.structures import chain, masks, rotations


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
