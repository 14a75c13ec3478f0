"""Where the heads of a model look."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrosys.adapters.capture import Inputs
from pyrosys.analysis.observe import run
from pyrosys.modules import Attention

__all__ = ["Heads", "attention_maps", "attention_statistics"]


@dataclass(frozen=True)
class Heads:
    """How the heads of a layer look, one number for each, averaged over tokens.

    Args:
        entropy: Of what a token attends to, in nats: 0 for one other token, the logarithm of the length for all alike.
        distance: To what a token attends to, in tokens.
    """

    entropy: list[float]
    distance: list[float]


def attention_maps(model: nn.Module, inputs: Inputs) -> dict[str, Float[Tensor, "batch heads length length"]]:
    """How much each token (row) attends to each other (column), by the name of the attention Module.

    Only `pyrosys.modules.Attention` is looked into; a model that has none gives nothing.

    Example:
        >>> from pyrosys.zoo.esm import ESM, ESMConfig
        >>> model = ESM(ESMConfig(layers=2, width=16, heads=4))
        >>> {name: tuple(x.shape) for name, x in attention_maps(model, Inputs(model.alphabet.encode(["MKT"]))).items()}
        {'layers.0.attention': (1, 4, 5, 5), 'layers.1.attention': (1, 4, 5, 5)}
    """
    maps: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, Attention):

            def hook(module: Attention, arguments: Any, keywords: Any, name: str = name) -> None:
                maps[name] = module.with_weights(*arguments, **keywords)[1].detach().cpu()

            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        run(model, [inputs])
    finally:
        for handle in handles:
            handle.remove()
    return maps


def attention_statistics(model: nn.Module, batches: Iterable[Inputs]) -> dict[str, Heads]:
    """How the heads of each attention Module look, averaged over the tokens of all batches; pass them without padding."""
    sums: dict[str, Tensor] = {}
    tokens: dict[str, int] = {}
    for batch in batches:
        for name, weights in attention_maps(model, batch).items():
            weights = weights.double()
            place = torch.arange(weights.shape[-1], dtype=torch.double)
            entropy = torch.special.entr(weights).sum(-1)  # (batch, heads, length)
            distance = (weights * (place - place[:, None]).abs()).sum(-1)
            added = torch.stack([entropy, distance]).sum((1, 3))  # (2, heads)
            sums[name] = sums[name] + added if name in sums else added
            tokens[name] = tokens.get(name, 0) + entropy.shape[0] * entropy.shape[2]
    return {name: Heads(*(added / tokens[name]).tolist()) for name, added in sums.items()}
