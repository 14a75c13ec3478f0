"""Reading weights files of every kind."""

import io
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from pyrosys.errors import InputError, SourceError, WeightsError
from pyrosys.hub import check_finite, read_weights, tensor_digest, write_weights

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2]), "c": torch.ones(4, dtype=torch.bfloat16)}
SHARDS = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
SHARDS["c"] = SHARDS["b"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound checkpoint in two shards."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_weights(folder / SHARDS["a"], {"a": STATE["a"]})
    write_weights(folder / SHARDS["b"], {"b": STATE["b"], "c": STATE["c"]})
    write_index(folder, SHARDS)
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def test_shards_read_as_one(folder: Path) -> None:
    for path in (folder, folder / "model.safetensors.index.json"):
        state = read_weights(path)
        assert list(state) == ["a", "b", "c"]
        assert len(state) == 3
        assert tensor_digest(state) == tensor_digest(STATE)
        with pytest.raises(KeyError):
            state["absent"]


def test_a_folder_with_one_file_reads_as_the_file(tmp_path: Path) -> None:
    write_weights(tmp_path / "model.safetensors", STATE)
    assert tensor_digest(read_weights(tmp_path)) == tensor_digest(STATE)


def test_a_folder_that_could_mean_two_things_is_refused(folder: Path) -> None:
    write_weights(folder / "model.safetensors", STATE)
    with pytest.raises(WeightsError, match="found both"):
        read_weights(folder)


def test_a_folder_without_weights_names_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(WeightsError, match=r"found neither.*pytorch_model\.bin"):
        read_weights(tmp_path)


def test_a_missing_shard_is_refused(folder: Path) -> None:
    (folder / SHARDS["a"]).unlink()
    with pytest.raises(WeightsError, match="Expected the shard model-00001-of-00002"):
        read_weights(folder)


def test_a_damaged_shard_is_refused(folder: Path) -> None:
    path = folder / SHARDS["a"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="cut or extended"):
        read_weights(folder)


def test_a_tensor_that_is_not_in_its_shard_is_refused(folder: Path) -> None:
    write_index(folder, {**SHARDS, "d": SHARDS["a"]})
    with pytest.raises(WeightsError, match="Expected 'd' in model-00001"):
        read_weights(folder)


def test_a_tensor_that_the_index_omits_is_refused(folder: Path) -> None:
    write_index(folder, {"a": SHARDS["a"], "b": SHARDS["b"]})
    with pytest.raises(WeightsError, match="Found 'c' in model-00002"):
        read_weights(folder)


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    write_weights(folder / SHARDS["b"], {name: STATE[name] for name in "abc"})
    with pytest.raises(WeightsError, match="Found 'a' in model-00002"):
        read_weights(folder)


@pytest.mark.parametrize(
    "shard",
    [
        "../outside.safetensors",
        "sub/../../outside.safetensors",
        "/outside.safetensors",
        "..\\outside.safetensors",
        "C:outside.safetensors",
        ".hidden.safetensors",
        "outside.bin",
        "nul\0.safetensors",
        "",
        3,
        None,
        ["outside.safetensors"],
    ],
)
def test_an_index_cannot_reach_outside_its_folder(shard: object, folder: Path) -> None:
    write_weights(folder.parent / "outside.safetensors", {"a": STATE["a"]})
    write_index(folder, {**SHARDS, "a": shard})
    with pytest.raises(WeightsError, match="in a safetensors file of the same folder"):
        read_weights(folder)


def test_a_link_out_of_the_folder_is_refused(folder: Path) -> None:
    shard = folder / SHARDS["a"]
    shard.rename(folder.parent / "outside.safetensors")
    shard.symlink_to(folder.parent / "outside.safetensors")
    with pytest.raises(WeightsError, match="found a link to"):
        read_weights(folder)


def test_links_within_a_hub_cache_are_followed(folder: Path) -> None:
    repository = folder.parent / "cache" / "models--lab--model"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    for place in (snapshot, blobs):
        place.mkdir(parents=True)
    for path in folder.iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert tensor_digest(read_weights(snapshot)) == tensor_digest(STATE)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"a": "x", "a": "y"}}', "\x00", "NaN"],
)
def test_a_broken_index_is_refused(content: str, folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightsError):
        read_weights(folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_bytes_of_an_index_may_change(data: st.DataObject, folder: Path) -> None:
    write_index(folder, SHARDS)
    path = folder / "model.safetensors.index.json"
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        state = read_weights(folder)
    except WeightsError:
        return
    assert tensor_digest(state) == tensor_digest(STATE)


def test_missing_and_unknown_files_say_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="found nothing"):
        read_weights(tmp_path / "absent.safetensors")
    (tmp_path / "weights.h5").touch()
    with pytest.raises(WeightsError, match=r"Expected .*weights\.h5 to be a \.safetensors file"):
        read_weights(tmp_path / "weights.h5")
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        write_weights(tmp_path / "weights.pt", STATE)


def test_pickles_are_read_only_where_allowed(tmp_path: Path) -> None:
    for suffix in (".pt", ".pth", ".ckpt", ".bin"):
        path = tmp_path / f"weights{suffix}"
        torch.save(STATE, path)
        with pytest.raises(WeightsError, match="allow_pickle=True"):
            read_weights(path)
        assert tensor_digest(read_weights(path, allow_pickle=True)) == tensor_digest(STATE)


