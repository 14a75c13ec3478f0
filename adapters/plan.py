"""A weight plan: for every target tensor, which elements of which source tensors it takes.

A plan is data. It is written as JSON, read back anywhere, applied to a mapping of tensors (or a memory-mapped file) one
tensor at a time, and turned round. It holds no code and no weights.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrosys.adapters.certificate import Certificate
from pyrosys.adapters.part import Part
from pyrosys.adapters.piece import Axis, Piece
from pyrosys.adapters.program import Program
from pyrosys.adapters.report import named_part
from pyrosys.errors import InputError, PlanError, WeightsError

__all__ = ["FORMAT", "Plan", "sampled"]

FORMAT = "pyrosys-plan/1"


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of one tensor of a state dict."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


def specs_of(state: Mapping[str, Any]) -> dict[str, TensorSpec]:
    """Shape and dtype of every tensor of a state dict."""
    return {
        name: TensorSpec(tuple(t.shape), str(t.dtype).removeprefix("torch."))
        for name, t in state.items()
        if isinstance(t, Tensor)
    }


@dataclasses.dataclass
class Plan:
    """How the weights of one model become those of another.

    Attributes:
        pieces: per target tensor, the steps that fill it.
        source, target: tensors of both state dicts.
        source_ties, target_ties: second name of a tied tensor to its first.
        kept: target tensors that keep the target's own values: those no output depends on, and derived buffers. Of others, a part
            may be kept: `pieces` say so.
        unreached: those among `kept` that no output in question depends on.
        unused: source tensors that nothing on the target side takes.
        unobservable: target tensors with elements that no probe can see in the outputs; they are placed by structure.
        filled: target tensors (or parts) without a source, set to the value that does nothing.
        extrapolated: target tables with rows that no probe looked up, and how they were continued.
        zero: source tensors, or parts of them, that must be neutral because the target has no place for them, and the steps that
            would make them so.
        equal: source tensors that must equal another, because the target ties them.
        constants: source buffers that the target has as constants, with some of the numbers that they must hold.
        computed: tensors that the source computes from others before it uses them, by the name that pieces give them.
        solved: target tensors that follow from others of the target's (the gain of a weight norm).
        output_order: source position of each target position on the last axis of outputs of that length, when the two
            models order their tokens differently.
        parts: what of source and target was matched, when that is not the whole of both.
        probes, selectors: the inputs and output selectors of `match`; not saved.
        checked: `"structure"`, `"random parameters"` or `"real weights"`: the strongest check that passed. Without a source:
            `"shapes"` or `"expected outputs"`.
        certificate: what was run and compared, when the plan was found.
    """

    pieces: dict[str, tuple[Piece, ...]]
    source: dict[str, TensorSpec]
    target: dict[str, TensorSpec]
    source_ties: dict[str, str] = dataclasses.field(default_factory=dict)
    target_ties: dict[str, str] = dataclasses.field(default_factory=dict)
    kept: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    unobservable: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()
    extrapolated: dict[str, str] = dataclasses.field(default_factory=dict)
    zero: dict[str, tuple[Piece, ...]] = dataclasses.field(default_factory=dict)
    equal: dict[str, str] = dataclasses.field(default_factory=dict)
    constants: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    computed: dict[str, Program] = dataclasses.field(default_factory=dict)
    solved: dict[str, Program] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    checked: str = "structure"
    certificate: Certificate | None = None
    parts: tuple[Part, Part] | None = None
    target_state: Mapping[str, Tensor] | None = dataclasses.field(default=None, repr=False, compare=False)
    probes: tuple[Any, Any] | None = dataclasses.field(default=None, repr=False, compare=False)
    selectors: tuple[Any, Any] = dataclasses.field(default=(None, None), repr=False, compare=False)
    output_order: tuple[int, ...] | None = None

    @property
    def coverage(self) -> float:
        """Fraction of the target's elements that the plan sets."""
        sizes = {n: torch.Size(s.shape).numel() for n, s in self.target.items() if n not in self.target_ties}
        set_here = sum(size for n, size in sizes.items() if n in self.pieces or n in self.solved)
        set_here -= sum(p.count for steps in self.pieces.values() for p in steps if p.keeps)
        return set_here / max(sum(sizes.values()), 1)

    # Use

    def apply(self, source: Mapping[str, Tensor], target: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The target's complete state dict, from the source's.

        Args:
            source: tensors by the source's names; read one at a time.
            target: the target's present state dict, for the tensors in `kept`; known when the plan comes from `match`.

        Returns:
            Parameters and persistent buffers of the target. A tensor that is all of one source tensor, renamed or reshaped,
            shares its memory, and so do tensors in `kept` with the target's: copy them before changing them in place.

        Raises:
            WeightsError: a tensor is missing, has another shape, or would have to be neutral and is not.
            PlanError: the values of `kept` are needed and not given.
        """
        return dict(self.stream(source, target))

    def stream(
        self, source: Mapping[str, Tensor], target: Mapping[str, Tensor] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield `(name, tensor)` of the target, holding no more than one new tensor at a time, and tied ones."""
        own = target if target is not None else self.target_state
        tied = _Tied(source, self.source_ties)
        self._check_source(tied)
        done: dict[str, Tensor] = {}
        firsts = set(self.target_ties.values())
        for name in self.target:
            first = self.target_ties.get(name, name)
            tensor = done[first] if first in done else self._value(name, tied, own)
            if first in firsts:
                done[first] = tensor
            yield name, tensor

    def load_into(self, target: nn.Module, source: Mapping[str, Tensor]) -> None:
        """Load the target with what the plan makes of the source, tensor by tensor, each straight into its place.

        That is `target.load_state_dict(plan.apply(source, target.state_dict()))` without a second copy of the model in memory.

        Args:
            target: changed in place; what is on the meta device gets memory.
            source: tensors by the source's names; read one at a time.

        Raises:
            WeightsError: as for `apply`, or the module is not the one of the plan; it is unchanged.
        """
        from pyrosys.adapters.fill import fill_by_plan

        fill_by_plan(target, self, source)

    def write(self, source: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
        """Write the target's tensors into memory that is there, and leave those in `kept` as they are.

        Args:
            source: tensors by the source's names; in other memory.
            into: the target's tensors.
        """
        tied = _Tied(source, self.source_ties)
        self._check_source(tied)
        firsts: dict[str, str] = {}
        for name in self.target:
            place = into[name]
            first = firsts.setdefault(self.target_ties.get(name, name), name)
            tensor = self._value(name, tied, into, place) if first == name else into[first]
            if tensor.data_ptr() != place.data_ptr():
                place.copy_(tensor)

    def tensor(self, name: str, source: Mapping[str, Tensor], target: Mapping[str, Tensor] | None = None) -> Tensor:
        """One tensor of the target, without a look at the rest of the source.

        Arguments and errors are those of `apply`, and like there the tensor may share memory with the source or the target.
        """
        return self._value(name, _Tied(source, self.source_ties), target if target is not None else self.target_state)

    def _value(
        self, name: str, source: "_Tied", own: Mapping[str, Tensor] | None, into: Tensor | None = None
    ) -> Tensor:
        first = self.target_ties.get(name, name)
        present = own[name] if not self.sets(name) and own is not None and name in own else None
        if first in self.pieces and (present is not None or self.sets(name)):
            return self._build(first, source, into, present)
        if first in self.solved:
            found = self.solved[first].run(lambda other: self._value(other, source, own))
            return found.to(self._value(self.solved[first].inputs[0], source, own).dtype)
        if present is not None:
            return present
        raise PlanError(
            f"Expected the target's own value of {name!r}, which this plan does not set"
            f"{' in full' if first in self.pieces else ''}. "
            "Pass the target's state dict: plan.apply(source, target.state_dict())."
        )

    def sets(self, name: str) -> bool:
        """Whether the plan gives a target tensor its value, all of it."""
        first = self.target_ties.get(name, name)
        return first in self.solved or (first in self.pieces and not any(p.keeps for p in self.pieces[first]))

    def check_source(self, source: Mapping[str, Tensor]) -> None:
        """Check that a state is one that the plan can be applied to.

        Raises:
            WeightsError: a tensor is missing, has another shape, or would have to be neutral and is not.
        """
        self._check_source(_Tied(source, self.source_ties))

    def _check_source(self, source: "_Tied") -> None:
        needed = {name for steps in self.pieces.values() for piece in steps for name in self.reads(piece)}
        for name in sorted(needed | set(self.zero) | set(self.equal)):
            if name not in source:
                similar = ", ".join(sorted(source.state)[:3])
                raise WeightsError(
                    f"Expected a tensor {name!r} of shape {self.source[name].shape}, found none among {len(source.state)} "
                    f"tensors ({similar}, …). Pass the state dict of the model that the plan was made from."
                )
            found = source.shape(name)
            if found != self.source[name].shape:
                raise WeightsError(f"Expected {name!r} of shape {self.source[name].shape}, found {found}.")
        for name, steps in self.zero.items():
            for step in steps:
                if not step.holds(source[name]):
                    raise WeightsError(
                        f"Expected {named_part(step, self.source[name].shape)!r} to be {step.shift:g} everywhere, because the target "
                        "has no place for it; it is not. Use a target that has this parameter."
                    )
        for name, numbers in self.constants.items():
            if name in source and not _holds(source[name], numbers):
                raise WeightsError(
                    f"Expected the buffer {name!r} to hold the values that it had when the plan was made, because the target has "
                    "them as constants; it does not. Match the models again with these weights."
                )
        for name, other in self.equal.items():
            if not torch.equal(source[name], source[other]):
                raise WeightsError(
                    f"Expected {name!r} and {other!r} to be equal, because the target has one tensor for both; they are not. "
                    "Use a target that keeps them apart."
                )

    def reads(self, piece: Piece) -> list[str]:
        """Source tensors that a step depends on."""
        if piece.source is None:
            return []
        return self.computed[piece.source].inputs if piece.source in self.computed else [piece.source]

    def source_spec(self, name: str) -> TensorSpec:
        """Shape and dtype of a tensor that pieces take elements of."""
        if name not in self.computed:
            return self.source[name]
        program = self.computed[name]
        return TensorSpec(program.shape, self.source[program.inputs[0]].dtype)

    def _source(self, name: str, source: "_Tied") -> Tensor:
        if name not in self.computed:
            return source[name]
        program = self.computed[name]
        return program.run(source.__getitem__).to(source[program.inputs[0]].dtype)

    def _build(self, name: str, source: "_Tied", into: Tensor | None, present: Tensor | None) -> Tensor:
        """A tensor that has steps: one of the source's, or a new one, or `into` where it is of that type and contiguous.

        Where steps keep some of it, it begins as the target's present tensor.
        """
        steps, spec = self.pieces[name], self.target[name]
        origins = dict.fromkeys(piece.source for piece in steps)
        if self._is_same(steps, spec):
            return source[str(steps[0].source)].reshape(spec.shape)
        out: Tensor | None = None
        for origin in sorted(origins, key=lambda origin: origin is None):  # one at a time; constants last
            tensor = None if origin is None else self._source(origin, source).contiguous()
            if out is None:
                kind = torch.promote_types(spec.torch_dtype, source.precision) if tensor is None else tensor.dtype
                new = torch.empty(spec.shape, dtype=kind, device="cpu" if tensor is None else tensor.device)
                out = new if into is None or not _is_like(into, new) else into
                if present is not None and out is not present:
                    out.copy_(present.detach())
            for piece in steps:
                if piece.source == origin:
                    piece.run(out, tensor)
        assert out is not None
        return out

    def _is_same(self, steps: tuple[Piece, ...], spec: TensorSpec) -> bool:
        """Whether the steps of a tensor leave all of one source tensor as it is in memory."""
        origin = steps[0].source
        same = origin in self.source and all(p.source == origin and p.is_identity for p in steps)
        return same and math.prod(self.source[str(origin)].shape) == math.prod(spec.shape)

    def verify(self, source: Any, target: Any, inputs: Any = None, target_inputs: Any = None) -> Certificate:
        """Run source and target and compare, with random parameters and then with the source's own weights.

        Args:
            source, target: the modules; the target's weights are left as they are.
            inputs, target_inputs: other probes than those of `match`.

        Raises:
            VerificationError: they do not compute the same; the message names the first place where they part.
        """
        from pyrosys.adapters.verify import verify_plan

        return verify_plan(self, source, target, inputs, target_inputs)

    def invert(self) -> "Plan":
        """The plan from target to source.

        Raises:
            PlanError: the source has elements that the target does not hold, or tensors that were merged into one.
        """
        merged = [name for program in self.computed.values() for name in program.inputs]
        if merged:
            raise PlanError(
                f"Expected a plan that only moves elements, found one that merges {', '.join(merged[:4])} into others, which "
                "cannot be undone. Match the models the other way round."
            )
        pieces: dict[str, list[Piece]] = {}
        for steps in self.pieces.values():
            for piece in steps:
                if piece.source is not None:
                    inverse = piece.inverted()
                    if inverse not in pieces.setdefault(inverse.target, []):
                        pieces[inverse.target].append(inverse)
        for name, steps in self.zero.items():
            pieces[name] = [*pieces.get(name, []), *steps]
        for name in pieces:
            _check_cover(name, self.source[name], pieces[name])
        for name, other in self.equal.items():
            pieces[name] = [dataclasses.replace(p, target=name) for p in pieces[other]]
        kept = tuple(n for n in self.source if n not in pieces and self.source_ties.get(n) not in pieces)
        return Plan(
            pieces={name: tuple(steps) for name, steps in pieces.items()},
            source=self.target,
            target=self.source,
            source_ties=self.target_ties,
            target_ties=self.source_ties,
            kept=kept,
            unreached=tuple(n for n in kept if n in self.unused),
            unused=self.unreached,
            filled=tuple(sorted(self.zero)),
            zero={n: found for n, steps in self.pieces.items() if (found := _needed_constants(steps))},
            checked=self.checked,
            output_order=_inverse(self.output_order),
            probes=None if self.probes is None else (self.probes[1], self.probes[0]),
            selectors=(self.selectors[1], self.selectors[0]),
            parts=None if self.parts is None else (self.parts[1], self.parts[0]),
            notes=(*self.notes, "inverted"),
        )

    # Reading and writing

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data; see `FORMAT` for the version."""
        return {
            "format": FORMAT,
            "checked": self.checked,
            "source": {n: [list(s.shape), s.dtype] for n, s in self.source.items()},
            "target": {n: [list(s.shape), s.dtype] for n, s in self.target.items()},
            "source_ties": self.source_ties,
            "target_ties": self.target_ties,
            "kept": list(self.kept),
            "unreached": list(self.unreached),
            "unused": list(self.unused),
            "unobservable": list(self.unobservable),
            "filled": list(self.filled),
            "extrapolated": self.extrapolated,
            "zero": {n: _number_or_steps(steps, self.source[n]) for n, steps in self.zero.items()},
            "equal": self.equal,
            "constants": {name: [_as_json(x) for x in numbers] for name, numbers in self.constants.items()},
            "computed": {name: program.to_json() for name, program in self.computed.items()},
            "solved": {name: program.to_json() for name, program in self.solved.items()},
            "output_order": None if self.output_order is None else list(self.output_order),
            "notes": list(self.notes),
            "pieces": {name: [p.to_json() for p in steps] for name, steps in self.pieces.items()},
            "parts": None if self.parts is None else [part.to_json() for part in self.parts],
            "certificate": None if self.certificate is None else self.certificate.to_json(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, whole or not at all."""
        write_json(pathlib.Path(path), self.to_json())

    @staticmethod
    def from_function(
        convert: Callable[[dict[str, Tensor]], Mapping[str, Any]], source: Mapping[str, Tensor]
    ) -> "Plan":
        """The plan that a conversion script stands for, found by running it on numbered elements.

        Args:
            convert: from a state dict in the source's layout to one in the target's.
            source: names, shapes and dtypes of the source; values are not used.

        Raises:
            PlanError: the script computes new values, or does what it does because of values.

        Example:
            >>> import torch, pyrosys
            >>> def script(state):
            ...     return {"query": state["qkv"][:4].T, "key": state["qkv"][4:8].T}
            >>> plan = pyrosys.Plan.from_function(script, {"qkv": torch.zeros(12, 5)})
            >>> print(plan.report().splitlines()[1].strip())
            query  <-  qkv[:4].T
        """
        from pyrosys.adapters.from_function import plan_from_function

        return plan_from_function(convert, source)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Plan":
        """Read a plan that `save` wrote.

        Raises:
            PlanError: the file is missing, is not a plan, or is of a later version.
        """
        try:
            data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanError(f"Cannot read the plan {path}: {error.strerror}.") from error
        except ValueError as error:
            raise PlanError(f"Expected a plan as JSON in {path}, found something else ({error}).") from error
        return Plan.from_json(data, str(path))

    @staticmethod
    def from_json(data: Any, origin: str = "the data") -> "Plan":
        """A plan from what `to_json` returned.

        Raises:
            PlanError: it is not a plan of a known version, or its steps do not fit its tensors.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise PlanError(
                f"Expected format {FORMAT!r} in {origin}, found {found!r}. Make the plan again with this version."
            )
        try:
            specs = {
                side: {
                    n: TensorSpec(tuple(int(d) for d in shape), str(dtype)) for n, (shape, dtype) in data[side].items()
                }
                for side in ("source", "target")
            }
            plan = Plan(
                pieces={n: tuple(Piece.from_json(n, p) for p in steps) for n, steps in data["pieces"].items()},
                source=specs["source"],
                target=specs["target"],
                source_ties=dict(data["source_ties"]),
                target_ties=dict(data["target_ties"]),
                kept=tuple(data["kept"]),
                unreached=tuple(data["unreached"]),
                unused=tuple(data["unused"]),
                unobservable=tuple(data["unobservable"]),
                filled=tuple(data["filled"]),
                extrapolated=dict(data["extrapolated"]),
                zero={n: _constants(n, found, specs["source"][n]) for n, found in data["zero"].items()},
                equal=dict(data["equal"]),
                constants={n: tuple(map(float, numbers)) for n, numbers in data.get("constants", {}).items()},
                computed={n: Program.from_json(p) for n, p in data.get("computed", {}).items()},
                solved={n: Program.from_json(p) for n, p in data.get("solved", {}).items()},
                output_order=None if data["output_order"] is None else tuple(int(i) for i in data["output_order"]),
                notes=tuple(data["notes"]),
                checked=str(data["checked"]),
                certificate=Certificate.from_json(data["certificate"]) if data.get("certificate") else None,
                parts=_parts(data["parts"]) if data.get("parts") else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"The plan in {origin} is damaged: {type(error).__name__}: {error}.") from error
        plan.check()
        return plan

    def check(self) -> None:
        """Every step stays inside its tensors and every target tensor is filled exactly.

        Raises:
            PlanError: otherwise.
        """
        for name, steps in self.pieces.items():
            if name not in self.target:
                raise PlanError(f"The plan fills {name!r}, which is not among the target's tensors.")
            for piece in steps:
                if any(name not in self.source for name in self.reads(piece)):
                    raise PlanError(f"The plan reads {piece.source!r}, which is not among the source's tensors.")
                _check_inside(piece, self.target[name], "target")
                if piece.source is not None:
                    _check_inside(piece, self.source_spec(piece.source), "source")
                elif piece.scale not in (0.0, 1.0) or (piece.keeps and piece.shift != 0.0):
                    raise PlanError(f"A step of the plan for {name!r} has neither a source nor a constant.")
            _check_cover(name, self.target[name], list(steps))
        for name, steps in self.zero.items():
            for piece in steps:
                if name not in self.source or piece.source is not None or piece.scale != 0.0:
                    raise PlanError(
                        f"Expected {name!r} to be a tensor of the source that the plan wants to be a number."
                    )
                _check_inside(piece, self.source[name], "target")

    def export(self, form: str, path: str | os.PathLike[str] | None = None, *, config: Any = None) -> str:
        """The plan as Python text, for where this library is not installed; written to a file when a path is given.

        Args:
            form: `"python"` for a function `convert(state)` that needs torch only, `"transformers"` for the list of
                `WeightRenaming` and `WeightConverter` that `transformers` loads such checkpoints with.
            path: a file to write.
            config: for `"transformers"`: the target's configuration, from which it reads how many heads to reorder.

        Raises:
            PlanError: the form cannot express the plan; the message names the tensor.
        """
        from pyrosys.adapters import export_python, export_transformers

        if form not in ("python", "transformers"):
            raise InputError(f"Expected 'python' or 'transformers', found {form!r}.")
        python = form == "python"
        text = export_python.to_python(self) if python else export_transformers.to_transformers(self, config)
        if path is not None:
            pathlib.Path(path).write_text(text, encoding="utf-8")
        return text

    def report(self) -> str:
        """The plan in words, one line per target tensor, and what is not copied."""
        from pyrosys.adapters.report import report

        return report(self)

    def _repr_html_(self) -> str:
        from pyrosys.adapters.diff import of_plan
        from pyrosys.adapters.page import fragment

        return fragment(of_plan(self))

    def __repr__(self) -> str:
        return f"<Plan: {len(self.pieces)} tensors from {len(self.source)}, checked: {self.checked}>"


def _parts(data: Any) -> tuple[Part, Part]:
    source, target = data
    return Part.from_json(source), Part.from_json(target)


def _needed_constants(steps: Iterable[Piece]) -> tuple[Piece, ...]:
    """The steps of a tensor that set what outputs depend on to a number."""
    return tuple(p for p in steps if p.source is None and not p.keeps and not p.spare)


def _number_or_steps(steps: tuple[Piece, ...], spec: TensorSpec) -> float | list[Any]:
    """Steps that set a tensor to numbers, as data: all of it to one, or part by part."""
    whole = len(steps) == 1 and steps[0].count == math.prod(spec.shape)
    return steps[0].shift if whole else [step.to_json() for step in steps]


def _constants(name: str, data: Any, spec: TensorSpec) -> tuple[Piece, ...]:
    """What `_number_or_steps` wrote."""
    if isinstance(data, list):
        return tuple(Piece.from_json(name, entry) for entry in data)
    return (Piece.everywhere(name, math.prod(spec.shape), float(data)),)


def _inverse(order: tuple[int, ...] | None) -> tuple[int, ...] | None:
    return None if order is None else tuple(sorted(range(len(order)), key=order.__getitem__))


_SAMPLES = 64


def sampled(tensor: Tensor) -> tuple[float, ...]:
    """Numbers spread over a tensor, by which it is known again."""
    flat = tensor.detach().reshape(-1).to(torch.float64)
    return tuple(flat[:: max(1, -(-len(flat) // _SAMPLES))].tolist())


def _as_json(number: float) -> float | str:
    """A number; infinities, which JSON lacks, in words."""
    return number if math.isfinite(number) else str(number)


def _holds(tensor: Tensor, numbers: tuple[float, ...]) -> bool:
    """Whether the samples of a tensor are these numbers, as exactly as its precision says."""
    found, wanted = torch.tensor(sampled(tensor)), torch.tensor(numbers)
    step = torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=4 * max(step, 1e-7), atol=1e-30)


def _is_like(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape are laid out alike, in memory of one kind."""
    return (one.dtype, one.device, one.stride()) == (other.dtype, other.device, other.stride())


class _Tied:
    """A mapping of tensors in which either name of a tied tensor will do."""

    def __init__(self, state: Mapping[str, Tensor], ties: dict[str, str]):
        self.state = state
        self.other: dict[str, list[str]] = {}
        for alias, first in ties.items():
            self.other.setdefault(first, []).append(alias)
            self.other.setdefault(alias, []).append(first)

    @functools.cached_property
    def precision(self) -> torch.dtype:
        """Type of the first floating-point tensor."""
        first = next((self.state[n] for n in self.state if self.state[n].is_floating_point()), None)
        return torch.float32 if first is None else first.dtype

    def _found(self, name: str) -> str | None:
        return next((n for n in (name, *self.other.get(name, ())) if n in self.state), None)

    def __contains__(self, name: str) -> bool:
        return self._found(name) is not None

    def __getitem__(self, name: str) -> Tensor:
        found = self._found(name)
        assert found is not None
        return self.state[found]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without the tensor where the state is a file that knows the shapes of its own."""
        found = self._found(name)
        shapes = getattr(self.state, "shapes", {})
        return tuple(shapes[found]) if found in shapes else tuple(self[name].shape)


def _check_inside(piece: Piece, spec: TensorSpec, side: str) -> None:
    low = high = piece.target_offset if side == "target" else piece.source_offset
    for axis in piece.axes:
        steps = axis.target if side == "target" else axis.source
        line = [steps * (axis.length - 1), 0] if isinstance(steps, int) else list(steps)
        if axis.length < 1 or (not isinstance(steps, int) and len(steps) != axis.length):
            raise PlanError(f"A step of the plan for {piece.target!r} has a loop of impossible length.")
        low, high = low + min(line), high + max(line)
    if low < 0 or high >= torch.Size(spec.shape).numel():
        raise PlanError(
            f"A step of the plan for {piece.target!r} reaches outside the {side} tensor of shape {spec.shape}."
        )


def _check_cover(name: str, spec: TensorSpec, steps: list[Piece]) -> None:
    """Each element exactly once."""
    numel = torch.Size(spec.shape).numel()
    if sum(p.count for p in steps) == numel and len(steps) == 1 and steps[0].axes in ((Axis(numel, 1, 1),), ()):
        return
    seen = torch.zeros(numel, dtype=torch.uint8)
    for piece in steps:
        seen.index_add_(0, piece.numbers("target").reshape(-1), torch.ones(piece.count, dtype=torch.uint8))
    if not bool((seen == 1).all()):
        raise PlanError(
            f"Expected every element of {name!r} to be set once; {int((seen == 0).sum())} are never set and "
            f"{int((seen > 1).sum())} more than once."
        )


def write_json(path: pathlib.Path, data: Any) -> None:
    """Write JSON through a temporary file in the same folder, so that the file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
