"""All pairs, by family: one file each."""

import importlib

from tests.portbench.pair import Pair

__all__ = ["FAMILIES", "PAIRS"]

FAMILIES: dict[str, list[Pair]] = {
    name: importlib.import_module(f"{__name__}.{name}").PAIRS
    for name in (
        "protein_language_models",
        "inverse_folding",
        "folding_blocks",
        "language",
        "vision",
        "audio",
        "torch_modules",
    )
}
PAIRS: dict[str, Pair] = {pair.name: pair for family in FAMILIES.values() for pair in family}
