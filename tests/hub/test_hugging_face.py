"""The Hugging Face Hub, through its real client and a server on this machine."""

import json
import os
import socket
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.utils import are_progress_bars_disabled

from pyrosys.errors import InputError, IntegrityError, SourceError
from pyrosys.hub import fetch, fetch_first, read_weights, tensor_digest, write_weights
from pyrosys.hub.manifest import MANIFEST, write_manifest
from tests.hub.hub_server import GUEST_TOKEN, OWNER_TOKEN, Fault, Hub, HubRepository

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}
SHARDS = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
INDEX = "model.safetensors.index.json"
URI = "hf://lab/model@main/model.safetensors"
FOLDER = "hf://lab/model@main"


def serialize(state: dict[str, torch.Tensor], tmp_path: Path) -> bytes:
    write_weights(tmp_path / "state.safetensors", state)
    return (tmp_path / "state.safetensors").read_bytes()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrosys.hub.transfer.FIRST_WAIT", 0.001)
    monkeypatch.setattr("pyrosys.hub.hub_client.FIRST_WAIT", 0.001)


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return serialize({**STATE, "large": torch.arange(500_000.0)}, tmp_path)


@pytest.fixture
def repository(hub: Hub) -> HubRepository:
    return hub.repository("lab/model")


@pytest.fixture
def sharded(repository: HubRepository, tmp_path: Path) -> HubRepository:
    """The repository with weights in two shards and something else."""
    shards = {shard: serialize({name: STATE[name]}, tmp_path) for name, shard in SHARDS.items()}
    index = json.dumps({"weight_map": SHARDS}).encode()
    repository.add({**shards, INDEX: index, "config.json": b"{}", "pytorch_model.bin": b"not asked for"})
    return repository


@pytest.fixture(params=["lfs", "xet"])
def both(request: pytest.FixtureRequest) -> Hub:
    """The hub in each of its modes."""
    return request.getfixturevalue({"lfs": "hub", "xet": "xet_hub"}[request.param])


def forbid_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> NoReturn:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def flip(path: Path, index: int = -1) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[index] ^= 0xFF
    path.write_bytes(damaged)


def test_a_file_is_fetched_once(both: Hub, content: bytes) -> None:
    both.repository("lab/model").add({"model.safetensors": content})
    path = fetch(URI, size=len(content))
    assert path.read_bytes() == content
    assert path.is_relative_to(constants.HF_HUB_CACHE)
    assert fetch(URI) == fetch("hf://lab/model/model.safetensors") == fetch(URI, offline=True) == path
    assert len(both.delivered) == (0 if both.xet_store else 1)
    assert both.count("xet-read-token") == (1 if both.xet_store else 0)
    assert sorted(file.suffix for file in path.resolve().parent.iterdir()) == [""]


def test_what_another_tool_has_fetched_is_found(hub: Hub, repository: HubRepository, content: bytes) -> None:
    repository.add({"model.safetensors": content})
    path = hf_hub_download("lab/model", "model.safetensors", endpoint=hub.url)
    hub.delivered.clear()
    assert fetch(URI) == fetch(URI, offline=True) == Path(path)
    assert hub.delivered == []


def test_nothing_is_asked_when_the_digest_or_commit_is_known(
    sharded: HubRepository, content: bytes, tmp_path: Path
) -> None:
    sharded.add({"other.safetensors": content})
    path, folder = fetch("hf://lab/model/other.safetensors"), fetch(FOLDER)
    digest = os.readlink(path).rpartition("/")[2]
    sharded.hub.asked.clear()
    assert fetch("hf://lab/model/other.safetensors", sha256=digest) == path
    assert fetch(f"hf://lab/model@{sharded.commit}/other.safetensors") == path
    assert fetch(f"hf://lab/model@{sharded.commit}/{INDEX}") == folder / INDEX
    assert fetch(f"hf://lab/model@{sharded.commit}") == folder
    assert sharded.hub.asked == []


