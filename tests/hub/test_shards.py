"""Splitting a state into files."""

import json
from pathlib import Path

import pytest
import torch

from pyrosys.errors import InputError
from pyrosys.hub import read_weights
from pyrosys.hub.shards import write_shards

STATE = {name: torch.full((4,), float(number)) for number, name in enumerate("badc")}


@pytest.mark.parametrize(("size", "count"), [(1, 4), (16, 4), (31, 4), (32, 2), (48, 2), (64, 1), (5_000_000_000, 1)])
def test_states_come_back_whatever_the_size_of_shards(size: int, count: int, tmp_path: Path) -> None:
    names = write_shards(tmp_path, STATE, size)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    assert len([name for name in names if name.endswith(".safetensors")]) == count
    back = read_weights(tmp_path)
    assert back.keys() == STATE.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in STATE.items())
    for name in names:
        assert (tmp_path / name).stat().st_size > 0
    if count > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_bytes())
        assert index["metadata"]["total_size"] == 64


def test_bytes_depend_on_the_tensors_only(tmp_path: Path) -> None:
    contents = []
    for order in (STATE, dict(reversed(STATE.items()))):
        folder = tmp_path / str(len(contents))
        folder.mkdir()
        write_shards(folder, order, 32)
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]


def test_an_empty_state_and_a_wrong_size(tmp_path: Path) -> None:
    assert write_shards(tmp_path, {}) == ["model.safetensors"]
    with pytest.raises(InputError, match="positive size"):
        write_shards(tmp_path, STATE, 0)
