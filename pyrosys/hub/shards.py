"""Writing a state as one safetensors file, or as several with an index when it is large."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pyrosys.errors import InputError
from pyrosys.hub.files import replacing
from pyrosys.hub.shard_index import INDEX_SUFFIX
from pyrosys.hub.weights import write_weights

__all__ = ["SHARD_SIZE", "write_shards"]

SHARD_SIZE = 5_000_000_000  # bytes


def write_shards(folder: Path, state: Mapping[str, Tensor], shard_size: int = SHARD_SIZE) -> list[str]:
    """Write ``model.safetensors``, or shards of it and their index, and return the names of the files.

    Tensors are spread in the order of their names; the bytes depend on the tensors, their names and ``shard_size`` only.

    Args:
        folder: Where the files go.
        state: The tensors.
        shard_size: How many bytes a file may have; a tensor that is larger has a file of its own.

    Raises:
        InputError: ``shard_size`` is not positive, or a tensor cannot be written.
    """
    if shard_size <= 0:
        raise InputError(f"Expected a positive size of shards in bytes, found {shard_size}.")
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_size
    for name in sorted(state):
        size = state[name].numel() * state[name].element_size()
        if shards[-1] and size > room:
            shards.append({})
            room = shard_size
        shards[-1][name] = state[name]
        room -= size
    if len(shards) == 1:
        write_weights(folder / "model.safetensors", shards[0])
        return ["model.safetensors"]
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_weights(folder / name, shard)
    places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    with replacing(folder / f"model{INDEX_SUFFIX}") as file:
        file.write(f"{json.dumps(index, indent=1, sort_keys=True)}\n".encode())
    return [*names, f"model{INDEX_SUFFIX}"]
