"""A plan as the mapping by which `transformers` loads such checkpoints: `WeightRenaming` and `WeightConverter`.

Tensors that exchange elements form a group. A group of two is a renaming; others need a chain of the library's operations,
which is found by trying: tensors that hold the numbers of their elements go through a chain, and what comes out has to be what
the plan says. Rules that differ in the number of a layer only become one. The whole mapping is then run in the same way, with
the library's own code for names and operations, so that a mapping that is given out does what the plan does.
"""

import copy
import dataclasses
import itertools
import re
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyrosys.adapters.certificate import versions
from pyrosys.adapters.report import named_part
from pyrosys.errors import MissingExtra, PlanError

if TYPE_CHECKING:
    from pyrosys.adapters.plan import Plan

__all__ = ["conversions", "to_transformers"]

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_TRIED = 1 << 22  # names times patterns up to which the order of renamings is found from every name
Pair = tuple[str, str]
_PLAIN = re.compile(r"[A-Za-z0-9_.\-]+")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of the library, by name."""

    name: str
    arguments: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.arguments)})"


@dataclasses.dataclass(frozen=True)
class Rule:
    """One entry of a mapping; a renaming when it has no operations.

    Attributes:
        sources, targets: patterns as the library takes them.
        operations: in order.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    operations: tuple[Operation, ...] = ()


@dataclasses.dataclass(frozen=True)
class Group:
    """Tensors that exchange elements with each other only.

    Attributes:
        sources: names, in the order in which the targets take them; a `*` for a running number of a list of tensors.
        targets: names, in the order in which they take the sources.
        members: names of all source tensors.
        operations: what makes the targets from the sources.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    members: tuple[str, ...]
    operations: tuple[Operation, ...] = ()


def to_transformers(plan: "Plan", config: Any = None) -> str:
    """The text of a module with one function, `mapping`, that gives the list of the plan's renamings and converters.

    Args:
        plan: what to express.
        config: the configuration of the target; only with it are heads taken into another rotary order, because the library
            reads their number from it.

    Raises:
        PlanError: the library's operations cannot express the plan; the message names the tensor.
        MissingExtra: `transformers` is not installed, with which the mapping is checked.
    """
    rules = _rules(plan, config)
    used = sorted({o.name for r in rules for o in r.operations} | {_kind(r) for r in rules})
    lines = [
        f'"""A checkpoint of one layout in a model of another, for transformers. Written by PyroSys {versions()["pyrosys"]}."""',
        "",
        *([f"from transformers.core_model_loading import {', '.join(used)}", "", ""] if used else [""]),
        "def mapping():",
        '    """Renamings and converters, to be registered once for a class or type of model:',
        "",
        '        transformers.conversion_mapping.register_checkpoint_conversion_mapping("NameOfTheClass", mapping())',
        '    """',
        "    return [",
    ]
    return "\n".join([*lines, *(f"        {_text(rule)}," for rule in rules), "    ]", ""])


def conversions(plan: "Plan", config: Any = None) -> list[Any]:
    """The same as objects of the library."""
    return [_made(rule) for rule in _rules(plan, config)]


def _kind(rule: Rule) -> str:
    return "WeightConverter" if rule.operations else "WeightRenaming"


def _text(rule: Rule) -> str:
    parts = [_patterns(rule.sources), _patterns(rule.targets)]
    if rule.operations:
        parts.append(f"[{', '.join(map(str, rule.operations))}]")
    line = f"{_kind(rule)}({', '.join(parts)})"
    if len(line) <= 108:
        return line
    return f"{_kind(rule)}(\n            " + ",\n            ".join(parts) + ",\n        )"


def _patterns(patterns: Sequence[str]) -> str:
    texts = [f'r"{p}"' if "\\" in p else f'"{p}"' for p in patterns]
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


def _library() -> Any:
    try:
        from transformers import core_model_loading
    except ImportError as error:
        raise MissingExtra(
            "Expected transformers, version 5 or later, to write and check a mapping for it; it is not installed. "
            "Run `pip install 'transformers>=5'`."
        ) from error
    return core_model_loading


