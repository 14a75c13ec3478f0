"""Which layouts of a checkpoint without code a target admits by shapes, and what speaks for each.

Tensors that differ only in a number of their name are a family: one tensor for each layer. A family of the target is filled
from one or more of the checkpoint's: whole, transposed, from a block of rows of a fused tensor, from the slices of a stack, or
joined from several. Every way to do so is a link; an assignment is one link for each family that takes no element twice.
A beam search keeps the assignments that most speaks for.
"""

import dataclasses
import heapq
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pyrosys.adapters.capture import Capture
from pyrosys.adapters.contraction import Contraction
from pyrosys.adapters.layout import elements_of
from pyrosys.adapters.operations import tensor_arguments
from pyrosys.adapters.piece import Axis, Piece
from pyrosys.adapters.plan import Plan, specs_of
from pyrosys.adapters.sides import ModuleSide
from pyrosys.adapters.structure import Place, Structure
from pyrosys.errors import StructureMismatch

__all__ = ["Assignment", "Reading"]

_BEAM = 400
_SAMPLED = 4  # layers of a family that are looked at
_LARGEST = 5.0  # what one piece of evidence counts at most
_TOGETHER = 2.0  # what counts against taking the tensors of one module from several, and the other way round
_FUSED = (2, 3, 4)


@dataclasses.dataclass(frozen=True)
class _Family:
    """Tensors of one shape that differ in their layer only.

    Attributes:
        stem: the name with `*` for numbers.
        kind: what a target's tensors are for: `"matrix"`, `"table"`, `"gain"`, `"bias"`, `"positive"` or `"data"`.
        spaces: for each axis of the target's tensors, which features of the data it counts.
    """

    stem: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    kind: str = ""
    spaces: tuple[Any, ...] = ()

    @property
    def parent(self) -> str:
        return self.stem.rpartition(".")[0]

    @property
    def squeezed(self) -> tuple[int, ...]:
        return tuple(n for n in self.shape if n != 1)


@dataclasses.dataclass(frozen=True)
class _Block:
    """Elements of a target tensor as a strided view of a source tensor."""

    family: int
    of_stack: bool
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Link:
    """One way to fill a family of the target.

    Attributes:
        blocks: what fills it, one block after the other along the first axis; none for the neutral value.
        words: how.
        uses: families of the checkpoint and the share of each that is used up.
        turned: whether the tensors are stored the other way round than the target's.
    """

    blocks: tuple[_Block, ...]
    words: str
    uses: tuple[tuple[int, str], ...]
    turned: bool | None


@dataclasses.dataclass(frozen=True)
class Assignment:
    """One link for each family.

    Attributes:
        plan: the steps that it stands for.
        score: how much speaks for it.
        layout: family of target tensors to the words for where it comes from.
    """

    plan: Plan
    score: float
    layout: dict[str, str]


