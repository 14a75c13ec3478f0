"""Run both sides and compare: random parameters first, since trained values and fresh inits hide errors, then the real ones.

The allowed difference is no constant: it is a multiple of how much the source's own outputs move when its parameters are
rounded, measured on the same probe. Agreement to float64 rounding is tried first. Where a model pins a constant to float32
(rotary tables, token-dropout ratios), agreement to float32 rounding is accepted and the certificate says so.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from pyrosys.adapters.capture import Inputs, as_inputs
from pyrosys.adapters.certificate import Certificate, Comparison, versions
from pyrosys.adapters.colour import Place, Structure
from pyrosys.adapters.sides import ModuleSide, Side
from pyrosys.errors import CaptureError, VerificationError

if TYPE_CHECKING:
    from pyrosys.adapters.plan import Plan

__all__ = ["Outcome", "compare", "digest_of", "random_state", "verify_plan"]

_SLACK = 8.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of one comparison."""

    comparison: Comparison
    agrees: bool


def random_state(structure: Structure, state: Mapping[str, Tensor], seed: int, size: float = 1.0) -> dict[str, Tensor]:
    """Fresh random values for every tensor that the outputs depend on, in float64.

    Weights are scaled by fan-in, gains lie around one, tensors from which a root is taken are positive.

    Args:
        structure: the captured model.
        state: its tensors, for shapes and for those that are not drawn.
        seed: of the generator.
        size: factor on weights and biases; small values make norm epsilons visible.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, Tensor] = {}
    for place in structure.places:
        for root, low, spread in _ranges(structure, place):
            name = root.meta["parameter"]
            if name in drawn:
                continue
            noise = torch.randn(root.meta["shape"], generator=generator, dtype=torch.float64)
            drawn[name] = low + spread * (size if low == 0.0 else 1.0) * noise
            if low == 1.0:
                drawn[name] = drawn[name].abs() + 0.1
    out = {}
    for name, tensor in state.items():
        if name in drawn:
            out[name] = drawn[name]
        elif tensor.is_meta:
            out[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
        else:
            out[name] = tensor.detach().to(torch.float64) if tensor.is_floating_point() else tensor.detach()
    return out


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
    source: Side,
    target: Side,
    source_state: Mapping[str, Tensor],
    target_state: Mapping[str, Tensor],
    *,
    parameters: str,
    dtype: torch.dtype,
    tolerance: float | None = None,
    order: Tensor | None = None,
) -> Outcome:
    """Run both sides on every probe and compare outputs with the source's own response to rounding.

    Args:
        tolerance: an absolute difference that the caller accepts, instead.
        order: source position of each target position on the last axis of outputs of that length.
    """
    difference, scale, response, coarse = 0.0, 0.0, 0.0, 0.0
    for probe in range(len(source.probes)):
        expected = source.run(source_state, probe, dtype)
        found = target.run(target_state, probe, dtype)
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
        step = torch.finfo(dtype).eps
        response = max(response, _response(source, source_state, probe, dtype, expected, step))
        if dtype == torch.float64:
            coarse = max(
                coarse, _response(source, source_state, probe, dtype, expected, torch.finfo(torch.float32).eps)
            )
    name = str(dtype).removeprefix("torch.")
    allowed = _SLACK * (response + 4 * torch.finfo(dtype).eps * scale)
    rounding = name
    if tolerance is not None:
        allowed, rounding = tolerance, "stated by the caller"
    elif dtype == torch.float64 and difference > allowed:
        allowed, rounding = coarse + 2 * torch.finfo(torch.float32).eps * scale, "float32"
    return Outcome(Comparison(parameters, name, difference, scale, allowed, rounding), difference <= allowed)


def _response(
    side: Side, state: Mapping[str, Tensor], probe: int, dtype: torch.dtype, expected: list[Tensor], step: float
) -> float:
    """How far the outputs move when every parameter moves by one rounding step."""
    generator = torch.Generator().manual_seed(1)
    moved = {}
    for name, tensor in state.items():
        if tensor.is_floating_point():
            sign = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.int8) * 2 - 1
            wide = torch.float64 if dtype == torch.float64 else tensor.dtype
            moved[name] = tensor.to(wide) * (1 + step * sign)
        else:
            moved[name] = tensor
    found = side.run(moved, probe, dtype)
    return max((float((e - f).abs().max()) for e, f in zip(expected, found, strict=True) if e.numel()), default=0.0)


def _check_finite(output: Tensor, name: str, parameters: str) -> None:
    if not bool(torch.isfinite(output).all()):
        if parameters == "real":
            raise VerificationError(
                f"{name} gives NaN or infinity on the probe with its own weights. Check the weights for NaN, and the inputs."
            )
        raise VerificationError(
            f"{name} gives NaN or infinity on the probe with random parameters, so nothing can be compared."
        )


def deterministic(side: Side, state: Mapping[str, Tensor]) -> None:
    """Two runs from the same random state give the same outputs.

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


