"""Training: data, tasks and runs. It needs the extra `pyrosys[train]`; nothing of it is imported to use a model."""

from pyrosys.errors import MissingExtra

try:
    from pyrosys.training.data import Backbones, DataModule, Labelled, MaskedResidues, prepare
    from pyrosys.training.inverse_folding import InverseFoldingTask
    from pyrosys.training.language import MaskedLanguageTask
    from pyrosys.training.optimiser import Optimiser
    from pyrosys.training.supervised import SupervisedTask
    from pyrosys.training.task import Task
    from pyrosys.training.trainer import Result, Trainer
    from pyrosys.training.tuning import Frozen, Full, LowRank
except ModuleNotFoundError as error:
    raise MissingExtra.needed("train", error) from error

__all__ = [
    "Backbones",
    "DataModule",
    "Frozen",
    "Full",
    "InverseFoldingTask",
    "Labelled",
    "LowRank",
    "MaskedLanguageTask",
    "MaskedResidues",
    "Optimiser",
    "Result",
    "SupervisedTask",
    "Task",
    "Trainer",
    "prepare",
]
