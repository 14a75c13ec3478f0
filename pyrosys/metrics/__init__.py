"""Metrics: how good predictions are, gathered over batches and workers by torchmetrics, and as functions on tensors.

A metric is updated with batches of predictions, truth and a mask, which is ``True`` where a residue or point is real and
counts; what stands where it is ``False`` is not read. ``compute`` gives the value over everything seen since ``reset``,
the same for any split into batches and workers, and NaN if nothing was seen. Lengths are in Å. ``B`` is the batch.

Needs torchmetrics, which comes with ``pyrosys[train]``.
"""

from pyrosys.errors import MissingExtra

try:
    from pyrosys.metrics.average import Mean
    from pyrosys.metrics.contacts import ContactPrecision, contact_map, contact_precision
    from pyrosys.metrics.correlation import Spearman
    from pyrosys.metrics.sequence import Perplexity, PseudoPerplexity, SequenceRecovery
    from pyrosys.metrics.structure import LDDT, RMSD, TMScore, lddt, rmsd, superpose, tm_score
except ModuleNotFoundError as error:
    raise MissingExtra.needed("train", error) from error

__all__ = [
    "LDDT",
    "RMSD",
    "ContactPrecision",
    "Mean",
    "Perplexity",
    "PseudoPerplexity",
    "SequenceRecovery",
    "Spearman",
    "TMScore",
    "contact_map",
    "contact_precision",
    "lddt",
    "rmsd",
    "superpose",
    "tm_score",
]
