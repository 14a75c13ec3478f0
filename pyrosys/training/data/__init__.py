"""Data for training: preparing files, sampling batches, and turning rows into tensors.

`prepare` turns FASTA, CSV and structure files into a data set of Parquet or Arrow files; `DataModule` gives its batches.
Preparing does not import torch.
"""

from typing import TYPE_CHECKING, Any

from pyrosys.training.data.dataset import Dataset
from pyrosys.training.data.preparation import prepare
from pyrosys.training.data.sampling import Sampler, padding_waste

if TYPE_CHECKING:
    from pyrosys.training.data.module import Batches, DataModule
    from pyrosys.training.data.recipes import Backbones, Labelled, MaskedResidues, Recipe

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


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for."""
    if name in __all__:
        from pyrosys.training.data import module, recipes

        return getattr(module if name in module.__all__ else recipes, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
