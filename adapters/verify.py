"""Run both sides and compare: random parameters first, since trained values and fresh inits hide errors, then the real ones.

The allowed difference is no constant: it is a multiple of how much the source's own outputs move when its parameters are
rounded, measured on the same probe. Agreement to float64 rounding is tried first. Where a model pins a constant to float32
(rotary tables, token-dropout ratios), agreement to float32 rounding is accepted and the certificate says so.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from pyrosys.adapters.capture import as_inputs
from pyrosys.adapters.certificate import Certificate, Comparison, versions
from pyrosys.adapters.execute import execute
from pyrosys.adapters.outputs import align_outputs
from pyrosys.adapters.part import Part, side_of
from pyrosys.adapters.sides import FROZEN, Side, on_both
from pyrosys.adapters.structure import Place, Structure
from pyrosys.errors import CaptureError, VerificationError

if TYPE_CHECKING:
    from pyrosys.adapters.plan import Plan

__all__ = ["Outcome", "compare", "digest_of", "random_state", "rounding_response", "verify_plan"]

_SLACK = 8.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of one comparison."""

    comparison: Comparison
    agrees: bool


class LazyState(Mapping[str, Tensor]):
    """Tensors by name, each made when it is asked for, so that no more than one is held at a time."""

    def __init__(self, names: Iterable[str], make: Callable[[str], Tensor]):
        self.names = dict.fromkeys(names)
        self.make = make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.make(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def random_state(structure: Structure, state: Mapping[str, Tensor], seed: int, size: float = 1.0) -> LazyState:
    """Fresh random values for every tensor that the outputs depend on, in float64, the same each time they are asked for.

    Weights are scaled by fan-in, gains lie around one, tensors from which a root is taken are positive. Tensors are stretches
    of common memory, so that making them costs nothing: they are to be read only.

    Args:
        structure: the captured model.
        state: its tensors, for shapes and for those that are not drawn.
        seed: of the generator.
        size: factor on weights and biases; small values make norm epsilons visible.
    """
    ranges: dict[str, tuple[int, tuple[float, float]]] = {}
    for place in structure.places:
        for root, low, spread in _ranges(structure, place):
            ranges.setdefault(root.meta["parameter"], (len(ranges), (low, spread if low else spread * size)))
    longest: dict[tuple[float, float], int] = {}
    for name, (_, kind) in ranges.items():
        longest[kind] = max(longest.get(kind, 0), state[name].numel())
    pools: dict[tuple[float, float], Tensor] = {}

    def make(name: str) -> Tensor:
        tensor = state[name]
        if name in ranges:
            number, kind = ranges[name]
            if kind not in pools:
                pools[kind] = _pool(seed, longest[kind], *kind)
            start = number * 618_034 % _DRAWN  # the golden section keeps the places apart
            return pools[kind][start : start + tensor.numel()].reshape(tensor.shape)
        if tensor.is_meta:
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        return tensor.detach().to(torch.float64) if tensor.is_floating_point() else tensor.detach()

    return LazyState(state, make)


_DRAWN = 1_000_003  # a prime, so that no row of a tensor made of copies equals another


@functools.lru_cache(4)
def _drawn(seed: int) -> Tensor:
    return torch.randn(_DRAWN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _pool(seed: int, longest: int, low: float, spread: float) -> Tensor:
    """Random numbers of one kind, of which every tensor of up to a length is a stretch: one draw, repeated."""
    drawn = _drawn(seed) * spread
    if low:
        drawn.add_(low).abs_().add_(0.1)
    return drawn.repeat(1 + -(-longest // _DRAWN))


def _ranges(structure: Structure, place: Place) -> list[tuple[fx.Node, float, float]]:
    """(placeholder, centre, spread) of the random values for a place."""
    if place.kind == "elements":
        assert place.source is not None
        positive = place.operation == "gain" or place.operand.op == "call_function"
        return [(place.source, 1.0 if positive else 0.0, 0.3)]
    fan_in = 1.0
    if place.kind == "contract":
        geometry = structure.role[place.node][1]
        fan_in = sum(len(b.contracted) for b in geometry.blocks[:1]) or 1
    return [(root, 0.0, float(fan_in) ** -0.5) for root in structure.sources(place.operand)]


def compare(
    source: "Side | _Recorded",
    target: "Side | _Recorded",
    source_state: Mapping[str, Tensor],
    target_state: Mapping[str, Tensor],
    *,
    parameters: str,
    dtype: torch.dtype,
    tolerance: float | None = None,
    order: Tensor | None = None,
    known: Sequence[list[Tensor]] | None = None,
) -> Outcome:
    """Run both sides on every probe and compare outputs with the source's own response to rounding.

    Args:
        tolerance: an absolute difference that the caller accepts, instead.
        order: source position of each target position on the last axis of outputs of that length.
        known: outputs of source and target on the first probe, where they have been computed already.
    """
    difference, scale = 0.0, 0.0
    outputs: list[list[Tensor]] = []
    for probe in range(len(source.probes)):
        runs = (source, source_state), (target, target_state)
        both = on_both if isinstance(source, _Recorded) else map  # what a module does may concern the whole process
        if probe == 0 and known is not None:
            expected, found = known
        else:
            expected, found = both(lambda run, probe=probe: run[0].run(run[1], probe, dtype), runs)
        for e, f in zip(expected, found, strict=True):
            if e.shape != f.shape:
                raise VerificationError(
                    f"Expected outputs of shape {tuple(e.shape)} from {target.name}, found {tuple(f.shape)}."
                )
            _check_finite(e, source.name, parameters)
            if order is not None and e.shape[-1] == len(order):
                e = e[..., order]
            difference = max(difference, float((e - f.reshape(e.shape)).abs().max()) if e.numel() else 0.0)
            if not bool(torch.isfinite(f).all()):
                difference = float("inf")
            scale = max(scale, float(e.abs().max()) if e.numel() else 0.0)
        outputs.append(expected)

    def response(step: float) -> float:
        every = (rounding_response(source, source_state, i, dtype, e, step) for i, e in enumerate(outputs))
        return max(itertools.chain.from_iterable(every), default=0.0)

    step = torch.finfo(dtype).eps
    name = str(dtype).removeprefix("torch.")
    allowed, rounding = _SLACK * 4 * step * scale, name
    if tolerance is not None:
        allowed, rounding = tolerance, "stated by the caller"
    elif difference > allowed:  # more than the last operation rounds; how much all of them do takes another run to say
        allowed += _SLACK * response(step)
        if dtype == torch.float64 and difference > allowed:
            step = torch.finfo(torch.float32).eps
            allowed, rounding = response(step) + 2 * step * scale, "float32"
    return Outcome(Comparison(parameters, name, difference, scale, allowed, rounding), difference <= allowed)


def rounding_response(
    side: Side, state: Mapping[str, Tensor], probe: int, dtype: torch.dtype, expected: list[Tensor], step: float
) -> list[float]:
    """How far each output moves when every parameter moves by one rounding step."""

    def move(name: str) -> Tensor:
        tensor = state[name]
        if not tensor.is_floating_point():
            return tensor
        moved = tensor.to(torch.float64 if dtype == torch.float64 else tensor.dtype, copy=True).contiguous()
        generator = torch.Generator().manual_seed(len(name) + tensor.numel())
        sign = torch.randint(0, 2, (min(tensor.numel(), _DRAWN),), generator=generator) * 2 - 1
        factor = (1 + step * sign.to(torch.float64)).to(moved.dtype)
        for part in moved.reshape(-1).split(_DRAWN):
            part.mul_(factor[: len(part)])
        return moved

    found = side.run(LazyState(state, move), probe, dtype)
    return [float((e - f).abs().max()) if e.numel() else 0.0 for e, f in zip(expected, found, strict=True)]


def _check_finite(output: Tensor, name: str, parameters: str) -> None:
    if not bool(torch.isfinite(output).all()):
        if parameters == "real":
            raise VerificationError(
                f"{name} gives NaN or infinity on the probe with its own weights. Check the weights for NaN, and the inputs."
            )
        raise VerificationError(
            f"{name} gives NaN or infinity on the probe with random parameters, so nothing can be compared."
        )


def deterministic(side: Side, state: Mapping[str, Tensor]) -> list[Tensor]:
    """The outputs on the first probe, which two runs from the same random state give.

    Raises:
        CaptureError: they do not.
    """
    first, second = side.run(state, 0, torch.float64), side.run(state, 0, torch.float64)
    for a, b in zip(first, second, strict=True):
        if not torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)):
            gap = float((a - b).abs().max())
            raise CaptureError(
                f"{side.name} is not deterministic: two runs on the same inputs, from the same random seed, differ by {gap:.1e}. "
                "Fix the seed inside it, or pass what it draws as an input."
            )
    return first


def digest_of(state: dict[str, Tensor], known: dict[tuple[Any, ...], bytes]) -> str:
    """Merkle digest of a state, names sorted.

    Args:
        state: tensors by name, in memory.
        known: digests by place in memory, of states that are held for as long; it is added to.
    """

    def leaf(name: str) -> bytes:
        tensor = state[name].detach()
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if key not in known:
            tensor = tensor.contiguous().cpu()
            digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
            known[key] = digest.digest()
        return known[key]

    total = hashlib.sha256()
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # hashing lets other threads run
        for digest in threads.map(leaf, sorted(state)):
            total.update(digest)
    return total.hexdigest()


def certify(
    plan: "Plan",
    source: Side,
    target: Side,
    structures: tuple[Structure, Structure],
    *,
    tolerance: float | None,
    order: Tensor | None = None,
) -> tuple[Certificate, Outcome | None, Mapping[str, Tensor] | None]:
    """Compare with random and with real parameters.

    Models too large to be held twice are run operation by operation on the first probe, with one set of random parameters.
    Where activations choose, as they do among experts, the recorded passes, in which each is chosen, are compared as well.

    Returns:
        The certificate, the first comparison that failed if one did, and the source state it failed with.
    """
    state = source.state()
    own = LazyState(kept := target.state(), lambda name: _own_value(kept[name]))
    rounds, left, right = _ROUNDS, source, target
    recorded = _Recorded(source, structures[0]), _Recorded(target, structures[1])
    routed = any(structure.capture.routed for structure in structures)
    if sum(t.numel() for t in state.values()) > _LARGE:
        if routed:
            raise CaptureError(
                f"{source.name} chooses by its activations, and is too large to be held twice to see what it chooses. Match a small "
                "twin of the same class."
            )
        rounds, left, right = _ROUNDS[:1], *recorded
    comparisons: list[Comparison] = []
    failed: tuple[Outcome, Mapping[str, Tensor]] | None = None
    precision = torch.float64

    def states(seed: int, size: float) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        drawn = _consistent(random_state(structures[0], state, seed, size), plan)
        return drawn, LazyState(plan.target, lambda name: plan.tensor(name, drawn, own))

    if routed:
        both = states(0, 1.0)
        outcome = compare(*recorded, *both, parameters=_ROUTED, dtype=precision, tolerance=tolerance, order=order)
        comparisons.append(outcome.comparison)
        if not outcome.agrees:
            failed, rounds = (outcome, both[0]), ()
    for seed, size, label in rounds:
        drawn, mapped = states(seed, size)
        if rounds is _ROUNDS:  # memory of its own for each, which a model may write to
            drawn = {name: tensor.clone() for name, tensor in drawn.items()}
            mapped = {name: tensor.clone() for name, tensor in mapped.items()}
        known = None
        try:
            if seed == 0 and rounds is _ROUNDS:
                known = deterministic(source, drawn), deterministic(target, mapped)
            outcome = compare(
                left,
                right,
                drawn,
                mapped,
                parameters=label,
                dtype=precision,
                tolerance=tolerance,
                order=order,
                known=known,
            )
        except CaptureError as error:
            if "not deterministic" in str(error) or precision == torch.float32:
                raise
            precision = torch.float32
            drawn, mapped = _single(drawn), _single(mapped)
            outcome = compare(
                left, right, drawn, mapped, parameters=label, dtype=precision, tolerance=tolerance, order=order
            )
        comparisons.append(outcome.comparison)
        if not outcome.agrees:
            failed = (outcome, drawn)
            break
    digests: tuple[str | None, str | None] = (None, None)
    if failed is None and not any(t.is_meta for t in state.values()):
        real = {n: t.detach() for n, t in state.items()}
        mapped = plan.apply(real, own)
        dtype = next((t.dtype for t in real.values() if t.is_floating_point()), torch.float32)
        outcome = compare(
            source, target, real, mapped, parameters="real", dtype=dtype, tolerance=tolerance, order=order
        )
        if not outcome.agrees and dtype != torch.float64:
            outcome = compare(
                left, right, real, mapped, parameters="real", dtype=torch.float64, tolerance=tolerance, order=order
            )
        comparisons.append(outcome.comparison)
        hashed: dict[tuple[Any, ...], bytes] = {}
        digests = (digest_of(real, hashed), digest_of(mapped, hashed))
        if not outcome.agrees:
            failed = (outcome, real)
    certificate = Certificate(
        comparisons=tuple(comparisons),
        probes=tuple(repr(p) for p in source.probes),
        outputs=tuple(tuple(o.meta["shape"]) for o in structures[0].capture.outputs),
        source_digest=digests[0],
        target_digest=digests[1],
        unobservable=plan.unobservable,
        versions=versions(),
    )
    return certificate, failed[0] if failed else None, failed[1] if failed else None


_ROUNDS = ((0, 1.0, "random"), (1, 1.0, "random"), (2, 1e-2, "random, small"))
_ROUTED = "random, with choices made for the activations"
_LARGE = 1 << 28
"""Elements beyond which a model is run operation by operation."""


class _Recorded:
    """A side that runs its recorded graph, holding one parameter at a time."""

    def __init__(self, side: Side, structure: Structure):
        self.name = side.name
        self.probes = side.probes[:1]
        self.capture = structure.capture

    def run(self, state: Mapping[str, Tensor], probe: int, dtype: torch.dtype) -> list[Tensor]:
        """Outputs in float64, whatever the precision asked for."""
        del probe, dtype
        wanted = set(self.capture.outputs)
        found = {node: value for node, value in execute(self.capture, state) if node in wanted}
        return [found[o] for o in self.capture.outputs]


def _consistent(drawn: LazyState, plan: "Plan") -> LazyState:
    """Random values that keep what the plan asks of the source: elements that are neutral, tensors that are equal."""

    def make(name: str) -> Tensor:
        value = drawn[plan.equal.get(name, name)]
        if name in plan.zero:
            value = value.clone(memory_format=torch.contiguous_format)
            for step in plan.zero[name]:
                step.run(value, None)
        return value

    return LazyState(drawn, make)


def _own_value(tensor: Tensor) -> Tensor:
    """The target's own value of a tensor; zeros where it is on meta and cannot matter."""
    return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor.detach()


def _single(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.to(torch.float32) if t.is_floating_point() else t for n, t in state.items()}


def verify_plan(plan: "Plan", source: Any, target: Any, inputs: Any = None, target_inputs: Any = None) -> Certificate:
    """`Plan.verify` for modules and probes that were not those of `match`."""
    if not isinstance(source, nn.Module) or not isinstance(target, nn.Module):
        raise VerificationError("Expected two modules to verify a plan on; a card or a name cannot be run here.")
    left, right = _sides_of(plan, source, target, inputs, target_inputs)
    order = None if plan.output_order is None else torch.tensor(plan.output_order)
    certificate, failed = _certified(plan, left, right, order)
    if failed is not None and any(
        FROZEN in side.possible() for side in (left, right)
    ):  # they were constants to `match`
        for side in (left, right):
            side.read(frozenset({FROZEN}))
        certificate, failed = _certified(plan, left, right, order)
    if failed is not None:
        c = failed.comparison
        raise VerificationError(
            f"Expected {left.name} and {right.name} to agree under this plan, found a difference of {c.difference:.2e} "
            f"({c.parameters} parameters, {c.precision}; allowed {c.tolerance:.1e}). Match them again to see where they part."
        )
    return certificate


def _sides_of(plan: "Plan", source: nn.Module, target: nn.Module, inputs: Any, target_inputs: Any) -> tuple[Side, Side]:
    """What the plan is about, on the inputs given or on those that it was made with."""
    from pyrosys.adapters.search import Whole, sides_of

    parts = plan.parts or (Part(), Part())
    if inputs is None and plan.probes is not None:  # for submodules on their own, already what these take
        (a, b), (p, q), (s, t) = parts, plan.probes, plan.selectors
        return side_of(source, list(p), a, s), side_of(target, list(q), b, t)
    given = inputs if inputs is not None else getattr(source, "example_input_array", None)
    if given is None:
        raise VerificationError(
            "A plan read from a file holds no probes. Pass inputs: plan.verify(source, target, inputs)."
        )
    probes = as_inputs(given)
    others = as_inputs(target_inputs) if target_inputs is not None else probes
    left, right = Whole(source, probes, plan.selectors[0]), Whole(target, others, plan.selectors[1])
    return sides_of(left, right, parts)


def _certified(plan: "Plan", left: Side, right: Side, order: Tensor | None) -> tuple[Certificate, Outcome | None]:
    structures = Structure(left.capture()), Structure(right.capture())
    align_outputs(left, right, structures)
    certificate, failed, _ = certify(plan, left, right, structures, tolerance=None, order=order)
    if plan.parts is not None:
        certificate = dataclasses.replace(certificate, compared=f"{left.name}; {right.name}")
    return certificate, failed
