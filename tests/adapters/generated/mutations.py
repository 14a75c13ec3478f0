"""Changes of a spec that change the function: what the engine has to refuse."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tests.adapters.generated import spec as specs
from tests.adapters.generated.spec import Spec, Step
from tests.adapters.generated.spelling import Choices

__all__ = ["mutations"]


def mutations(spec: Spec, choices: Choices) -> Iterator[tuple[str, Spec]]:
    """What is changed, and the changed spec: one of each kind, in random order."""
    found: dict[str, list[Spec]] = {}
    for kind, changed in _changes(spec):
        found.setdefault(kind, []).append(changed)
    kinds = sorted(found)
    while kinds:
        kind = kinds.pop(choices(f"kind {len(kinds)}", *range(len(kinds))))
        yield kind, found[kind][choices(f"which {kind}", *range(len(found[kind])))]


def _changes(spec: Spec) -> Iterator[tuple[str, Spec]]:
    yield "an extra layer", replace(spec, depth=spec.depth + 1, looped=False)
    yield "an extra round of a loop", replace(spec, depth=spec.depth + (2 if spec.depth == 1 else 1), looped=True)
    if spec.depth > 1 and not spec.looped:  # the other way round, layers of their own may hold what the loop has
        yield "unequal layers into a loop", replace(spec, looped=True)
    for eps in {1e-3, 1e-5, 1e-6} - {spec.norm.eps}:
        if _has_norms(spec):
            yield "epsilon of norms", replace(spec, norm=replace(spec.norm, eps=eps))
    if _has_norms(spec):
        kind = "rms" if spec.norm.kind == "layer" else "layer"
        yield "kind of norms", replace(spec, norm=replace(spec.norm, kind=kind))
    if spec.final_norm:
        yield "no final norm", replace(spec, final_norm=False)
    if spec.stem == "tokens":
        for positions in {"none", "learned", "waves"} - {spec.positions}:
            yield "positions of tokens", replace(spec, positions=positions)
    if spec.tied:
        yield "scale of a tied embedding", replace(spec, embedding_scale=2 * spec.embedding_scale)
    elif spec.outputs[0] == 7 and len(spec.outputs) == 1 and spec.stem == "tokens" and spec.pooling == "none":
        yield "ends tied", replace(spec, tied=True, outputs=(specs.VOCABULARY,))
    if spec.pooling != "none":
        for pooling in {"mean", "max", "first"} - {spec.pooling}:
            yield "pooling", replace(spec, pooling=pooling)
    if spec.head_bias:
        yield "a bias with nowhere to go", replace(spec, head_bias=False)
    yield "a map before the head", replace(spec, head_hidden=not spec.head_hidden)
    for number, step in enumerate(spec.steps):

        def with_step(changed: Step, number: int = number) -> Spec:
            return replace(spec, steps=(*spec.steps[:number], changed, *spec.steps[number + 1 :]))

        yield "residual dropped", with_step(replace(step, skip=False))
        yield "factor of the sum", with_step(replace(step, factor=step.factor * 0.5))
        for placement in {"pre", "post"} - {step.placement}:
            yield "placement of norms", with_step(replace(step, placement=placement))
        if len(step.branches) == 2:
            yield (
                "one after the other",
                replace(
                    spec,
                    steps=(
                        *spec.steps[:number],
                        *(replace(step, branches=(branch,)) for branch in step.branches),
                        *spec.steps[number + 1 :],
                    ),
                ),
            )
        for place, branch in enumerate(step.branches):
            for kind, changed in _branch_changes(branch):
                branches = (*step.branches[:place], changed, *step.branches[place + 1 :])
                yield kind, with_step(replace(step, branches=branches))


def _has_norms(spec: Spec) -> bool:
    return True if spec.final_norm or spec.stem_norm else bool(spec.steps)


def _branch_changes(branch: specs.Branch) -> Iterator[tuple[str, specs.Branch]]:
    options: dict[str, tuple[Any, ...]] = {}
    names: dict[str, str] = {}

    def add(field: str, *values: Any, name: str | None = None) -> None:
        options[field], names[field] = values, name or field

    match branch:
        case specs.Attention():
            yield from _attention_changes(branch)
        case specs.TriangleAttention():
            for kind, changed in _attention_changes(branch.attention):
                yield kind, replace(branch, attention=changed)
            add("ending", False, True, name="node of a triangle")
            if branch.ending:
                add("late", False, True, name="where a bias is read")
        case specs.TriangleProduct():
            add("incoming", False, True, name="edges of a triangle")
        case specs.FeedForward():
            add("activation", *specs.HIDDEN_ACTIVATIONS)
            add("gated", False, True, name="gate")
            if branch.bias:
                add("bias", False, name="a bias with nowhere to go")
        case specs.Convolution():
            add("activation", *specs.HIDDEN_ACTIVATIONS)
            if branch.kernel > 1:
                add("padding", "zeros", "past", "copies", name="padding")
                add("dilation", 1, 2, name="dilation")
        case specs.Messages():
            add("activation", *specs.HIDDEN_ACTIVATIONS)
            add("neighbours", 3, 4, name="count of neighbours")
            add("reduce", "mean", "max", name="reduction of messages")
    for field, values in options.items():
        for value in values:
            if value != getattr(branch, field):
                yield names[field], replace(branch, **{field: value})


def _attention_changes(branch: specs.Attention) -> Iterator[tuple[str, specs.Attention]]:
    heads, groups = branch.heads, branch.groups
    yield "weights", replace(branch, weights="sigmoid" if branch.weights == "softmax" else "softmax")
    for mask in ("none", "causal", "window"):
        if mask != branch.mask:
            yield "mask", replace(branch, mask=mask)
    yield "cap of scores", replace(branch, cap=2.0)
    yield "scale of scores", replace(branch, scale=2 * branch.scale)
    yield "query norm", replace(branch, query_norm=not branch.query_norm)
    yield "gate of attention", replace(branch, gate=not branch.gate)
    if branch.positions == "rotary":
        yield "base of rotary positions", replace(branch, base=500.0)
    for positions in ("none", "rotary", "relative", "linear"):
        if positions != branch.positions:
            yield "positions of attention", replace(branch, positions=positions)
    if heads > 1 and groups == heads and branch.positions != "relative" and not branch.pairs and not branch.query_norm:
        yield "count of heads", replace(branch, heads=heads // 2, groups=heads // 2, size=2 * branch.size)
    if groups > 1:
        yield "groups of heads", replace(branch, groups=1)
    if branch.bias != "none":
        yield "a bias with nowhere to go", replace(branch, bias="none")
