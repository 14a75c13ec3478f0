"""Random structures for the tests of losses."""

import torch
from torch import Tensor

from pyrosys.losses import Frames

__all__ = ["chain", "frames_of", "masks", "rotations"]


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
