"""From common colours to pieces: which element of which source tensor each target element takes.

Features that share a colour belong together. For a contraction the contracted positions are paired next, by the data that
they meet: the two operands see the same rows of data, in whatever column order each model keeps them. Elements of biases and
gains pair by colour alone. A target bias without any counterpart is zero, a gain is one; both are declared in the plan.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, fx

from pyrosys.adapters.affine import chain_behind, transfer
from pyrosys.adapters.colour import DEAD, Colouring
from pyrosys.adapters.contraction import Contraction
from pyrosys.adapters.hashing import mix
from pyrosys.adapters.layout import Block, Elements, elements_of, strided_axes
from pyrosys.adapters.operations import NONE
from pyrosys.adapters.piece import Axis, Piece
from pyrosys.adapters.program import Program
from pyrosys.adapters.refine import order_by_group, rank_within
from pyrosys.adapters.repeats import Repeats
from pyrosys.adapters.solve import solve
from pyrosys.adapters.structure import Place

__all__ = ["Assembly", "assemble", "elements_held", "keeping_piece", "neutral_piece"]

_COLUMN_SIGNATURE = 6
_FAR = 1e-6  # signatures of one feature in two models differ by less


@dataclasses.dataclass
class Assembly:
    """Pieces per target tensor, and what could not be decided.

    Attributes:
        pieces: what is copied where.
        ambiguous: contracted positions that no input can tell apart, as sentences; their order is taken from storage.
        blind: target places with such positions.
        extrapolated: target tensors whose unseen rows continue the pattern of the seen ones.
        unmatched: places of the target that matter and have no source, as sentences.
        vocabularies: for every look-up, the source row of each target row.
        pairs: places that were paired, source first.
        met: for each paired contraction of the source, which of its contracted positions a target took.
        given: source places whose elements some target place has taken.
        settled: places of the target that need no source of their own any more.
        computed: nodes that the source computes from parameters, by the name that pieces give them.
        names: the name of each of these, by what computes it.
        wanted: nodes that the target computes from parameters, by the name that pieces give them.
        solved: target tensors that follow from others of the target's.
        silent: pieces for what does not matter in one place; they count where no other place says anything.
    """

    pieces: list[Piece] = dataclasses.field(default_factory=list)
    ambiguous: list[str] = dataclasses.field(default_factory=list)
    blind: list[Place] = dataclasses.field(default_factory=list)
    extrapolated: dict[str, str] = dataclasses.field(default_factory=dict)
    unmatched: list[str] = dataclasses.field(default_factory=list)
    vocabularies: list[Tensor] = dataclasses.field(default_factory=list)
    pairs: list[tuple[Place, Place]] = dataclasses.field(default_factory=list)
    met: dict[Place, Tensor] = dataclasses.field(default_factory=dict)
    given: set[Place] = dataclasses.field(default_factory=set)
    settled: set[Place] = dataclasses.field(default_factory=set)
    computed: dict[str, fx.Node] = dataclasses.field(default_factory=dict)
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    wanted: dict[str, fx.Node] = dataclasses.field(default_factory=dict)
    solved: dict[str, Program] = dataclasses.field(default_factory=dict)
    silent: list[Piece] = dataclasses.field(default_factory=list)


Extra = Callable[[int], list[tuple[Colouring, Colouring]]]


def assemble(source: Colouring, target: Colouring, extra: Extra) -> Assembly:
    """Pair the places of two models that were refined in step.

    Args:
        source, target: both models under final colours, just run.
        extra: gives both models on further probes (0), and on the first one under other made-up numbers (1, 2, …); asked for
            only when contracted positions meet equal data.
    """
    found = Assembly()
    extra = functools.cache(extra)
    index = _Index(source)
    for place in target.structure.places:
        if place.kind == "contract":
            _contraction(place, index, source, target, found, extra)
        elif place.kind == "look up":
            _look_up(place, index, source, target, found)
        elif place not in found.settled:
            _elements(place, index, source, target, found)
    for place, taken in found.met.items():
        if not bool(taken.all()):
            found.ambiguous.append(
                f"{int((~taken).sum())} input features of {_name(place)} are zero on every probe and have no place in the target; "
                "on inputs on which they are not, the two models differ"
            )
    _add_silent(found)
    _solve(found)
    return found


def _add_silent(found: Assembly) -> None:
    """Take pieces for what does not matter in one place, as far as nothing else sets the same elements."""
    for piece in found.silent:
        numbers = piece.numbers("target").reshape(-1)
        others = [p.numbers("target").reshape(-1) for p in found.pieces if p.target == piece.target and p != piece]
        free = numbers[~torch.isin(numbers, torch.cat(others))] if others else numbers
        if len(free) == len(numbers):
            found.pieces.append(piece)
        elif len(free):
            found.pieces.append(_constant_piece(piece.target, 0, [free], piece.shift, spare=True))


def _solve(found: Assembly) -> None:
    """Replace steps for tensors that the target computes by steps for the parameters that it computes them from."""
    for name, root in found.wanted.items():
        # A tensor in a loop asks in every round.
        mine = list(dict.fromkeys(p for p in found.pieces if p.target == name))
        found.pieces = [p for p in found.pieces if p.target != name]
        for pieces in _covers(mine, torch.Size(root.meta["shape"]).numel()):
            solution = solve(root, found.computed, pieces)
            found.pieces += solution.pieces
            found.solved |= solution.solved
    used = {p.source for p in found.pieces}
    found.computed = {name: node for name, node in found.computed.items() if name in used}


def _covers(pieces: list[Piece], numel: int) -> list[list[Piece]]:
    """Steps for a tensor by the rounds of a loop that they come from: sets of them that fill it; all of them where none does."""
    covers: list[tuple[Tensor, list[Piece]]] = []
    for piece in pieces:
        numbers = piece.numbers("target").reshape(-1)
        free = next((cover for cover in covers if not bool(cover[0][numbers].any())), None)
        if free is None:
            covers.append(free := (torch.zeros(numel, dtype=torch.bool), []))
        free[0][numbers] = True
        free[1].append(piece)
    return [steps for filled, steps in covers if bool(filled.all())] or [pieces]


class _Index:
    """Colours of one side's features, sorted for look-up, by kind of place."""

    def __init__(self, side: Colouring):
        self.places = side.structure.places
        parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
        for number, place in enumerate(self.places):
            flat = side.families[place].features.reshape(-1)
            parts.setdefault(place.kind, []).append((flat, torch.full_like(flat, number), torch.arange(len(flat))))
        self.tables = {}
        for kind, found in parts.items():
            colours, places, positions = (torch.cat([part[i] for part in found]) for i in range(3))
            if not len(colours):
                continue
            order = torch.argsort(colours, stable=True)
            _, sizes = torch.unique_consecutive(colours[order], return_counts=True)
            ends = torch.repeat_interleave(torch.cumsum(sizes, 0), sizes)
            self.tables[kind] = (colours[order], ends, places[order], positions[order])

    def pairs(self, kind: str, colours: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """For each place number with any of the colours: positions in `colours`, positions in the place, paired by rank."""
        if kind not in self.tables:
            return {}
        sorted_colours, ends, places, positions = self.tables[kind]
        low = torch.searchsorted(sorted_colours, colours)
        inside = low.clamp(max=len(ends) - 1)
        known = (sorted_colours[inside] == colours) & (colours != DEAD)
        high = torch.where(known, ends[inside], low)
        rank = rank_within(colours)
        counts = high - low
        mine = torch.repeat_interleave(torch.arange(len(colours)), counts)
        start = torch.repeat_interleave(low, counts)
        first = torch.cumsum(counts, 0) - counts
        at = start + torch.arange(len(mine)) - torch.repeat_interleave(first, counts)
        out: dict[int, tuple[Tensor, Tensor]] = {}
        for number in torch.unique(places[at]).tolist():
            chosen = places[at] == number
            left, right = mine[chosen], positions[at[chosen]]
            same_rank = rank_within(left) == rank[left]
            out[number] = (left[same_rank], right[same_rank])
        return out


# Contractions


def _contraction(
    place: Place, index: _Index, source: Colouring, target: Colouring, found: Assembly, extra: Extra
) -> None:
    geometry: Contraction = target.structure.role[place.node][1]
    colours = target.families[place].features.reshape(-1)
    contracted = _contracted(geometry)
    covered = torch.zeros(geometry.distinct_groups, geometry.features, dtype=torch.int64)
    for number, (mine, theirs) in index.pairs("contract", colours).items():
        other_place = index.places[number]
        other: Contraction = source.structure.role[other_place.node][1]
        links = _links((target, source), place, mine, other_place, theirs, extra)
        if links is None:
            continue
        mine_k, theirs_k, ambiguous = links
        if len(ambiguous):
            varies = _varying_columns(target, place)[ambiguous]
            copied = _copied(
                (target, source), (place, other_place), (mine_k, theirs_k), (mine, theirs), ambiguous[varies]
            )
            if copied is not None:
                theirs_k = copied
                found.ambiguous.append(
                    f"{int(varies.sum())} input features of {_name(place)} are copies of others; their order is kept"
                )
            elif bool(varies.any()):
                found.unmatched.append(
                    f"{int(varies.sum())} of {contracted} input features of {_name(place)} cannot be told apart: they hold equal "
                    "values (often zero) in every row of every probe; pass inputs on which they differ"
                )
            if not bool(varies.all()):
                found.ambiguous.append(
                    f"{int((~varies).sum())} contracted positions of {_name(place)} always meet zeros; their order is kept"
                )
                found.blind.append(place)
        found.pairs.append((other_place, place))
        taken = found.met.setdefault(other_place, torch.zeros(_contracted(other), dtype=torch.bool))
        taken[theirs_k] = True
        other = _carry_chain(place, mine, other_place, theirs, source, target, found)
        width = geometry.features
        covered.reshape(-1)[mine] += len(mine_k)
        for group in torch.unique(mine // width).tolist():
            chosen = mine // width == group
            for other_group in torch.unique(theirs[chosen] // other.features).tolist():
                both = chosen & (theirs // other.features == other_group)
                _join(
                    (geometry, int(group), mine_k, mine[both] % width),
                    (other, int(other_group), theirs_k, theirs[both] % other.features),
                    found,
                )
    live = target.families[place].features != DEAD
    missing = int(((covered != contracted) & live).sum())
    if missing:
        found.unmatched.append(f"{missing} of {geometry.features} features of {_name(place)}")
    _silence(geometry, ~live, contracted, found)


def _copied(
    sides: tuple[Colouring, Colouring],
    places: tuple[Place, Place],
    links: tuple[Tensor, Tensor],
    features: tuple[Tensor, Tensor],
    undecided: Tensor,
) -> Tensor | None:
    """The positions of the source, with copies in the order of storage, if positions that nothing tells apart are copies.

    They have to be in both models, and copies of one element may not look like those of another.

    Args:
        sides, places, features: of target and source, as for `_contracted_links`.
        links: paired positions of both.
        undecided: positions of the target.
    """
    data = (side.structure.role[place.node][1].data for side, place in zip(sides, places, strict=True))
    looped = any(place.again for place in places)
    if looped or not len(undecided) or not all(map(Repeats.are_known, data)):
        return None
    at = torch.nonzero(torch.isin(links[0], undecided)).reshape(-1)
    at = at[torch.argsort(links[0][at])]
    mine, theirs = (
        _repeats(side, place, wanted)[positions[at]]
        for side, place, wanted, positions in zip(sides, places, features, links, strict=True)
    )
    pairs = torch.unique(torch.stack([mine, theirs]), dim=1)
    firsts = torch.stack([torch.nonzero(mine == group).reshape(-1)[0] for group in pairs[0]])
    looks = _column_signatures(sides[0], places[0], features[0])[links[0][at][firsts]]
    distance = torch.cdist(looks, looks).fill_diagonal_(torch.inf)
    if any(len(torch.unique(groups)) < pairs.shape[1] for groups in pairs) or bool((distance < _FAR).any()):
        return None
    ordered = links[1].clone()
    for group in pairs[0]:
        chosen = at[mine == group]
        ordered[chosen] = torch.sort(links[1][chosen]).values
    return ordered


def _repeats(side: Colouring, place: Place, features: Tensor) -> Tensor:
    """A number for each contracted position, the same for positions that meet copies in every row that matters."""
    geometry: Contraction = side.structure.role[place.node][1]
    side.run(sketch=False, keep=True)
    numbers = geometry.data_grid(Repeats(side).numbers(geometry.data))
    numbers = torch.where(_rows_that_matter(side, place.node), numbers, 0.0)[_groups_of(geometry, features)]
    return torch.unique(numbers.reshape(-1, numbers.shape[-1]), dim=1, return_inverse=True)[1]


def _contracted(geometry: Contraction) -> int:
    """Number of contracted positions."""
    return geometry.operand_grid(torch.empty(geometry.operand.meta["shape"], device="meta")).shape[1]


def _carry_chain(
    place: Place,
    mine: Tensor,
    other_place: Place,
    theirs: Tensor,
    source: Colouring,
    target: Colouring,
    found: Assembly,
) -> Contraction:
    """The source's contraction as the target is to have it, when the gains and biases behind the two are told apart."""
    other: Contraction = source.structure.role[other_place.node][1]
    my_chain, their_chain = chain_behind(target.structure, place), chain_behind(source.structure, other_place)
    if place.again or other_place.again or len(mine) != my_chain.width or len(theirs) != their_chain.width:
        return other
    carried = transfer(their_chain, my_chain)
    if carried is None:
        return other
    plain = Elements([], None, None)
    for leaf, (node, numbers) in carried.copies.items():
        lines = leaf.positions[mine], numbers[theirs]
        found.pieces.append(_piece((leaf.root, 0, plain), (node, 0, plain), [lines], found))
    for leaf, value in carried.fills.items():
        found.pieces.append(_constant_piece(leaf.root.meta["parameter"], 0, [leaf.positions], value))
    found.settled.update(my_chain.places)
    return carried.geometry


def _silence(geometry: Contraction, dead: Tensor, contracted: int, found: Assembly) -> None:
    """Zero for features that no output depends on, where others of the operand do matter."""
    if not bool(dead.any()) or bool(dead.all()):
        return
    for group in range(geometry.distinct_groups):
        features = torch.nonzero(dead[group]).reshape(-1)
        for block in geometry.blocks:
            at, block_j = _positions_in(features, block.features_at)
            name = _name_of_root(block.root)
            if not len(at) or name is None:
                continue
            lines = [block.contracted, block.features[block_j]]
            offset = block.offset + _group_offset(geometry, block, group)
            found.silent.append(_constant_piece(name, offset, lines, 0.0, spare=True))


def _constant_piece(name: str, offset: int, lines: list[Tensor], value: float, *, spare: bool = False) -> Piece:
    """A step that sets elements to one value."""
    axes: list[Axis] = []
    for line in lines:
        line = torch.sort(line).values
        offset += int(line[0])
        axes += axes_of(line - line[0], torch.zeros_like(line))
    return Piece(name, None, offset, 0, tuple(axes), 0.0, value, spare).simplified()


def keeping_piece(name: str, numbers: Tensor) -> Piece:
    """The step that leaves elements as the target has them."""
    return dataclasses.replace(_constant_piece(name, 0, [numbers], 0.0), scale=1.0)


def _links(
    sides: tuple[Colouring, Colouring], place: Place, mine: Tensor, other_place: Place, theirs: Tensor, extra: Extra
) -> tuple[Tensor, Tensor, Tensor] | None:
    """`_contracted_links` on as many probes, and then under as many made-up numbers, as it takes to tell all positions apart."""
    probes = [sides]
    links = _contracted_links(probes, place, mine, other_place, theirs)
    for number in range(_FURTHER):
        if links is None or not len(links[2]):
            break
        if number and not bool((_column_origins(sides[0], place, mine)[links[2]] != NONE).any()):
            break  # what does not depend on parameters is the same under other numbers
        probes += [(t, s) for s, t in extra(number)]
        more = _contracted_links(probes, place, mine, other_place, theirs)
        links = more if more is not None else links
    return links


_FURTHER = 16  # a feature that a ReLU silences under one set of numbers is silent under so many once in 65,536 times


def _contracted_links(
    probes: list[tuple[Colouring, Colouring]], place: Place, mine: Tensor, other_place: Place, theirs: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Pair the contracted positions of two operands by the data that they meet.

    Args:
        probes: target and source under equal colours, on each probe.
        place, mine: target operand and the features of it that count.
        other_place, theirs: the same of the source.

    Returns:
        Paired positions of target and source, and the target positions that nothing told apart.
    """
    (target, source), *_ = probes
    at, other_at = target.structure.number[place], source.structure.number[other_place]
    left = torch.cat([_column_signatures(t, t.structure.places[at], mine) for t, _ in probes], 1)
    right = torch.cat([_column_signatures(s, s.structure.places[other_at], theirs) for _, s in probes], 1)
    origins = torch.cat([_column_origins(target, place, mine), _column_origins(source, other_place, theirs)])
    silent = torch.cat(
        [
            torch.stack([_silent_columns(t, t.structure.places[at], mine) for t, _ in probes]).amin(0),
            torch.stack([_silent_columns(s, s.structure.places[other_at], theirs) for _, s in probes]).amin(0),
        ]
    ).long()
    found = _grouped_links(left, right, mix(origins.long(), silent), silent)
    if found is None or len(found[0]) < len(left):
        # Features that no number feels are paired in any order, and give what follows them other origins.
        by_data = _grouped_links(left, right, silent, silent)
        if by_data is not None and not bool(((left[by_data[0]] - right[by_data[1]]).abs() > _FAR).any()):
            return by_data
    return found


def _grouped_links(left: Tensor, right: Tensor, labels: Tensor, silent: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Pair positions of target and source that have equal labels by their signatures; those of the target come first."""
    group = torch.unique(labels, return_inverse=True)[1]
    a, b = group[: len(left)], group[len(left) :]
    count = int(group.max()) + 1
    counts_a, counts_b = torch.bincount(a, minlength=count), torch.bincount(b, minlength=count)
    uneven = (counts_a != counts_b) & (counts_a > 0) & (counts_b > 0)
    dropped = torch.zeros(count, dtype=torch.bool)
    dropped[group[silent != 0]] = True  # columns that are always zero pair in order, and those left over are dropped
    if bool((uneven & ~dropped).any()):
        return None
    shared = (counts_a > 0) & (counts_b > 0)
    by_rank = shared & dropped
    first, other_first = _rank_pairs(torch.nonzero(by_rank[a]).reshape(-1), torch.nonzero(by_rank[b]).reshape(-1), a, b)
    by_data = shared & ~dropped
    found = _nearest_pairs(
        torch.nonzero(by_data[a]).reshape(-1), torch.nonzero(by_data[b]).reshape(-1), a, b, left, right
    )
    if found is None or len(first) + len(found[0]) == 0:
        return None
    alike = torch.zeros(len(left), dtype=torch.bool)
    alike[found[2]] = True
    alike |= by_rank[a] & (counts_a[a] > 1)
    return torch.cat([first, found[0]]), torch.cat([other_first, found[1]]), torch.nonzero(alike).reshape(-1)


def _rank_pairs(mine: Tensor, theirs: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of equal group paired by order, as many as both have."""
    rank_a, rank_b = rank_within(a[mine]), rank_within(b[theirs])
    many = int(max(rank_a.max() if len(mine) else 0, rank_b.max() if len(theirs) else 0)) + 1
    key_a, key_b = a[mine] * many + rank_a, b[theirs] * many + rank_b
    sorted_b, order = torch.sort(key_b)
    at = torch.searchsorted(sorted_b, key_a).clamp(max=max(len(sorted_b) - 1, 0))
    hit = sorted_b[at] == key_a if len(sorted_b) else torch.zeros_like(key_a, dtype=torch.bool)
    return mine[hit], theirs[order[at[hit]]]


_LINES = 16


def _nearest_pairs(
    mine: Tensor, theirs: Tensor, a: Tensor, b: Tensor, left: Tensor, right: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Pair positions of equal group by their signatures.

    On a random line both models' positions come in the same order, except where noise swaps close neighbours, and it swaps
    others on another line. A pair is taken when two lines in turn agree on it.

    Returns:
        Paired positions, and those of `mine` that have a double; None when some have no counterpart.
    """
    generator = torch.Generator().manual_seed(0)
    partner = torch.full((len(left),), -1, dtype=torch.int64)
    pairs: list[tuple[Tensor, Tensor]] = []
    alone = torch.bincount(a[mine], minlength=int(a.max()) + 1)[a[mine]] == 1 if len(mine) else mine == mine
    for number in range(_LINES):
        line = torch.randn(left.shape[1], generator=generator, dtype=torch.float64)
        order, other = order_by_group(a[mine], left[mine] @ line), order_by_group(b[theirs], right[theirs] @ line)
        mine, theirs = mine[order], theirs[other]
        agreed = partner[mine] == theirs
        if number == 0:
            agreed |= alone[order]
        partner[mine] = theirs
        pairs.append((mine[agreed], theirs[agreed]))
        mine, theirs = mine[~agreed], theirs[~agreed]
        if not len(mine):
            break
    if len(mine):
        return None
    mine, theirs = torch.cat([p for p, _ in pairs]), torch.cat([p for _, p in pairs])
    return mine, theirs, mine[_doubles(a[mine], left[mine], right[theirs])]


def _doubles(group: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Paired positions that are no farther from another one of their side than from their partner, give or take."""
    found = torch.zeros(len(group), dtype=torch.bool)
    noise = (left - right).abs().amax(1)
    order = order_by_group(group, left.sum(1))
    group, left, noise = group[order], left[order], noise[order]
    for step in (1, 2, 3):
        if len(group) > step:
            distance = (left[step:] - left[:-step]).abs().amax(1)
            near = (group[step:] == group[:-step]) & (distance <= (4 * (noise[step:] + noise[:-step])).clamp(min=1e-9))
            found[order[step:][near]] = True
            found[order[:-step][near]] = True
    return found


def _groups_of(geometry: Contraction, features: Tensor) -> Tensor:
    """Which groups of a contraction some features belong to."""
    return torch.isin(geometry.group_index, torch.unique(features // geometry.features))


def _column_origins(side: Colouring, place: Place, features: Tensor) -> Tensor:
    """The deepest chain that leads to each contracted position, as some features meet it."""
    found = []
    for node in place.nodes:
        geometry: Contraction = side.structure.role[node][1]
        sketch = side.sketches.get(geometry.data)
        if sketch is None:
            sketch = torch.zeros(geometry.data.meta["shape"], dtype=torch.float64)
        found.append(geometry.data_grid(sketch)[_groups_of(geometry, features)].amax((0, 1)))
    return torch.stack(found).amax(0)


def _silent_columns(side: Colouring, place: Place, features: Tensor) -> Tensor:
    """1 for each contracted position at which some features meet zeros only, where it matters."""
    found = []
    for node in place.nodes:
        geometry: Contraction = side.structure.role[node][1]
        silent = geometry.data_grid(side.records[node]["data"].detach()) == 0
        silent = silent | ~_rows_that_matter(side, node)
        found.append(silent[_groups_of(geometry, features)].all(1).all(0))
    return torch.stack(found).all(0).to(torch.float64)


def _varying_columns(side: Colouring, place: Place) -> Tensor:
    """Which contracted positions meet what can change, where it matters."""
    found = []
    for node in place.nodes:
        geometry: Contraction = side.structure.role[node][1]
        varying = geometry.data_grid(side.varies(geometry.data)) != 0
        found.append((varying & _rows_that_matter(side, node)).any(1).any(0))
    return torch.stack(found).any(0)


def _rows_that_matter(side: Colouring, node: fx.Node) -> Tensor:
    """Rows of a contraction's data that an output depends on, (group, position, 1)."""
    geometry: Contraction = side.structure.role[node][1]
    gradient = geometry.result_grid(side.records[node]["gradient"].detach())
    return (gradient != 0).any(-1, keepdim=True)


def _column_signatures(side: Colouring, place: Place, features: Tensor) -> Tensor:
    """Numbers per contracted position: the data it meets, weighted by what the chosen features make of each data row."""
    return torch.asinh(torch.stack([_column_sums(side, place, node, features) for node in place.nodes]).sum(0))


def _column_sums(side: Colouring, place: Place, node: fx.Node, features: Tensor) -> Tensor:
    geometry: Contraction = side.structure.role[node][1]
    record = side.records[node]
    data = geometry.data_grid(record["data"].detach())
    gradient = geometry.result_grid(record["gradient"].detach())
    back = side.back_numbers(place)
    signature = torch.zeros(data.shape[-1], _COLUMN_SIGNATURE, dtype=torch.float64)
    width = geometry.features
    wanted = torch.zeros(geometry.distinct_groups, width, dtype=torch.float64)
    wanted.reshape(-1)[features] = back.reshape(-1)[features]
    context = torch.bmm(gradient, wanted[geometry.group_index].unsqueeze(-1)).squeeze(-1)
    active = (wanted != 0).any(1)[geometry.group_index]
    for m in range(_COLUMN_SIGNATURE):
        weight = context * torch.cos((0.7 + 0.6 * m) * context + 0.4 * m) * active.unsqueeze(1)
        shaped = ((0.5 + 0.45 * m) * data).add_(0.3 * m).cos_()
        signature[:, m] = weight.reshape(-1) @ shaped.reshape(-1, shaped.shape[-1])
    return signature


def _join(
    mine: tuple[Contraction, int, Tensor, Tensor], theirs: tuple[Contraction, int, Tensor, Tensor], found: Assembly
) -> None:
    """Pieces for paired (contracted, feature) positions of one group each."""
    geometry, group, my_k, my_j = mine
    other, other_group, their_k, their_j = theirs
    for block in geometry.blocks:
        k_in, block_k = _positions_in(my_k, block.contracted_at)
        j_in, block_j = _positions_in(my_j, block.features_at)
        for other_block in other.blocks:
            k_both, other_k = _positions_in(their_k[k_in], other_block.contracted_at)
            j_both, other_j = _positions_in(their_j[j_in], other_block.features_at)
            if len(k_both) == 0 or len(j_both) == 0:
                continue
            axes = [
                (block.contracted[block_k[k_both]], other_block.contracted[other_k]),
                (block.features[block_j[j_both]], other_block.features[other_j]),
            ]
            found.pieces.append(
                _piece(
                    (block.root, block.offset + _group_offset(geometry, block, group), geometry.elements),
                    (
                        other_block.root,
                        other_block.offset + _group_offset(other, other_block, other_group),
                        other.elements,
                    ),
                    axes,
                    found,
                )
            )


def _group_offset(geometry: Contraction, block: Block, group: int) -> int:
    first = int(torch.nonzero(geometry.group_index == group)[0])
    return int(block.groups[first])


def _positions_in(wanted: Tensor, available: Tensor) -> tuple[Tensor, Tensor]:
    """Positions in `wanted` that are available, and where."""
    sorted_available, order = torch.sort(available)
    at = torch.searchsorted(sorted_available, wanted).clamp(max=max(len(available) - 1, 0))
    hit = sorted_available[at] == wanted if len(available) else torch.zeros_like(wanted, dtype=torch.bool)
    return torch.nonzero(hit).reshape(-1), order[at[hit]]


def _name_of_root(root: fx.Node) -> str | None:
    return root.meta.get("parameter")


def _piece(
    target: tuple[fx.Node, int, Elements],
    source: tuple[fx.Node, int, Elements],
    lines: Iterable[tuple[Tensor, Tensor]],
    found: Assembly,
) -> Piece:
    """The step for paired element numbers; tensors that a side computes from others are noted."""
    target_root, target_offset, target_elements = target
    source_root, source_offset, source_elements = source
    axes: list[Axis] = []
    for mine, theirs in lines:
        order = torch.argsort(mine)
        mine, theirs = mine[order], theirs[order]
        target_offset += int(mine[0])
        source_offset += int(theirs[0])
        axes += axes_of(mine - mine[0], theirs - theirs[0])
    scale = source_elements.scale / target_elements.scale
    shift = (source_elements.shift - target_elements.shift) / target_elements.scale
    source_name = _name_of_root(source_root)
    if source_name is None:
        source_name = _entered(source_root, found)
    target_name = _name_of_root(target_root)
    if target_name is None:
        target_name = target_root.name
        found.wanted[target_name] = target_root
    return Piece(target_name, source_name, target_offset, source_offset, tuple(axes), scale, shift).simplified()


def _entered(node: fx.Node, found: Assembly) -> str:
    """The one name of a tensor that the source computes, in a loop perhaps again and again."""
    name = f"{node.meta.get('scope', '')}.{node.name}".lstrip(".")
    numbered = (f"{name}_{count}" if count else name for count in itertools.count())
    how = json.dumps(Program.of(node).to_json())
    if how not in found.names:
        found.names[how] = next(n for n in numbered if n not in found.computed)
        found.computed[found.names[how]] = node
    return found.names[how]


def axes_of(mine: Tensor, theirs: Tensor) -> list[Axis]:
    """Paired element numbers that start at zero, as loops where they are regular, as a list where they are not."""
    regular = strided_axes(mine, theirs)
    if regular is not None:
        return [Axis(*axis) for axis in regular]
    return [Axis(len(mine), tuple(mine.tolist()), tuple(theirs.tolist()))]


def _name(place: Place) -> str:
    names = [n for n in (_parameter_names(place.operand)) if n]
    return f"{', '.join(names) or place.operand.name} ({place.scope or 'top level'})"


def _parameter_names(operand: fx.Node) -> list[str]:
    found: list[str] = []
    stack = [operand]
    while stack:
        node = stack.pop()
        if node.op == "placeholder":
            found.append(node.meta["parameter"])
        else:
            stack.extend(node.all_input_nodes)
    return found


# Look-ups


def _look_up(place: Place, index: _Index, source: Colouring, target: Colouring, found: Assembly) -> None:
    family = target.families[place]
    assert family.rows is not None
    any_taken = False
    my_rows_seen = target.rows_seen(place)
    for number, (mine, theirs) in index.pairs("look up", family.features).items():
        other_place = index.places[number]
        other_family = source.families[other_place]
        assert other_family.rows is not None
        their_rows_seen = source.rows_seen(other_place)
        my_seen = _with_rank(family.rows[my_rows_seen])
        sorted_rows, order = torch.sort(_with_rank(other_family.rows[their_rows_seen]))
        at = torch.searchsorted(sorted_rows, my_seen).clamp(max=len(sorted_rows) - 1)
        hit = sorted_rows[at] == my_seen
        if not bool(hit.any()) or len(mine) != len(family.features):
            continue
        if not bool(hit.all()):
            found.unmatched.append(f"rows of {_name(place)} that the probe uses and that no source row explains")
        any_taken = True
        found.pairs.append((other_place, place))
        row_map = {int(a): int(their_rows_seen[order[b]]) for a, b in zip(my_rows_seen[hit], at[hit], strict=True)}
        alike, told = _alike_rows(family.rows, my_rows_seen), dict[int, int]()
        if alike:
            by_place = _rows_by_place(target.records[place.node]["index"], source.records[other_place.node]["index"])
            told = {m: t for m in alike if (t := by_place.get(m, -1)) >= 0 and other_family.rows[t] == family.rows[m]}
            if len(told) == len(alike):
                row_map |= told
            elif len({t - m for m, t in row_map.items()}) > 1:
                found.unmatched.append(
                    f"{len(alike)} rows of {_name(place)} look alike on every probe, and the others do not follow one offset; pass "
                    "probes on which each row that is looked up matters in a way of its own"
                )
        beyond = _beyond(row_map, family.rows.shape[0], other_family.rows.shape[0])
        rows, sources, note = _continued(row_map, family.rows.shape[0], other_family.rows.shape[0])
        missing = family.rows.shape[0] - len(rows) - len(beyond)
        if missing:
            found.unmatched.append(
                f"{missing} of {family.rows.shape[0]} rows of {_name(place)}: no probe looks them up and the rows that are "
                "looked up do not follow one offset; pass probes that carry every token"
            )
        how = "in order" if len(told) < len(alike) else "by the places at which the two inputs have them"
        if alike and (len(told) < len(alike) or len({t - m for m, t in row_map.items()}) > 1):
            note = f"{len(alike)} rows look alike on every probe, and are taken {how}; {note}".removesuffix("; ")
        if note:
            found.extrapolated[_name(place)] = note
        if not missing:
            found.vocabularies.append(sources)
        my_elements, their_elements = _table_of(place), _table_of(other_place)
        my_lines = _table_lines(my_elements, target.structure.role[place.node][3])
        their_lines = _table_lines(their_elements, source.structure.role[other_place.node][3])
        name = _name_of_root(my_elements.roots[0])
        if len(beyond) and name is not None:
            lines = [my_lines[1][beyond], my_lines[2]]
            found.pieces.append(_constant_piece(name, my_lines[0], lines, 0.0, spare=True))
            found.extrapolated[_name(place)] = f"{note}; {len(beyond)} rows beyond the source's table are zero".lstrip(
                "; "
            )
        axes = [
            (my_lines[1][rows], their_lines[1][sources]),
            (my_lines[2][mine], their_lines[2][theirs]),
        ]
        found.pieces.append(
            _piece(
                (my_elements.roots[0], my_lines[0], my_elements),
                (their_elements.roots[0], their_lines[0], their_elements),
                axes,
                found,
            )
        )
    if not any_taken:
        found.unmatched.append(f"the table {_name(place)}")


def _alike_rows(colours: Tensor, seen: Tensor) -> list[int]:
    """Rows that were looked up and have the colour of another such row."""
    _, inverse, sizes = torch.unique(colours[seen], return_inverse=True, return_counts=True)
    return seen[sizes[inverse] > 1].tolist()


def _rows_by_place(mine: Tensor, theirs: Tensor) -> dict[int, int]:
    """The row that the source looks up wherever the target looks one up, where that is the same row each time."""
    mine, theirs = mine.reshape(-1), theirs.reshape(-1)
    if len(mine) != len(theirs):
        return {}
    pairs = torch.unique(torch.stack([mine, theirs]), dim=1)
    once = [torch.unique(line, return_inverse=True, return_counts=True)[1:] for line in pairs]
    single = (once[0][1][once[0][0]] == 1) & (once[1][1][once[1][0]] == 1)
    return dict(zip(pairs[0][single].tolist(), pairs[1][single].tolist(), strict=True))


def _with_rank(colours: Tensor) -> Tensor:
    """Colours in which equal ones are told apart by order."""
    return mix(colours, rank_within(colours))


def _table_of(place: Place) -> Elements:
    """Elements that a table holds; a table put together from several tensors counts as computed."""
    elements, shape = elements_of(place.operand), tuple(place.operand.meta["shape"])
    if len(elements.roots) == 1:
        return elements
    return Elements([place.operand], (0, shape, tuple(torch.empty(shape, device="meta").stride())), None)


def _table_lines(elements: Elements, rows_first: bool) -> tuple[int, Tensor, Tensor]:
    if elements.strided is not None:
        offset, lines = elements.lines()
        a, b = lines[-2], lines[-1]
    else:
        numbers = elements.numbers()
        offset = int(numbers.reshape(-1)[0])
        a, b = numbers[:, 0] - offset, numbers[0] - offset
    return (offset, a, b) if rows_first else (offset, b, a)


def _beyond(row_map: dict[int, int], rows: int, other_rows: int) -> Tensor:
    """Unseen target rows for which no source row is left: padding of a vocabulary."""
    if len(set(row_map.values())) == other_rows:
        return torch.tensor([m for m in range(rows) if m not in row_map], dtype=torch.int64)
    offsets = {theirs - mine for mine, theirs in row_map.items()}
    if len(offsets) != 1:
        return torch.zeros(0, dtype=torch.int64)
    (offset,) = offsets
    return torch.tensor([m for m in range(rows) if not 0 <= m + offset < other_rows], dtype=torch.int64)


def _continued(row_map: dict[int, int], rows: int, other_rows: int) -> tuple[Tensor, Tensor, str]:
    """Rows no probe looked up, continued when the seen ones follow one constant offset."""
    offsets = {theirs - mine for mine, theirs in row_map.items()}
    if len(row_map) == rows:
        mine = sorted(row_map)
        return torch.tensor(mine), torch.tensor([row_map[m] for m in mine]), ""
    if len(offsets) == 1:
        (offset,) = offsets
        mine = [m for m in range(rows) if 0 <= m + offset < other_rows]
        note = f"{len(row_map)} rows seen, {len(mine) - len(row_map)} more continue at the same offset {offset:+d}"
        return torch.tensor(mine), torch.tensor([m + offset for m in mine]), note
    free_mine = sorted(set(range(rows)) - set(row_map))
    free_theirs = sorted(set(range(other_rows)) - set(row_map.values()))
    if len(free_mine) == len(free_theirs) == 1:
        row_map = row_map | {free_mine[0]: free_theirs[0]}
        mine = sorted(row_map)
        return torch.tensor(mine), torch.tensor([row_map[m] for m in mine]), f"row {free_mine[0]} is the only one left"
    mine = sorted(row_map)
    return torch.tensor(mine), torch.tensor([row_map[m] for m in mine]), ""


# Elements


def _elements(place: Place, index: _Index, source: Colouring, target: Colouring, found: Assembly) -> None:
    assert place.source is not None
    colours = target.families[place].features.reshape(-1)
    every = elements_held(place)
    seen = every[colours[every] != DEAD]
    if len(seen):
        _silence_elements(place, every[colours[every] == DEAD], target, found)
    taken = torch.zeros(len(colours), dtype=torch.bool)
    candidates = index.pairs("elements", colours[seen])
    # Several places may share a colour (the mean and the bias of a batch norm); they pair in order of execution.
    for number in sorted(candidates, key=lambda n: (index.places[n] in found.given, n)):
        mine, theirs = candidates[number]
        other_place = index.places[number]
        assert other_place.source is not None
        mine = seen[mine]
        fresh = ~taken[mine]
        mine, theirs = mine[fresh], theirs[fresh]
        if len(mine) == 0:
            continue
        taken[mine] = True
        found.given.add(other_place)
        found.pairs.append((other_place, place))
        my_elements, their_elements = elements_of(place.operand), elements_of(other_place.operand)
        found.pieces.append(
            _piece(
                (place.source, 0, _affine_of(my_elements, place)),
                (other_place.source, 0, _affine_of(their_elements, other_place)),
                [(mine, theirs)],
                found,
            )
        )
    rest = seen[~taken[seen]]
    if len(rest):
        elements = elements_of(place.operand)
        if place.operation in ("bias", "gain") and elements.roots == [place.source]:
            found.pieces.append(neutral_piece(place, rest))
        else:
            found.unmatched.append(f"{len(rest)} of {len(colours)} elements of {_name(place)}")


def _silence_elements(place: Place, dead: Tensor, target: Colouring, found: Assembly) -> None:
    """Neutral values for gains and biases of features that no output depends on: rows that a vocabulary is padded with."""
    elements = elements_of(place.operand)
    if not len(dead) or place.operation not in ("bias", "gain") or elements.roots != [place.source]:
        return
    shape = target.structure.role[place.node][1].meta["shape"]
    features = target.structure.features_of(target.structure.role[place.node][1], {})
    there = torch.isin(elements.numbers().expand(torch.broadcast_shapes(shape, elements.numbers().shape)), dead)
    if features is not None and bool((features.expand(there.shape)[there] >= 0).all()):
        found.silent.append(dataclasses.replace(neutral_piece(place, dead), spare=True))


def neutral_piece(place: Place, numbers: Tensor) -> Piece:
    """The step that makes elements of a gain one, or of a bias zero."""
    affine = _affine_of(elements_of(place.operand), place)
    neutral = ((1.0 if place.operation == "gain" else 0.0) - affine.shift) / affine.scale
    return _constant_piece(place.source.meta["parameter"], 0, [numbers], neutral)


def _affine_of(elements: Elements, place: Place) -> Elements:
    """The traced scale and shift when the operand is its one parameter seen through views; none when it is computed."""
    if elements.roots == [place.source]:
        return elements
    return dataclasses.replace(elements, scale=1.0, shift=0.0)


def elements_held(place: Place) -> Tensor:
    """Elements of the place's parameter that its operand holds."""
    assert place.source is not None
    numel = torch.Size(place.source.meta["shape"]).numel()
    elements = elements_of(place.operand)
    if elements.roots != [place.source]:
        return torch.arange(numel)
    return torch.unique(elements.numbers())
