"""Parts of models: a value inside a model, or a submodule on its own, in place of the whole.

A part is known by the path of a submodule. As a *value* it is what the submodule returns while the whole model runs, with
everything that this depends on, back to the model's inputs. *Alone* it is the submodule by itself, on the arguments that it
is called with. In either form it is run as a copy of the whole model that shares every tensor, so that names and states
stay those of the whole.
"""

import dataclasses
import re
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrosys.adapters.capture import Inputs, OutputSelector, Traced, capture, output_tensors, shadow
from pyrosys.adapters.sides import ModuleSide
from pyrosys.errors import InputError

__all__ = ["Part", "Value", "arguments_of", "readable", "side_of", "values_of"]


@dataclasses.dataclass(frozen=True)
class Value:
    """One value inside a model: what a submodule returns.

    Attributes:
        path: of the submodule; empty for the model itself.
        call: which of its calls, from 0.
        number: which of the tensors that it returns; None for all of them, as they are.
        axes: order of axes in which the tensor is taken; None for its own.
    """

    path: str
    call: int = 0
    number: int | None = None
    axes: tuple[int, ...] | None = None

    @staticmethod
    def parse(text: str) -> "Value":
        """The value that a path names; `path#2` is the second call of a submodule that is called several times."""
        found = re.fullmatch(r"([^#\[]*)(?:#([1-9]\d*))?(?:\[(\d+)\])?", text)
        if found is None:
            raise InputError(
                f"Expected the path of a submodule, as in 'encoder' or 'block#2' for a second call, found {text!r}."
            )
        path, call, number = found.groups()
        return Value(path, int(call or 1) - 1, None if number is None else int(number))

    def __str__(self) -> str:
        call = f"#{self.call + 1}" if self.call else ""
        number = f"[{self.number}]" if self.number else ""
        return f"{self.path}{call}{number}"

    def of(self, output: Any, select: OutputSelector | None) -> Any:
        """The value, from what the call returned."""
        if self.number is None:
            return output
        tensor = output_tensors(output, None if self.path else select)[self.number]
        return tensor if self.axes is None else tensor.permute(self.axes)


@dataclasses.dataclass(frozen=True)
class Part:
    """What stands for a model in a match.

    Attributes:
        values: the values that count; the model's own output, or that of the submodule that is alone, when there are none.
        alone: path of the submodule that runs by itself; None for the whole model.
    """

    values: tuple[Value, ...] = ()
    alone: str | None = None

    @property
    def is_whole(self) -> bool:
        return self.alone is None and all(not v.path for v in self.values)

    def __str__(self) -> str:
        if self.alone is not None:
            return f"{self.alone} on its own"
        return " and ".join(str(v) or "the output" for v in self.values) or "the output"

    def to_json(self) -> dict[str, Any]:
        values = [[v.path, v.call, v.number, None if v.axes is None else list(v.axes)] for v in self.values]
        return {"values": values, "alone": self.alone}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Part":
        values = tuple(Value(p, c, n, None if a is None else tuple(a)) for p, c, n, a in data["values"])
        return Part(values, data["alone"])

    def of(self, model: nn.Module, select: OutputSelector | None = None) -> nn.Module:
        """A copy of a model, sharing its tensors, whose forward pass gives this part.

        Args:
            model: left as it is.
            select: from the model's own output to the tensors that count, where that output is one of the values.

        Raises:
            InputError: the model has no such submodule.
        """
        if self.alone is not None:
            model, select = _alone(model, self.alone), None
        if not self.values:
            return model
        single = self.values[0] if len(self.values) == 1 else None
        if single is not None and single.number is None and not single.path:
            return model

        def give(calls: dict[str, list[Any]]) -> Any:
            found = []
            for value in self.values:
                made = calls.get(value.path, [])
                if len(made) <= value.call:
                    raise _not_called(model, value.path, value.call + 1, len(made))
                found.append(value.of(made[value.call], select))
            return found[0] if single is not None else tuple(found)

        return _tapped(model, {v.path for v in self.values}, give)


def readable(model: nn.Module) -> nn.Module:
    """A module that torch's stateless calls accept: what `DataParallel` wraps, under its names there."""
    return _alone(model, "module") if isinstance(model, nn.DataParallel) else model


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        import difflib

        names = [name for name, _ in model.named_modules() if name]
        close = difflib.get_close_matches(path, names, 5, 0.3) or names[:5]
        raise InputError(
            f"Expected the path of a submodule of {type(model).__name__}, found {path!r}. "
            f"It has {', '.join(map(repr, close)) or 'no submodules'}."
        ) from error


def _not_called(model: nn.Module, path: str, wanted: int, found: int) -> InputError:
    return InputError(
        f"Expected {type(model).__name__} to call {path!r} {f'{wanted} times' if wanted > 1 else 'once or more'} on these inputs, "
        f"found {found} calls. Name a submodule that is called; a list of modules is not."
    )


