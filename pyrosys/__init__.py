"""PyroSys: a zoo of protein models whose weights are kept and found by structure, not by parameter name.

Nothing heavy is imported with the package: each public name is resolved when it is first used.

Example:
    >>> import pyrosys
    >>> "load" in dir(pyrosys)
    True
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyrosys import adapters, analysis, errors, hub, losses, metrics, modules, zoo
    from pyrosys.adapters import (
        Candidates,
        Certificate,
        Difference,
        Inputs,
        Plan,
        StructureCard,
        candidates,
        diff,
        fingerprint,
        match,
    )
    from pyrosys.catalogue import info, list_models
    from pyrosys.errors import PyrosysError, StructureMismatch
    from pyrosys.fetching import fetch, where
    from pyrosys.finding import Found, find
    from pyrosys.loading import load
    from pyrosys.model import Model
    from pyrosys.porting import Port, port
    from pyrosys.publishing import Published, publish
    from pyrosys.structure import Structure, read_structure
    from pyrosys.verifying import Checked, verify

__all__ = [
    "Candidates",
    "Certificate",
    "Checked",
    "Difference",
    "Found",
    "Inputs",
    "Model",
    "Plan",
    "Port",
    "Published",
    "PyrosysError",
    "Structure",
    "StructureCard",
    "StructureMismatch",
    "adapters",
    "analysis",
    "candidates",
    "diff",
    "errors",
    "fetch",
    "find",
    "fingerprint",
    "hub",
    "info",
    "list_models",
    "load",
    "losses",
    "match",
    "metrics",
    "modules",
    "port",
    "publish",
    "read_structure",
    "verify",
    "where",
    "zoo",
]

__version__ = "0.1.0"

_NAMES = {
    "pyrosys.adapters": (
        "Candidates",
        "Certificate",
        "Difference",
        "Inputs",
        "Plan",
        "StructureCard",
        "candidates",
        "diff",
        "fingerprint",
        "match",
    ),
    "pyrosys.catalogue": ("info", "list_models"),
    "pyrosys.errors": ("PyrosysError", "StructureMismatch"),
    "pyrosys.fetching": ("fetch", "where"),
    "pyrosys.finding": ("Found", "find"),
    "pyrosys.loading": ("load",),
    "pyrosys.model": ("Model",),
    "pyrosys.porting": ("Port", "port"),
    "pyrosys.publishing": ("Published", "publish"),
    "pyrosys.structure": ("Structure", "read_structure"),
    "pyrosys.verifying": ("Checked", "verify"),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}


if not TYPE_CHECKING:  # or checkers would believe that every name exists

    def __getattr__(name: str) -> object:
        """Import what a public name stands for, once, when it is first asked for."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name in _HOMES:
            value = getattr(importlib.import_module(_HOMES[name]), name)
        else:
            value = importlib.import_module(f"{__name__}.{name}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
