"""What a pair of PortBench is, and how both of its models are built.

A pair is two implementations that other people wrote, at a tiny size, and one example in the form that each takes. It knows
nothing of how their parameters correspond. Packages are imported when a model is built, never before.
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tests.adapters.twins import Called, exchanged, randomise

__all__ = ["Make", "Pair", "Probe", "built", "drawn", "hugging_face", "noise", "resolve"]

Probe = Any
Make = Callable[[int], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two implementations of one function, or of two functions that look alike.

    Args:
        name: What the pair is, "left | right".
        source: Builds the one model, with random parameters that a seed determines.
        target: Builds the other.
        inputs: Draws an example from a seed, in the form the source takes: a tuple of arguments or a dict of keywords.
        target_inputs: The same example as the target takes it; by default, as the source takes it.
        source_output: From what the source returns to what counts.
        target_output: The same for the target.
        tags: Which differences of layout there are between the two.
        same: Whether they compute one function. If not, loading the one into the other has to be refused.
        one_way: Whether the target can do more than the source, so that the reverse has to be refused.
        tolerance: Largest difference in float32, relative to the largest output.
        note: Why the two are not the same, or what is special.
    """

    name: str
    source: Make
    target: Make
    inputs: Callable[[int], Probe]
    target_inputs: Callable[[int], Probe] | None = None
    source_output: Callable[[Any], Any] | None = None
    target_output: Callable[[Any], Any] | None = None
    tags: tuple[str, ...] = ()
    same: bool = True
    one_way: bool = False
    tolerance: float = 1e-5
    note: str = ""

    @property
    def reverse(self) -> "Pair":
        """The pair with the target for the source."""
        return replace(self, **exchanged(self), same=self.same and not self.one_way, one_way=False)


def drawn(
    make: Callable[[], nn.Module],
    *,
    call: Callable[..., Any] | None = None,
    zero: tuple[str, ...] = (),
    keep: tuple[str, ...] = (),
) -> Make:
    """A constructor that draws every parameter at random.

    Args:
        make: Builds the model.
        call: The forward pass as a function of the model and its arguments, where that is not the model's own.
        zero: How the names of parameters end that the other side does not have, such as a bias.
        keep: How the names of parameters end that are constants.
    """

    def build(seed: int) -> nn.Module:
        model = make()
        constants = {name: value.detach().clone() for name, value in model.named_parameters() if name.endswith(keep)}
        randomise(model, seed)
        for name, parameter in model.named_parameters():
            if name.endswith(zero):
                parameter.zero_()
            if name in constants:
                parameter.copy_(constants[name])
        return model if call is None else Called(model, call)

    return build


def built(
    path: str,
    *args: Any,
    call: Callable[..., Any] | None = None,
    zero: tuple[str, ...] = (),
    keep: tuple[str, ...] = (),
    **kwargs: Any,
) -> Make:
    """A constructor of the class at a dotted path, on these arguments; see `drawn` for the others."""
    return drawn(lambda: resolve(path)(*args, **kwargs), call=call, zero=zero, keep=keep)


def hugging_face(
    name: str, model: str = "ForCausalLM", *, call: Callable[..., Any] | None = None, **config: Any
) -> Make:
    """A constructor of a model of transformers, without its cache of keys and values."""

    def make() -> nn.Module:
        settings = resolve(f"transformers.{name}Config")(**{"use_cache": False} | config)
        return resolve(f"transformers.{name}{model}")(settings)

    return drawn(make, call=call)


def resolve(path: str) -> Any:
    """The class or function at a dotted path."""
    _allow_torchvision()
    module, _, name = path.rpartition(".")
    if module.startswith("frame2seq."):
        # It imports parts of itself under the name that it had before.
        sys.modules["framerator"] = importlib.import_module("frame2seq")
    return getattr(importlib.import_module(module), name)


def noise(*shapes: tuple[int, ...]) -> Callable[[int], tuple[Tensor, ...]]:
    """Random arguments of these shapes, from a seed."""

    def draw(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(shape, generator=generator) for shape in shapes)

    return draw


@cache
def _allow_torchvision() -> None:
    """Some packages import torchvision, which is made for one build of torch and with another lacks its own operators.

    No model here uses one of them; that they are declared is enough.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
