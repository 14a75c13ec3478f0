"""Weights files as mappings from names to tensors.

| File | How it is read |
|---|---|
| `*.safetensors` | mapped into memory, tensor by tensor, after its header has been checked |
| `*.safetensors.index.json` | its shards, which have to hold exactly the tensors that the index lists |
| a folder | its `model.safetensors` or `model.safetensors.index.json` |
| `*.pt`, `*.pth`, `*.ckpt`, `*.bin` | only where the caller allows pickles, and never one that runs code |
"""

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pyrosys.errors import InputError, SourceError, WeightsError
from pyrosys.hub.safetensors_file import SafetensorsFile, write_safetensors
from pyrosys.hub.shard_index import INDEX_SUFFIX, read_index
from pyrosys.hub.tensor_bytes import describe

__all__ = ["check_finite", "find_state", "read_weights", "shapes_of", "write_weights"]

PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


def read_weights(path: str | Path, *, allow_pickle: bool = False, within: str | None = None) -> Mapping[str, Tensor]:
    """Open a weights file.

    A checkpoint often keeps its tensors beside other things (settings, an optimiser). The one nested mapping that holds
    nothing but tensors is found by its structure, whatever it is called.

    Args:
        path: A file or folder; see the table above.
        allow_pickle: Whether to read pickled checkpoints, in torch's restricted way that runs no code.
        within: Which nested mapping of a pickled checkpoint to read, as in ``"ema.weights"``, when it holds several.

    Raises:
        SourceError: There is nothing at the path.
        WeightsError: The file is damaged, incomplete, of another kind, or holds several sets of weights.
    """
    path = Path(path)
    if not path.exists():
        raise SourceError(f"Expected a weights file at {path}, found nothing. Fetch it first, or check the path.")
    if path.is_dir():
        path = _find_in_folder(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _ShardedFiles(path)
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix not in PICKLE_SUFFIXES:
        raise WeightsError(
            f"Expected {path} to be a .safetensors file, its {INDEX_SUFFIX}, or one of {', '.join(PICKLE_SUFFIXES)}."
        )
    if not allow_pickle:
        raise WeightsError(
            f"{path} is a pickled checkpoint; pickles are read only where the caller allows it. "
            "Pass allow_pickle=True, or use a safetensors file."
        )
    return find_state(_load_pickle(path), path, within)


def shapes_of(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, from the headers of files where they are not read yet."""
    if isinstance(weights, (SafetensorsFile, _ShardedFiles)):
        return weights.shapes
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Check that no tensor holds NaN or infinity.

    Raises:
        WeightsError: Some do; the message names them.
    """
    broken = [name for name, tensor in state.items() if not _is_finite(tensor)]
    if broken:
        shown = ", ".join(map(repr, broken[:10])) + (", …" if len(broken) > 10 else "")
        raise WeightsError(f"Expected finite values, found NaN or infinity in {len(broken)} tensors: {shown}.")


def write_weights(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file whose bytes depend only on the tensors, their names and the metadata.

    Args:
        path: Ends in ``.safetensors``. The file appears complete or not at all.
        state: The tensors; those that share memory are each written in full.
        metadata: Text kept in the header, beside ``format: pt``, which other libraries look for.

    Raises:
        InputError: A name, a tensor, the metadata or the suffix cannot be used.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"Expected a path that ends in .safetensors, found {path}.")
    write_safetensors(path, state, {"format": "pt", **(metadata or {})})


class _ShardedFiles(Mapping[str, Tensor]):
    """The tensors of a sharded checkpoint."""

    def __init__(self, index: Path) -> None:
        shards = read_index(index)
        files = {shard: _open_shard(index, shard) for shard in sorted(set(shards.values()))}
        for name, shard in shards.items():
            if name not in files[shard]:
                raise WeightsError(f"Expected {name!r} in {shard}, as {index} says; it is not there.")
        for shard, file in files.items():
            for name in file:
                if shards.get(name) != shard:
                    raise WeightsError(f"Found {name!r} in {shard}, which {index} does not list there.")
        self._files = {name: files[shard] for name, shard in shards.items()}
        self.shapes = {name: files[shard].shapes[name] for name, shard in shards.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name][name]

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _open_shard(index: Path, shard: str) -> SafetensorsFile:
    folder = index.parent.resolve()
    path = index.parent / shard
    if not path.is_file():
        raise WeightsError(f"Expected the shard {shard} beside {index}, found nothing. Fetch the checkpoint again.")
    # The Hugging Face cache keeps snapshots of links into folders of the same cache.
    homes = [folder, *(parent.parents[1] for parent in folder.parents if parent.name == "snapshots")]
    if not any(path.resolve().is_relative_to(home) for home in homes):
        raise WeightsError(f"Expected the shard {shard} to lie in {folder}, found a link to {path.resolve()}.")
    return SafetensorsFile(path)


def _find_in_folder(folder: Path) -> Path:
    candidates = [folder / "model.safetensors", folder / f"model{INDEX_SUFFIX}"]
    found = [path for path in candidates if path.is_file()]
    if len(found) != 1:
        names = " or ".join(path.name for path in candidates)
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", *PICKLE_SUFFIXES))
        raise WeightsError(
            f"Expected either {names} in {folder}, found {'both' if found else 'neither'}. "
            f"Name the file to read; weights files here: {', '.join(others) or 'none'}."
        )
    return found[0]


def _load_pickle(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how old the file is, which its reader cannot change
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            raise WeightsError(
                f"{path} is not only data: it wants to use {wanted[1]}, and nothing of it was run. Ask its authors for "
                "the bare tensors, or convert it where you trust it."
            ) from error
        raise WeightsError(f"Expected {path} to be a checkpoint of tensors, found a pickle that is not.") from error
    except Exception as error:  # torch raises whatever a damaged file leads to
        raise WeightsError(f"Expected {path} to be a checkpoint written by torch, found: {error}") from error


def find_state(checkpoint: object, origin: Path | str, within: str | None) -> Mapping[str, Tensor]:
    """Find the one mapping from names to tensors in a checkpoint, or the one that the caller names.

    Raises:
        WeightsError: There is none, or several.
    """
    states = dict(_states(checkpoint, ""))
    if within is None and len(states) == 1:
        name, state = states.popitem()
    elif within in states:
        name, state = within, states[within]
    else:
        names = ", ".join(map(repr, states)) or "none"
        raise WeightsError(
            f"Expected one mapping from names to tensors in {origin}"
            f"{'' if within is None else f' under {within!r}'}, found: {names}. "
            + ("Say which one to read with `within`." if states else "")
        )
    try:
        for key, tensor in state.items():
            describe(key, tensor)
    except InputError as error:
        raise WeightsError(f"{origin}, {name or 'top level'}: {error}") from error
    return {key: tensor.detach() for key, tensor in state.items()}


def _states(value: object, name: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Find every mapping from names to tensors, going down through mappings with names for keys."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(key, str) for key in value):
        return
    if all(isinstance(item, Tensor) for item in value.values()):
        yield name, value
        return
    for key, item in value.items():
        yield from _states(item, f"{name}.{key}" if name else key)


def _is_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.dtype.itemsize == 1:  # 8-bit floats know no arithmetic
        tensor = tensor.float()
    return bool(tensor.isfinite().all())
