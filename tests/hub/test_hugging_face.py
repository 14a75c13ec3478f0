"""The Hugging Face Hub, through its real client and a server on this machine."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled

from pyrosys.errors import IntegrityError, SourceError
from pyrosys.hub import fetch, fetch_first, read_weights, tensor_digest, write_weights
from tests.hub.servers import HubRepository, refusal

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}
SHARDS = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
URI = "hf://lab/model@main/model.safetensors"


def serialize(state: dict[str, torch.Tensor], tmp_path: Path) -> bytes:
    write_weights(tmp_path / "state.safetensors", state)
    return (tmp_path / "state.safetensors").read_bytes()


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return serialize(STATE, tmp_path)


@pytest.fixture
def sharded(repository: HubRepository, tmp_path: Path) -> HubRepository:
    """The repository with weights in two shards and something else."""
    for name, shard in SHARDS.items():
        repository.add(shard, serialize({name: STATE[name]}, tmp_path))
    repository.add("model.safetensors.index.json", json.dumps({"weight_map": SHARDS}).encode())
    repository.add("config.json", b"{}")
    repository.add("pytorch_model.bin", b"not asked for")
    return repository


def downloads(repository: HubRepository) -> int:
    return sum(count for request, count in repository.server.requests.items() if request.startswith("GET /lab"))


def test_a_file_is_fetched_once(repository: HubRepository, content: bytes) -> None:
    digest = repository.add("model.safetensors", content)
    path = fetch(URI, sha256=digest, size=len(content))
    assert tensor_digest(read_weights(path)) == tensor_digest(STATE)
    assert path.is_relative_to(constants.HF_HUB_CACHE)
    assert fetch(URI) == fetch("hf://lab/model/model.safetensors") == fetch(URI, offline=True) == path
    assert downloads(repository) == 1


def test_nothing_is_asked_when_the_digest_or_commit_is_known(repository: HubRepository, content: bytes) -> None:
    digest = repository.add("model.safetensors", content)
    path = fetch(URI)
    repository.server.requests.clear()
    assert fetch(URI, sha256=digest) == path
    assert fetch(f"hf://lab/model@{repository.commit}/model.safetensors") == path
    assert repository.server.requests == {}


def test_a_moved_branch_is_followed(repository: HubRepository, content: bytes, tmp_path: Path) -> None:
    repository.add("model.safetensors", content)
    fetch(URI)
    repository.commit = "0" * 39 + "2"
    digest = repository.add("model.safetensors", serialize({"a": STATE["a"]}, tmp_path))
    assert list(read_weights(fetch(URI, sha256=digest))) == ["a"]


def test_damage_on_the_way_is_noticed(repository: HubRepository, content: bytes) -> None:
    repository.add("model.safetensors", content[:-1] + b"\xff", digest="a" * 64)
    with pytest.raises(IntegrityError, match=f"SHA-256 {'a' * 64}"):
        fetch(URI)
    with pytest.raises(SourceError, match="offline"):
        fetch(URI, offline=True)
    repository.add("model.safetensors", content, digest="b" * 64)
    with pytest.raises(IntegrityError, match=f"SHA-256 {'b' * 64}"):
        fetch("hf://lab/model@main")


def test_damage_in_the_cache_is_noticed_and_repaired(repository: HubRepository, content: bytes) -> None:
    digest = repository.add("model.safetensors", content)
    path = fetch(URI)
    path.write_bytes(content[:-1] + b"\xff")
    with pytest.raises(IntegrityError):
        fetch(URI)
    assert fetch(URI, sha256=digest).read_bytes() == content
    path.write_bytes(content[:-1] + b"\xff")
    assert fetch(URI, sha256=digest).read_bytes() == content


def test_another_version_than_the_one_on_record_stays_in_the_cache(repository: HubRepository, content: bytes) -> None:
    repository.add("model.safetensors", content)
    with pytest.raises(IntegrityError, match=f"SHA-256 {'0' * 64}"):
        fetch(URI, sha256="0" * 64)
    assert fetch(URI, offline=True).read_bytes() == content
    with pytest.raises(IntegrityError, match="3 bytes"):
        fetch(URI, size=3)
    assert fetch(URI, offline=True).read_bytes() == content


def test_an_index_comes_with_its_shards(sharded: HubRepository) -> None:
    path = fetch(f"{URI}.index.json")
    assert tensor_digest(read_weights(path)) == tensor_digest(STATE)
    assert fetch(f"{URI}.index.json", offline=True) == path
    assert downloads(sharded) == 3
    assert not any(f"/main/{shard}" in request for shard in SHARDS.values() for request in sharded.server.requests)


def test_a_missing_shard_is_an_error(sharded: HubRepository) -> None:
    sharded.server.answers[f"/lab/model/resolve/{sharded.commit}/{SHARDS['b']}"] = refusal(404, "EntryNotFound")
    with pytest.raises(SourceError, match=f"{SHARDS['b']}: the repository has no such file"):
        fetch(f"{URI}.index.json")


def test_a_folder_holds_what_an_entry_needs(sharded: HubRepository) -> None:
    folder = fetch("hf://lab/model@main")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["config.json", "model.safetensors.index.json", *SHARDS.values()]
    )
    assert tensor_digest(read_weights(folder)) == tensor_digest(STATE)
    assert fetch("hf://lab/model@main", offline=True) == folder


def test_a_folder_without_weights_is_an_error(repository: HubRepository) -> None:
    repository.add("pytorch_model.bin", b"weights")
    repository.add("config.json", b"{}")
    with pytest.raises(SourceError, match=r"Expected hf://lab/model@main to hold model\.safetensors or"):
        fetch("hf://lab/model@main")


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", r"was not found\. Check the name\. A private repository looks the same"),
        (403, "GatedRepo", r"is gated\. .*accept the terms"),
        (404, "RevisionNotFound", "no such revision"),
        (404, "EntryNotFound", "no such file"),
        (400, "", "could not be"),
    ],
)
def test_refusals_are_explained(status: int, code: str, message: str, repository: HubRepository) -> None:
    repository.server.answers["/lab/model/resolve/main/model.safetensors"] = refusal(status, code)
    with pytest.raises(SourceError, match=message):
        fetch(URI)


def test_a_mirror_takes_over(repository: HubRepository, content: bytes, tmp_path: Path) -> None:
    digest = repository.add("model.safetensors", content)
    repository.server.files["/copy.safetensors"] = content
    repository.server.answers["/lab/other/resolve/main/x.safetensors"] = refusal(404, "EntryNotFound")
    mirrors = ["hf://lab/other@main/x.safetensors", f"{repository.server.url}/copy.safetensors", URI]
    assert fetch_first(mirrors, sha256=digest).name == f"{digest}.safetensors"
    assert downloads(repository) == 0


def test_progress_bars_are_silenced_for_one_call(
    repository: HubRepository, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.add("model.safetensors", content)
    states = []
    answer = repository.server.answers["/lab/model/resolve/main/model.safetensors"]

    def note(handler) -> None:
        states.append(are_progress_bars_disabled())
        answer(handler)

    repository.server.answers["/lab/model/resolve/main/model.safetensors"] = note
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", None)
    fetch(URI, progress=False)
    assert states
    assert all(states)
    assert not are_progress_bars_disabled()