def _alone(model: nn.Module, path: str) -> nn.Module:
    _submodule(model, path)
    copied = shadow(model)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.get_submodule(path)(*args, **kwargs)

    # A bound method, since copies of the copy bind it to themselves. What the whole does around its call is left out.
    object.__setattr__(copied, "forward", types.MethodType(forward, copied))
    copied._forward_hooks.clear()
    copied._forward_pre_hooks.clear()
    if isinstance(copied, nn.DataParallel):
        return _as_plain(copied)
    return copied


def _as_plain(wrapper: nn.Module) -> nn.Module:
    """The same tree of modules under a plain root, for a root that torch's stateless calls refuse by its class."""
    plain = nn.Module()
    plain.__dict__.update({k: v for k, v in wrapper.__dict__.items() if k in plain.__dict__})
    object.__setattr__(plain, "forward", types.MethodType(wrapper.forward.__func__, plain))  # type: ignore[attr-defined]
    return plain


def _tapped(model: nn.Module, paths: set[str], give: Callable[[dict[str, list[Any]]], Any]) -> nn.Module:
    """A copy whose forward pass returns what `give` makes of the results of the calls of some submodules, by path."""
    for path in paths:
        _submodule(model, path)
    copied = shadow(model)
    calls: dict[str, list[Any]] = {}

    def start(*_: Any) -> None:
        calls.clear()

    def finish(_module: nn.Module, _args: Any, output: Any) -> Any:
        calls["" if "" in paths else " "] = [output]
        found = give(calls)
        calls.clear()  # or a copy would hold the results of an earlier pass
        return found

    def keep(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            calls.setdefault(path, []).append(output)

        return hook

    copied.register_forward_pre_hook(start, prepend=True)
    for path in sorted(paths - {""}):
        copied.get_submodule(path).register_forward_hook(keep(path))
    copied.register_forward_hook(finish)
    return copied


def side_of(model: nn.Module, probes: list[Inputs], part: Part, select: OutputSelector | None) -> ModuleSide:
    """A part of a model as one side of a match.

    Args:
        model: left as it is.
        probes: arguments of the whole model, or of the submodule that is alone.
        part: what counts.
        select: from what the part returns to the tensors that count, or from the model's own output where that is one of
            several values.
    """
    whole = not part.values or any(v.number is None for v in part.values)
    side = ModuleSide(part.of(readable(model), select), probes, select if whole else None)
    side.name = type(model).__name__ if part.is_whole else f"{type(model).__name__} ({part})"
    return side


def values_of(model: nn.Module, select: OutputSelector | None) -> tuple[nn.Module, Callable[[], list[list[Value]]]]:
    """A copy of a model that returns every value that its submodules return and that depends on parameters.

    Args:
        model: left as it is.
        select: from the model's own output to the tensors that count.

    Returns:
        The copy, and what tells, after a pass was recorded, which values each of its outputs is.
    """
    labels: list[list[Value]] = []

    def give(calls: dict[str, list[Any]]) -> Any:
        labels.clear()
        found: list[Tensor] = []
        for path, outputs in calls.items():
            for call, output in enumerate(outputs):
                for number, tensor in enumerate(output_tensors(output, None if path else select)):
                    if not isinstance(tensor, Traced):
                        continue
                    known = next((i for i, other in enumerate(found) if other is tensor), len(found))
                    if known == len(found):
                        found.append(tensor)
                        labels.append([])
                    labels[known].append(Value(path, call, number))
        return tuple(found)

    paths = {name for name, _ in model.named_modules()}
    return _tapped(model, paths, give), lambda: list(labels)


def arguments_of(model: nn.Module, probes: Sequence[Inputs], path: str) -> tuple[list[Inputs], list[list[Tensor]]]:
    """What a submodule is called with when the whole model runs, the first time.

    Returns:
        Its arguments for each probe, and among their tensors those that depend on parameters and are filled with noise.
    """
    _submodule(model, path)
    found: list[Inputs] = []
    made: list[list[Tensor]] = []
    for number, probe in enumerate(probes):
        copied, kept = shadow(model), list[Inputs]()

        def keep(_module: nn.Module, args: Any, kwargs: Any, kept: list[Inputs] = kept) -> None:
            kept.append(Inputs(*args, **kwargs))

        copied.get_submodule(path).register_forward_pre_hook(keep, with_kwargs=True)
        capture(copied, probe)
        if not kept:
            raise _not_called(model, path, 1, 0)
        # The model may have been recorded several times; the last one is as good as any.
        drawn: list[Tensor] = []

        def plain(tensor: Tensor, number: int = number, drawn: list[Tensor] = drawn) -> Tensor:
            if not isinstance(tensor, Traced):
                return tensor.detach().clone()
            generator = torch.Generator().manual_seed(100 * number + len(drawn))
            drawn.append(torch.randn(tensor.shape, generator=generator, dtype=torch.get_default_dtype()))
            return drawn[-1]

        found.append(kept[-1].map(plain))
        made.append(drawn)
    return found, made
