"""Match two models by structure: capture both, colour both in step, pair, and prove the result by running it."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from pyrosys.adapters.assemble import Assembly, assemble, elements_held, keeping_piece, neutral_piece
from pyrosys.adapters.capture import Inputs, OutputSelector, as_inputs
from pyrosys.adapters.colour import DEAD, Colouring, spread_for
from pyrosys.adapters.copies import Copies, find_copies, take_for_one, unseen
from pyrosys.adapters.garbage import seldom_collected
from pyrosys.adapters.locate import (
    Mismatch,
    Parting,
    difference_under_colours,
    difference_under_plan,
    structural_difference,
)
from pyrosys.adapters.outputs import align_outputs
from pyrosys.adapters.part import Part
from pyrosys.adapters.piece import Piece
from pyrosys.adapters.plan import Plan, sampled, specs_of
from pyrosys.adapters.program import Program
from pyrosys.adapters.refine import Refinement, refine
from pyrosys.adapters.report import named_part
from pyrosys.adapters.search import Whole, match_parts, sides_of
from pyrosys.adapters.share import share_equal_work
from pyrosys.adapters.sides import READINGS, ModuleSide, Side
from pyrosys.adapters.structure import Structure
from pyrosys.adapters.verify import Outcome, certify
from pyrosys.errors import CaptureError, InputError, PyrosysError, StructureMismatch

__all__ = ["match", "match_sides", "match_wholes", "prepared_sides", "structure_of"]

T = TypeVar("T")


def match(
    source: Any,
    target: nn.Module,
    inputs: Any = None,
    target_inputs: Any = None,
    *,
    source_output: OutputSelector | None = None,
    target_output: OutputSelector | None = None,
    part: bool = False,
    source_part: str | None = None,
    target_part: str | None = None,
    tolerance: float | None = None,
) -> Plan:
    """Find the plan that turns the source's weights into the target's, with no names read, and prove it.

    Args:
        source: a module, or a structure card that stands for one.
        target: a module; its weights are not changed.
        inputs: example arguments: a tuple, a dict of keyword arguments, `pyrosys.Inputs`, or a list of such probes.
            Default: the source's `example_input_array`.
        target_inputs: the same examples in the form the target takes, when that differs.
        source_output, target_output: from a model's output, or that of the part named below, to the tensor or tensors that
            count.
        part: whether a part of the target is enough. The largest that the source has too is looked for; the target keeps
            its own values elsewhere, and the plan says where.
        source_part, target_part: path of the submodule that counts: the value that it returns, computed from the model's
            inputs, or, where that does not fit, the submodule on its own.
        tolerance: a largest absolute difference to accept instead of rounding; the certificate records it.

    Returns:
        A complete plan, verified with random parameters and, unless the source is on meta, with its real weights.

    Raises:
        StructureMismatch: the two do not compute the same function, or nothing decides how they correspond; the message
            says where.
        CaptureError: a model does not run on the inputs, is not deterministic, or does something that cannot be recorded.

    Example:
        >>> import torch, pyrosys
        >>> a = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
        >>> b = torch.nn.Sequential(torch.nn.Conv1d(3, 5, 1), torch.nn.ReLU(), torch.nn.Conv1d(5, 2, 1))
        >>> x = torch.randn(2, 4, 3)
        >>> plan = pyrosys.match(a, b, (x,), (x.mT,), target_output=lambda y: y.mT)
        >>> plan.checked
        'real weights'
    """
    left = Whole(source, [], source_output, source_part)
    right = Whole(target, [], target_output, target_part)
    return match_wholes(left, right, inputs, target_inputs, part=part, tolerance=tolerance)


@torch.inference_mode(False)
@seldom_collected()
def match_wholes(
    source: Whole, target: Whole, inputs: Any, target_inputs: Any, *, part: bool, tolerance: float | None
) -> Plan:
    """`match` on models with what is known of them; a card may come as a side that has weights."""
    _probe(source, target, inputs, target_inputs)
    if part or source.path or target.path:
        return match_parts(source, target, part, functools.partial(match_sides, tolerance=tolerance))
    left, right = sides_of(source, target, (Part(), Part()))
    return match_sides(left, right, tolerance)


def prepared_sides(
    source: Any,
    target: nn.Module,
    inputs: Any,
    target_inputs: Any,
    source_output: OutputSelector | None,
    target_output: OutputSelector | None,
) -> tuple[Side, Side]:
    """What `match` takes, as the two sides that `match_sides` takes."""
    left, right = Whole(source, [], source_output, None), Whole(target, [], target_output, None)
    _probe(left, right, inputs, target_inputs)
    return sides_of(left, right, (Part(), Part()))


def _probe(source: Whole, target: Whole, inputs: Any, target_inputs: Any) -> None:
    """Give both sides their inputs."""
    from pyrosys.adapters.card import CardSide, StructureCard

    if not isinstance(target.model, nn.Module):
        raise InputError(f"Expected the target to be a torch module, found {type(target.model).__name__}.")
    if isinstance(source.model, StructureCard):
        source.model = CardSide(source.model)
    if isinstance(source.model, CardSide):
        source.probes = source.model.probes
        others = as_inputs(
            target_inputs if target_inputs is not None else inputs if inputs is not None else source.probes
        )
        target.probes = others[: len(source.probes)]
        return
    if not isinstance(source.model, nn.Module):
        raise InputError(
            f"Expected the source to be a torch module or a structure card, found {type(source.model).__name__}."
        )
    if inputs is None:
        inputs = getattr(source.model, "example_input_array", None)
        if inputs is None:
            raise InputError(
                f"Expected inputs to run {type(source.model).__name__} on, found none. Pass a tuple or a dict of arguments."
            )
    source.probes = as_inputs(inputs)
    target.probes = source.probes if target_inputs is None else as_inputs(target_inputs)
    if len(source.probes) != len(target.probes):
        raise InputError(
            f"Expected as many target probes as source probes, found {len(target.probes)} and {len(source.probes)}."
        )


@torch.inference_mode(False)
@seldom_collected()
def match_sides(source: Side, target: Side, tolerance: float | None = None) -> Plan:
    """`match` on prepared sides.

    A model can be read in more than one way: a buffer that meets the data may be state (running statistics) or a table
    (rotary angles), matrices in a row may be layers or a low-rank update, and matrices side by side may be branches or one
    that was cut. Only the other model tells which. The plain reading comes first, and the others where it fails and they make
    a difference; in each, where it fails, what may be copies of one tensor is taken for one. What structure alone says comes
    last, and of the plain reading: it is slow, and mostly tells where the models part.
    """
    sides = source, target
    probes = list(source.probes), list(target.probes)

    def trial(
        readings: frozenset[str],
        copies: tuple[Copies, Copies] = ({}, {}),
        as_they_are: tuple[Structure, Structure] | None = None,
    ) -> _Trial:
        for side, given in zip(sides, probes, strict=True):
            side.read(readings)
            side.probes = list(given)
        return _Trial(source, target, tolerance, copies, as_they_are)

    def with_copies(readings: frozenset[str], tried: _Trial) -> Plan | None:
        copies = tried.likely_copies()
        return trial(readings, copies, tried.structures).by_numbers() if any(copies) else None

    def quietly(search: Callable[[], Plan | None]) -> Plan | None:
        with contextlib.suppress(PyrosysError):
            return _followed(sides, search)

    def searched() -> Plan:
        plain, failure = trial(frozenset()), None
        try:
            if plan := plain.by_numbers() or quietly(lambda: with_copies(frozenset(), plain)):
                return plan
        except CaptureError as error:  # it chooses by its activations, perhaps
            failure = error

        def read(readings: frozenset[str]) -> Plan | None:
            other = trial(readings)
            return other.by_numbers() or with_copies(readings, other)

        for readings in _other_readings(sides):
            if plan := quietly(lambda readings=readings: read(readings)):
                return plan
        if failure is not None:
            raise failure
        for side in sides:
            side.read(frozenset())
        if plan := plain.by_structure():
            return plan
        raise plain.refusal()

    return _followed(sides, searched)


def _other_readings(sides: tuple[Side, Side]) -> Iterator[frozenset[str]]:
    """Every way to read the models that makes a difference, those close to the plain one first."""
    either = sides[0].possible() | sides[1].possible()
    possible = [reading for reading in READINGS if reading in either]
    for count in range(1, len(possible) + 1):
        for chosen in map(frozenset, itertools.combinations(possible, count)):
            if not chosen.issuperset(READINGS[-2:]):
                yield chosen


def _followed(sides: tuple[Side, Side], search: Callable[[], T]) -> T:
    try:
        return search()
    except PyrosysError:
        raise
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CaptureError(
            f"{sides[0].name} and {sides[1].name} could not be compared: {type(error).__name__}: {error}. One of them does "
            "something that the engine does not follow; please report the pair."
        ) from error


class _Trial:
    """Two models in one reading: what is tried, what came closest, and what stands in its way."""

    def __init__(
        self,
        source: Side,
        target: Side,
        tolerance: float | None,
        copies: tuple[Copies, Copies] = ({}, {}),
        as_they_are: tuple[Structure, Structure] | None = None,
    ):
        self.source, self.target, self.tolerance = source, target, tolerance
        self.copies = copies
        self.structures = structure_of(source, 0, copies[0]), structure_of(target, 0, copies[1])
        self.as_they_are = as_they_are or self.structures
        self.probes = _Probes(source, target, self.structures, copies)
        self.best: _Attempt | None = None
        self.refusal: Callable[[], StructureMismatch] = self._explained

    def by_numbers(self) -> Plan | None:
        """The plan, with elements told apart by the numbers that they take part in, and by structure."""
        for at_once in (True, False):  # what was decided at once may be wrong; then carefully
            self.best = None
            plan = self._tried(0, use_numbers=True, at_once=at_once)
            # Other numbers may be luckier from the start.
            if self.best is not None and not self.best.refinement.settled:
                plan = self._tried(1, use_numbers=True, at_once=at_once)
            if plan is not None or self.best is None or not self.best.refinement.at_once:
                return plan
        return None

    def likely_copies(self) -> tuple[Copies, Copies]:
        """Tensors of either model that may be copies of others where the other model has one."""
        state = self.source.state()

        def are_equal(name: str, first: str) -> bool:
            one, other = state[name], state[first]
            return one.dtype == other.dtype and not one.is_meta and torch.equal(one, other)

        return find_copies(_uncoloured(self.structures), are_equal)

    def by_structure(self) -> Plan | None:
        """The plan, with elements told apart by structure alone, where the numbers do not agree."""
        if self.best is None or self.best.refinement.agree:
            return None
        return self._tried(2, use_numbers=False, at_once=False)

    def _tried(self, salt: int, *, use_numbers: bool, at_once: bool) -> Plan | None:
        """The plan of what came closest, if it stands; a model that holds what cannot be computed from the other's is refused."""
        try:
            self._try(salt, use_numbers=use_numbers, at_once=at_once)
            return self._proved()
        except StructureMismatch as error:
            self.refusal = lambda error=error: error
            return None

    def _try(self, salt: int, *, use_numbers: bool, at_once: bool) -> None:
        """Colour until both models show the same colours and every place is explained."""
        for anonymous in (False, True) if self.probes.may_reorder else (False,):
            attempt = _attempt(
                self.structures, self.probes, salt, use_numbers=use_numbers, anonymous=anonymous, at_once=at_once
            )
            if attempt.refinement.agree:
                order = _token_order(self.structures, attempt.assembly) if self.probes.outputs_as_returned else None
                if order is not None:
                    attempt = _attempt(self.structures, self.probes, salt, use_numbers=use_numbers, order=order)
                elif anonymous and attempt.complete:
                    continue
            if self.best is None or attempt.rank > self.best.rank:
                self.best = attempt
            if attempt.refinement.agree and attempt.complete:
                return

    def _proved(self) -> Plan | None:
        """The plan of the closest attempt, if it is complete and both sides compute the same under it."""
        best = self.best
        assert best is not None
        self.refusal = self._explained
        if not best.complete:
            return None
        try:
            plan = _plan(self.source, self.target, self.structures, best, self.copies)
            if self.copies[1]:
                hidden = unseen(_uncoloured(self.as_they_are)[1]).keys() & self.copies[1].keys() & plan.pieces.keys()
                plan.unobservable = tuple(sorted({*plan.unobservable, *hidden}))
        except StructureMismatch as error:
            error.found = Mismatch(self.structures, Parting(str(error)))
            raise
        if best.order is not None:
            plan.notes = (*plan.notes, _ORDER_NOTE.format(len(best.order)))
            plan.output_order = tuple(best.order.tolist())
        certificate, failed, state = certify(
            plan, self.source, self.target, self.as_they_are, tolerance=self.tolerance, order=best.order
        )
        if failed is not None:
            self.refusal = functools.partial(
                _explain_failure, self.source, self.target, best, plan, failed, state or {}
            )
            return None
        plan.certificate = certificate
        plan.probes = (list(self.source.probes), list(self.target.probes))
        plan.selectors = (getattr(self.source, "select", None), getattr(self.target, "select", None))
        plan.checked = "random parameters" if self.source.is_meta() else "real weights"
        return plan

    def _explained(self) -> StructureMismatch:
        assert self.best is not None
        return _explain(self.source, self.target, self.structures, self.best)


