"""The index of a checkpoint that is split into several safetensors files."""

from pathlib import Path

from pyrosys.errors import WeightsError
from pyrosys.hub.strict_json import parse_object

__all__ = ["INDEX_SUFFIX", "is_plain_name", "read_index"]

INDEX_SUFFIX = ".safetensors.index.json"
LARGEST_INDEX = 100_000_000  # bytes, the limit that the format sets for headers


def read_index(path: Path) -> dict[str, str]:
    """Read which tensor lies in which shard.

    Shards are plain file names: an index is as little trusted as the weights and must not reach outside its folder.

    Raises:
        WeightsError: The file is not a shard index, or names something other than safetensors files beside it.
    """
    size = path.stat().st_size
    if size > LARGEST_INDEX:
        raise WeightsError(f"Expected the shard index {path} to have at most {LARGEST_INDEX:,} bytes, found {size:,}.")
    shards = parse_object(path.read_bytes(), f"the shard index {path}").get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise WeightsError(
            f"Expected {path} to map tensors to files under 'weight_map', found {type(shards).__name__}."
        )
    for tensor, shard in shards.items():
        if not (isinstance(shard, str) and shard.endswith(".safetensors") and is_plain_name(shard)):
            raise WeightsError(
                f"Expected {path} to place {tensor!r} in a safetensors file of the same folder, found {shard!r}. "
                "Do not trust this checkpoint."
            )
    return shards


def is_plain_name(name: str) -> bool:
    """Whether a name is one path component on every system, so no separator, drive or parent folder."""
    return not name.startswith(".") and not any(letter in name for letter in "/\\:\0")
