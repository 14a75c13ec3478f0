"""The two sides of a match: a module with its probes, or a structure card that stands for a module whose code is absent."""

import contextlib
import copy
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from pyrosys.adapters.capture import (
    CHOICE,
    Capture,
    Inputs,
    OutputSelector,
    capture,
    evaluation_mode,
    named_state,
    output_tensors,
    quiet_kernels,
    shadow,
)
from pyrosys.adapters.precision import Widen, default_dtype
from pyrosys.adapters.products import merge_products
from pyrosys.adapters.structure import Structure
from pyrosys.adapters.sums import join_parts, join_sums, join_sums_of_one
from pyrosys.errors import CaptureError, PyrosysError

__all__ = ["FROZEN", "READINGS", "ModuleSide", "Side", "on_both"]

T = TypeVar("T")
R = TypeVar("R")

FROZEN = "buffers for constants"
ROUTED = "choices made for the activations"


def _join_uses(captured: Capture) -> bool:
    """Take all uses of a tensor for one; whether any has several."""
    captured.together = True
    return any(place.again for place in Structure(captured).places)


_REWRITES = {
    "uses of a tensor together": _join_uses,
    "products of matrices together": merge_products,
    "parts of contractions together": join_parts,
    "sums over one tensor together": join_sums_of_one,
    "sums of contractions together": join_sums,
}
READINGS = (FROZEN, ROUTED, *_REWRITES)
"""Other ways to read a model than the plain one; the last one does what the one before it does, and more."""


def on_both(do: Callable[[T], R], sides: tuple[T, T], *, large: bool = True) -> list[R]:
    """Do the same for source and target, at the same time where more than one thread is allowed.

    Args:
        do: what to do.
        sides: on what.
        large: whether the tensors are large; threads that work on small ones wait for each other.
    """
    allowed = torch.get_num_threads()
    if allowed == 1 or not large:
        return [do(side) for side in sides]
    try:
        torch.set_num_threads(allowed // 2)  # of each of the two
        with ThreadPoolExecutor(1) as thread:
            other = thread.submit(do, sides[1])
            return [do(sides[0]), other.result()]
    finally:
        torch.set_num_threads(allowed)


class Side(Protocol):
    """What the engine needs of a source or target."""

    name: str
    probes: list[Inputs]

    def capture(self, probe: int = 0) -> Capture: ...

    def choose(self, outputs: list[int]) -> None: ...

    def possible(self) -> frozenset[str]: ...

    def read(self, readings: frozenset[str]) -> None: ...

    def state(self) -> Mapping[str, Tensor]: ...

    def is_meta(self) -> bool: ...

    def run(self, state: Mapping[str, Tensor], probe: int, dtype: torch.dtype) -> list[Tensor]: ...


class ModuleSide:
    """A module, its probes and the outputs that count.

    Args:
        model: left as it is by everything here.
        probes: at least one.
        select: from output to the tensors that count.
    """

    def __init__(self, model: nn.Module, probes: list[Inputs], select: OutputSelector | None):
        self.model = model
        self.probes = probes
        self.select = select
        self.name = type(model).__name__
        self.chosen: list[int] | None = None
        self.readings: frozenset[str] = frozenset()
        self._plain: dict[tuple[Inputs, bool, bool], Capture] = {}

    def capture(self, probe: int = 0) -> Capture:
        """The forward pass on one probe, for the caller to change."""
        captured = self._captured(probe, FROZEN in self.readings, ROUTED in self.readings)
        if ROUTED in self.readings and (unfelt := self._captured(probe).reached - captured.reached - captured.derived):
            raise CaptureError(
                f"{self.name} chooses by its activations, and {', '.join(sorted(unfelt))} only influence what it chooses, which "
                "the engine does not follow. Use an implementation that computes every expert."
            )
        for reading, rewrite in _REWRITES.items():
            if reading in self.readings:
                rewrite(captured)
        return captured

    def _captured(self, probe: int, frozen: bool = False, routed: bool = False) -> Capture:
        key = self.probes[probe], frozen, routed
        if key not in self._plain:
            self._plain[key] = capture(self.model, key[0], output=self.select, frozen=frozen, routed=routed)
        return self._plain[key].copy()

    def possible(self) -> frozenset[str]:
        """The readings that make a difference."""
        plain = self._captured(0)
        found = {reading for reading, rewrite in _REWRITES.items() if rewrite(plain.copy())}
        if any(node.target is CHOICE for node in plain.graph.nodes):
            found.add(ROUTED)
        if any(not self.model.get_buffer(name).is_meta for name in plain.buffers & plain.reached):
            found.add(FROZEN)
        return frozenset(found)

    def read(self, readings: frozenset[str]) -> None:
        """Read the model in these ways from now on."""
        self.readings = readings

    def choose(self, outputs: list[int]) -> None:
        """Keep only some of the outputs, by number."""
        self.chosen = outputs

    def state(self) -> Mapping[str, Tensor]:
        return {n: t for n, t in self.model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}

    def is_meta(self) -> bool:
        return any(t.is_meta for t in self.state().values())

    def run(self, state: Mapping[str, Tensor], probe: int, dtype: torch.dtype) -> list[Tensor]:
        """Outputs under another state, in a given precision, from a fixed random state.

        Raises:
            CaptureError: the model does not run.
        """
        model = shadow(self.model)
        tensors, ties, _ = named_state(model)
        values: dict[str, Tensor] = {}
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point() and not buffer.is_meta:
                values[name] = buffer.detach().to(dtype)
            else:
                values[name] = buffer.detach().clone() if not buffer.is_meta else buffer
        for name in tensors:
            values[name] = state[name].detach().to(dtype)
        for alias, first in ties.items():
            values[alias] = values[first]
        inputs = self.probes[probe].map(lambda t: t.detach().to(dtype) if t.is_floating_point() else t.detach().clone())
        inputs = Inputs(*copy.copy(inputs.args), **dict(inputs.kwargs))
        return self._outputs(model, values, inputs, dtype)

    def _outputs(
        self, model: nn.Module, values: Mapping[str, Tensor], inputs: Inputs, dtype: torch.dtype
    ) -> list[Tensor]:
        precision = Widen() if dtype == torch.float64 else contextlib.nullcontext()
        with (
            evaluation_mode(model),
            quiet_kernels(),
            default_dtype(dtype),
            precision,
            torch.random.fork_rng(devices=[]),
        ):
            torch.manual_seed(0)
            try:
                result = torch.func.functional_call(model, dict(values), inputs.args, inputs.kwargs, tie_weights=False)
                found = output_tensors(result, self.select)
            except PyrosysError:
                raise
            except Exception as error:
                raise CaptureError(f"{self.name} did not run in {dtype}: {type(error).__name__}: {error}") from error
        chosen = found if self.chosen is None else [found[i] for i in self.chosen]
        return [t.detach() for t in chosen]
