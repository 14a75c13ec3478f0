"""JSON from files that nobody vouches for."""

import json
from typing import Any

from pyrosys.errors import WeightsError

__all__ = ["parse_object"]


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object, refusing what parsers disagree about: duplicate keys, NaN, encodings other than UTF-8.

    Args:
        data: The encoded object.
        where: What the object is, for messages.

    Raises:
        WeightsError: The data is not one unambiguous JSON object.
    """
    try:
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"Expected {where} to be JSON, found: {error}. Obtain the file again.") from error
    if not isinstance(parsed, dict):
        raise WeightsError(f"Expected {where} to be a JSON object, found {type(parsed).__name__}.")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = {}
    for name, value in pairs:
        if name in unique:
            raise ValueError(f"the key {name!r} occurs twice")
        unique[name] = value
    return unique


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
