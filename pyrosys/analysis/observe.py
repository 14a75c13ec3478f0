"""Run a model on examples and look at what its Modules give."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyrosys.adapters.capture import Inputs, as_inputs, evaluation_mode
from pyrosys.errors import InputError
from pyrosys.language import MaskedLanguageModel

__all__ = ["batches_of", "blocks", "observe", "run"]


def batches_of(model: nn.Module, inputs: Any = None, sequences: Iterable[str] | None = None) -> list[Inputs]:
    """What to run a model on: sequences one by one, so that there is no padding, or inputs, or its own example.

    Args:
        model: Any module.
        inputs: What `pyrosys.match` takes: a tuple, a dict, `pyrosys.Inputs`, or a list of these.
        sequences: One-letter codes, for a masked language model.

    Raises:
        InputError: There is nothing to run the model on, or it does not take sequences, or of this length.
    """
    if sequences is not None:
        if not isinstance(model, MaskedLanguageModel):
            raise InputError(
                f"Expected a masked language model to run on sequences, found a {type(model).__name__}. Pass inputs."
            )
        inputs = [(model.alphabet.encode([sequence]),) for sequence in sequences]
        longest = max((tokens.shape[1] - 2 for (tokens,) in inputs), default=0)
        if model.longest is not None and longest > model.longest:
            raise InputError(f"Expected at most {model.longest} residues, found {longest}. Leave longer sequences out.")
    elif inputs is None:
        inputs = getattr(model, "example_input_array", None)
    if inputs is None or (isinstance(inputs, list) and not inputs):
        raise InputError(f"Expected inputs to run a {type(model).__name__} on, found none. Pass at least one.")
    return as_inputs(inputs)


def run(model: nn.Module, batches: Iterable[Inputs]) -> None:
    """Run a model in evaluation mode, where its parameters are, for what hooks see of it."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with evaluation_mode(model), torch.inference_mode():
        for batch in batches:
            placed = batch.map(lambda tensor: tensor.to(device))
            model(*placed.args, **placed.kwargs)


def observe(
    model: nn.Module,
    batches: Iterable[Inputs],
    visit: Callable[[str, Tensor], None],
    names: Iterable[str] | None = None,
) -> None:
    """Run a model and show the first tensor that each Module returns, of floating point, every time it returns.

    Args:
        model: Any module.
        batches: What to run it on.
        visit: Called with the name of the Module, empty for the model itself, and the tensor.
        names: Which Modules; all by default.
    """
    wanted = None if names is None else set(names)
    handles = []
    for name, module in model.named_modules():
        if wanted is None or name in wanted:

            def hook(module: nn.Module, arguments: Any, output: Any, name: str = name) -> None:
                tensor = _first_tensor(output)
                if tensor is not None:
                    visit(name, tensor)

            handles.append(module.register_forward_hook(hook))
    try:
        run(model, batches)
    finally:
        for handle in handles:
            handle.remove()


def blocks(model: nn.Module) -> list[str]:
    """Names of the Modules that a model stacks: the members of its lists that are not in another list.

    Example:
        >>> from pyrosys.zoo.esm import ESM, ESMConfig
        >>> blocks(ESM(ESMConfig(layers=2, width=16, heads=4)))
        ['layers.0', 'layers.1']
    """
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    outer = [
        name for name in lists if not any(name.startswith(f"{other}.") or not other for other in lists if other != name)
    ]
    return [
        f"{name}.{number}".lstrip(".") for name in outer for number, _ in model.get_submodule(name).named_children()
    ]


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return next((tensor for tensor in map(_first_tensor, output) if tensor is not None), None)
    return None
