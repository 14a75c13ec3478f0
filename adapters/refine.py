"""Give the elements of two models common colours until colours tell all elements apart.

Both models are coloured in step. After each round, elements of either model get one colour exactly if their old colour and
their sketch agree, and their numbers as far as the noise in them tells. Where colours no longer change but elements still
share one (the hidden units of a layer may be permuted without any effect), an order is chosen: the order in which each model
stores them. A choice is kept only if both models still show the same colours afterwards. First all orders are chosen at
once; if that splits the models apart, only the first element of each class is told from the rest (individualisation, as in
McKay's canonical labelling), which reveals more, and the rest is tried again; at last one place at a time, and one feature
of it against each that it may be. Every round makes other numbers up, so that a choice which a few numbers do not speak
against is found out by others.
"""

import dataclasses
import functools

import torch
from torch import Tensor

from pyrosys.adapters.colour import DEAD, SIGNATURE, Colouring, Family, Streams
from pyrosys.adapters.hashing import mix
from pyrosys.adapters.sides import on_both
from pyrosys.adapters.structure import Place

__all__ = ["Refinement", "group_by_numbers", "order_by_group", "rank_within", "refine"]

_ROUNDS = 12
_REWARD = 2
_LARGE = 1 << 17  # elements of an activation from which two threads are faster than one
_CHANCES = 3  # rounds that tell apart what was ordered at once
_DOUBTS = 4  # rounds that a feature which was picked from many has to stand
_FURTHER = 24  # features tried one by one where no likely one is the counterpart
_FEATURES = {"contract", "look up"}


@dataclasses.dataclass
class Refinement:
    """Outcome of colouring two models in step.

    Attributes:
        agree: whether both models show the same set of colours.
        settled: whether they did before any order was chosen.
        rounds: rounds run.
        at_once: whether the orders of what both models store alike were chosen at once, and shown to be right by a quiet round.
    """

    agree: bool
    settled: bool
    rounds: int
    at_once: bool = False


def refine(sides: tuple[Colouring, Colouring], *, use_numbers: bool = True, at_once: bool = False) -> Refinement:
    """Refine until every element has a colour of its own in its place, or nothing more can be told apart.

    Args:
        sides: the two models under colours.
        use_numbers: whether the numeric stream counts; without it models that differ in a constant can still be paired,
            to find out where they differ.
        at_once: whether to try all orders at once first, which is quick, and may be wrong where numbers hardly tell.
    """
    refiner = _Refiner(sides, use_numbers)
    refiner.round()
    settled = refiner.equal_colours()
    likely = at_once and use_numbers
    at_once = likely and settled and refiner.order_at_once()
    if settled and not at_once:
        places = refiner.count
        refiner.settle()
        settled = refiner.equal_colours()
        at_once = likely and settled and refiner.count > places and refiner.order_at_once()
        if settled and not at_once:
            refiner.choose_orders()
    agree = settled and refiner.agree()
    if agree:
        refiner.rest()
    return Refinement(agree, settled, refiner.rounds, at_once)


@dataclasses.dataclass
class _State:
    """What a choice that turns out wrong goes back to."""

    families: list[dict[Place, Family]]
    conflicts: int
    noise: float


