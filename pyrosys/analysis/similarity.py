"""How alike two models represent the same items: centred kernel alignment, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrosys.adapters.capture import Inputs
from pyrosys.analysis.observe import blocks, observe
from pyrosys.errors import InputError

__all__ = ["linear_cka", "representations", "similarity_matrix"]

ITEMS = 1024  # enough to tell layers apart; the work grows with the square


def linear_cka(
    first: Float[Tensor, "items first"], second: Float[Tensor, "items second"], *, unbiased: bool = True
) -> float:
    """Likeness of two representations of the same items, up to rotation and scale: 1 for the same, 0 for unrelated.

    Args:
        first: One representation.
        second: The other, of any width.
        unbiased: Whether to take off what few items in many dimensions have in common by chance. Then unrelated
            representations may be a little below 0, and at least 4 items are needed.

    Source:
        Kornblith et al. 2019, https://arxiv.org/abs/1905.00414; unbiased: Nguyen et al. 2021,
        https://arxiv.org/abs/2010.15327, equation 3.

    Example:
        >>> x = torch.randn(50, 8)
        >>> round(linear_cka(x, 3 * x @ torch.linalg.qr(torch.randn(8, 8)).Q), 4)
        1.0
    """
    return float(similarity_matrix({"": first}, {"": second}, unbiased=unbiased)[0, 0])


def similarity_matrix(
    first: Mapping[str, Float[Tensor, "items first"]],
    second: Mapping[str, Float[Tensor, "items second"]],
    *,
    unbiased: bool = True,
) -> Float[Tensor, "rows columns"]:
    """``linear_cka`` of every representation of one model (rows) with every one of another (columns).

    Raises:
        InputError: They are not of the same number of items, or of fewer than 4.
    """
    items = {len(x) for representation in (first, second) for x in representation.values()}
    if len(items) != 1 or min(items) < 4:
        raise InputError(
            f"Expected representations of the same items, at least 4, found {sorted(items)}. Run both models on the same."
        )
    rows, columns = (
        torch.stack([_centred_gram(x, unbiased).flatten() for x in representation.values()])
        for representation in (first, second)
    )
    norms = rows.norm(dim=1)[:, None] * columns.norm(dim=1)
    return rows @ columns.T / norms


def _centred_gram(x: Float[Tensor, "items width"], unbiased: bool) -> Float[Tensor, "items items"]:
    """Products of items, centred so that the sum of the product of two such matrices estimates their covariance."""
    x = x.double()
    x = x - x.mean(0)
    gram = x @ x.T
    if not unbiased:
        return gram
    # Without the diagonal, centred as in Székely and Rizzo 2014: rows and columns sum to zero again.
    items = len(gram)
    gram = gram.fill_diagonal_(0)
    means = gram.sum(0) / (items - 2)
    means = means - means.sum() / (2 * (items - 1))
    return (gram - means[:, None] - means).fill_diagonal_(0)


def representations(
    model: nn.Module, batches: Iterable[Inputs], names: Sequence[str] | None = None, items: int = ITEMS
) -> dict[str, Float[Tensor, "items width"]]:
    """What Modules return for the first ``items`` items, such as residues: all dimensions but the last are items.

    Args:
        model: Any module.
        batches: What to run it on.
        names: Which Modules; by default those that the model stacks.
        items: How many to keep at most.
    """
    found: dict[str, list[Tensor]] = {}
    kept: dict[str, int] = {}

    def keep(name: str, tensor: Tensor) -> None:
        rows = tensor.detach().flatten(0, -2)[: items - kept.get(name, 0)]
        found.setdefault(name, []).append(rows.cpu())
        kept[name] = kept.get(name, 0) + len(rows)

    observe(model, batches, keep, blocks(model) if names is None else names)
    return {name: torch.cat(parts) for name, parts in found.items()}
