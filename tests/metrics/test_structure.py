"""Scores of structures, against biotite, OpenFold and a search by a general optimiser."""

import biotite.structure as biotite
import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation
from torch import Tensor

import pyrosys
from pyrosys.metrics import LDDT, RMSD, TMScore, lddt, rmsd, superpose, tm_score
from tests.losses.oracles import openfold

PROTEIN = "tests/data/1ubq.pdb"


@pytest.fixture(scope="module")
def native() -> Tensor:
    """CA atoms of ubiquitin, (76, 3)."""
    return torch.as_tensor(pyrosys.read_structure(PROTEIN).coordinates[:, 1]).double()


def moved(points: Tensor) -> Tensor:
    rotation = torch.as_tensor(Rotation.from_rotvec([0.3, -2.0, 1.1]).as_matrix())
    return points @ rotation + torch.tensor([10.0, -70.0, 3.0], dtype=torch.double)


def hinged(native: Tensor, angle: float) -> Tensor:
    """The second half of a protein turned about the hinge."""
    half = len(native) // 2
    turn = torch.as_tensor(Rotation.from_euler("x", angle, degrees=True).as_matrix())
    return torch.cat([native[:half], (native[half:] - native[half]) @ turn + native[half]])


def known(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def atoms(points: Tensor) -> biotite.AtomArray:
    """Points as the CA atoms of a chain."""
    array = biotite.AtomArray(len(points))
    array.coord = points.numpy().astype(np.float32)
    array.set_annotation("res_id", np.arange(len(points)))
    for name, value in (("chain_id", "A"), ("res_name", "GLY"), ("atom_name", "CA")):
        array.set_annotation(name, np.full(len(points), value))
    return array


def test_superposition_undoes_rigid_motion(native: Tensor) -> None:
    back = superpose(moved(native)[None], native[None], known(1, 76))
    torch.testing.assert_close(back[0], native)


def test_superposition_and_rmsd_are_those_of_biotite(native: Tensor) -> None:
    for noise in (0.1, 3.0, 30.0):
        points = moved(native) + noise * torch.randn(76, 3)
        mask = torch.rand(1, 76) < 0.7
        chosen = mask[0].numpy()
        expected, transformation = biotite.superimpose(native.numpy()[chosen], points.numpy()[chosen])
        ours = superpose(points[None], native[None], mask)
        np.testing.assert_allclose(ours[0].numpy(), transformation.apply(points.numpy()), rtol=1e-5, atol=1e-4)
        value = biotite.rmsd(native.numpy()[chosen], expected)
        assert rmsd(points[None], native[None], mask).item() == pytest.approx(value, rel=1e-5)


def test_mirror_images_are_not_the_same(native: Tensor) -> None:
    mirror = native * torch.tensor([1.0, 1.0, -1.0])
    assert rmsd(mirror[None], native[None], known(1, 76)) > 5
    assert tm_score(mirror[None], native[None], known(1, 76)) < 0.5
    assert lddt(mirror[None], native[None], known(1, 76)) == 1  # distances are the same


@pytest.mark.parametrize("noise", [0.2, 1.0, 4.0])
def test_lddt_is_that_of_biotite_and_openfold(native: Tensor, noise: float) -> None:
    points = moved(native) + noise * torch.randn(76, 3, dtype=torch.double)
    mask = torch.rand(76) < 0.8
    ours = lddt(points[None], native[None], mask[None]).item()
    theirs = biotite.lddt(atoms(native), points.numpy().astype(np.float32))
    assert lddt(points[None], native[None], known(1, 76)).item() == pytest.approx(theirs, rel=1e-5)
    with openfold() as (loss, _):
        theirs = loss.lddt(points[None], native[None], mask[None, :, None].double(), per_residue=False)
    assert ours == pytest.approx(theirs.item(), rel=1e-5)


def test_tm_score_of_a_superposition_is_that_of_biotite(native: Tensor) -> None:
    """Noise without a pattern is best superposed by a search that starts at the least squares."""
    points = native + 0.3 * torch.randn(76, 3, dtype=torch.double)
    indices = np.arange(76)
    after = superpose(points[None], native[None], known(1, 76))[0]
    theirs = biotite.tm_score(atoms(native), atoms(after), indices, indices)
    ours = tm_score(moved(points)[None], native[None], known(1, 76)).item()
    assert theirs - 1e-6 < ours < theirs + 1e-3


@pytest.mark.parametrize("angle", [30.0, 90.0, 180.0])
def test_tm_score_is_the_largest_that_an_optimiser_finds(native: Tensor, angle: float) -> None:
    points, true = hinged(native, angle).numpy(), native.numpy()
    scale = 1.24 * (76 - 15) ** (1 / 3) - 1.8

    def negative_score(motion: np.ndarray) -> float:
        placed = Rotation.from_rotvec(motion[:3]).apply(points - points.mean(0)) + motion[3:]
        return -float(np.mean(1 / (1 + ((placed - true) ** 2).sum(1) / scale**2)))

    generator = np.random.default_rng(0)
    starts = [np.concatenate([generator.normal(size=3), true.mean(0) + generator.normal(size=3)]) for _ in range(12)]
    best = -min(minimize(negative_score, start, method="BFGS").fun for start in starts)
    ours = tm_score(moved(torch.as_tensor(points))[None], native[None], known(1, 76)).item()
    assert ours == pytest.approx(best, abs=0.01)
    least_squares = superpose(torch.as_tensor(points)[None], native[None], known(1, 76))[0]
    indices = np.arange(76)
    assert ours > biotite.tm_score(atoms(native), atoms(least_squares), indices, indices)


@pytest.mark.parametrize("score", [rmsd, lddt, tm_score])
def test_scores_do_not_see_rigid_motion_or_what_is_masked(score, native: Tensor) -> None:
    points = native + torch.randn(76, 3, dtype=torch.double)
    mask = torch.rand(1, 76) < 0.8
    expected = score(points[None], native[None], mask)
    torch.testing.assert_close(score(moved(points)[None], native[None], mask), expected)
    for array in (points, true := native.clone()):
        array[~mask[0]] = torch.nan
    torch.testing.assert_close(score(points[None], true[None], mask), expected)
    short = points[mask[0]][None], native[mask[0]][None]
    torch.testing.assert_close(score(*short, known(*short[0].shape[:2])), expected)


@pytest.mark.parametrize("metric", [LDDT(), RMSD(), TMScore()])
def test_metrics_are_means_over_structures_that_have_points(metric, native: Tensor) -> None:
    points = native + torch.randn(3, 76, 3, dtype=torch.double)
    mask = known(3, 76)
    mask[1], mask[2, 40:] = False, False
    with torch.autocast("cpu", torch.bfloat16):
        metric.update(points, native.expand(3, 76, 3), mask)
    scores = type(metric).score(points, native.expand(3, 76, 3), mask)
    assert scores[1].isnan()
    assert metric.compute().item() == pytest.approx(scores[[0, 2]].mean().item(), rel=1e-5)
    metric.reset()


@pytest.mark.parametrize(("metric", "expected"), [(LDDT(), 0.0), (RMSD(), None), (TMScore(), None)])
def test_predictions_that_are_not_numbers_show(metric, expected: float | None, native: Tensor) -> None:
    metric.update(torch.full((1, 76, 3), torch.nan), native[None].float(), known(1, 76))
    value = metric.compute().item()
    assert value == expected if expected is not None else np.isnan(value)
    metric.reset()


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_tiny_structures_have_scores(length: int) -> None:
    points = torch.randn(1, length, 3, dtype=torch.double)
    assert rmsd(moved(points), points, known(1, length)).item() < 1e-9
    assert tm_score(moved(points), points, known(1, length)).item() == pytest.approx(1)
