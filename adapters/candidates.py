"""A checkpoint with nothing but names and shapes: which layouts does a target admit, and what speaks for each?

Without the code that wrote a checkpoint, shapes alone say which tensor can go where: whole, transposed, as a block of a
fused tensor, as a slice of a stack. Usually that leaves many assignments. They are ranked by evidence, and evidence is no
proof:

- *values*: gains are positive and biases are not; tensors that read or write the same features of the data have similar
  profiles along them, since large features are large for all;
- *names*: only how they are built. Names that differ in a number are layers; names with one stem belong together; words
  that both sides use may mean the same. No word has a meaning of its own here.

Outputs of the original model for known inputs settle the question, and nothing else does. Where they are missing, the
answer is the number of the output in which the best candidates differ most.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrosys.adapters.capture import Inputs, OutputSelector, as_inputs
from pyrosys.adapters.certificate import Certificate, Comparison, versions
from pyrosys.adapters.readings import Assignment, Reading
from pyrosys.adapters.sides import ModuleSide
from pyrosys.errors import InputError, StructureMismatch

__all__ = ["Candidate", "Candidates", "Question", "candidates"]

_SHOWN = 8
_MORE = 32  # candidates that are tried after one that fits
_SLACK = 16.0


@dataclasses.dataclass(frozen=True)
class Candidate(Assignment):
    """One way to read the checkpoint: its `plan`, which is not proven, its `score`, whose unit means nothing, and its `layout`.

    Attributes:
        difference: largest difference from the expected outputs, where these were given.
    """

    difference: float | None = None


@dataclasses.dataclass(frozen=True)
class Question:
    """The number to ask the original model for.

    Attributes:
        inputs: what to run it on.
        output: which of its outputs, from 0.
        position: of the number in that output.
        answers: what each of the best candidates gives there.
    """

    inputs: Inputs
    output: int
    position: tuple[int, ...]
    answers: tuple[float, ...]

    def __str__(self) -> str:
        place = f"output{f' {self.output}' if self.output else ''}[{', '.join(map(str, self.position))}]"
        given = ", ".join(f"{number + 1}: {answer:.6g}" for number, answer in enumerate(self.answers))
        return f"{place} of the original for {self.inputs!r}; by candidate, {given}"


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What a checkpoint may be, best first.

    Attributes:
        ranked: the candidates that were kept.
        exhaustive: whether these are all that shapes allow; otherwise less likely ones were left out.
        settled: the candidate that expected outputs single out, if they do.
        question: what would settle it, if anything can on these inputs.
    """

    ranked: tuple[Candidate, ...]
    exhaustive: bool
    settled: Candidate | None
    question: Question | None

    @property
    def count(self) -> str:
        """How many layouts there are, in words."""
        return f"{len(self.ranked)}{'' if self.exhaustive else ' or more'} layout{'s' * (len(self.ranked) != 1)}"

    def report(self) -> str:
        """The outcome, what the best candidates have in common and where they differ."""
        state = "Settled by the expected outputs, among" if self.settled else "Undetermined: shapes allow"
        lines = [f"{state} {self.count}"]
        best = self.ranked[:_SHOWN] if self.settled is None else (self.settled,)
        for family in best[0].layout:
            words = list(dict.fromkeys(c.layout[family] for c in best))
            if len(words) == 1:
                lines.append(f"  {family}  <-  {words[0]}")
        for number, candidate in enumerate(best, 1):
            if len(best) > 1:
                lines.append(f"candidate {number}, score {candidate.score:.1f}")
                differing = [f for f, w in candidate.layout.items() if any(c.layout[f] != w for c in best)]
                lines += [f"  {family}  <-  {candidate.layout[family]}" for family in differing]
        if self.settled is None:
            lines.append(f"What would settle it: {self.question or 'an output of the original'}")
        return "\n".join(lines)


def candidates(
    checkpoint: Mapping[str, Tensor],
    target: nn.Module,
    inputs: Any = None,
    expected: Any = None,
    *,
    output: OutputSelector | None = None,
    tolerance: float | None = None,
) -> Candidates:
    """Rank the ways in which a checkpoint without code may be read as a target's weights.

    Args:
        checkpoint: tensors by name.
        target: a module of the architecture that the checkpoint is believed to be of; it is not changed.
        inputs: its arguments; default: its `example_input_array`.
        expected: what the original gives for these inputs: a tensor, or a list of tensors for several outputs. The last
            word; without it nothing is settled.
        output: from the target's output to the tensors that count.
        tolerance: largest absolute difference from the expected outputs; default: a multiple of rounding.

    Raises:
        StructureMismatch: shapes alone rule every layout out, or no layout gives the expected outputs.
    """
    given = inputs if inputs is not None else getattr(target, "example_input_array", None)
    if given is None:
        raise InputError(f"Expected inputs to run {type(target).__name__} on, found none. Pass a tuple or a dict.")
    side = ModuleSide(target, as_inputs(given), output)
    reading = Reading(checkpoint, side)
    found, exhaustive = reading.search()
    ranked = [Candidate(a.plan, a.score, a.layout) for a in found]
    if expected is None:
        return Candidates(tuple(ranked), exhaustive, None, _question(side, reading, ranked[:_SHOWN]))
    wanted = [e.detach() for e in ([expected] if isinstance(expected, Tensor) else expected)]
    tested: list[Candidate] = []
    fitting: list[Candidate] = []
    last = len(ranked)
    for number, candidate in enumerate(ranked):
        if number == last:
            break
        tested.append(_tested(side, reading, candidate, wanted, tolerance))
        if tested[-1].plan.certificate is not None:
            fitting.append(tested[-1])
            last = min(last, number + _MORE)
    if not fitting:
        nearest = min((c.difference for c in tested if c.difference is not None), default=math.inf)
        raise StructureMismatch(
            f"None of the {len(tested)} layouts that were tried gives the expected outputs; the nearest is off by {nearest:.2e}. "
            f"{'They are all that shapes allow' if exhaustive else 'There are more that shapes allow'}: check that the target's "
            "configuration and the inputs are those of the original, or pass its code or structure card."
        )
    other = _varied(side)
    open_question = _question(other, reading, fitting[:_SHOWN]) or _unseen(side, other, reading, fitting[0])
    settled = fitting[0] if open_question is None else None
    return Candidates(tuple(fitting) if settled is None else tuple(tested), exhaustive, settled, open_question)


