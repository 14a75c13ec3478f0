"""Lines of generated Python that are alike but for running numbers, as one line in a loop.

A line is a list of tokens: code, numbers in code, and names of tensors, whose running numbers are tokens too. Lines that
differ in their numbers only, each of which grows by a fixed step, become one line with a loop variable.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence

__all__ = ["Loop", "Token", "code", "fold", "folded_lines", "name", "render", "verbatim"]

VARIABLES = "ijk"  # of loops, the outermost first


@dataclasses.dataclass(frozen=True)
class Token:
    """A piece of a line.

    Attributes:
        kind: `"code"`, `"number"`, or in a name `"name"`; `"("` and `")"` open and close a name, `"{"` and `"}"` an expression
            in a name.
        text: of code and names.
        number: of numbers.
    """

    kind: str
    text: str = ""
    number: int = 0


Line = list[Token]
_NUMBER = re.compile(r"(?<![^.])(?:0|[1-9]\d{0,17})(?![^.])")
_CODE_NUMBER = re.compile(r"(?<![\w.])\d+(?![\w.])")


def code(text: str) -> Line:
    """Python, whose whole numbers may become running ones."""
    return _split(text, _CODE_NUMBER, "code")


def verbatim(text: str) -> Line:
    """Python whose numbers are no running ones: fractions, and what has a sign."""
    return [Token("code", text)]


def name(text: str) -> Line:
    """A name of a tensor, as a string literal, whose numbered parts may become running ones."""
    return [Token("("), *_split(text, _NUMBER, "name"), Token(")")]


def _split(text: str, number: re.Pattern[str], kind: str) -> Line:
    line: Line = []
    at = 0
    for match in number.finditer(text):
        line += [Token(kind, text[at : match.start()]), Token("number", number=int(match[0]))]
        at = match.end()
    return [*line, Token(kind, text[at:])]


def render(line: Iterable[Token]) -> str:
    """The line as Python."""
    out: list[str] = []
    literal: list[Token] | None = None
    for token in line:
        if token.kind == "(":
            literal = []
        elif token.kind == ")":
            assert literal is not None
            out.append(_literal(literal))
            literal = None
        elif literal is not None:
            literal.append(token)
        else:
            out.append(str(token.number) if token.kind == "number" else token.text)
    return "".join(out)


def _literal(tokens: list[Token]) -> str:
    formatted = any(token.kind == "{" for token in tokens)
    out: list[str] = []
    for token in tokens:
        if token.kind in "{}":
            out.append(token.kind)
        elif token.kind == "number":
            out.append(str(token.number))
        elif token.kind == "code":
            out.append(token.text)
        else:
            text = token.text.encode("unicode_escape").decode().replace('"', '\\"')
            out.append(text.replace("{", "{{").replace("}", "}}") if formatted else text)
    return f'{"f" if formatted else ""}"{"".join(out)}"'


def fold(lines: Sequence[Line], variable: str) -> Line | None:
    """One line that stands for several in a loop from 0; None where their numbers do not grow by fixed steps."""
    first = lines[0]
    if any(_skeleton(line) != _skeleton(first) for line in lines):
        return None
    out: Line = []
    depth = ""
    for position, token in enumerate(first):
        depth = token.kind if token.kind in "(){}" else depth
        if token.kind != "number":
            out.append(token)
            continue
        numbers = [line[position].number for line in lines]
        step = numbers[1] - numbers[0] if len(numbers) > 1 else 0
        if any(n != numbers[0] + step * i for i, n in enumerate(numbers)) or step < 0:
            return None
        if step == 0:
            out.append(token)
            continue
        running = _running(step, numbers[0], variable)
        out += [Token("{"), *running, Token("}")] if depth in ("(", "}") else running
    return out


def _running(step: int, start: int, variable: str) -> Line:
    line = [Token("code", variable)] if step == 1 else [Token("number", number=step), Token("code", f" * {variable}")]
    return [*line, Token("code", " + "), Token("number", number=start)] if start else line


def _skeleton(line: Line) -> tuple[tuple[str, str], ...]:
    return tuple((token.kind, token.text) for token in line)


@dataclasses.dataclass(frozen=True)
class Loop:
    """Lines under loops over ranges that start at 0; no ranges for lines that stand alone."""

    ranges: tuple[int, ...]
    lines: tuple[Line, ...]

    def __str__(self) -> str:
        heads = [
            f"{'    ' * depth}for {v} in range({n}):"
            for depth, (v, n) in enumerate(zip(VARIABLES[: len(self.ranges)], self.ranges, strict=True))
        ]
        indent = "    " * len(self.ranges)
        body = [f"{indent}{part}" for line in self.lines for part in render(line).split("\n")]
        return "\n".join([*heads, *body])


def folded_lines(lines: Sequence[Line]) -> list[Loop]:
    """Lines as loops, in the order of what stands for the first of each."""
    groups: dict[tuple[tuple[str, str], ...], list[Line]] = {}
    for line in lines:
        groups.setdefault(_skeleton(line), []).append(line)
    loops: list[Loop] = []
    for members in groups.values():
        found = _grid(members, VARIABLES) if len(members) > 1 else None
        made = [((), line) for line in members] if found is None else [found]
        for ranges, line in made:
            if loops and loops[-1].ranges == ranges:
                loops[-1] = Loop(ranges, (*loops[-1].lines, line))
            else:
                loops.append(Loop(ranges, (line,)))
    return _gathered(loops)


def _gathered(loops: list[Loop]) -> list[Loop]:
    """Loops over the same ranges as one, where the first of them stands."""
    by_ranges: dict[tuple[int, ...], list[Line]] = {}
    for loop in loops:
        by_ranges.setdefault(loop.ranges, []).extend(loop.lines)
    return [Loop(ranges, tuple(lines)) for ranges, lines in by_ranges.items()]


def _grid(lines: list[Line], variables: str) -> tuple[tuple[int, ...], Line] | None:
    """Lines of one skeleton as one line under nested loops; the outermost runs with the first number that varies."""
    position = next(i for i, t in enumerate(lines[0]) if t.kind == "number" and any(x[i] != t for x in lines))
    parts: dict[int, list[Line]] = {}
    for line in lines:
        parts.setdefault(line[position].number, []).append(line)
    if not variables:
        return None
    inner = [((), part[0]) if len(part) == 1 else _grid(part, variables[1:]) for part in parts.values()]
    if any(found is None for found in inner):
        return None
    known = [found for found in inner if found is not None]
    if any(ranges != known[0][0] for ranges, _ in known):
        return None
    line = fold([line for _, line in known], variables[0])
    return None if line is None else ((len(known), *known[0][0]), line)
