"""Give the elements of two models common colours until colours tell all elements apart.

Both models are coloured in step. After each round, elements of either model get one colour exactly if their old colour,
their sketch and, within a tolerance, their numbers agree. Where colours no longer change but elements still share one (the
hidden units of a layer may be permuted without any effect), one representative order is chosen: the order in which each
model stores them. That is sound only if the models agree afterwards, which is checked: if the choice splits the models'
colours apart, it is taken back, and made again for one place at a time.
"""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from pyrosys.adapters.colour import DEAD, SIGNATURE, Colouring, Family, Place, Streams, mix

__all__ = ["Refinement", "group_by_numbers", "rank_within", "refine"]

_ROUNDS = 12


@dataclasses.dataclass
class Refinement:
    """Outcome of colouring two models in step.

    Attributes:
        agree: whether both models show the same set of colours.
        settled: whether they did before any order was chosen.
        rounds: rounds run.
        ordered: places whose equal-coloured features were told apart by storage order, per side.
    """

    agree: bool
    settled: bool
    rounds: int
    ordered: list[set[Place]]


def refine(sides: tuple[Colouring, Colouring], *, use_numbers: bool = True, patient: bool = False) -> Refinement:
    """Refine until every element has a colour of its own in its place, or nothing more can be told apart.

    Args:
        sides: the two models under colours.
        use_numbers: whether the numeric stream counts; without it models that differ in a constant can still be paired,
            to find out where they differ.
        patient: when one order for all places does not work, find one place by place.
    """
    refiner = _Refiner(sides, use_numbers)
    refiner.settle()
    settled = refiner.agree()
    if settled:
        refiner.order_first_place()
        start = refiner.save()
        refiner.order_everything()
        refiner.order_units()
        refiner.order_everything()
        if patient and not refiner.agree():
            refiner.load(start)
            refiner.order_one_by_one()
    return Refinement(settled and refiner.agree(), settled, refiner.rounds, refiner.ordered)


class _Refiner:
    def __init__(self, sides: tuple[Colouring, Colouring], use_numbers: bool):
        self.sides = sides
        self.use_numbers = use_numbers
        self.rounds = 0
        self.count = 0
        self.ordered: list[set[Place]] = [set(), set()]

    # State

    def save(self) -> list[dict[Place, Family]]:
        return [dict(side.families) for side in self.sides]

    def load(self, state: list[dict[Place, Family]]) -> None:
        for side, families in zip(self.sides, state, strict=True):
            side.families = dict(families)
        self.count = 0

    # Rounds

    def settle(self) -> None:
        """Rounds until the number of colours stays."""
        for _ in range(_ROUNDS):
            before = self.count
            self.round()
            if self.count == before:
                return

    def round(self) -> None:
        streams = [side.run() for side in self.sides]
        self.rounds += 1
        pieces = [_pieces(side, found) for side, found in zip(self.sides, streams, strict=True)]
        colour, exact, numbers = (
            torch.cat([getattr(p, name) for side in pieces for p in side]) for name in ("colour", "exact", "numbers")
        )
        groups = torch.unique(mix(colour, exact), return_inverse=True)[1]
        if self.use_numbers:
            sizes = [sum(p.colour.numel() for p in side) for side in pieces]
            side_of = torch.repeat_interleave(torch.arange(2), torch.tensor(sizes))
            groups = group_by_numbers(groups, numbers, side_of)
        self.count = int(groups.max()) + 1 if groups.numel() else 0
        colours = torch.where(torch.cat([p.live for side in pieces for p in side]), mix(groups, 77), DEAD)
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

    # Orders

    def order_first_place(self) -> None:
        """Tell the features of the earliest undecided place apart, so that numbers are no longer degenerate downstream."""
        shared = self._orderable()
        for place in self.sides[0].structure.places:
            if place.kind == "elements":
                continue
            undecided = _repeated(self.sides[0].families[place].features)
            colours = {int(c) for c in undecided} & shared
            if colours:
                self._order(colours, {place.kind})
                self.settle()
                return

    def order_everything(self) -> None:
        for kinds in ({"contract", "look up"}, {"elements"}):
            for _ in range(_ROUNDS):
                colours = self._orderable(kinds)
                if not colours:
                    break
                self._order(colours, kinds)
                self.settle()

    def order_units(self) -> None:
        """Tell equal branches apart (parallel experts): whole places, or groups of one, that share their colours."""
        found = [
            torch.cat(list(_units(side, {"contract"})) or [torch.zeros(0, dtype=torch.int64)]) for side in self.sides
        ]
        (left, left_counts), (right, right_counts) = (torch.unique(f, return_counts=True) for f in found)
        if not torch.equal(left, right):
            return
        shared = left[(left_counts == right_counts) & (left_counts > 1) & (left != DEAD)]
        if not len(shared):
            return
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
        self.count = 0
        self.settle()

    def order_one_by_one(self) -> None:
        """One place after the other, taking back an order that splits the models apart."""
        refused: set[int] = set()
        budget = 4 * len(self.sides[0].structure.places)
        while budget:
            budget -= 1
            shared = self._orderable({"contract", "look up"}) - refused
            target = None
            for place in self.sides[0].structure.places:
                if place.kind != "elements":
                    mine = [
                        int(c) for c in _repeated(self.sides[0].families[place].features).tolist() if int(c) in shared
                    ]
                    if mine:
                        target = mine[0]
                        break
            if target is None:
                break
            before = self.save()
            self._order({target}, {"contract", "look up"}, only_first=True)
            self.settle()
            if not self.agree():
                self.load(before)
                refused.add(target)
        self.order_everything()

    def _orderable(self, kinds: set[str] | None = None) -> set[int]:
        """Colours shared by several elements of one place, with the same numbers of elements per place on both sides."""
        counts: list[dict[int, list[int]]] = []
        for side in self.sides:
            found: dict[int, list[int]] = {}
            for unit in _units(side, kinds):
                values, sizes = torch.unique(unit, return_counts=True)
                many = (sizes > 1) & (values != DEAD)
                for value, size in zip(values[many].tolist(), sizes[many].tolist(), strict=True):
                    found.setdefault(value, []).append(size)
            counts.append(found)
        left, right = counts
        return {colour for colour, sizes in left.items() if sorted(right.get(colour, [])) == sorted(sizes)}

    def _order(self, colours: set[int], kinds: set[str], only_first: bool = False) -> None:
        wanted = torch.tensor(sorted(colours))
        for index, side in enumerate(self.sides):
            families = dict(side.families)
            for place, family in side.families.items():
                if place.kind not in kinds:
                    continue
                units = _rows(family.features) if place.kind == "contract" else family.features.reshape(1, -1)
                mine = torch.isin(units, wanted)
                if not bool(mine.any()):
                    continue
                rank = torch.stack([rank_within(unit) for unit in units])
                if only_first:
                    rank = (rank > 0).to(torch.int64)
                units = torch.where(mine, mix(units, rank, 55), units)
                families[place] = Family(units.reshape(family.features.shape), family.rows)
                self.ordered[index].add(place)
            side.families = families
        self.count = 0

    def agree(self) -> bool:
        left, right = (_all_colours(side) for side in self.sides)
        return torch.equal(left, right)