def structure_of(side: Side, probe: int = 0, copies: Copies | None = None) -> Structure:
    """A side's structure on one of its probes, with copies taken for the tensors that they are copies of."""
    captured = side.capture(probe)
    return Structure(share_equal_work(take_for_one(captured.copy(), copies) if copies else captured))


_ORDER_NOTE = (
    "the last axis of outputs of length {} follows the order of the input tokens, which differs between the two models"
)


def _token_order(structures: tuple[Structure, Structure], assembly: Assembly) -> Tensor | None:
    """The one permutation of tokens under which the inputs correspond, when an output has an axis of that length."""
    orders = [v for v in assembly.vocabularies if len(v) and bool((v != torch.arange(len(v))).any())]
    lengths = {o.meta["shape"][-1] for o in structures[1].capture.outputs if o.meta["shape"]}
    fitting = [v for v in orders if len(v) in lengths and torch.equal(torch.sort(v).values, torch.arange(len(v)))]
    if not fitting or any(not torch.equal(v, fitting[0]) for v in fitting):
        return None
    return fitting[0]


@dataclasses.dataclass
class _Attempt:
    """One colouring of both sides and what came of it."""

    refinement: Refinement
    sides: tuple[Colouring, Colouring]
    assembly: Assembly
    order: Tensor | None = None

    @property
    def complete(self) -> bool:
        return not self.assembly.unmatched

    @property
    def rank(self) -> tuple[bool, bool, int]:
        return (self.refinement.agree, self.refinement.settled, -len(self.assembly.unmatched))