def _made(rule: Rule) -> Any:
    library = _library()
    if not rule.operations:
        return library.WeightRenaming(list(rule.sources), list(rule.targets))
    operations = [getattr(library, o.name)(**dict(o.arguments)) for o in rule.operations]
    return library.WeightConverter(list(rule.sources), list(rule.targets), operations)


# From plan to rules


def _rules(plan: "Plan", config: Any) -> list[Rule]:
    """Rules that do what the plan does."""
    if plan.zero:
        name, (step, *_) = next(iter(plan.zero.items()))
        part = named_part(step, plan.source[name].shape)
        raise PlanError(
            "Expected a plan that transformers can express, but no operation checks that "
            f"{part!r} of the checkpoint is {step.shift:g}. "
            'Use plan.export("python"), or plan.apply.'
        )
    groups, wrong = _Solver(plan, config).solved(), ""
    strays = _strays(plan, groups)
    names = [*strays, *((g.sources[0], g.targets[0]) for g in groups if not g.operations)]
    exact = [rule for group in groups for rule in _exact(group)]
    exact += [Rule(_escaped([name]), (other,)) for name, other in strays]
    for rules in (_general(groups, strays), _ordered(exact, names)):
        wrong = _wrong(plan, rules, config)
        if wrong is None:
            return rules
    raise _refusal(wrong, "the names of the two layouts cannot be told apart by patterns")


def _refusal(target: str, why: str) -> PlanError:
    return PlanError(
        f"Expected a plan that transformers can express, but {target!r} is beyond it: {why}. "
        'Use plan.export("python"), or plan.apply.'
    )


def _check_names(target: str, names: Iterable[str]) -> None:
    """Refuse names that would not stand for themselves in a pattern."""
    for name in names:
        if not _PLAIN.fullmatch(name):
            raise _refusal(target, f"the name {name!r} has characters that mean something in a pattern")


