"""The structure engine: read a model's structure, match two models, move weights across with proof."""

from pyrosys.adapters.candidates import Candidates, candidates
from pyrosys.adapters.capture import Inputs
from pyrosys.adapters.card import StructureCard
from pyrosys.adapters.certificate import Certificate, Comparison
from pyrosys.adapters.diff import Difference, diff
from pyrosys.adapters.fingerprint import Fingerprint, fingerprint
from pyrosys.adapters.match import match
from pyrosys.adapters.plan import Plan

__all__ = [
    "Candidates",
    "Certificate",
    "Comparison",
    "Difference",
    "Fingerprint",
    "Inputs",
    "Plan",
    "StructureCard",
    "candidates",
    "diff",
    "fingerprint",
    "match",
]