def _attempt(
    structures: tuple[Structure, Structure],
    probes: "_Probes",
    salt: int,
    *,
    use_numbers: bool = True,
    anonymous: bool = False,
    order: Tensor | None = None,
    at_once: bool = False,
) -> _Attempt:
    spread = spread_for(structures)

    def colourings(pair: tuple[Structure, Structure], number: int, more: int = 0) -> tuple[Colouring, Colouring]:
        seeds = _seeds(pair[0], anonymous, number)
        ordered = [s if order is None or s.shape[-1] != len(order) else s[..., order] for s in seeds]
        numbers = 100 * salt + 1000 * more
        return Colouring(pair[0], seeds, numbers, spread), Colouring(pair[1], ordered, numbers, spread)

    sides = colourings(structures, 0)
    further = [colourings(pair, 1 + i) for i, pair in enumerate(probes.given)]
    for position, side in enumerate(sides):
        side.others = tuple(pair[position] for pair in further)

    def extra(number: int) -> list[tuple[Colouring, Colouring]]:
        others = [structures] if number else probes.made
        pairs = [colourings(pair, 0 if number else 10 + i, number) for i, pair in enumerate(others)]
        for pair in pairs:
            for mine, first in zip(pair, sides, strict=True):
                mine.under(first)
                mine.let_go()
        return pairs if number else further + pairs

    refinement = refine(sides, use_numbers=use_numbers, at_once=at_once)
    if refinement.agree:
        return _Attempt(refinement, sides, assemble(*sides, extra), order)
    unmatched = Assembly(unmatched=["colours of the two models differ"])
    return _Attempt(refinement, sides, unmatched, order)