def _rows(features: Tensor) -> Tensor:
    """Features as (unit, feature): the groups of a contraction are units of their own."""
    return features.reshape(features.shape[0], -1) if features.dim() == 2 else features.reshape(1, -1)


def _units(side: Colouring, kinds: set[str] | None) -> Iterator[Tensor]:
    """Colours of every unit of the given kinds."""
    for place, family in side.families.items():
        if kinds is None or place.kind in kinds:
            rows = _rows(family.features) if place.kind == "contract" else family.features.reshape(1, -1)
            yield from rows


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


def group_by_numbers(parents: Tensor, numbers: Tensor, side: Tensor, *, equal_counts: bool = False) -> Tensor:
    """Split groups by numbers, as finely as both models bear.

    Rounding moves numbers by an amount that depends on the model, so there is no one tolerance: each group is split at the
    finest tolerance at which every part still has members on both sides.

    Args:
        parents: group of each element.
        numbers: (element, signature).
        side: 0 or 1, the model that the element belongs to.
        equal_counts: ask for as many members on either side, not just for one.
    """
    result = torch.full_like(parents, -1)
    rest = torch.arange(len(parents))
    offset = 0
    for position, tolerance in enumerate(_TOLERANCES):
        mine, own = parents[rest], side[rest]
        sub = _split(mine, numbers[rest], tolerance)
        count = int(sub.max()) + 1 if len(sub) else 0
        left, right = (torch.bincount(sub[own == s], minlength=count) for s in (0, 1))
        uneven = (left != right) if equal_counts else (left == 0) | (right == 0)
        bad_parents = torch.zeros(int(parents.max()) + 1 if len(parents) else 0, dtype=torch.bool)
        bad_parents[mine[uneven[sub]]] = True
        good = ~bad_parents[mine]
        if position == len(_TOLERANCES) - 1:
            good = torch.ones_like(good)
        result[rest[good]] = sub[good] + offset
        offset += count
        rest = rest[~good]
        if not len(rest):
            break
    return torch.unique(result, return_inverse=True)[1]


_TOLERANCES = (1e-9, 1e-7, 1e-5, 1e-3, 1e-5)
"""Tried in turn; the last one settles what none could."""


def _split(groups: Tensor, numbers: Tensor, tolerance: float) -> Tensor:
    """Groups split where sorted numbers have a gap above the tolerance, one signature column after the other."""
    for column in range(numbers.shape[1]):
        values = numbers[:, column]
        by_value = torch.argsort(values, stable=True)
        order = by_value[torch.argsort(groups[by_value], stable=True)]
        sorted_groups, sorted_values = groups[order], values[order]
        new = torch.ones_like(sorted_groups, dtype=torch.bool)
        gap = (sorted_values[1:] - sorted_values[:-1]) > tolerance
        new[1:] = (sorted_groups[1:] != sorted_groups[:-1]) | gap
        groups = torch.empty_like(groups)
        groups[order] = torch.cumsum(new.to(torch.int64), 0) - 1
    return groups