# Trying candidates


def _outputs(side: ModuleSide, reading: Reading, candidate: Candidate, dtype: torch.dtype) -> list[Tensor]:
    """What the target gives under a candidate."""
    return side.run(candidate.plan.apply(reading.weights), 0, dtype)


def _tested(
    side: ModuleSide, reading: Reading, candidate: Candidate, expected: Sequence[Tensor], tolerance: float | None
) -> Candidate:
    """The candidate with its distance from the expected outputs, and a certificate when that is rounding."""
    found = _outputs(side, reading, candidate, torch.float64)
    if [tuple(f.shape) for f in found] != [tuple(e.shape) for e in expected]:
        raise InputError(
            f"Expected outputs of shapes {[tuple(f.shape) for f in found]}, as the target gives, found "
            f"{[tuple(e.shape) for e in expected]}. Pass one tensor for each output, or choose outputs."
        )
    kind = min((e.dtype for e in expected), key=lambda d: torch.finfo(d).bits)
    difference, scale = _distance(found, expected), max(float(e.abs().max()) for e in expected)
    tried = dataclasses.replace(candidate, difference=difference)
    allowed = 0.1 * scale if tolerance is None else tolerance
    if difference <= allowed and tolerance is None:
        coarse = _outputs(side, reading, candidate, torch.promote_types(kind, torch.float32))
        allowed = _SLACK * (_distance(found, coarse) + torch.finfo(kind).eps * scale)
    if not difference <= allowed:
        return tried
    rounding = "stated by the caller" if tolerance is not None else str(kind).removeprefix("torch.")
    certificate = Certificate(
        comparisons=(Comparison("real", "float64", difference, scale, allowed, rounding),),
        probes=(repr(side.probes[0]),),
        outputs=tuple(tuple(e.shape) for e in expected),
        compared="outputs of the original, as given, against those of the target",
        versions=versions(),
    )
    tried.plan.certificate, tried.plan.checked = certificate, "expected outputs"
    return tried


def _distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    gaps = [float((a.double() - b.double()).abs().nan_to_num(math.inf).max()) for a, b in zip(one, other, strict=True)]
    return max(gaps, default=0.0)


def _varied(side: ModuleSide) -> ModuleSide:
    """The target on other inputs of the same form: numbers moved, integers in another order."""
    generator = torch.Generator().manual_seed(0)

    def vary(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            spread = float(tensor.double().std(correction=0))
            noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            return tensor + noise * (spread if spread > 1e-6 else 1.0)
        order = torch.randperm(tensor.numel(), generator=generator)
        return tensor.reshape(-1)[order].reshape(tensor.shape)

    return ModuleSide(side.model, [side.probes[0].map(vary)], side.select)


def _unseen(side: ModuleSide, other: ModuleSide, reading: Reading, candidate: Candidate) -> Question | None:
    """Note tensors that no output shows; a question when other inputs show one that the expected outputs did not."""
    plan, hidden = candidate.plan, list[str]()
    assert plan.certificate is not None
    state = plan.apply(reading.weights)
    before = [s.run(state, 0, torch.float64) for s in (side, other)]
    for family in reading.wanted:
        changed = {**state, **{name: -state[name] - 1 for name in family.names}}
        for alias, first in plan.target_ties.items():
            changed[alias] = changed[first]
        after = [s.run(changed, 0, torch.float64) for s in (side, other)]
        if _distance(before[0], after[0]) > plan.certificate.comparisons[0].tolerance:
            continue
        if _distance(before[1], after[1]) > plan.certificate.comparisons[0].tolerance:
            return _largest_gap(other, [before[1], after[1]], [before[1], after[1]])
        hidden += family.names
    plan.unobservable = tuple(hidden)
    return None


def _question(side: ModuleSide, reading: Reading, ranked: Sequence[Candidate]) -> Question | None:
    """Where the candidates differ most; None where they are one function as far as these inputs show."""
    if len(ranked) < 2:
        return None
    runs = [_outputs(side, reading, c, torch.float64) for c in ranked]
    distinct: list[list[Tensor]] = []
    for run in runs:
        scale = max(float(t.abs().max()) for t in run)
        if all(_distance(run, other) > 1e-6 * max(scale, 1e-12) for other in distinct):
            distinct.append(run)
    if len(distinct) < 2:
        return None
    return _largest_gap(side, distinct, runs)


def _largest_gap(side: ModuleSide, distinct: Sequence[list[Tensor]], runs: Sequence[list[Tensor]]) -> Question:
    """The position at which the closest two of some runs are furthest apart, and what every run gives there."""
    best: tuple[float, int, int] = (-1.0, 0, 0)
    for number in range(len(runs[0])):
        values = torch.stack([run[number].reshape(-1) for run in distinct]).nan_to_num()
        gap, position = torch.sort(values, 0).values.diff(dim=0).amin(0).max(0)
        best = max(best, (float(gap), number, int(position)))
    _, number, flat = best
    position = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), runs[0][number].shape))
    answers = tuple(float(run[number].reshape(-1)[flat]) for run in runs)
    return Question(side.probes[0], number, position, answers)
