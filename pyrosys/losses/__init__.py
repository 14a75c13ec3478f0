"""Losses: pure functions from predictions and truth to an `Average`, which keeps sum and count apart.

A mask is ``True`` where a residue, frame, point or pair is real and counts; whatever stands where it is ``False``, NaN
included, changes neither loss nor gradient. Losses are reduced in single precision whatever the precision of the
predictions, double stays double, and automatic mixed precision does not reach into them. Lengths are in Å. ``B`` is
the batch.
"""

from pyrosys.losses.average import Average
from pyrosys.losses.classification import cross_entropy, inverse_folding_loss
from pyrosys.losses.distogram import distogram_loss
from pyrosys.losses.frames import Frames, frame_aligned_point_error
from pyrosys.losses.lddt import smooth_lddt_loss
from pyrosys.losses.regression import squared_error

__all__ = [
    "Average",
    "Frames",
    "cross_entropy",
    "distogram_loss",
    "frame_aligned_point_error",
    "inverse_folding_loss",
    "smooth_lddt_loss",
    "squared_error",
]
