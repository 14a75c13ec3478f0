"""How well contacts are predicted."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyrosys.errors import InputError
from pyrosys.losses import Average
from pyrosys.losses.average import reduced
from pyrosys.metrics.average import AverageMetric, average_rows
from pyrosys.modules.geometry import distance

__all__ = ["ContactPrecision", "contact_map", "contact_precision"]


def contact_map(
    points: Float[Tensor, "batch length 3"], mask: Bool[Tensor, "batch length"], limit: float = 8.0
) -> Bool[Tensor, "batch length length"]:
    """Which residues are closer than ``limit`` Å; none that the mask leaves out.

    Args:
        points: One point per residue, usually its CB, or CA for glycine.
        mask: Residues whose place is known.
        limit: In Å.
    """
    known = reduced(points.where(mask[..., None], 0))
    return (distance(known[:, :, None], known[:, None]) < limit) & mask[:, :, None] & mask[:, None]


def contact_precision(
    probabilities: Float[Tensor, "batch length length"],
    contacts: Bool[Tensor, "batch length length"],
    mask: Bool[Tensor, "batch length"],
    *,
    divisor: int = 1,
    closest: int = 24,
    farthest: int | None = None,
) -> Average:
    """Share of contacts among the likeliest pairs, as many as the protein's length divided by ``divisor``.

    Pairs are of residues that are ``closest`` or more and ``farthest`` or less apart in the sequence. A protein that has
    fewer such pairs is judged by all of them, and one that has none does not count.

    Args:
        probabilities: Anything that is larger for likelier contacts, the same for both orders of a pair.
        contacts: The true contacts.
        mask: Residues whose contacts are known.
        divisor: 1 for the best L, 2 for L/2, 5 for L/5; at least one pair is taken.
        closest: 24 for long range, 12 for medium, 6 for short.
        farthest: 23 for medium range, 11 for short, ``None`` for no limit.

    Raises:
        InputError: The divisor or ``closest`` is less than 1.

    Source:
        Shrestha et al. 2019, https://doi.org/10.1002/prot.25787.
    """
    if divisor < 1 or closest < 1:
        raise InputError(f"Expected divisor and closest of 1 or more, found {divisor} and {closest}.")
    place = torch.arange(mask.shape[1], device=mask.device)
    apart = place - place[:, None]  # positive for one order of each pair only
    pairs = mask[:, :, None] & mask[:, None] & (apart >= closest)
    if farthest is not None:
        pairs &= apart <= farthest
    order = reduced(probabilities).masked_fill(~pairs, -torch.inf).flatten(1).argsort(1, descending=True)
    hits = (contacts & pairs).flatten(1).gather(1, order)
    wanted = torch.minimum((mask.sum(1) // divisor).clamp(min=1), pairs.sum((1, 2)))
    found = (hits & (torch.arange(hits.shape[1], device=mask.device) < wanted[:, None])).sum(1)
    return average_rows(found / wanted.clamp(min=1), wanted > 0)


class ContactPrecision(AverageMetric):
    """Mean over proteins of ``contact_precision``: P@L by default, for pairs at long range.

    Args:
        divisor: 1 for the best L, 2 for L/2, 5 for L/5.
        closest: Smallest separation in the sequence: 24 for long range, 12 for medium, 6 for short.
        farthest: Largest separation: 23 for medium range, 11 for short, ``None`` for no limit.

    Example:
        >>> metric = ContactPrecision(divisor=5, closest=6)
        >>> contacts = torch.rand(2, 30, 30) < 0.5
        >>> metric.update((contacts | contacts.mT).float(), contacts | contacts.mT, torch.ones(2, 30, dtype=torch.bool))
        >>> metric.compute().round(decimals=4)
        tensor(1.)
    """

    higher_is_better = True

    def __init__(self, divisor: int = 1, closest: int = 24, farthest: int | None = None) -> None:
        super().__init__()
        self.divisor, self.closest, self.farthest = divisor, closest, farthest

    def update(
        self,
        probabilities: Float[Tensor, "batch length length"],
        contacts: Bool[Tensor, "batch length length"],
        mask: Bool[Tensor, "batch length"],
    ) -> None:
        """Add proteins."""
        self.add(
            contact_precision(
                probabilities, contacts, mask, divisor=self.divisor, closest=self.closest, farthest=self.farthest
            )
        )
