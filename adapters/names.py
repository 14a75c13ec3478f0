"""Many names in few words."""

import re
from collections.abc import Iterable

__all__ = ["folded", "listing"]

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def folded(names: Iterable[str]) -> list[tuple[str, int]]:
    """Names with ranges in place of running numbers, and how many names each stands for.

    Names are taken together when they differ in their numbers only and the numbers run through a grid.

    Example:
        >>> folded(["layers.0.norm.weight", "layers.1.norm.weight", "layers.2.norm.weight", "head.weight"])
        [('layers.{0..2}.norm.weight', 3), ('head.weight', 1)]
    """
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(_NUMBER.sub("\0", name), []).append(name)
    found: list[tuple[str, int]] = []
    for pattern, members in groups.items():
        columns = list(zip(*([int(n) for n in _NUMBER.findall(name)] for name in members), strict=True))
        values = [sorted(set(column)) for column in columns]
        size = 1
        for column in values:
            size *= len(column)
        if len(members) == 1 or size != len(members):
            found += [(name, 1) for name in members]
            continue
        parts = pattern.split("\0")
        text = parts[0] + "".join(_range(v) + part for v, part in zip(values, parts[1:], strict=True))
        found.append((text, len(members)))
    return found


def listing(label: str, names: list[str]) -> str:
    """The first few names after a label, and how many more there are; nothing where there are none."""
    if not names:
        return ""
    shown = ", ".join(map(repr, names[:5]))
    return f"{label} {shown}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _range(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    if numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 2:
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return f"{{{','.join(map(str, numbers))}}}"
