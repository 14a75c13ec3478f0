"""Frame aligned point error: how far points are off, seen from every frame."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from pyrosys.losses.average import Average, average_structures, reduced

__all__ = ["Frames", "frame_aligned_point_error"]


class Frames(NamedTuple):
    """Rigid frames: from local coordinates to global ones by ``rotation @ local + origin``.

    Args:
        rotation: Orthonormal matrices whose columns are the axes of the frame.
        origin: In Å.
    """

    rotation: Float[Tensor, "*batch frames 3 3"]
    origin: Float[Tensor, "*batch frames 3"]

    @classmethod
    def from_points(
        cls,
        first: Float[Tensor, "*batch frames 3"],
        centre: Float[Tensor, "*batch frames 3"],
        last: Float[Tensor, "*batch frames 3"],
    ) -> Frames:
        """Put a frame on three points, such as N, CA and C, by the Gram–Schmidt process.

        ``centre`` is the origin, ``last`` lies on the first axis, ``first`` in the plane of the first two. Three points
        on a line, or NaN, give no frame: keep them out with the mask of the loss.

        Source:
            Jumper et al. 2021, supplement, algorithm 21.
        """
        along = F.normalize(last - centre, dim=-1)
        to_first = first - centre
        across = F.normalize(to_first - (along * to_first).sum(-1, keepdim=True) * along, dim=-1)
        return cls(torch.stack([along, across, torch.linalg.cross(along, across)], -1), centre)


def frame_aligned_point_error(
    frames: Frames,
    points: Float[Tensor, "batch points 3"],
    true_frames: Frames,
    true_points: Float[Tensor, "batch points 3"],
    frame_mask: Bool[Tensor, "batch frames"],
    point_mask: Bool[Tensor, "batch points"],
    *,
    clamp: float | None = 10.0,
    length_scale: float = 10.0,
    epsilon: float = 1e-4,
) -> Average:
    """Distance between predicted and true points in the predicted and true frames, over frames and points, then structures.

    Args:
        frames: Predicted frames.
        points: Predicted points.
        true_frames: The true frames, in the same order.
        true_points: The true points.
        frame_mask: Frames that are known.
        point_mask: Points that are known.
        clamp: Largest error that counts, in Å; ``None`` for no limit.
        length_scale: Å that count as 1.
        epsilon: Added under the root, in Å², so that the gradient is finite at no error.

    Source:
        Jumper et al. 2021, https://doi.org/10.1038/s41586-021-03819-2, supplement, algorithm 28.

    Example:
        >>> points = torch.randn(1, 9, 3)
        >>> frames = Frames.from_points(points[:, 0::3], points[:, 1::3], points[:, 2::3])
        >>> known = torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 9, dtype=torch.bool)
        >>> frame_aligned_point_error(frames, points, frames, points, *known).value  # the root of epsilon
        tensor(0.0010)
    """
    with torch.autocast(points.device.type, enabled=False):
        seen = _see(frames, points, frame_mask, point_mask)
        true = _see(true_frames, true_points, frame_mask, point_mask)
        errors = torch.sqrt((seen - true).square().sum(-1) + epsilon)
        if clamp is not None:
            errors = errors.clamp(max=clamp)
        return average_structures(errors / length_scale, frame_mask[:, :, None] & point_mask[:, None])


def _see(
    frames: Frames,
    points: Float[Tensor, "batch points 3"],
    frame_mask: Bool[Tensor, "batch frames"],
    point_mask: Bool[Tensor, "batch points"],
) -> Float[Tensor, "batch frames points 3"]:
    """Every point in the local coordinates of every frame; zeros for what is masked."""
    rotation = reduced(frames.rotation.where(frame_mask[..., None, None], 0))
    origin = reduced(frames.origin.where(frame_mask[..., None], 0))
    known = reduced(points.where(point_mask[..., None], 0))
    # A column of the rotation is an axis, so that rows of differences times the rotation are local coordinates.
    return (known[:, None] - origin[:, :, None]) @ rotation