class _Solver:
    """Finds the groups of a plan and the operations of each."""

    def __init__(self, plan: "Plan", config: Any):
        self.plan = plan
        self.config = config
        self.state = _Numbered(plan)
        self.known: dict[str, tuple[bool, tuple[Operation, ...]]] = {}

    def solved(self) -> list[Group]:
        """All groups with their operations."""
        return [self._solve(sources, targets) for sources, targets in self._parts()]

    def _parts(self) -> list[tuple[list[str], list[str]]]:
        """Names of tensors that exchange elements with each other only, each in the order in which they are taken."""
        plan = self.plan
        home: dict[str, int] = {}
        parts: dict[int, tuple[list[str], list[str]]] = {}
        for target in [n for n in plan.target if n in plan.pieces]:
            self._check(target)
            names = list(dict.fromkeys(p.source for p in plan.pieces[target] if p.source is not None))
            numbers = dict.fromkeys(home[n] for n in names if n in home)
            first = next(iter(numbers), len(home))
            sources, targets = parts.setdefault(first, ([], []))
            for number in list(numbers)[1:]:
                other = parts.pop(number)
                sources += other[0]
                targets += other[1]
            sources += [n for n in names if n not in sources]
            targets.append(target)
            home.update(dict.fromkeys(sources, first))
        for sources, targets in parts.values():
            if len(targets) > 1 and len(sources) == 1:
                start = {t: min(p.source_offset for p in plan.pieces[t]) for t in targets}
                targets.sort(key=start.__getitem__)
            elif len(sources) > 1 and len(targets) == 1:
                begin = {n: [p.target_offset for p in plan.pieces[targets[0]] if p.source == n] for n in sources}
                sources.sort(key=lambda n, begin=begin: min(begin[n]))
        return list(parts.values())

    def _check(self, target: str) -> None:
        """Refuse what no operation can do."""
        for piece in self.plan.pieces[target]:
            if piece.keeps:
                raise _refusal(target, "a part of it keeps the target's own values")
            if piece.source is None:
                raise _refusal(target, f"it is set to {piece.shift:g} and is in no checkpoint")
            if piece.source in self.plan.computed:
                raise _refusal(target, f"it is computed from {', '.join(self.plan.reads(piece))}")
            if piece.scale != 1.0 or piece.shift != 0.0:
                raise _refusal(target, f"it is {piece.source!r} times {piece.scale:g} plus {piece.shift:g}")
        _check_names(target, (target, *(p.source or "" for p in self.plan.pieces[target])))

    def _solve(self, sources: list[str], targets: list[str]) -> Group:
        plan = self.plan
        if len(sources) == len(targets) == 1:
            (piece, *more), source = plan.pieces[targets[0]], plan.source[sources[0]]
            if not more and piece.is_whole(plan.target[targets[0]].shape, source.shape):
                return Group(tuple(sources), tuple(targets), tuple(sources))
        shapes = [[plan.source[n].shape for n in sources], [plan.target[n].shape for n in targets]]
        if len(sources) > 1 and len(targets) > 1:
            raise _refusal(
                targets[0], f"{_few(sources)} share elements with {_few(targets)}, and a converter has one side single"
            )
        signature = str(([_NUMBER.sub("#", n) for n in sources], [_NUMBER.sub("#", n) for n in targets], shapes))
        for written, operations in itertools.chain(
            [self.known[signature]] if signature in self.known else [], self._candidates(sources, targets, shapes)
        ):
            patterns = _starred(sources) if written else tuple(sources)
            group = Group(patterns, tuple(targets), tuple(sources), operations)
            if _gives(plan, _exact(group), self.state, group.members, group.targets, self.config):
                self.known[signature] = written, operations
                return group
        more = (
            "" if self.config is not None else "; to reorder heads, it would need the target's configuration as config"
        )
        raise _refusal(targets[0], f"no chain of operations makes it of {_few(sources)}{more}")

    def _turns(self, **arguments: Any) -> list[Operation]:
        """Operations that take heads into the other rotary order, with the number of heads of any part of the configuration."""
        parts = {None: self.config, **(vars(self.config) if self.config is not None else {})}
        keys = [key for key, part in parts.items() if isinstance(getattr(part, "num_attention_heads", None), int)]
        return [
            Operation("PermuteForRope", tuple({"subconfig_key": key, **arguments, "inverse": inverse}.items()))
            for key in keys
            for inverse in (False, True)
        ]

    def _candidates(
        self, sources: list[str], targets: list[str], shapes: list[list[tuple[int, ...]]]
    ) -> Iterator[tuple[bool, tuple[Operation, ...]]]:
        """Chains that shapes allow, the simplest first; and whether running numbers of the sources are written as `*`."""
        first, into = shapes[0][0], shapes[1][0]
        swaps = [
            Operation("Transpose", (("dim0", a), ("dim1", b))) for a, b in itertools.combinations(range(len(into)), 2)
        ]
        if len(sources) == len(targets) == 1:
            yield from ((False, (swap,)) for swap in swaps)
            for d, inverse in itertools.product(range(len(into)), (False, True)):
                if into[d] % 2 == 0:
                    yield False, (Operation("Interleave", (("dim", d), ("inverse", inverse))),)
            yield from ((False, (turn,)) for turn in self._turns() if len(into) in (1, 2))
        elif len(sources) == 1:
            for d in range(len(into)):
                for name in ("Chunk", "Split"):
                    split = Operation(name, (("dim", d),))
                    yield False, (split,)
                    yield from (
                        (False, (Operation("Interleave", (("dim", d), ("inverse", i))), split)) for i in (False, True)
                    )
                    yield from ((False, (swap, split)) for swap in swaps)
            for names in _some(targets):
                for turn in self._turns(permute_layer_names=names):
                    yield False, (Operation("Chunk", (("dim", 0),)), turn)
        else:
            starred = _starred(sources)
            joins = [(False, (Operation("Concatenate", (("dim", d),)),)) for d in range(len(first))]
            if len(starred) < len(sources):
                stack = Operation("MergeModulelist", (("dim", 0),))
                if len(starred) == 1:
                    joins = [(True, (stack,)), *((True, chain) for _, chain in joins)]
                else:
                    joins = [(True, (stack, Operation("Concatenate", (("dim", d),)))) for d in range(len(first) + 1)]
            turns = [
                Operation("Interleave", (("dim", d), ("inverse", i))) for d in range(len(into)) for i in (False, True)
            ]
            for written, chain in joins:
                yield written, chain
                yield from ((written, (*chain, more)) for more in (*swaps, *turns))