def test_the_old_format_of_torch_is_read(tmp_path: Path) -> None:
    torch.save({"weights": STATE}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert tensor_digest(read_weights(tmp_path / "old.pt", allow_pickle=True)) == tensor_digest(STATE)


def test_the_weights_are_found_by_structure(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(3)).sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "step": torch.tensor(5),
        "any name": {"deeper": OrderedDict(layer.state_dict())},
        "optimizer": optimizer.state_dict(),
        "optimizers": [optimizer.state_dict()],
        "nothing": {},
        "settings": {"width": 3, "names": ["a"]},
    }
    torch.save(checkpoint, tmp_path / "training.ckpt")
    state = read_weights(tmp_path / "training.ckpt", allow_pickle=True)
    assert tensor_digest(state) == tensor_digest(layer.state_dict())
    assert not any(tensor.requires_grad for tensor in state.values())


def test_parameters_become_plain_tensors(tmp_path: Path) -> None:
    torch.save({"a": nn.Parameter(torch.ones(2))}, tmp_path / "parameters.pt")
    tensor = read_weights(tmp_path / "parameters.pt", allow_pickle=True)["a"]
    assert type(tensor) is torch.Tensor
    assert not tensor.requires_grad


def test_several_sets_of_weights_are_not_guessed_between(tmp_path: Path) -> None:
    averaged = {name: tensor * 2 for name, tensor in STATE.items()}
    torch.save({"model": STATE, "average": {"weights": averaged}}, tmp_path / "two.pt")
    with pytest.raises(WeightsError, match=r"found: 'model', 'average\.weights'"):
        read_weights(tmp_path / "two.pt", allow_pickle=True)
    with pytest.raises(WeightsError, match="under 'absent'"):
        read_weights(tmp_path / "two.pt", allow_pickle=True, within="absent")
    chosen = read_weights(tmp_path / "two.pt", allow_pickle=True, within="average.weights")
    assert tensor_digest(chosen) == tensor_digest(averaged)


@pytest.mark.parametrize(
    "checkpoint",
    [
        {},
        [torch.ones(2)],
        torch.ones(2),
        {"a": torch.ones(2), "epoch": 3},
        {"a": torch.ones(2, 2).to_sparse()},
        {"a": torch.ones(2, device="meta")},
        {0: torch.ones(2)},
    ],
)
def test_checkpoints_without_plain_weights_are_refused(checkpoint: object, tmp_path: Path) -> None:
    torch.save(checkpoint, tmp_path / "other.pt")
    with pytest.raises(WeightsError):
        read_weights(tmp_path / "other.pt", allow_pickle=True)


class Canary:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("place", ["alone", "beside weights", "as a key"])
def test_code_in_a_pickle_never_runs(place: str, new_format: bool, tmp_path: Path) -> None:
    canary = Canary(tmp_path / "canary")
    checkpoint = {"alone": canary, "beside weights": {"state": STATE, "x": canary}, "as a key": {canary: STATE}}[place]
    torch.save(checkpoint, tmp_path / "evil.pt", _use_new_zipfile_serialization=new_format)
    with pytest.raises(WeightsError, match=r"not only data: it wants to use (posix|nt)\.mkdir"):
        read_weights(tmp_path / "evil.pt", allow_pickle=True)
    assert not canary.path.exists()
    pickle.loads(pickle.dumps(canary))  # the canary sings when it can
    assert canary.path.exists()


def test_bare_pickles_and_whole_models_are_refused(tmp_path: Path) -> None:
    canary = Canary(tmp_path / "canary")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(canary))
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    for name in ("bare.pt", "model.pt"):
        with pytest.raises(WeightsError):
            read_weights(tmp_path / name, allow_pickle=True)
    assert not canary.path.exists()


def test_the_environment_cannot_allow_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary = Canary(tmp_path / "canary")
    torch.save(canary, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match="not only data"):
        read_weights(tmp_path / "evil.pt", allow_pickle=True)
    assert not canary.path.exists()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(new_format=st.booleans(), data=st.data())
def test_a_damaged_pickle_is_a_weights_error(new_format: bool, data: st.DataObject, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=new_format)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.pt"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        state = read_weights(path, allow_pickle=True)
    except WeightsError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())


def test_values_that_are_not_finite_are_named() -> None:
    sound = {"a": torch.ones(3), "b": torch.tensor([1, 2]), "c": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    check_finite(sound)
    broken = {"nan": torch.tensor([1.0, float("nan")]), "infinite": torch.tensor([float("-inf")])}
    broken["eight"] = torch.tensor([float("nan")]).to(torch.float8_e5m2)
    broken["complex"] = torch.tensor([complex(0, float("inf"))])
    with pytest.raises(WeightsError, match="in 4 tensors: 'nan', 'infinite', 'eight', 'complex'"):
        check_finite({**sound, **broken})


def test_only_the_first_broken_names_are_shown() -> None:
    with pytest.raises(WeightsError, match=r"in 12 tensors: 'n0', .*'n9', …"):
        check_finite({f"n{number}": torch.tensor(float("nan")) for number in range(12)})