def _uncoloured(structures: tuple[Structure, Structure]) -> tuple[Colouring, Colouring]:
    """Both models as they are coloured at first."""
    seeds, spread = _seeds(structures[0], False, 0), spread_for(structures)
    return Colouring(structures[0], seeds, spread=spread), Colouring(structures[1], seeds, spread=spread)


def _seeds(structure: Structure, anonymous: bool, probe: int) -> list[Tensor]:
    """What tells output elements apart; the last axis is left anonymous to find out its order."""
    seeds = []
    for number, node in enumerate(structure.capture.outputs):
        shape = list(node.meta["shape"])
        generator = torch.Generator().manual_seed(1000 + 100 * probe + number)
        if anonymous and shape:
            seeds.append(torch.randn([*shape[:-1], 1], generator=generator, dtype=torch.float64).expand(shape))
        else:
            seeds.append(torch.randn(shape, generator=generator, dtype=torch.float64))
    return seeds


class _Probes:
    """Both sides on the probes after the first, and on probes made from it.

    Made probes scale the real-valued inputs of both sides alike, so that features which are silent on the given example
    (a distance bin that nothing falls into) speak. A mask or an integer stays as it is.
    """

    def __init__(
        self, source: Side, target: Side, structures: tuple[Structure, Structure], copies: tuple[Copies, Copies]
    ):
        self.source = source
        self.target = target
        self.structures = structures
        self.copies = copies
        self.outputs = align_outputs(source, target, structures)

    @property
    def outputs_as_returned(self) -> bool:
        """Whether the caller left the outputs as the models return them; outputs he selected correspond as selected."""
        return all(getattr(side, "select", None) is None for side in (self.source, self.target))

    @property
    def may_reorder(self) -> bool:
        """Whether the outputs may follow another order of tokens: where the models look up different ones, and return as many."""
        left, right = (side.probes[0].tensors() for side in (self.source, self.target))
        if len(left) == len(right) and all(a is b or torch.equal(a, b) for a, b in zip(left, right, strict=True)):
            return False
        lengths = {o.meta["shape"][-1] for o in self.structures[1].capture.outputs if o.meta["shape"]}
        return any(lengths & set(p.operand.meta["shape"]) for p in self.structures[1].places if p.kind == "look up")

    @functools.cached_property
    def given(self) -> list[tuple[Structure, Structure]]:
        return [self._pair(i) for i in range(1, len(self.source.probes))]

    @functools.cached_property
    def made(self) -> list[tuple[Structure, Structure]]:
        pairs = []
        if not (isinstance(self.source, ModuleSide) and isinstance(self.target, ModuleSide)):
            return pairs
        for factor in (0.4, 0.15, 2.5):
            scaled = [_scaled(side.probes[0], factor) for side in (self.source, self.target)]
            if scaled[0] is None or scaled[1] is None:
                break
            self.source.probes.append(scaled[0])
            self.target.probes.append(scaled[1])
            pairs.append(self._pair(len(self.source.probes) - 1))
        return pairs

    def _pair(self, probe: int) -> tuple[Structure, Structure]:
        pair = structure_of(self.source, probe, self.copies[0]), structure_of(self.target, probe, self.copies[1])
        for position, structure in enumerate(pair):
            every = structure.capture.outputs
            structure.restrict([every[numbers[position]] for numbers in self.outputs])
        return pair