def _some(names: list[str]) -> list[tuple[str, ...]]:
    """All choices of some of a few names, by what follows their last number."""
    tails = [name[m.end() :] if (m := _last(_NUMBER.finditer(name))) else name for name in names]
    return [some for n in range(1, min(len(tails), 4)) for some in itertools.combinations(tails, n)]


def _last(matches: Iterable[re.Match[str]]) -> re.Match[str] | None:
    return next(iter(list(matches)[::-1]), None)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _starred(names: Sequence[str]) -> tuple[str, ...]:
    """Names with `*` for the last number that runs; as they are where it does not run from 0 in each of them alike."""
    best: tuple[str, ...] = tuple(names)
    for position in range(max(len(_NUMBER.findall(n)) for n in names)):
        runs: dict[str, list[int]] = {}
        for name in names:
            found = list(_NUMBER.finditer(name))
            if position >= len(found):
                break
            match = found[position]
            runs.setdefault(f"{name[: match.start()]}*{name[match.end() :]}", []).append(int(match[0]))
        else:
            alike = [sorted(numbers) for numbers in runs.values()]
            if len(alike[0]) > 1 and all(numbers == list(range(len(numbers))) for numbers in alike):
                best = tuple(runs)
    return best


# From groups to patterns


def _escaped(names: Iterable[str]) -> tuple[str, ...]:
    """Names as patterns that match them whole."""
    return tuple(f"^{_dotted(n)}" for n in names)


def _dotted(name: str) -> str:
    """A name, or a part of one, in which dots are dots; those around a `*` are as the library wants them."""
    return re.sub(r"(?<!\*)\.(?!\*)", r"\\.", name)


def _exact(group: Group) -> list[Rule]:
    if not group.operations and group.sources == group.targets:
        return []
    return [Rule(_escaped(group.sources), group.targets, group.operations)]


def _general(groups: list[Group], strays: list[Pair]) -> list[Rule]:
    """Rules in which numbers of layers are variables, and in which parts that names on both sides share are left out."""
    pairs: list[Pair] = list(strays)
    rules: list[Rule] = []
    for group in groups:
        found = _converter(group) if group.operations else None
        if found is not None:
            rules.append(found[0])
            pairs += found[1]
        elif group.operations:
            rules += _exact(group)
            pairs += [(name, name) for name in group.members]
        else:
            pairs.append((group.sources[0], group.targets[0]))
    return _ordered([*_short(pairs), *dict.fromkeys(rules)], pairs)


def _short(pairs: list[Pair]) -> list[Rule]:
    """Renamings of the shortest beginnings of names that are renamed alike in all names."""
    known: dict[tuple[str, ...], set[tuple[str, ...] | None]] = {}
    for source, target in pairs:
        parts = source.split(".")
        for length in range(1, len(parts) + 1):
            head = _heads(source, target, length)
            known.setdefault(_masked(parts[:length]), set()).add(None if head is None else _masked(head))
    rules: list[Rule] = []
    for source, target in pairs:
        parts = source.split(".")
        for length in range(1, len(parts) + 1):
            head = _heads(source, target, length)
            if head is not None and known[_masked(parts[:length])] == {_masked(head)}:
                if head != parts[:length]:
                    rules.append(_beginning(parts[:length], head, length == len(parts)))
                break
        else:
            if source != target:
                rules.append(Rule(_escaped([source]), (target,)))
    return list(dict.fromkeys(rules))


