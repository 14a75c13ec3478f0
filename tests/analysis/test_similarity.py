"""Kernel alignment: its formulas, what it does not see, and that it tells layers apart."""

import pytest
import torch
from torch import Tensor

from pyrosys import Inputs
from pyrosys.analysis import linear_cka, representations, similarity_matrix
from pyrosys.errors import InputError
from pyrosys.zoo.esm import ESM, ESMConfig


def centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


def test_it_is_the_ratio_of_norms_of_kornblith() -> None:
    x, y = torch.randn(30, 7, dtype=torch.double), torch.randn(30, 4, dtype=torch.double)
    a, b = centred(x), centred(y)
    expected = (a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert linear_cka(x, y, unbiased=False) == pytest.approx(expected.item(), rel=1e-12)


def unbiased_covariance(k: Tensor, m: Tensor) -> Tensor:
    """Equation 3 of Nguyen et al., with the sums written out."""
    n = len(k)
    k, m = (x - x.diagonal().diag() for x in (k, m))
    product = (k @ m).trace() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k @ m).sum() / (n - 2)
    return product / (n * (n - 3))


def test_unbiased_it_is_the_estimator_of_nguyen() -> None:
    x, y = torch.randn(20, 7, dtype=torch.double), torch.randn(20, 4, dtype=torch.double)
    k, m = x @ x.T, y @ y.T
    expected = unbiased_covariance(k, m) / (unbiased_covariance(k, k) * unbiased_covariance(m, m)).sqrt()
    assert linear_cka(x, y) == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("unbiased", [True, False])
def test_it_does_not_see_rotation_scale_or_shift(unbiased: bool) -> None:
    x, y = torch.randn(40, 7), torch.randn(40, 5)
    turned = 3 * x @ torch.linalg.qr(torch.randn(7, 7)).Q + 5
    assert linear_cka(x, turned, unbiased=unbiased) == pytest.approx(1, abs=1e-6)
    expected = linear_cka(x, y, unbiased=unbiased)
    assert linear_cka(turned, y, unbiased=unbiased) == pytest.approx(expected, abs=1e-6)
    assert linear_cka(y, x, unbiased=unbiased) == pytest.approx(expected, abs=1e-6)


def test_chance_is_taken_off() -> None:
    x, y = torch.randn(50, 500), torch.randn(50, 500)
    assert linear_cka(x, y, unbiased=False) > 0.8
    assert abs(linear_cka(x, y)) < 0.1


def test_a_model_is_most_like_itself() -> None:
    model = ESM(ESMConfig(layers=3, width=16, heads=4)).eval()
    found = representations(
        model, [Inputs(model.alphabet.encode(["MKTAYIAKQR"])), Inputs(model.alphabet.encode(["GS"]))]
    )
    assert list(found) == ["layers.0", "layers.1", "layers.2"]
    assert {tuple(x.shape) for x in found.values()} == {(16, 16)}
    matrix = similarity_matrix(found, found)
    torch.testing.assert_close(matrix.diagonal(), torch.ones(3, dtype=torch.double))
    torch.testing.assert_close(matrix, matrix.T)
    expected = linear_cka(found["layers.0"], found["layers.2"])
    assert matrix[0, 2].item() == pytest.approx(expected)
    assert len(representations(model, [Inputs(model.alphabet.encode(["MKTAYIAKQR"]))], items=5)["layers.0"]) == 5


@pytest.mark.parametrize("sizes", [(10, 11), (3, 3)])
def test_items_have_to_be_the_same_and_enough(sizes: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="at least 4"):
        linear_cka(torch.randn(sizes[0], 2), torch.randn(sizes[1], 2))