def _scaled(probe: Inputs, factor: float) -> Inputs | None:
    """The probe with its real-valued tensors scaled; None when it has none."""
    found = []

    def scale(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.unique().numel() < 5:
            return tensor
        found.append(tensor)
        return tensor * factor

    scaled = probe.map(scale)
    return scaled if found else None


def _plan(
    source: Side,
    target: Side,
    structures: tuple[Structure, Structure],
    attempt: _Attempt,
    copies: tuple[Copies, Copies] = ({}, {}),
) -> Plan:
    """A plan from pieces: one consistent set of steps per target tensor, and the lists of what is not copied."""
    assembly, unseen = attempt.assembly, attempt.sides[1].unseen()
    source_state, target_state = source.state(), target.state()
    captures = structures[0].capture, structures[1].capture
    pieces: dict[str, list[Piece]] = {}
    for piece in assembly.pieces:
        steps = pieces.setdefault(piece.target, [])
        if piece not in steps:
            steps.append(piece)
    equal: dict[str, str] = {}
    computed = {name: Program.of(root) for name, root in assembly.computed.items()}
    settled = {
        name: _settle(name, _once(name, steps, source_state, computed, equal), structures[1])
        for name, steps in pieces.items()
    }
    for name, first in copies[1].items():
        if first in settled:
            settled[name] = [dataclasses.replace(piece, target=name) for piece in settled[first]]
        if first in assembly.solved:
            assembly.solved[name] = assembly.solved[first]
    computed = {n: p for n, p in computed.items() if any(s.source == n for steps in settled.values() for s in steps)}
    made = settled.keys() | assembly.solved.keys()
    kept = tuple(n for n in target_state if captures[1].ties.get(n, n) not in made)
    reached = {p for s in (structures[1],) for p in s.reached()}
    uses = {p.source for steps in settled.values() for p in steps if p.source is not None}
    read = {name for program in computed.values() for name in program.inputs}
    uses |= read
    zero = _neutral_leftovers(source_state, attempt.sides[0], settled, {*read, *equal})
    equal |= {name: first for name, first in copies[0].items() if first in uses or first in zero}
    return Plan(
        pieces={n: tuple(s) for n, s in settled.items()},
        source=specs_of(source_state),
        target=specs_of(target_state),
        source_ties={a: f for a, f in captures[0].ties.items() if a in source_state},
        target_ties={a: f for a, f in captures[1].ties.items() if a in target_state},
        kept=kept,
        unreached=tuple(n for n in kept if n not in reached and n not in captures[1].derived),
        unused=tuple(n for n in source_state if captures[0].ties.get(n, n) not in uses and n not in zero),
        filled=tuple(sorted({n for n, s in settled.items() if any(p.source is None and not p.keeps for p in s)})),
        unobservable=tuple(n for n in target_state if captures[1].ties.get(n, n) in unseen.keys() & settled.keys()),
        extrapolated=assembly.extrapolated,
        zero=zero,
        equal=equal,
        constants={n: sampled(source_state[n]) for n in sorted(captures[0].derived) if not source_state[n].is_meta},
        computed=computed,
        solved=assembly.solved,
        notes=tuple(dict.fromkeys([*assembly.ambiguous, *_partly_unseen(unseen, captures[1].tensors)])),
        target_state=target_state,
    )


def _partly_unseen(unseen: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Notes on tensors of which only a part cannot be seen: the key's part of a fused bias."""
    return [
        f"{count} of {torch.Size(shapes[name]).numel()} elements of {name} cannot be seen in the outputs"
        for name, count in unseen.items()
        if count < torch.Size(shapes[name]).numel()
    ]


def _once(
    name: str,
    steps: list[Piece],
    state: Mapping[str, Tensor],
    computed: Mapping[str, Program],
    equal: dict[str, str],
) -> list[Piece]:
    """One of several steps that differ only in the source tensor, when those tensors hold equal values; noted in `equal`.

    Tensors that the source computes are equal if it computes them alike from equal tensors.
    """
    kept: list[Piece] = []
    for piece in steps:
        twin = next(
            (k for k in kept if k.source and piece.source and dataclasses.replace(k, source=piece.source) == piece),
            None,
        )
        if twin is None:
            kept.append(piece)
            continue
        first, second = _read(str(twin.source), computed), _read(str(piece.source), computed)
        alike = first[0] == second[0]  # and then they read as many
        pairs = list(zip(first[1], second[1], strict=True)) if alike else []
        if not alike or any(
            state[a].is_meta or state[b].is_meta or not torch.equal(state[a], state[b]) for a, b in pairs
        ):
            raise StructureMismatch(
                f"The target uses {name!r} in several places (it is tied), and the source has different tensors there: "
                f"{twin.source}, {piece.source}. Untie the target, or make the source's tensors one."
            )
        equal |= {b: a for a, b in pairs if a != b}
    return kept


def _read(name: str, computed: Mapping[str, Program]) -> tuple[Any, list[str]]:
    """How the source computes a tensor, without names, and the names of what it reads."""
    if name not in computed:
        return None, [name]
    steps = [{key: value for key, value in step.items() if key != "parameter"} for step in computed[name].to_json()]
    return steps, computed[name].inputs


def _settle(name: str, steps: list[Piece], target: Structure) -> list[Piece]:
    """Steps that set each element once: a tensor used twice must get the same source elements from both uses.

    Where both uses take them from one tensor in orders that differ, the first counts: the last round of a loop may feel no
    order, and whether it does, the comparison of numbers shows. Elements that no output depends on are kept.
    """
    numel = torch.Size(target.capture.tensors[name]).numel()
    if sum(p.count for p in steps) == numel:
        return steps
    origin = torch.full((numel,), -1, dtype=torch.int64)
    names = sorted({p.source or "" for p in steps})
    chosen: list[Piece] = []
    for piece in sorted(steps, key=lambda p: (-p.count, p.source is None)):
        numbers = piece.numbers("target").reshape(-1)
        if piece.source is None:
            code = torch.full_like(numbers, -2)
        else:
            code = piece.numbers("source").reshape(-1) + (names.index(piece.source) << 40)
        here = origin[numbers]
        fresh = here == -1
        if bool(fresh.all()):
            origin[numbers] = code
            chosen.append(piece)
        elif bool((here[~fresh] != code[~fresh]).any()):
            if len(names) == 1:
                continue
            others = sorted({p.source or "nothing" for p in steps})
            raise StructureMismatch(
                f"The target uses {name!r} in several places (it is tied), and the source has different tensors there: "
                f"{', '.join(others)}. Untie the target, or make the source's tensors one."
            )
        elif bool(fresh.any()):
            raise StructureMismatch(f"Two uses of {name!r} in the target overlap in part, and no layout serves both.")
    missing = origin == -1
    kept = missing & ~target.elements_reached(name) if bool(missing.any()) else missing
    if count := int((missing & ~kept).sum()):
        raise StructureMismatch(
            f"{count} of {numel} elements of the target's {name!r} are reached by the outputs on this probe only in part. "
            "Pass probes that reach all of it."
        )
    return [*chosen, keeping_piece(name, torch.nonzero(kept).reshape(-1))] if bool(kept.any()) else chosen


def _neutral_leftovers(
    state: Mapping[str, Tensor], source: Colouring, steps: Mapping[str, list[Piece]], done: set[str]
) -> dict[str, tuple[Piece, ...]]:
    """What biases and gains of the source hold that the target has no place for: allowed only while it is neutral.

    What no output feels (a part of a fused bias that belongs to keys) may be anything.

    Args:
        done: tensors of which all is accounted for.
    """
    marks = {place: seen for place, seen in source.seen().items() if place.operation in ("bias", "gain")}
    taken = _taken({place.source for place in marks}, steps)
    zero: dict[str, list[Piece]] = {}
    for place, seen in marks.items():
        name = place.source.meta["parameter"]
        if name in done:
            continue
        held = elements_held(place)
        left = held[~taken[name][held] & (source.families[place].features.reshape(-1)[held] != DEAD)]
        if not bool(seen.reshape(-1)[left].any()):
            continue
        piece = neutral_piece(place, left)
        if state[name].is_meta or not piece.holds(state[name]):
            raise StructureMismatch(
                f"The source's {place.operation} {named_part(piece, tuple(state[name].shape))!r} has nowhere to go: the target "
                f"{'adds' if place.operation == 'bias' else 'multiplies by'} nothing at that place"
                f"{'' if state[name].is_meta else f', and it is not {piece.shift:g} everywhere'}. "
                "Use a target that has this parameter."
            )
        zero.setdefault(name, []).append(piece)
        taken[name][left] = True
    return {name: tuple(pieces) for name, pieces in zero.items()}


def _taken(sources: Iterable[fx.Node], steps: Mapping[str, list[Piece]]) -> dict[str, Tensor]:
    """Which elements of some of the source's tensors the target takes."""
    taken = {s.meta["parameter"]: torch.zeros(torch.Size(s.meta["shape"]).numel(), dtype=torch.bool) for s in sources}
    for piece in (piece for pieces in steps.values() for piece in pieces):
        if piece.source in taken:
            taken[piece.source][piece.numbers("source").reshape(-1)] = True
    return taken


def _explain_failure(
    source: Side, target: Side, attempt: _Attempt, plan: Plan, failed: Outcome, state: Mapping[str, Tensor]
) -> StructureMismatch:
    c = failed.comparison
    structures = (attempt.sides[0].structure, attempt.sides[1].structure)
    parting = difference_under_plan(attempt.sides, attempt.assembly.pairs, target, plan, state)
    return StructureMismatch(
        f"{source.name} and {target.name} have one structure but do not compute the same: outputs differ by "
        f"{c.difference:.2e} where rounding explains {c.tolerance:.1e} ({c.parameters} parameters, {c.precision}). "
        f"{parting.sentence}",
        Mismatch(structures, parting, plan),
    )


def _explain(source: Side, target: Side, structures: tuple[Structure, Structure], best: _Attempt) -> StructureMismatch:
    """One paragraph: what was expected, where the models part, what to do."""
    if not best.refinement.agree:
        parting = structural_difference(structures)
        text = f"{source.name} and {target.name} do not have the same structure. {parting.sentence}"
        return StructureMismatch(text, Mismatch(structures, parting))
    parting = difference_under_colours(best.sides)
    if parting is not None:
        text = f"{source.name} and {target.name} are built alike but do not compute the same. {parting.sentence}"
        return StructureMismatch(text, Mismatch(structures, parting))
    parts = "; ".join(best.assembly.unmatched[:4])
    more = len(best.assembly.unmatched) - 4
    listing = f" Unmatched: {parts}{f'; and {more} more' if more > 0 else ''}." if parts else ""
    text = f"{source.name} and {target.name} have one structure, but this probe does not decide everything.{listing}"
    return StructureMismatch(text, Mismatch(structures, Parting(text)))
