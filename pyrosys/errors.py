"""Every error that PyroSys raises on purpose, in one tree.

```
PyrosysError
├── CaptureError
├── InputError (also a ValueError)
├── MissingExtra (also an ImportError)
├── PlanError
├── PublishError
├── SourceError
├── StructureMismatch
├── TrainingError
├── VerificationError
└── WeightsError
    └── IntegrityError
```

Each carries one message that says what was expected, what was found, and what to do next.

Example:
    >>> from pyrosys.errors import InputError, PyrosysError
    >>> try:
    ...     raise InputError("Expected a sequence of at least 1 residue, found none. Pass one-letter residue codes.")
    ... except PyrosysError as error:
    ...     print(error)
    Expected a sequence of at least 1 residue, found none. Pass one-letter residue codes.
"""

from __future__ import annotations

__all__ = [
    "CaptureError",
    "InputError",
    "IntegrityError",
    "MissingExtra",
    "PlanError",
    "PublishError",
    "PyrosysError",
    "SourceError",
    "StructureMismatch",
    "TrainingError",
    "VerificationError",
    "WeightsError",
]


class PyrosysError(Exception):
    """Base of all errors raised on purpose; catch it to catch them all."""


class CaptureError(PyrosysError):
    """A model's forward pass could not be recorded as a structure graph."""


class InputError(PyrosysError, ValueError):
    """What the caller passed cannot be used: a wrong shape, an unknown residue, an argument out of range."""


class MissingExtra(PyrosysError, ImportError):
    """An optional dependency is needed and not installed; the message names the extra to install."""

    @classmethod
    def needed(cls, extra: str, error: ModuleNotFoundError) -> MissingExtra:
        """The error to raise when an import that an extra provides has failed."""
        return cls(
            f"Expected what pyrosys[{extra}] installs, found no module {error.name!r}. "
            f"Run: pip install 'pyrosys[{extra}]'"
        )


class PlanError(PyrosysError):
    """A weight plan cannot be read, applied or inverted."""


class PublishError(PyrosysError):
    """An entry could not be published: not permitted, not reachable, published by another at the same time, or not sound."""


class SourceError(PyrosysError):
    """A name or file could not be obtained: unknown, not found, not permitted, or not reachable."""


class StructureMismatch(PyrosysError):
    """Two models do not share a structure, or share it in more than one way that nothing decides.

    Attributes:
        found: What the engine knows of the two, for `pyrosys.diff`; None where it did not come so far.
    """

    def __init__(self, message: str, found: object = None):
        super().__init__(message)
        self.found = found


class TrainingError(PyrosysError):
    """Training cannot go on: the loss is not finite, or a worker failed."""


class VerificationError(PyrosysError):
    """A mapped model does not compute what its source computes; the message names where they first part."""


class WeightsError(PyrosysError):
    """A weights file is malformed, incomplete, or does not fit the model it is meant for."""


class IntegrityError(WeightsError):
    """A file's digest is not the one on record."""