def digest_of(state: Mapping[str, Tensor]) -> str:
    """Merkle digest of a state, names sorted."""
    import hashlib

    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().contiguous().cpu()
        leaf = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        leaf.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        total.update(leaf.digest())
    return total.hexdigest()


def certify(
    plan: "Plan",
    source: Side,
    target: Side,
    structure: Structure,
    *,
    tolerance: float | None,
    order: Tensor | None = None,
    with_random: bool = True,
) -> tuple[Certificate, Outcome | None, dict[str, Tensor] | None]:
    """Compare with random and with real parameters.

    Returns:
        The certificate, the first comparison that failed if one did, and the random source state it failed with.
    """
    comparisons: list[Comparison] = []
    failed: tuple[Outcome, dict[str, Tensor]] | None = None
    state = source.state()
    shapes = tuple(tuple(o.meta["shape"]) for o in structure.capture.outputs)
    if with_random:
        precision = torch.float64
        for seed, size, label in ((0, 1.0, "random"), (1, 1.0, "random"), (2, 1e-2, "random, small")):
            drawn = random_state(structure, state, seed, size)
            for name, value in plan.zero.items():
                drawn[name] = torch.full_like(drawn[name], value)
            for name, other in plan.equal.items():
                drawn[name] = drawn[other]
            mapped = plan.apply(drawn, _kept_values(plan, target))
            try:
                if seed == 0:
                    deterministic(source, drawn)
                    deterministic(target, mapped)
                outcome = compare(
                    source, target, drawn, mapped, parameters=label, dtype=precision, tolerance=tolerance, order=order
                )
            except CaptureError as error:
                if "not deterministic" in str(error) or precision == torch.float32:
                    raise
                precision = torch.float32
                drawn, mapped = _single(drawn), _single(mapped)
                outcome = compare(
                    source, target, drawn, mapped, parameters=label, dtype=precision, tolerance=tolerance, order=order
                )
            comparisons.append(outcome.comparison)
            if not outcome.agrees:
                failed = (outcome, drawn)
                break
    digests: tuple[str | None, str | None] = (None, None)
    if failed is None and not source.is_meta():
        real = {n: t.detach() for n, t in state.items()}
        mapped = plan.apply(real, _kept_values(plan, target))
        dtype = next((t.dtype for t in real.values() if t.is_floating_point()), torch.float32)
        outcome = compare(
            source, target, real, mapped, parameters="real", dtype=dtype, tolerance=tolerance, order=order
        )
        if not outcome.agrees and dtype != torch.float64:
            outcome = compare(
                source, target, real, mapped, parameters="real", dtype=torch.float64, tolerance=tolerance, order=order
            )
        comparisons.append(outcome.comparison)
        digests = (digest_of(real), digest_of(mapped))
        if not outcome.agrees:
            failed = (outcome, dict(real))
    certificate = Certificate(
        comparisons=tuple(comparisons),
        probes=tuple(repr(p) for p in source.probes),
        outputs=shapes,
        source_digest=digests[0],
        target_digest=digests[1],
        unobservable=plan.unobservable,
        versions=versions(),
    )
    return certificate, failed[0] if failed else None, failed[1] if failed else None


def _single(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.to(torch.float32) if t.is_floating_point() else t for n, t in state.items()}


def _kept_values(plan: "Plan", target: Side) -> dict[str, Tensor]:
    """The target's own values of what the plan keeps; zeros where they are on meta and cannot matter."""
    own = target.state()
    return {n: torch.zeros(t.shape, dtype=t.dtype) if t.is_meta else t.detach() for n, t in own.items()}


def verify_plan(plan: "Plan", source: Any, target: Any, inputs: Any = None, target_inputs: Any = None) -> Certificate:
    """`Plan.verify` for modules and probes that were not those of `match`."""
    if not isinstance(source, nn.Module) or not isinstance(target, nn.Module):
        raise VerificationError("Expected two modules to verify a plan on; a card or a name cannot be run here.")
    given = inputs if inputs is not None else getattr(source, "example_input_array", None)
    if given is None:
        raise VerificationError(
            "A plan read from a file holds no probes. Pass inputs: plan.verify(source, target, inputs)."
        )
    probes: list[Inputs] = as_inputs(given)
    others = as_inputs(target_inputs) if target_inputs is not None else probes
    left, right = (
        ModuleSide(m, p, s) for m, p, s in zip((source, target), (probes, others), plan.selectors, strict=True)
    )
    structure = Structure(left.capture())
    order = None if plan.output_order is None else torch.tensor(plan.output_order)
    certificate, failed, _ = certify(plan, left, right, structure, tolerance=None, order=order)
    if failed is not None:
        c = failed.comparison
        raise VerificationError(
            f"Expected {left.name} and {right.name} to agree under this plan, found a difference of {c.difference:.2e} "
            f"({c.parameters} parameters, {c.precision}; allowed {c.tolerance:.1e}). Match them again to see where they part."
        )
    return certificate
