"""Distograms: bins, the diagonal, and OpenFold."""

import torch

from pyrosys.losses import distogram_loss
from tests.losses.oracles import openfold
from tests.losses.structures import chain, masks


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