class _Refiner:
    def __init__(self, sides: tuple[Colouring, Colouring], use_numbers: bool):
        self.sides = sides
        self.use_numbers = use_numbers
        shapes = (
            n.meta.get("shape", ()) for side in sides for n in side.structure.nodes if n not in side.structure.pure
        )
        self.large = max((torch.Size(shape).numel() for shape in shapes), default=0) > _LARGE
        self.rounds = 0
        self.count = 0
        self.conflicts = 0
        self.noise = 0.0
        self.refused = False
        self.ran_under = [side.families for side in sides]
        self.recorded = False  # whether the last round kept what contractions received
        self.fresh = False  # whether the colours of the last round tell no more than those that it ran under
        self.hope = _REWARD * 4  # spent by choices that split the models apart, earned by those that do not

    # State

    def save(self) -> "_State":
        return _State([dict(side.families) for side in self.sides], self.conflicts, self.noise)

    def load(self, state: "_State") -> None:
        for side, families in zip(self.sides, state.families, strict=True):
            side.families = dict(families)
        self.count, self.conflicts, self.noise = 0, state.conflicts, state.noise
        self.fresh = False  # they last ran under other colours

    # Rounds

    def settle(self) -> None:
        """Rounds until the number of colours stays, or the models part: colours only split, so they never meet again."""
        for _ in range(_ROUNDS):
            before = self.count
            self.round()
            if self.count == before or not self.equal_colours():
                return

    def round(self, *, sketch: bool = True) -> None:
        """Run both models, and give elements that show the same one colour.

        Args:
            sketch: whether to follow sketches again, or count on those of the round before.
        """
        # The first round is never the last: what contractions receive is not yet asked for.
        self.recorded = self.rounds > 0
        self.ran_under = [side.families for side in self.sides]
        for side in self.sides:
            side.vary(self.rounds)
        run = functools.partial(Colouring.run, sketch=sketch, record=self.recorded)
        streams = on_both(run, self.sides, large=self.large)
        self.rounds += 1
        pieces = [_pieces(side, found) for side, found in zip(self.sides, streams, strict=True)]
        colour, exact, numbers = (
            torch.cat([getattr(p, name) for side in pieces for p in side]) for name in ("colour", "exact", "numbers")
        )
        groups = torch.unique(mix(colour, exact), return_inverse=True)[1]
        of_features = torch.cat(
            [torch.full_like(p.colour, p.place.kind in _FEATURES) for side in pieces for p in side]
        ).bool()
        if self.use_numbers:
            sizes = [sum(p.colour.numel() for p in side) for side in pieces]
            side_of = torch.repeat_interleave(torch.arange(2), torch.tensor(sizes))
            groups, conflicting, self.noise = group_by_numbers(groups, numbers, side_of)
            self.conflicts = len(torch.unique(groups[conflicting & of_features]))
        self.count = int(groups.max()) + 1 if groups.numel() else 0
        live = torch.cat([p.live for side in pieces for p in side])
        of_columns = of_features & ~torch.cat([torch.full_like(p.live, p.is_rows) for side in pieces for p in side])
        told, before = groups[live & of_columns], colour[live & of_columns]
        self.fresh = len(torch.unique(told)) == len(torch.unique(before)) and not bool((before == DEAD).any())
        colours = torch.where(live, mix(groups, 77), DEAD)
        at = 0
        for side, found in zip(self.sides, pieces, strict=True):
            families: dict[Place, Family] = {}
            for piece in found:
                size = piece.colour.numel()
                part = colours[at : at + size].reshape(piece.shape)
                at += size
                family = families.setdefault(piece.place, Family(part))
                if piece.is_rows:
                    family.rows = part
            side.families = families

    def rest(self) -> None:
        """Leave both models as they ran under colours that tell everything apart."""
        # Where the last round told no features apart, the colours that they ran under are as good.
        if self.fresh and self.recorded:
            for side, before in zip(self.sides, self.ran_under, strict=True):
                side.families = {
                    place: Family(before[place].features, now.rows) if place.kind in _FEATURES else now
                    for place, now in side.families.items()
                }
        else:
            on_both(Colouring.run, self.sides, large=self.large)

    # Orders

    def order_at_once(self) -> bool:
        """Order everything after the first round; in most pairs both models store their features in one order.

        One quiet round tells whether that is right. The few features that a round happens not to tell apart, another may, and what
        the two models store in other units is decided one by one, now that numbers are not degenerate. Otherwise the choice is
        taken back.
        """
        before, count, hope = self.save(), self.count, self.hope
        for kinds in (_FEATURES, {"elements"}):
            self._order(self._orderable(kinds), kinds)
        for _ in range(_CHANCES):
            self.round(sketch=False)
            if not self.agree():
                break
            if self.noise < _FINEST and not self._orderable() and not self._undecided():
                return True
        if self.agree() and self.noise < _FINEST:
            self.choose_orders()
            if self.agree():
                return True
        self.load(before)
        self.count, self.hope, self.refused = count, hope, False
        return False

    def choose_orders(self) -> None:
        """Tell the features of every place apart, then the elements of biases and gains."""
        # Numbers downstream are degenerate while all features of the first place are alike.
        first = self._first_undecided(self._orderable(_FEATURES))
        if not self._try(first, whole=True) and self.conflicts and not self._try(first, whole=False):
            self.refused = True
            return
        while True:
            classes = self._orderable(_FEATURES)
            if not classes:
                if not (self._order_units() or self._tell_one_apart(self._undecided())):
                    break
            elif self.hope < 0:
                self.refused = True
                return
            elif not (self._try(classes, whole=True) or (self.use_numbers and self._try(classes, whole=False))):
                one = self._first_undecided(classes)
                if not self.use_numbers or not (
                    self._try(one, whole=True) or self._try(one, whole=False) or self._tell_one_apart(one)
                ):
                    self.refused = self.use_numbers
                    return
        for _ in range(_ROUNDS):
            colours = self._orderable({"elements"})
            if not colours:
                break
            self._order(colours, {"elements"})
            self.settle()

    def _try(self, colours: set[int], *, whole: bool) -> bool:
        """Order features of these colours, all of them or the first against the rest; taken back if the models then differ."""
        if not colours:
            return False
        before = self.save()
        self._order(colours, _FEATURES, only_first=not whole)
        return self._accept(before)

    def _accept(self, before: "_State", further: int = 0) -> bool:
        """Settle, and keep the outcome if the models still show the same colours, in further rounds too; go back otherwise."""
        self.settle()
        fits = self._fits(before)
        for _ in range(further):
            if fits:
                self.round()
                fits = self._fits(before)
        self.hope += _REWARD if fits else -1
        if not fits:
            self.load(before)
        return fits

    def _fits(self, before: "_State") -> bool:
        """Whether the models still show the same colours, and numbers say as little against it as before.

        Noise that a choice brings in is none: numbers differ that should not, by less than counts as a conflict.
        """
        as_good = self.conflicts == 0 or self.conflicts < before.conflicts
        as_quiet = self.noise <= max(_FINEST, _CLEAR * before.noise)
        return as_good and as_quiet and self.equal_colours()

    def _first_undecided(self, colours: set[int]) -> set[int]:
        """Those of the colours that occur in the earliest place where any does."""
        for place in self.sides[0].structure.places:
            if place.kind in _FEATURES:
                mine = colours & set(_repeated(self.sides[0].families[place].features).tolist())
                if mine:
                    return mine
        return set()

    def _order_units(self) -> bool:
        """Tell equal branches apart (parallel experts): whole places, or groups of one, that share their colours."""
        left, right = (_sizes(side, {"contract"}) for side in self.sides)
        units = torch.unique(left[0], return_counts=True)
        colours = sorted(_alike(units[0][units[1] > 1], left, right))
        if not colours:
            return False
        shared = torch.tensor(colours)
        before, count = self.save(), self.count
        for side in self.sides:
            seen: dict[int, int] = {}
            families = dict(side.families)
            for place, family in side.families.items():
                if place.kind != "contract" or not bool(torch.isin(family.features, shared).any()):
                    continue
                units = _rows(family.features).clone()
                for unit in units:
                    mine = torch.isin(unit, shared)
                    if not bool(mine.any()):
                        continue
                    number = max(seen.get(c, 0) for c in unit[mine].tolist())
                    for colour in unit[mine].tolist():
                        seen[colour] = number + 1
                    unit[mine] = mix(unit[mine], number, 56)
                families[place] = Family(units.reshape(family.features.shape), family.rows)
            side.families = families
        return self._accept(before) and self.count > count

    def _tell_one_apart(self, colours: set[int]) -> bool:
        """Individualise one element of a class in one model, and try which one it may be in the other: likely ones first."""
        for colour in sorted(colours):
            anchored, other = sorted((0, 1), key=lambda side: -len(self._holders(side, colour)))
            anchors, others = self._holders(anchored, colour), self._holders(other, colour)
            sizes = {0, 1, *torch.tensor([len(at) for _, at in anchors]).cumsum(0).tolist()}
            place, at = anchors[0]
            before, hope = self.save(), self.hope
            likely, others_too = [], []
            for candidate, positions in others:
                for number, position in enumerate(positions.tolist()):
                    starts = number in sizes or position != int(positions[number - 1]) + 1  # or behind one told apart
                    (likely if starts else others_too).append((candidate, position))
            flats = [self._flat(side) for side in (0, 1)]
            for candidate, position in [*likely, *others_too[:_FURTHER]]:
                self._mark(anchored, place, int(at[0]))
                self._mark(other, candidate, position)
                if self._accept(before, _DOUBTS):
                    self.hope = hope + _REWARD
                    self._order_like([torch.nonzero(flat == colour).reshape(-1).tolist() for flat in flats])
                    return True
        return False

    def _order_like(self, members: list[list[int]]) -> None:
        """Order what is left of a class as the features lie that came apart together: a unit of a gated layer and its gate."""
        before, flats = self.save(), [self._flat(side) for side in (0, 1)]
        rest = int(torch.mode(flats[0][members[0]]).values)
        units: list[list[list[int]]] = []
        for flat, mine in zip(flats, members, strict=True):
            colours = dict(zip(mine, flat[mine].tolist(), strict=True))
            apart = sorted((m for m in mine if colours[m] != rest), key=colours.__getitem__)
            left, found = {m for m in mine if colours[m] == rest}, []
            for start in sorted(left) if 1 < len(apart) <= len(left) else []:
                unit = [start + m - apart[0] for m in apart]
                if left.issuperset(unit):
                    left.difference_update(unit)
                    found.append(unit)
            units.append(found)
        if not units[0] or len(units[0]) != len(units[1]):
            return
        for side, (flat, found) in enumerate(zip(flats, units, strict=True)):
            at = torch.tensor(found)
            numbers = torch.arange(at.numel()).reshape(at.shape)
            flat[at] = mix(flat[at], numbers, 58)
            self._set(side, flat)
        self._accept(before)

    def _flat(self, side: int) -> Tensor:
        """Colours of the features of all places, one behind the other."""
        return torch.cat([f.features.reshape(-1) for p, f in self.sides[side].families.items() if p.kind in _FEATURES])

    def _set(self, side: int, flat: Tensor) -> None:
        """Give the features of all places these colours."""
        families = dict(self.sides[side].families)
        for place, family in families.items():
            if place.kind in _FEATURES:
                mine, flat = flat[: family.features.numel()], flat[family.features.numel() :]
                families[place] = Family(mine.reshape(family.features.shape), family.rows)
        self.sides[side].families = families
        self.count = 0

    def _undecided(self) -> set[int]:
        """Colours of several features, as many in one model as in the other."""
        found = []
        for side in (0, 1):
            colours, sizes = torch.unique(self._flat(side), return_counts=True)
            found.append({c: n for c, n in zip(colours.tolist(), sizes.tolist(), strict=True) if n > 1 and c != DEAD})
        return {c for c, n in found[0].items() if found[1].get(c) == n}

    def _holders(self, side: int, colour: int) -> list[tuple[Place, Tensor]]:
        """Places with features of a colour, in order of execution, and where in them these are."""
        found = []
        for place, family in self.sides[side].families.items():
            if place.kind in _FEATURES:
                at = torch.nonzero(family.features.reshape(-1) == colour).reshape(-1)
                if len(at):
                    found.append((place, at))
        return found

    def _mark(self, side: int, place: Place, position: int) -> None:
        """Give one feature a colour of its own."""
        family = self.sides[side].families[place]
        features = family.features.clone()
        features.reshape(-1)[position] = mix(features.reshape(-1)[position], 57)
        self.sides[side].families = dict(self.sides[side].families) | {place: Family(features, family.rows)}
        self.count = 0

    def _orderable(self, kinds: set[str] | None = None) -> set[int]:
        """Colours shared by several elements of one place, with the same numbers of elements per place on both sides."""
        left, right = (_sizes(side, kinds) for side in self.sides)
        return _alike(left[0][left[1] > 1], left, right)

    def _order(self, colours: set[int], kinds: set[str], only_first: bool = False) -> None:
        wanted = torch.tensor(sorted(colours))
        for side in self.sides:
            every, unit = _with_units(side, kinds)
            mine = torch.isin(every, wanted)
            rank = rank_within(_numbered(every[mine], unit[mine])[1])
            if only_first:
                rank = (rank > 0).to(torch.int64)
            every[mine] = mix(every[mine], rank, 55)
            families = dict(side.families)
            for place, family in side.families.items():
                if place.kind in kinds:
                    here, every = every[: family.features.numel()], every[family.features.numel() :]
                    families[place] = Family(here.reshape(family.features.shape), family.rows)
            side.families = families
        self.count = 0

    def agree(self) -> bool:
        """Whether both models show the same colours, and no numbers speak against it."""
        return self.equal_colours() and not self.conflicts and not self.refused

    def equal_colours(self) -> bool:
        """Whether both models show the same colours."""
        left, right = (_all_colours(side) for side in self.sides)
        return torch.equal(left, right)


