"""Losses of other packages, imported past what these packages do on import and do not need for their losses."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from unittest.mock import MagicMock

__all__ = ["openfold", "openfold3"]


@contextmanager
def openfold() -> Iterator[tuple[ModuleType, ModuleType]]:
    """The losses and the rigid frames of OpenFold, as they are in the wheel of frame2seq.

    There it is called framerator in places, and asks for packages that the losses do not use.
    """
    with _shadowed():
        for name in ("framerator", "framerator.utils", "framerator.openfold", "framerator.openfold.utils"):
            _put_bare_package(name, _folder("frame2seq") + name.removeprefix("framerator").replace(".", "/"))
        for name in ("framerator.openfold.utils.feats", "ml_collections", "tree"):
            sys.modules[name] = MagicMock()
        setattr(sys.modules["framerator.openfold.utils"], "feats", MagicMock())  # noqa: B010
        names = ("framerator.openfold.utils.loss", "framerator.openfold.utils.rigid_utils")
        loss, rigid = (importlib.import_module(name) for name in names)
        yield loss, rigid


@contextmanager
def openfold3(module: str) -> Iterator[ModuleType]:
    """A module of openfold3, whose package asks for gemmi."""
    with _shadowed():
        _put_bare_package("openfold3", _folder("openfold3"))
        yield importlib.import_module(f"openfold3.{module}")


SHADOWED = ("framerator", "ml_collections", "openfold3", "tree")


@contextmanager
def _shadowed() -> Iterator[None]:
    """Import packages anew, and leave the loaded modules as they were."""
    before = _take_away()
    try:
        yield
    finally:
        _take_away()
        sys.modules.update(before)


def _take_away() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.partition(".")[0] in SHADOWED]
    return {name: sys.modules.pop(name) for name in names}


def _folder(package: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return next(iter(spec.submodule_search_locations))


def _put_bare_package(name: str, folder: str) -> None:
    """Let the modules of a package be found without running its own code."""
    package = ModuleType(name)
    package.__path__ = [folder]
    sys.modules[name] = package
