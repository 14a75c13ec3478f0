"""What a model is like, and how two models differ: two implementations, two stages of training, two sizes.

`analyse` and `compare` measure; what they return can be drawn and written with `pyrosys.analysis.report.save`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from pyrosys.adapters.capture import Inputs
from pyrosys.adapters.diff import Difference, diff
from pyrosys.adapters.fingerprint import fingerprint
from pyrosys.analysis.attention import Heads, attention_maps, attention_statistics
from pyrosys.analysis.calibration import Calibration, calibrate
from pyrosys.analysis.observe import batches_of
from pyrosys.analysis.similarity import representations, similarity_matrix
from pyrosys.analysis.statistics import Summary, activation_statistics, weight_statistics
from pyrosys.errors import InputError
from pyrosys.language import MaskedLanguageModel

__all__ = ["Analysis", "Change", "Comparison", "Similarity", "analyse", "compare"]


@dataclass(frozen=True)
class Analysis:
    """What a model is like.

    Args:
        name: What it is called.
        kind: Its class.
        parameters: How many numbers it has.
        fingerprint: Of its structure.
        parts: Fingerprints of its Modules, by name.
        weights: The parameters that each Module has of its own, by its name.
        activations: What each Module returns, by its name.
        attention: How its heads look, by the name of the attention Module.
        maps: How much each token (row) of the first input attends to each other (column), the mean over heads.
        calibration: Whether it is right as often as it says; only for masked language models and sequences.
    """

    name: str
    kind: str
    parameters: int
    fingerprint: str
    parts: dict[str, str]
    weights: dict[str, Summary]
    activations: dict[str, Summary]
    attention: dict[str, Heads]
    maps: dict[str, Float[Tensor, "length length"]]
    calibration: Calibration | None = None

    def numbers(self) -> dict[str, float]:
        """The few that sum it up, by name."""
        found = self.calibration
        measured = {} if found is None else {name: getattr(found, name) for name in ("perplexity", "accuracy", "error")}
        return {
            "parameters": self.parameters,
            **{f"calibration_{k}" if k == "error" else k: v for k, v in measured.items()},
        }

    def to_json(self) -> dict[str, Any]:
        """The analysis as plain data; maps are left out."""
        data = dataclasses.asdict(dataclasses.replace(self, maps={}))
        del data["maps"]
        return {**data, "numbers": self.numbers()}


@dataclass(frozen=True)
class Change:
    """How a tensor differs from its counterpart.

    Args:
        relative: Norm of the difference over the norm of the first.
        cosine: Cosine of the angle between both, as vectors.
    """

    relative: float
    cosine: float


@dataclass(frozen=True)
class Similarity:
    """How alike the layers of two models represent the same items.

    Args:
        rows: Layers of the first.
        columns: Layers of the second.
        values: Unbiased linear CKA of each with each.
    """

    rows: list[str]
    columns: list[str]
    values: list[list[float]]


@dataclass(frozen=True)
class Comparison:
    """How two models differ.

    Args:
        first: The first model.
        second: The second model.
        shared: Modules of equal structure, the first's name and the second's, in the order of the first.
        difference: Where their computations agree and where they part, if that was asked for.
        changes: How tensors of the second differ from those of the first, by the second's names. Counterparts are found
            by the plan of ``difference`` if both compute the same function of their parameters, else by name and shape.
        similarity: How alike their layers represent the same items; nothing if a model does not stack any.
    """

    first: Analysis
    second: Analysis
    shared: list[tuple[str, str]]
    difference: Difference | None
    changes: dict[str, Change]
    similarity: Similarity | None

    def numbers(self) -> dict[str, float]:
        """The few that sum it up, by name."""
        sides = {"first": self.first.numbers(), "second": self.second.numbers()}
        return {f"{side}_{name}": value for side, numbers in sides.items() for name, value in numbers.items()}

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain data."""
        fields = (
            self.similarity and dataclasses.asdict(self.similarity),
            self.difference and self.difference.to_json(),
        )
        return {
            "first": self.first.to_json(),
            "second": self.second.to_json(),
            "shared": self.shared,
            "changes": {name: dataclasses.asdict(change) for name, change in self.changes.items()},
            "similarity": fields[0],
            "difference": fields[1],
        }


