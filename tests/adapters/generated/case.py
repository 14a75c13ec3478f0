"""One pair of generated models and what the engine makes of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pyrosys.adapters.match import match
from pyrosys.errors import PyrosysError
from tests.adapters.generated.model import Model, Sizes, built, example, select
from tests.adapters.generated.mutations import mutations
from tests.adapters.generated.spec import VOCABULARY, Spec, draw
from tests.adapters.generated.spelling import Choices, Spelling, Values

__all__ = ["Case", "Side", "composition", "mutation"]

SEEN, FRESH = Sizes(3, 6), (Sizes(2, 5), Sizes(4, 8))
SAME, OTHER = 1e-8, 1e-6
_ABOUT = re.compile(r"^(layers(\.\d+)? )?(step \d+ )?(branch \d+ )?(.*(?= way$| gain$)|part \d+)?")
Decisions = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Side:
    """One of the two models: what it computes and how it is written."""

    spec: Spec
    choices: Choices

    def built(self, seed: int) -> tuple[nn.Module, Model]:
        return built(self.spec, Spelling(self.choices, Values(seed)))

    def example(self, seed: int, sizes: Sizes | None = None) -> tuple[Tensor, ...]:
        """What the model takes; by default enough to show every letter where the model reads it."""
        if sizes is None:
            reads_first = self.spec.stem == "tokens" and self.spec.pooling == "first"
            sizes = Sizes(VOCABULARY, SEEN.length) if reads_first else SEEN
        return example(self.spec, self.built(0)[1], seed, sizes)


@dataclass(frozen=True)
class Case:
    """Two models of one function, or of two.

    Args:
        source, target: The two.
        choices: What was decided, by what it was decided for.
        kind: What was changed in the function, if anything was.
    """

    source: Side
    target: Side
    choices: dict[str, Choices]
    kind: str = ""

    @property
    def kinds(self) -> list[str]:
        """In what the two spellings differ: the last word or words of what was decided, and the ways."""
        source, target = (self.choices[name].unusual for name in ("source", "target"))
        return sorted(
            {
                f"{_ABOUT.sub('', path)}: {option}"
                for path in source.keys() | target.keys()
                if source.get(path) != target.get(path)
                for option in (source.get(path), target.get(path))
                if option is not None
            }
        )

    def truth(self) -> float:
        """The largest relative difference where both have the same parameters, each as it keeps them."""
        return self._difference(self.source.built(1), self.target.built(1))

    def ported(self) -> float:
        """The largest relative difference after the engine has brought the source's parameters to the target.

        Raises:
            PyrosysError: it refuses.
        """
        source, target = self.source.built(1), self.target.built(2)
        inputs = [
            tuple(one.float() if one.is_floating_point() else one for one in side.example(0))
            for side in (self.source, self.target)
        ]
        plan = match(
            source[0].float(),
            target[0].float(),
            *inputs,
            source_output=select(source[1]),
            target_output=select(target[1]),
        )
        target[0].double().load_state_dict(plan.apply(source[0].double().state_dict()))
        return self._difference(source, target)

    def outcome(self) -> tuple[str, str]:
        """`"exact"`, `"refused"` or `"wrong"`, or `"error"` where the engine fails in another way; and what it says."""
        try:
            difference = self.ported()
        except PyrosysError as error:
            return "refused", f"{type(error).__name__}: {error}"
        except Exception as error:
            return "error", f"{type(error).__name__}: {error}"
        return ("exact" if difference < SAME else "wrong"), f"largest difference {difference:.1e}"

    def _difference(self, source: tuple[nn.Module, Model], target: tuple[nn.Module, Model]) -> float:
        found = 0.0
        for seed, sizes in enumerate(FRESH):
            left, right = (
                _outputs(module, model, side.example(1 + seed, sizes))
                for (module, model), side in ((source, self.source), (target, self.target))
            )
            found = max(found, _distance(left, right))
        return found


def _outputs(module: nn.Module, model: Model, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        output = module(*inputs)
    chosen = select(model)
    return tree_leaves(output if chosen is None else chosen(output))


def _distance(left: list[Tensor], right: list[Tensor]) -> float:
    if [one.shape for one in left] != [one.shape for one in right]:
        return float("inf")
    scale = max(float(one.abs().max()) for one in left)
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True)) / scale


def composition(random: Random, fixed: Decisions | None = None) -> Case:
    """One function in two spellings."""
    choices = _choices(random, fixed, "spec", "source", "target")
    spec = draw(choices["spec"])
    return _written(Case(Side(spec, choices["source"]), Side(spec, choices["target"]), choices))


def mutation(random: Random, fixed: Decisions | None = None) -> Case:
    """Two functions that differ in one thing, in two spellings; and they do differ where they have the same parameters."""
    choices = _choices(random, fixed, "spec", "change", "source")
    spec = draw(choices["spec"])
    for kind, changed in mutations(spec, choices["change"]):
        choices |= _choices(random, fixed, "target")
        case = Case(Side(spec, choices["source"]), Side(changed, choices["target"]), choices, kind)
        if case.truth() > OTHER:
            return case
    raise ValueError(f"no change of {spec} can be seen in its outputs")


def _choices(random: Random, fixed: Decisions | None, *names: str) -> dict[str, Choices]:
    """Spellings are anything from nearly plain to as unusual as can be."""
    return {
        name: Choices(
            random, 0.0 if name in ("spec", "change") else random.choice((0.0, 0.4, 0.8)), (fixed or {}).get(name)
        )
        for name in names
    }


def _written(case: Case) -> Case:
    """The case with every decision taken."""
    for side in (case.source, case.target):
        side.built(0)
    return case