class Reading:
    """A checkpoint against a target."""

    def __init__(self, checkpoint: Mapping[str, Tensor], side: ModuleSide):
        self.weights = {name: tensor.detach() for name, tensor in checkpoint.items() if tensor.is_floating_point()}
        self.side = side
        self.capture = side.capture()
        self.wanted = _wanted(self.capture)
        self.layers = max((len(f.names) for f in self.wanted), default=1)
        self.offered = self._offered()
        self.consensus: dict[Any, Tensor] = {}
        self.links = [self._links(f) for f in self.wanted]
        if not all(any(link.blocks for link in links) for links in self.links):  # layers do not help: each tensor alone
            self.wanted = [_alone(f, name) for f in self.wanted for name in f.names]
            self.offered = [_alone(f, name) for f in self.offered for name in f.names]
            self.links = [self._links(f) for f in self.wanted]
        for family, links in zip(self.wanted, self.links, strict=True):
            if not links:
                raise StructureMismatch(
                    f"Expected tensors in the checkpoint that can be {family.stem!r} of shape {family.shape} in "
                    f"{type(side.model).__name__} ({len(family.names)} of them), found none by shape. "
                    f"The checkpoint has {', '.join(f'{o.stem} {o.shape} x {len(o.names)}' for o in self.offered[:12])}."
                )
        self._agree()

    def _offered(self) -> list[_Family]:
        """Families of the checkpoint; one that mixes several for each layer is taken apart by its period."""
        families = []
        for (stem, shape), names in _by_stem(
            self.weights, {n: tuple(t.shape) for n, t in self.weights.items()}
        ).items():
            count, rest = divmod(len(names), self.layers)
            if self.layers > 1 and count > 1 and not rest:
                for start in range(count):
                    families.append(_Family(f"{stem} ({start + 1} of {count})", tuple(names[start::count]), shape))
            else:
                families.append(_Family(stem, tuple(names), shape))
        return families

    # Links

    def _links(self, wanted: _Family) -> list[_Link]:
        links: list[_Link] = []
        for number, offered in enumerate(self.offered):
            if len(offered.names) == len(wanted.names):
                links += self._from_one(wanted, number, offered.shape, False)
            elif len(offered.names) == 1 and offered.shape[:1] == (len(wanted.names),):
                links += self._from_one(wanted, number, offered.shape, True)
        links += self._joined(wanted)
        if wanted.kind in ("gain", "bias"):
            links.append(_Link((), f"nothing: {'one' if wanted.kind == 'gain' else 'zero'}", (), None))
        return links

    def _from_one(self, wanted: _Family, number: int, shape: tuple[int, ...], stacked: bool) -> Iterator[_Link]:
        """A whole tensor, its transpose, or a block of its rows or columns."""
        inner = shape[1:] if stacked else shape
        stem = f"{self.offered[number].stem}{' by layer' if stacked else ''}"
        numbers = torch.empty(inner, device="meta").squeeze()
        for turned in (False, True):
            if turned and numbers.dim() != 2:
                continue
            view = numbers.mT if turned else numbers
            label = f"{stem}{' transposed' if turned else ''}"
            direction = turned if numbers.dim() == 2 else None
            if tuple(view.shape) == wanted.squeezed:
                yield _Link((_block(number, stacked, view),), label, ((number, "all"),), direction)
            for parts in _FUSED if view.dim() in (1, 2) else ():
                if tuple(view.shape) != (wanted.squeezed[0] * parts, *wanted.squeezed[1:]) or not wanted.squeezed:
                    continue
                for heads in self._groupings(wanted.squeezed[0]):
                    grouped = view.unflatten(0, (heads, parts, wanted.squeezed[0] // heads))
                    how = f"[{'per group of ' + str(wanted.squeezed[0] // heads) + ', ' if heads > 1 else ''}"
                    for part in range(parts):
                        yield _Link(
                            (_block(number, stacked, grouped[:, part]),),
                            f"{label}{how}part {part + 1} of {parts}]",
                            ((number, f"{turned}{parts}{heads}:{part}"),),
                            direction,
                        )

    def _groupings(self, rows: int) -> list[int]:
        """In how many groups rows may be interleaved: not at all, or by heads that the target has."""
        sizes = {d for n in self.capture.graph.nodes if len(n.meta.get("shape", ())) == 4 for d in n.meta["shape"][1:3]}
        return [1, *sorted(h for h in sizes if 1 < h < rows and rows % h == 0)]

    def _joined(self, wanted: _Family) -> Iterator[_Link]:
        """Several tensors joined along the first axis of one of the target."""
        if len(wanted.squeezed) not in (1, 2):
            return
        for parts in (2, 3):
            rows, rest = divmod(wanted.squeezed[0], parts)
            piece = (rows, *wanted.squeezed[1:])
            if rest:
                continue
            for turned in (False, True):
                shape = piece[::-1] if turned else piece
                if turned and len(piece) != 2:
                    continue
                fitting = [
                    n
                    for n, f in enumerate(self.offered)
                    if f.squeezed == shape and len(f.names) == len(wanted.names) and parts > 1
                ]
                for chosen in itertools.permutations(fitting[:6], parts):
                    views = [torch.empty(self.offered[n].shape, device="meta").squeeze() for n in chosen]
                    yield _Link(
                        tuple(_block(n, False, v.mT if turned else v) for n, v in zip(chosen, views, strict=True)),
                        " then ".join(self.offered[n].stem for n in chosen) + (" transposed" if turned else ""),
                        tuple((n, "all") for n in chosen),
                        turned if len(piece) == 2 else None,
                    )

    # Evidence

    def values(self, wanted: _Family, link: _Link, layer: int) -> Tensor | None:
        """What a link puts into one of the family's tensors."""
        if not link.blocks:
            return None
        parts = []
        for block in link.blocks:
            rows = (wanted.squeezed[0] // len(link.blocks), *wanted.squeezed[1:]) if wanted.squeezed else ()
            name, offset = self._source(block, layer)
            whole = self.weights[name].contiguous()
            view = whole.as_strided(block.sizes, block.strides, whole.storage_offset() + offset)
            parts.append(view.reshape(rows))
        return torch.cat(parts) if parts[0].dim() else parts[0]

    def _source(self, block: _Block, layer: int) -> tuple[str, int]:
        family = self.offered[block.family]
        if not block.of_stack:
            return family.names[layer], block.offset
        return family.names[0], block.offset + layer * torch.Size(family.shape[1:]).numel()

    def _agree(self) -> None:
        """For each kind of features, the profile along them of tensors that can come from one place only."""
        found: dict[Any, list[Tensor]] = {}
        for wanted, links in zip(self.wanted, self.links, strict=True):
            if len(links) == 1 and len(wanted.squeezed) == 2:
                for space, profile in self._profiles(wanted, links[0]):
                    found.setdefault(space, []).append(profile)
        self.consensus = {space: torch.stack(profiles).mean(0) for space, profiles in found.items()}

    def _profiles(self, wanted: _Family, link: _Link) -> Iterator[tuple[Any, Tensor]]:
        layers = range(0, len(wanted.names), max(1, len(wanted.names) // _SAMPLED))
        tensors = [t for layer in layers if (t := self.values(wanted, link, layer)) is not None]
        for axis, space in enumerate(wanted.spaces):
            if space is None or not tensors or axis >= tensors[0].dim():
                continue
            others = [d for d in range(tensors[0].dim()) if d != axis]
            lines = [t.double().square().mean(others) if others else t.double().square() for t in tensors]
            profile = (torch.stack(lines).mean(0) + 1e-12).log()
            if float(profile.std()) > 1e-6:
                yield space, (profile - profile.mean()) / profile.std()

    def evidence(self, wanted: _Family, link: _Link) -> float:
        """What speaks for one link by itself."""
        if not link.blocks:
            return -2 * _LARGEST
        total = -0.5 * (len(link.blocks) - 1) - 0.5 * ("part" in link.words)
        value = self.values(wanted, link, 0)
        assert value is not None
        positive = float((value > 0).double().mean())
        if wanted.kind == "positive" and bool((value <= 0).any()):
            total -= 4 * _LARGEST
        if wanted.kind in ("gain", "positive"):
            total += _LARGEST * max(-1.0, min(1.0, 4 * positive - 3))
        elif wanted.kind in ("bias", "matrix", "table"):
            total -= _LARGEST * max(-1.0, min(1.0, 4 * positive - 3)) if positive > 0.75 else 0.0
        for space, profile in self._profiles(wanted, link):
            if space in self.consensus and self.consensus[space].shape == profile.shape:
                along = float((profile * self.consensus[space]).mean() / self.consensus[space].square().mean().sqrt())
                strength = math.atanh(max(-0.99, min(0.99, along))) * math.sqrt(len(profile))
                total += max(-_LARGEST, min(_LARGEST, 0.5 * strength))
        return total + self._names_alike(wanted, link)

    def _names_alike(self, wanted: _Family, link: _Link) -> float:
        """Words that the two sides share, as far as not every name has them."""
        mine = _words(wanted.stem)
        theirs = set[str]().union(*(_words(self.offered[n].stem) for n, _ in link.uses))
        total = 0.0
        for word in mine & theirs:
            share = sum(word in _words(o.stem) for o in self.offered) / len(self.offered)
            total += 1.5 * (1 - share)
        return total

    def _together(self, one: tuple[int, _Link], other: tuple[int, _Link]) -> float:
        """Tensors of one module come from one module, and matrices are stored one way round."""
        (a, first), (b, second) = one, other
        total = 0.0
        if first.turned is not None and second.turned is not None and first.turned != second.turned:
            total -= 1.0
        if first.uses and second.uses:
            (family, part), (other_family, other_part) = first.uses[0], second.uses[0]
            theirs = self.offered[family].parent == self.offered[other_family].parent
            mine = self.wanted[a].parent == self.wanted[b].parent
            split = part != "all" and other_part != "all"
            if split and theirs:  # a fused weight and its fused bias are taken apart alike
                theirs = part.rpartition(":")[2] == other_part.rpartition(":")[2]
            if mine != theirs:
                total -= _TOGETHER
        return total

    # Search

    def search(self) -> tuple[list["Assignment"], bool]:
        """The best assignments, best first, and whether none was left out."""
        alone = [
            [(self.evidence(f, link), link) for link in links] for f, links in zip(self.wanted, self.links, strict=True)
        ]
        order = sorted(range(len(self.wanted)), key=lambda i: (len(alone[i]), i))
        beam: list[tuple[float, dict[int, _Link]]] = [(0.0, {})]
        exhaustive = True
        for number in order:
            grown: list[tuple[float, dict[int, _Link]]] = []
            for score, chosen in beam:
                used = {u for link in chosen.values() for u in link.uses}
                for own, link in alone[number]:
                    if any(_clash(u, used) for u in link.uses):
                        continue
                    joint = sum(self._together((number, link), (n, other)) for n, other in chosen.items())
                    grown.append((score + own + joint, {**chosen, number: link}))
            exhaustive &= len(grown) <= _BEAM
            beam = heapq.nlargest(_BEAM, grown, key=lambda item: item[0])
        if not beam:
            raise StructureMismatch(
                f"No assignment of the checkpoint's {len(self.weights)} tensors fills {type(self.side.model).__name__}: each tensor of "
                "the target has a candidate by shape, but some are wanted twice. Check the target's configuration."
            )
        final = []
        for score, chosen in beam:
            links = tuple(chosen[i] for i in range(len(self.wanted)))
            final.append((score - 2.0 * self._left(links), links))
        final.sort(key=lambda item: -item[0])
        return [self.assignment(score, links) for score, links in final], exhaustive

    def _left(self, links: Sequence[_Link]) -> int:
        """Families of the checkpoint that nothing takes."""
        return len(self.offered) - len({n for link in links for n, _ in link.uses})

    def assignment(self, score: float, links: tuple[_Link, ...]) -> "Assignment":
        """The plan that a choice of links is."""
        pieces: dict[str, tuple[Piece, ...]] = {}
        for wanted, link in zip(self.wanted, links, strict=True):
            for layer, name in enumerate(wanted.names):
                pieces[name] = tuple(self._pieces(wanted, link, layer, name))
        own = self.side.state()
        used = {p.source for steps in pieces.values() for p in steps}
        ties = {a: f for a, f in self.capture.ties.items() if a in own}
        kept = tuple(n for n in own if ties.get(n, n) not in pieces)
        plan = Plan(
            pieces=pieces,
            source=specs_of(self.weights),
            target=specs_of(own),
            target_ties=ties,
            kept=kept,
            unreached=tuple(n for n in kept if n not in self.capture.derived),
            unused=tuple(n for n in self.weights if n not in used),
            filled=tuple(sorted(n for n, steps in pieces.items() if any(p.source is None for p in steps))),
            checked="shapes",
            target_state=own,
        )
        layout = {f.stem: link.words for f, link in zip(self.wanted, links, strict=True)}
        return Assignment(plan, score, layout)

    def _pieces(self, wanted: _Family, link: _Link, layer: int, name: str) -> Iterator[Piece]:
        numel = torch.Size(wanted.shape).numel()
        if not link.blocks:
            yield Piece(name, None, 0, 0, (Axis(numel, 1, 0),) if numel > 1 else (), 0.0, float(wanted.kind == "gain"))
        for number, block in enumerate(link.blocks):
            source, offset = self._source(block, layer)
            steps = torch.empty(block.sizes, device="meta").stride()
            axes = tuple(Axis(n, t, s) for n, t, s in zip(block.sizes, steps, block.strides, strict=True))
            first = number * torch.Size(block.sizes).numel()
            yield Piece(name, source, first, offset, axes).simplified()


def _alone(family: _Family, name: str) -> _Family:
    return dataclasses.replace(family, stem=name, names=(name,))


def _clash(use: tuple[int, str], used: set[tuple[int, str]]) -> bool:
    """Whether a tensor, or a part of it, is taken already; parts of one tensor belong to one way of taking it apart."""
    family, part = use
    return any(
        other == family and (part == taken or part.partition(":")[0] != taken.partition(":")[0])
        for other, taken in used
    )


def _block(number: int, stacked: bool, view: Tensor) -> _Block:
    return _Block(number, stacked, int(view.storage_offset()), tuple(view.shape), tuple(view.stride()))


def _words(stem: str) -> set[str]:
    return {word for word in re.split(r"[^a-z]+", stem.lower()) if len(word) > 1}


def _by_stem(
    names: Iterable[str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[tuple[str, tuple[int, ...]], list[str]]:
    """Names with one stem and one shape, in order of the numbers in them.

    Where the last number only says which step of a sequence it is (0, 3), it belongs to the stem.
    """
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name in names:
        groups.setdefault((re.sub(r"\d+", "*", name), shapes[name]), []).append(name)
    found: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (stem, shape), group in groups.items():
        numbers = {name: [int(d) for d in re.findall(r"\d+", name)] for name in group}
        last = sorted({n[-1] for n in numbers.values() if n})
        if last and last != list(range(len(last))):
            head, _, tail = stem.rpartition("*")
            for step in last:
                found[f"{head}{step}{tail}", shape] = [n for n in group if numbers[n][-1] == step]
        else:
            found[stem, shape] = group
    return {key: sorted(group, key=lambda n: [int(d) for d in re.findall(r"\d+", n)]) for key, group in found.items()}


def _wanted(captured: Capture) -> list[_Family]:
    """The target's tensors that its outputs depend on, by family, in order of execution."""
    structure = Structure(captured)
    spaces = _Spaces(structure)
    found: dict[str, tuple[str, tuple[Any, ...]]] = {}
    for place in structure.places:
        for root in structure.sources(place.operand):
            found.setdefault(root.meta["parameter"], (_kind(place, root), spaces.of(place, root)))
    order = {name: i for i, name in enumerate(found)}
    shapes = {name: captured.tensors[name] for name in found}
    families = []
    for (stem, shape), group in _by_stem(found, shapes).items():
        names = sorted(group, key=order.__getitem__)
        families.append(_Family(stem, tuple(names), shape, *found[names[0]]))
    return sorted(families, key=lambda f: order[f.names[0]])


def _kind(place: Place, root: fx.Node) -> str:
    """What a tensor is for, as far as that says something about its values."""
    if place.kind == "contract":
        return "matrix"
    if place.kind == "look up":
        return "table"
    if elements_of(place.operand).roots != [root]:
        return "positive" if any(u.target in _ROOTS for u in _after(root)) else "data"
    return place.operation


_ROOTS = {torch.ops.aten.sqrt.default, torch.ops.aten.rsqrt.default}


def _after(root: fx.Node) -> set[fx.Node]:
    """What is computed from a tensor within three steps: an epsilon and a root."""
    found = {root}
    for _ in range(3):
        found |= {user for node in found for user in node.users}
    return found


class _Spaces:
    """Which features of the data an axis counts: operations that keep the last axis keep its features."""

    def __init__(self, structure: Structure):
        self.structure = structure
        self.leader: dict[fx.Node, fx.Node] = {}
        mixing = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten.convolution.default)
        for node in structure.nodes:
            role = structure.role.get(node, ("plain",))[0]
            if node in structure.pure or role in ("contract", "look up") or node.target in mixing:
                continue
            shape = node.meta.get("shape", ())
            for argument in tensor_arguments(node):
                own = argument.meta.get("shape", ())
                if (
                    argument not in structure.pure
                    and argument not in structure.constants
                    and own[-1:] == shape[-1:] != (1,)
                ):
                    self.leader[self.find(argument)] = self.find(node)

    def find(self, node: fx.Node) -> fx.Node:
        while (above := self.leader.get(node, node)) is not node:
            node = above
        return node

    def of(self, place: Place, root: fx.Node) -> tuple[Any, ...]:
        """For each axis of a tensor, axes of one element left out, the features that it counts; None where unknown."""
        shape = tuple(n for n in root.meta["shape"] if n != 1)
        if place.kind == "look up":
            rows_first = self.structure.role[place.node][3]
            return (None, self.find(place.node)) if rows_first and len(shape) == 2 else (None,) * len(shape)
        if place.kind == "elements":
            return (self.find(place.node),) if len(shape) == 1 else (None,) * len(shape)
        geometry: Contraction = self.structure.role[place.node][1]
        if len(shape) != 2 or geometry.convolution:
            return (None,) * len(shape)
        block = next((b for b in geometry.blocks if b.root is root), geometry.blocks[0])
        inner = len(block.contracted) > 1 and abs(int(block.contracted[1] - block.contracted[0])) == 1
        reads, writes = self.find(geometry.data), self.find(place.node)
        return (writes, reads) if inner else (reads, writes)