def test_offline_mode_never_uses_the_network(
    sharded: HubRepository, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharded.add({"other.safetensors": content})
    kinds = (f"{FOLDER}/other.safetensors", f"{FOLDER}/{INDEX}", FOLDER, f"hf://lab/model@{sharded.commit}")
    with monkeypatch.context() as patch:
        forbid_network(patch)
        for uri in kinds:
            with pytest.raises(SourceError, match="offline mode forbids"):
                fetch(uri, offline=True)
            with pytest.raises(SourceError, match=r"could not be reached: .*the network was used"):
                fetch(uri)
    paths = [fetch(uri) for uri in kinds]
    forbid_network(monkeypatch)
    assert [fetch(uri, offline=True) for uri in kinds] == paths


def test_a_moved_branch_is_followed(repository: HubRepository, content: bytes, tmp_path: Path) -> None:
    first = repository.add({"model.safetensors": content})
    fetch(URI)
    repository.add({"model.safetensors": serialize({"a": STATE["a"]}, tmp_path)})
    digest = repository.state.head.files["model.safetensors"].sha256
    assert list(read_weights(fetch(URI, sha256=digest))) == ["a"]
    assert list(read_weights(fetch(FOLDER))) == ["a"]
    assert fetch(f"hf://lab/model@{first}/model.safetensors").read_bytes() == content


@pytest.mark.parametrize("uri", [URI, FOLDER])
def test_when_the_hub_is_down_what_it_last_gave_is_used(
    uri: str,
    repository: HubRepository,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    repository.add({"model.safetensors": content, "config.json": b"{}"})
    path = fetch(uri)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert fetch(uri) == path
    assert "could not be reached" in caplog.text
    with pytest.raises(SourceError, match="could not be reached"):
        fetch(uri.replace("model@", "other@"))


@pytest.mark.parametrize("uri", [URI, FOLDER])
def test_lasting_damage_on_the_way_is_an_error(uri: str, repository: HubRepository, content: bytes) -> None:
    repository.add({"model.safetensors": content})
    repository.hub.faults.append(Fault("GET /cdn/", flip=1000))
    with pytest.raises(IntegrityError, match="SHA-256"):
        fetch(uri)
    with pytest.raises(SourceError, match="offline"):
        fetch(uri, offline=True)
    repository.hub.faults.clear()
    assert read_weights(fetch(uri))["a"].equal(STATE["a"])


def test_lasting_damage_to_a_small_file_is_an_error(sharded: HubRepository) -> None:
    sharded.hub.faults.append(Fault("GET .*/config.json", flip=0))
    with pytest.raises(IntegrityError, match=r"config\.json to have the digest"):
        fetch(FOLDER)
    with pytest.raises(SourceError, match="offline"):
        fetch(FOLDER, offline=True)
    sharded.hub.faults[:] = [Fault("GET .*/config.json", flip=0, times=1)]
    assert (fetch(FOLDER) / "config.json").read_bytes() == b"{}"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
def test_damage_in_the_cache_is_noticed_and_repaired(
    name: str, repository: HubRepository, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    files = {"model.safetensors": content, "config.json": b"{}", "README.md": b"# Model\n"}
    repository.add(files)
    for uri in (FOLDER, f"{FOLDER}/{name}", f"hf://lab/model@{repository.commit}"):
        path = fetch(uri)
        flip(path / name if path.is_dir() else path)
        assert {file: (fetch(FOLDER) / file).read_bytes() for file in files} == files
        assert "damaged" in caplog.text
        flip(path / name if path.is_dir() else path)
        with pytest.raises(SourceError, match="or not complete and sound, and offline mode"):
            fetch(uri, offline=True)


def test_another_version_than_the_one_on_record_stays_in_the_cache(repository: HubRepository, content: bytes) -> None:
    repository.add({"model.safetensors": content})
    with pytest.raises(IntegrityError, match=f"SHA-256 {'0' * 64}"):
        fetch(URI, sha256="0" * 64)
    assert fetch(URI, offline=True).read_bytes() == content
    with pytest.raises(IntegrityError, match="3 bytes"):
        fetch(URI, size=3)
    assert fetch(URI, offline=True).read_bytes() == content


def test_an_index_comes_with_its_shards(sharded: HubRepository) -> None:
    path = fetch(f"{FOLDER}/{INDEX}")
    assert tensor_digest(read_weights(path)) == tensor_digest(STATE)
    assert fetch(f"{FOLDER}/{INDEX}", offline=True) == path
    assert len(sharded.hub.delivered) == 3
    assert not any("/main/" in asked.path for asked in sharded.hub.asked if "00-of-" in asked.path)


def test_a_missing_shard_is_an_error(sharded: HubRepository) -> None:
    sharded.add({SHARDS["b"]: None})
    with pytest.raises(SourceError, match=f"{SHARDS['b']}: the repository has no such file"):
        fetch(f"{FOLDER}/{INDEX}")


def test_a_folder_holds_what_an_entry_needs(sharded: HubRepository) -> None:
    folder = fetch(FOLDER)
    assert sorted(path.name for path in folder.iterdir()) == sorted(["config.json", INDEX, *SHARDS.values()])
    assert tensor_digest(read_weights(folder)) == tensor_digest(STATE)
    assert fetch(FOLDER, offline=True) == folder


def test_a_folder_that_another_tool_has_begun_is_completed(sharded: HubRepository) -> None:
    commit, endpoint = sharded.commit, sharded.hub.url
    for name in (INDEX, SHARDS["a"]):
        hf_hub_download("lab/model", name, revision=commit, endpoint=endpoint)
    with pytest.raises(SourceError, match="not complete"):
        fetch(f"hf://lab/model@{commit}", offline=True)
    assert tensor_digest(read_weights(fetch(f"hf://lab/model@{commit}"))) == tensor_digest(STATE)


def test_a_folder_without_weights_is_an_error(repository: HubRepository) -> None:
    repository.add({"pytorch_model.bin": b"weights", "config.json": b"{}"})
    with pytest.raises(SourceError, match=r"Expected hf://lab/model@main to hold model\.safetensors or"):
        fetch(FOLDER)


def test_an_entry_is_checked_against_its_manifest(repository: HubRepository, content: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "entry"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_bytes(b"{}")
    write_manifest(folder)
    repository.add({path.name: path.read_bytes() for path in folder.iterdir()})
    assert (fetch(FOLDER) / MANIFEST).exists()
    repository.add({"config.json": b"[]"})
    with pytest.raises(IntegrityError, match=r"config\.json to have SHA-256"):
        fetch(FOLDER)


@pytest.mark.parametrize("uri", [URI, FOLDER])
def test_refusals_are_explained(uri: str, hub: Hub, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repository("lab/model", private=True).add({"model.safetensors": content})
    hub.repository("lab/gated", gated=True).add({"model.safetensors": content})
    for token in (None, GUEST_TOKEN):
        monkeypatch.setenv("HF_TOKEN", token or "")
        with pytest.raises(SourceError, match=r"was not found\. Check the name\. A private repository looks the same"):
            fetch(uri)
        with pytest.raises(SourceError, match=r"is gated\. .*accept the terms"):
            fetch(uri.replace("model@", "gated@"))
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    with pytest.raises(SourceError, match=r"does not know your token.*HF_TOKEN"):
        fetch(uri)
    monkeypatch.setenv("HF_TOKEN", OWNER_TOKEN)
    assert fetch(uri).exists()
    assert fetch(uri.replace("model@", "gated@")).exists()
    with pytest.raises(SourceError, match="no such revision"):
        fetch(uri.replace("@main", "@absent"))
    with pytest.raises(SourceError, match="no such file"):
        fetch(f"{FOLDER}/absent.safetensors")


@pytest.mark.parametrize("uri", [URI, FOLDER])
def test_a_hub_that_stumbles_is_asked_again(uri: str, repository: HubRepository, content: bytes) -> None:
    repository.add({"model.safetensors": content})
    repository.hub.faults += [
        Fault("(HEAD|GET) /(lab|api)", status=503, times=2),
        Fault("GET /cdn/", status=502, times=1),
        Fault("GET /cdn/", drop_after=1_000_000, times=1),
    ]
    path = fetch(uri)
    assert (path / "model.safetensors" if path.is_dir() else path).read_bytes() == content
    ranges = [asked.headers.get("range") for asked in repository.hub.asked if asked.path.startswith("/cdn/")]
    assert ranges == [None, None, "bytes=1000000-"]


def test_the_token_does_not_go_to_another_host(repository: HubRepository, content: bytes, monkeypatch) -> None:
    repository.add({"model.safetensors": content})
    monkeypatch.setenv("HF_TOKEN", OWNER_TOKEN)
    fetch(URI)
    (there,) = [asked for asked in repository.hub.asked if asked.path.startswith("/cdn/")]
    assert there.headers["host"].startswith("localhost")
    assert "authorization" not in there.headers
    assert all("authorization" in asked.headers for asked in repository.hub.asked if asked is not there)


def test_an_interrupted_download_goes_on_in_the_next_run(both: Hub, content: bytes) -> None:
    repository = both.repository("lab/model")
    repository.add({"model.safetensors": content})
    sha256 = repository.state.head.files["model.safetensors"].sha256
    partial = Path(constants.HF_HUB_CACHE, "models--lab--model", "blobs", f"{sha256}.incomplete")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(content[:1_500_000])
    assert fetch(URI).read_bytes() == content
    assert not partial.exists()
    if both.xet_store is None:
        (asked,) = [asked for asked in both.asked if asked.path.startswith("/cdn/")]
        assert asked.headers["range"] == "bytes=1500000-"


def test_a_beginning_that_does_not_belong_to_the_file_is_dropped(both: Hub, content: bytes) -> None:
    repository = both.repository("lab/model")
    repository.add({"model.safetensors": content})
    sha256 = repository.state.head.files["model.safetensors"].sha256
    partial = Path(constants.HF_HUB_CACHE, "models--lab--model", "blobs", f"{sha256}.incomplete")
    partial.parent.mkdir(parents=True)
    for beginning in (b"x" * 1000, b"x" * len(content), b"x" * (len(content) + 1)):
        partial.write_bytes(beginning)
        path = fetch(URI)
        assert path.read_bytes() == content
        path.resolve().unlink()
        path.unlink()


def test_without_a_xet_route_files_come_over_http(
    xet_hub: Hub, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    xet_hub.repository("lab/model").add({"model.safetensors": content})
    xet_hub.xet_route = False
    assert fetch(URI).read_bytes() == content
    assert xet_hub.count("GET /cdn/") == 1
    assert "going on over HTTP" in caplog.text


def test_a_full_disk_is_noticed_before_the_download(
    sharded: HubRepository, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    sharded.add({"model.safetensors": content})
    for uri in (URI, FOLDER):
        with pytest.raises(
            SourceError, match=r"Expected .* bytes of free space in .*hub-cache.*, found 10\. .*HF_HUB_CACHE"
        ):
            fetch(uri)
    assert sharded.hub.delivered == []


def test_a_mirror_takes_over(repository: HubRepository, content: bytes, tmp_path: Path) -> None:
    repository.add({"model.safetensors": content})
    digest = repository.state.head.files["model.safetensors"].sha256
    repository.hub.files["/copy.safetensors"] = content
    mirrors = ["hf://lab/other@main/x.safetensors", f"{repository.hub.url}/copy.safetensors", URI]
    assert fetch_first(mirrors, sha256=digest).name == f"{digest}.safetensors"
    assert repository.hub.count("/resolve/") == 1


@pytest.mark.parametrize("file", ["../x", "a/../../x", "/etc/hosts", "a//b", "./x"])
def test_addresses_do_not_leave_the_repository(file: str) -> None:
    with pytest.raises(InputError, match="Expected hf://"):
        fetch(f"{FOLDER}/{file}")


def test_progress_bars_are_silenced_for_one_call(
    repository: HubRepository, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.add({"model.safetensors": content})
    states = []
    keep = repository.hub.content

    def note(file) -> bytes:
        states.append(are_progress_bars_disabled())
        return keep(file)

    monkeypatch.setattr(repository.hub, "content", note)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", None)
    fetch(URI, progress=False)
    assert states
    assert all(states)
    assert not are_progress_bars_disabled()