def _rows(features: Tensor) -> Tensor:
    """Features as (unit, feature): the groups of a contraction are units of their own."""
    return features.reshape(features.shape[0], -1) if features.dim() == 2 else features.reshape(1, -1)


def _with_units(side: Colouring, kinds: set[str] | None) -> tuple[Tensor, Tensor]:
    """Colours of the elements of all places of the given kinds, one behind the other, and the unit that each belongs to."""
    found = [(p, f.features) for p, f in side.families.items() if kinds is None or p.kind in kinds]
    if not found:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    rows = [_rows(features) if place.kind == "contract" else features.reshape(1, -1) for place, features in found]
    lengths = torch.tensor([row.shape[1] for row in rows for _ in row])
    return torch.cat([row.reshape(-1) for row in rows]), torch.repeat_interleave(torch.arange(len(lengths)), lengths)


def _numbered(colours: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct colours, and a number for each element that is the same for those of one colour in one unit."""
    distinct, number = torch.unique(colours, return_inverse=True)
    return distinct, units * len(distinct) + number


Sizes = tuple[Tensor, Tensor]
"""Colours, each once for every unit where an element has it, and how many elements of the unit have it."""


def _sizes(side: Colouring, kinds: set[str] | None) -> Sizes:
    colours, units = _with_units(side, kinds)
    live = colours != DEAD
    distinct, numbered = _numbered(colours[live], units[live])
    numbers, sizes = torch.unique(numbered, return_counts=True)
    return distinct[numbers % max(len(distinct), 1)], sizes


def _alike(colours: Tensor, left: Sizes, right: Sizes) -> set[int]:
    """Those of the colours of which both models have as many elements, unit by unit."""
    found: list[dict[int, list[int]]] = [{}, {}]
    for by_colour, (every, sizes) in zip(found, (left, right), strict=True):
        mine = torch.isin(every, colours)
        for colour, size in zip(every[mine].tolist(), sizes[mine].tolist(), strict=True):
            by_colour.setdefault(colour, []).append(size)
    return {colour for colour, sizes in found[0].items() if sorted(found[1].get(colour, [])) == sorted(sizes)}


def _all_colours(side: Colouring) -> Tensor:
    """Distinct colours of contracted and looked-up features: what must exist on both sides."""
    found = [f.features.reshape(-1) for p, f in side.families.items() if p.kind != "elements"]
    colours = torch.unique(torch.cat(found)) if found else torch.zeros(0)
    return colours[colours != DEAD]


def _repeated(colours: Tensor) -> Tensor:
    values, sizes = torch.unique(colours, return_counts=True)
    return values[(sizes > 1) & (values != DEAD)]


def rank_within(values: Tensor) -> Tensor:
    """Rank of each element among those equal to it, in order."""
    order = torch.argsort(values, stable=True)
    ordered = values[order]
    start = torch.ones_like(ordered, dtype=torch.bool)
    start[1:] = ordered[1:] != ordered[:-1]
    position = torch.arange(len(ordered))
    first = torch.cummax(torch.where(start, position, 0), 0).values
    rank = torch.empty_like(position)
    rank[order] = position - first
    return rank


@dataclasses.dataclass
class _Piece:
    place: Place
    is_rows: bool
    shape: torch.Size
    colour: Tensor
    exact: Tensor
    numbers: Tensor
    live: Tensor


def _pieces(side: Colouring, streams: dict[Place, Streams]) -> list[_Piece]:
    pieces = []
    width = SIGNATURE * (1 + len(side.others))
    for place, stream in streams.items():
        family = side.families[place]
        kind = {"contract": 1, "look up": 2, "elements": 3}[place.kind]
        pieces.append(_piece(place, False, kind, family.features, stream.exact, stream.numbers, width))
        if family.rows is not None and stream.row_exact is not None and stream.row_numbers is not None:
            pieces.append(_piece(place, True, 4, family.rows, stream.row_exact, stream.row_numbers, width))
    return pieces


def _piece(
    place: Place, is_rows: bool, kind: int, colour: Tensor, exact: Tensor, numbers: Tensor, width: int
) -> _Piece:
    flat = numbers.reshape(colour.numel(), -1)
    padded = torch.zeros(colour.numel(), width, dtype=torch.float64)
    padded[:, : flat.shape[1]] = flat
    return _Piece(
        place, is_rows, colour.shape, colour.reshape(-1), mix(exact.reshape(-1), kind), padded, exact.reshape(-1) != 0
    )


def group_by_numbers(parents: Tensor, numbers: Tensor, side: Tensor) -> tuple[Tensor, Tensor, float]:
    """Split groups by numbers, as finely as the noise in them allows.

    Rounding moves numbers by an amount that depends on the model and on the depth, so there is no one tolerance. In each
    group the noise is measured: it is the largest distance from a number of either model to the nearest of the other. A gap
    that is several times as wide separates elements; a narrower one does not. Every part so found has members of both models.
    Where the noise is above `_CONFLICT`, either the models differ in substance or their numbers are degenerate (a norm of
    equal features); then the group stays whole.

    Args:
        parents: group of each element.
        numbers: (element, signature).
        side: 0 or 1, the model that the element belongs to.

    Returns:
        The finer group of each element, whether its numbers are in conflict, and the largest noise where they are not.
    """
    groups = torch.unique(parents, return_inverse=True)[1]
    conflicting = torch.zeros(len(groups), dtype=torch.bool)
    largest = 0.0
    for column in range(numbers.shape[1]):
        groups, in_conflict, noise = _split(groups, numbers[:, column], side)
        conflicting |= in_conflict
        largest = max(largest, noise)
    return groups, conflicting, largest


_FINEST = 1e-7  # rounding that a norm of nearly equal features has amplified stays below
_CONFLICT = 1e-2
_CLEAR = 32.0  # gaps this many times as wide as the noise separate; noise alone has such gaps hardly ever


def _split(groups: Tensor, values: Tensor, side: Tensor) -> tuple[Tensor, Tensor, float]:
    """Groups split by one column of numbers, which elements are in conflict, and the largest noise of the others."""
    if not len(groups):
        return groups, torch.zeros(0, dtype=torch.bool), 0.0
    count = int(groups.max()) + 1
    low, high = (_extreme(groups, values, count, reduction) for reduction in ("amin", "amax"))
    wide = high - low > _FINEST
    largest = float(torch.where(wide, 0.0, high - low).max())  # the noise of groups too narrow to split is no larger
    order = torch.nonzero(wide[groups]).reshape(-1)
    order = order[order_by_group(groups[order], values[order])]
    group, value, own = groups[order], values[order], side[order]
    noise = _extreme(group, _distance_to_other(group, value, own), count, "amax")
    noise = torch.where(torch.isfinite(noise), noise, 0.0)  # a group of one model only has nothing to differ from
    conflict = noise > _CONFLICT
    limit = torch.where(conflict, torch.inf, (_CLEAR * noise).clamp(min=_FINEST))
    first, new = torch.ones_like(group, dtype=torch.bool), torch.zeros_like(group, dtype=torch.bool)
    first[1:] = group[1:] != group[:-1]
    new[1:] = ~first[1:] & (value[1:] - value[:-1] > limit[group[1:]])
    # The first part of a group keeps its number, the others get new ones.
    parts = torch.cumsum(new.to(torch.int64), 0)
    begun = torch.cummax(torch.where(first, torch.arange(len(group)), 0), 0).values
    result = groups.clone()
    result[order] = torch.where(parts == parts[begun], group, count - 1 + parts)
    return result, conflict[groups], max(largest, float(torch.where(conflict, 0.0, noise).max()))


def _extreme(groups: Tensor, values: Tensor, count: int, reduction: str) -> Tensor:
    """The smallest or largest value of each group; zero where there is none."""
    return torch.zeros(count, dtype=torch.float64).scatter_reduce_(0, groups, values, reduction, include_self=False)


def order_by_group(group: Tensor, value: Tensor) -> Tensor:
    """The order by group, and by value within one."""
    by_value = torch.argsort(value, stable=True)
    return by_value[torch.argsort(group[by_value], stable=True)]


def _distance_to_other(group: Tensor, value: Tensor, side: Tensor) -> Tensor:
    """Distance of each number to the nearest one of the other model in its group, for numbers sorted within groups."""
    position = torch.arange(len(group))
    nearest = torch.full_like(value, torch.inf)
    for other in (0, 1):
        mine = side != other
        before = torch.cummax(torch.where(side == other, position, -1), 0).values
        after = torch.where(side == other, position, len(group)).flip(0).cummin(0).values.flip(0)
        for neighbour in (before, after):
            inside = neighbour.clamp(0, len(group) - 1)
            fits = mine & (neighbour >= 0) & (neighbour < len(group)) & (group[inside] == group)
            nearest = torch.where(fits, torch.minimum(nearest, (value[inside] - value).abs()), nearest)
    return nearest