def _heads(source: str, target: str, length: int) -> list[str] | None:
    """What the first parts of a name become, when the rest and the numbers stay."""
    parts, others = source.split("."), target.split(".")
    rest = parts[length:]
    if rest and (others[-len(rest) :] != rest or len(others) == len(rest)):
        return None
    head = others[: len(others) - len(rest)]
    return head if _numbers(parts[:length]) == _numbers(head) else None


def _masked(parts: Sequence[str]) -> tuple[str, ...]:
    return tuple("#" if part.isdecimal() else part for part in parts)


def _numbers(parts: Sequence[str]) -> list[str]:
    return [part for part in parts if part.isdecimal()]


def _beginning(parts: list[str], head: list[str], whole: bool) -> Rule:
    """The renaming of a beginning; its numbers are a variable, together with what is between them where that stays."""
    end = "" if whole else "."
    places = [[i for i, part in enumerate(some) if part.isdecimal()] for some in (parts, head)]
    if not places[0]:
        return Rule((f"^{_dotted('.'.join(parts) + end)}",), (".".join(head) + end,))
    (first, *_), (start, *_) = places
    last, stop = places[0][-1] + 1, places[1][-1] + 1
    if _masked(parts[first:last]) != _masked(head[start:stop]):
        return Rule((f"^{_dotted('.'.join(parts) + end)}",), (".".join(head) + end,))
    variable = r"\.".join(r"\d+" if part.isdecimal() else part for part in parts[first:last])
    source = ["", *parts[:first]], ["", *parts[last:]]
    before, after = "".join(f"{part}." for part in source[0][1:]), "".join(f".{part}" for part in source[1][1:])
    into = "".join(f"{part}." for part in head[:start]), "".join(f".{part}" for part in head[stop:])
    return Rule((f"^{_dotted(before)}({variable}){_dotted(after + end)}",), (f"{into[0]}\\1{into[1]}{end}",))


def _converter(group: Group) -> tuple[Rule, list[Pair]] | None:
    """A converter on what follows the number of the layer, with what has to become of its sources' names before."""
    cut = [_NUMBER.search(name) for name in (*group.sources, *group.targets)]
    places = [match for match in cut if match is not None]
    if len(places) < len(cut) or len({m[0] for m in places}) > 1:
        return None
    count = len(group.sources)
    befores, afters = [m.string[: m.start()] for m in places], [m.string[m.end() :] for m in places]
    if len(set(befores[count:])) > 1 or not all(after.startswith(".") for after in afters):
        return None
    pairs = []
    for name in group.members:
        before = max((b for b in befores[:count] if name.startswith(b)), key=len)
        pairs.append((name, befores[count] + name[len(before) :]))
    sources = tuple(_dotted(after) for after in afters[:count])
    return Rule(sources, tuple(afters[count:]), group.operations), pairs


def _strays(plan: "Plan", groups: list[Group]) -> list[Pair]:
    """New names for source tensors that the plan does not use and that would be taken for a target's by their name."""
    used = {name for group in groups for name in group.members}
    ties = plan.source_ties.keys() | plan.target_ties.keys()
    found = [n for n in plan.source if n in plan.target and n not in used and n not in ties]
    for name in found:
        _check_names(name, [name])
    return [(name, f"unused.{name}") for name in found]


