"""The tree of errors."""

import re
from collections.abc import Iterator

from pyrosys import errors


def tree(kind: type, depth: int = 0) -> Iterator[tuple[int, str]]:
    yield depth, kind.__name__
    declared = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    for child in sorted(declared, key=lambda child: child.__name__):
        yield from tree(child, depth + 1)


def test_tree_is_the_one_drawn() -> None:
    drawing = str(errors.__doc__).split("```")[1].strip().splitlines()
    names = [re.findall(r"\w+", line)[0] for line in drawing]
    assert [(line.index(name) // 4, name) for line, name in zip(drawing, names, strict=True)] == list(
        tree(errors.PyrosysError)
    )


def test_every_error_is_declared() -> None:
    assert errors.__all__ == sorted(name for name, value in vars(errors).items() if isinstance(value, type))


def test_errors_are_also_what_python_calls_them() -> None:
    assert issubclass(errors.InputError, ValueError)
    assert issubclass(errors.MissingExtra, ImportError)
