"""Data for training: preparing files, sampling batches, and turning rows into tensors.

`prepare` turns FASTA, CSV and structure files into a data set of Parquet or Arrow files; `DataModule` gives its batches.
"""

from pyrosys.training.data.dataset import Dataset
from pyrosys.training.data.module import Batches, DataModule
from pyrosys.training.data.prepare import prepare
from pyrosys.training.data.recipes import Backbones, Labelled, MaskedResidues, Recipe
from pyrosys.training.data.sampling import Sampler, padding_waste

__all__ = [
    "Backbones",
    "Batches",
    "DataModule",
    "Dataset",
    "Labelled",
    "MaskedResidues",
    "Recipe",
    "Sampler",
    "padding_waste",
    "prepare",
]