def analyse(
    model: nn.Module, inputs: Any = None, *, sequences: Collection[str] | None = None, name: str | None = None
) -> Analysis:
    """Measure what a model is like.

    Args:
        model: Any module.
        inputs: What to run it on, in the forms that `pyrosys.match` takes; by default its own example.
        sequences: One-letter codes to run a masked language model on instead. They also tell whether it is calibrated.
        name: What to call it; by default its class.

    Raises:
        CaptureError: Its structure cannot be recorded.
        InputError: There is nothing to run it on.

    Example:
        >>> from pyrosys.zoo.esm import ESM, ESMConfig
        >>> found = analyse(ESM(ESMConfig(layers=2, width=16, heads=4)), sequences=["MKTAYIAKQR", "GSHM"])
        >>> found.weights["head.norm"].mean, found.calibration.count > 0
        (0.5, True)
    """
    batches = batches_of(model, inputs, sequences)
    prints = fingerprint(model, _example(model, batches))
    return Analysis(
        name=type(model).__name__ if name is None else name,
        kind=f"{type(model).__module__}:{type(model).__qualname__}",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        fingerprint=prints.whole,
        parts=prints.parts,
        weights=weight_statistics(model),
        activations=activation_statistics(model, batches),
        attention=attention_statistics(model, batches),
        maps={name: weights[0].mean(0) for name, weights in attention_maps(model, batches[0]).items()},
        calibration=calibrate(model, sequences)
        if sequences is not None and isinstance(model, MaskedLanguageModel)
        else None,
    )


def compare(
    first: nn.Module,
    second: nn.Module,
    inputs: Any = None,
    second_inputs: Any = None,
    *,
    sequences: Collection[str] | None = None,
    names: tuple[str, str] = ("first", "second"),
    structure: bool = True,
) -> Comparison:
    """Measure how two models differ.

    Args:
        first: Any module.
        second: Any module.
        inputs: What to run both on, in the forms that `pyrosys.match` takes; by default the first one's own example.
        second_inputs: The same items in the form that the second takes.
        sequences: One-letter codes to run two masked language models on instead.
        names: What to call them.
        structure: Whether to look for where their computations part, which takes a while for large models.

    Raises:
        CaptureError: The structure of a model cannot be recorded.
        InputError: There is nothing to run a model on, or both have the same name.

    Example:
        >>> from pyrosys.zoo.esm import ESM, ESMConfig
        >>> before, after = (ESM(ESMConfig(layers=2, width=16, heads=4)) for _ in range(2))
        >>> found = compare(before, after, sequences=["MKTAYIAKQR"], names=("before", "after"))
        >>> found.difference.equal, found.first.fingerprint == found.second.fingerprint
        (True, True)
    """
    if names[0] == names[1]:
        raise InputError(f"Expected two different names, found {names[0]!r} twice. Tell the models apart.")
    if sequences is None:
        inputs = batches_of(first, inputs)
        second_inputs = inputs if second_inputs is None else second_inputs
    analyses = (
        analyse(first, inputs, sequences=sequences, name=names[0]),
        analyse(second, second_inputs, sequences=sequences, name=names[1]),
    )
    batches = batches_of(first, inputs, sequences), batches_of(second, second_inputs, sequences)
    examples = _example(first, batches[0]), _example(second, batches[1])
    difference = diff(first, second, *examples) if structure else None
    return Comparison(
        *analyses,
        shared=_shared(*analyses),
        difference=difference,
        changes=_changes(first, second, difference),
        similarity=_similarity(first, second, batches),
    )


def _example(model: nn.Module, batches: list[Inputs]) -> Any:
    """What shows a model's structure: its own example, which is made for that, or the first of the inputs."""
    own = getattr(model, "example_input_array", None)
    return batches[0] if own is None else own


def _shared(first: Analysis, second: Analysis) -> list[tuple[str, str]]:
    homes: dict[str, list[str]] = {}
    for name, print_ in second.parts.items():
        homes.setdefault(print_, []).append(name)
    pairs = []
    for name, print_ in first.parts.items():
        names = homes.get(print_, [])
        if names:
            pairs.append((name, names.pop(names.index(name) if name in names else 0)))
    return pairs


def _changes(first: nn.Module, second: nn.Module, difference: Difference | None) -> dict[str, Change]:
    before, after = first.state_dict(), second.state_dict()
    if difference is not None and difference.plan is not None:
        before = difference.plan.apply(before, after)
    return {
        name: _change(before[name], tensor)
        for name, tensor in after.items()
        if name in before and before[name].shape == tensor.shape and tensor.is_floating_point()
    }


def _change(before: Tensor, after: Tensor) -> Change:
    x, y = (tensor.detach().double().flatten().cpu() for tensor in (before, after))
    return Change(relative=float((y - x).norm() / x.norm()), cosine=float(x.dot(y) / (x.norm() * y.norm())))


def _similarity(first: nn.Module, second: nn.Module, batches: tuple[list[Inputs], list[Inputs]]) -> Similarity | None:
    rows, columns = representations(first, batches[0]), representations(second, batches[1])
    if not rows or not columns:
        return None
    return Similarity(list(rows), list(columns), similarity_matrix(rows, columns).tolist())