def _ordered(rules: list[Rule], pairs: list[Pair]) -> list[Rule]:
    """Renamings so that none renames what another has renamed, where an order does that; then converters."""
    renamings = [r for r in rules if not r.operations]
    patterns = [re.compile(r.sources[0]) for r in renamings]
    examples = pairs
    if len(patterns) * len(pairs) > _TRIED:
        examples = list({_masked(s.split(".")): (s, t) for s, t in pairs}.values())
    before: list[set[int]] = []
    for i, pattern in enumerate(patterns):
        made = [t for s, t in examples if pattern.search(s)]
        before.append({j for j, other in enumerate(patterns) if j != i and any(other.search(t) for t in made)})
    done: dict[int, None] = {}
    while len(done) < len(renamings):
        ready = [i for i in range(len(renamings)) if i not in done and before[i] <= done.keys()]
        if not ready:
            break
        done.update(dict.fromkeys(ready))
    left = [renamings[i] for i in range(len(renamings)) if i not in done]
    identity = (
        Operation("Concatenate", (("dim", 0),)),
    )  # only one converter is applied, so that names can change places
    circle = [dataclasses.replace(rule, operations=identity) for rule in left]
    return [*(renamings[i] for i in done), *circle, *(r for r in rules if r.operations)]


# Running a mapping


def _wrong(plan: "Plan", rules: list[Rule], config: Any) -> str | None:
    """A target tensor that rules do not make as the plan does; None if there is none."""
    found: Counter[str] = Counter()
    state = _Numbered(plan)
    for name, value in _converted(plan, rules, state, plan.source, config):
        found[name] += 1
        if name in plan.pieces and not _equal(plan, name, value, state):
            return name
        if name in plan.target and name not in plan.pieces and name not in plan.target_ties:
            return name
    return next((n for n in plan.pieces if found[n] != 1), None)


def _gives(
    plan: "Plan", rules: list[Rule], state: "_Numbered", sources: Sequence[str], targets: Sequence[str], config: Any
) -> bool:
    """Whether rules make these targets of these sources."""
    try:
        made = dict(_converted(plan, rules, state, sources, config))
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError):
        return False  # the operations do not take such tensors
    return made.keys() == set(targets) and all(_equal(plan, n, v, state) for n, v in made.items())


def _equal(plan: "Plan", name: str, value: Tensor, state: "_Numbered") -> bool:
    """Whether a tensor made of numbered sources holds the elements that the plan puts there."""
    wanted = torch.empty(plan.target[name].shape, dtype=value.dtype)
    for piece in plan.pieces[name]:
        piece.run(wanted, state[piece.source or ""])
    return torch.equal(value, wanted)


class _Numbered(Mapping[str, Tensor]):
    """A source state whose tensors hold the numbers of their elements, which no two tensors share."""

    def __init__(self, plan: "Plan"):
        self.shapes = {name: torch.Size(spec.shape) for name, spec in plan.source.items()}
        *starts, _ = itertools.accumulate((shape.numel() for shape in self.shapes.values()), initial=1)
        self.first = dict(zip(self.shapes, starts, strict=True))

    def __getitem__(self, name: str) -> Tensor:
        first, shape = self.first[name], self.shapes[name]
        return torch.arange(first, first + shape.numel()).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def _converted(
    plan: "Plan", rules: list[Rule], state: "_Numbered", sources: Iterable[str], config: Any
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that the library would load, by its name in the target, from numbered sources."""
    library = _library()
    entries = [_made(rule) for rule in rules]
    renamings = [e for e in entries if isinstance(e, library.WeightRenaming)]
    converters = [e for e in entries if isinstance(e, library.WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    waiting: dict[str, Any] = {}
    for key in sorted(sources, key=library.dot_natural_key):
        renamed, pattern = library.rename_source_key(key, renamings, converters)
        if renamed not in plan.target:
            continue
        if pattern is None:
            entry, pattern = waiting.setdefault(renamed, library.WeightRenaming(key, renamed)), key
        else:
            entry = waiting.setdefault(renamed, copy.deepcopy(by_pattern[pattern]))
        entry.add_tensor(renamed, key, pattern, lambda key=key: state[key])
    shapes = {name: torch.empty(spec.shape, device="meta") for name, spec in plan.target.items()}
    model = types.SimpleNamespace(get_parameter=shapes.__getitem__)
    for renamed, entry in waiting.items():
        for name, value in entry.convert(renamed, model=model, config=config).items():
            yield name, value[0] if isinstance(value, list) else value
