"""Publishing to a hub: what arrives, what is refused, who wins, and what a process that is killed leaves behind.

PYROSYS_KILLS sets the number of random moments at which a process is killed.
"""

import hashlib
import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

import pyrosys
from pyrosys.entry import Entry
from pyrosys.errors import PublishError, SourceError
from pyrosys.hub import write_weights
from pyrosys.hub.manifest import MANIFEST, write_manifest
from pyrosys.hub.upload import upload_entry
from tests.hub.hub_server import GUEST_TOKEN, OWNER_TOKEN, Fault, Hub, HubRepository
from tests.hub.processes import REFUSED, small_model, start_publish

KILLS = int(os.environ.get("PYROSYS_KILLS", "10"))
NAME = "lab/small"


@pytest.fixture(autouse=True)
def owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", OWNER_TOKEN)


def publish(seed: int = 0, name: str = NAME, **choices: object) -> pyrosys.Published:
    model, inputs = small_model(seed)
    return pyrosys.publish(model, name, inputs=inputs, **choices)  # type: ignore[arg-type]


def is_whole(hub: Hub, name: str = NAME) -> bool:
    """Whether the branch holds a complete entry, and nothing of another; it may hold nothing at all."""
    files = hub.repositories[name].head.files if name in hub.repositories else {}
    if not files:
        return False
    recorded = json.loads(hub.content(files[MANIFEST]))["files"]
    assert set(recorded) | {MANIFEST} == set(files)
    for path, record in recorded.items():
        assert hashlib.sha256(hub.content(files[path])).hexdigest() == record["sha256"]
    return True


@pytest.mark.parametrize("kind", ["hub", "xet_hub"])
def test_an_entry_arrives_in_one_commit_with_a_tag(kind: str, request: pytest.FixtureRequest) -> None:
    hub: Hub = request.getfixturevalue(kind)
    published = publish(weights_licence="CC-BY-4.0", base_model="lab/base")
    state = hub.repositories[NAME]
    assert [commit.title for commit in state.head.history()][1:] == ["initial commit"]
    assert state.tags[published.tag or ""].oid == state.head.oid == published.revision
    assert set(state.head.files) == set(published.files)
    assert is_whole(hub)
    assert {"pyrosys", "license:cc-by-4.0", "base_model:lab/base"} <= set(state.labels)
    assert f"pyrosys-fp-{published.fingerprint[5:21]}" in state.labels


def test_what_is_there_is_not_sent_again(hub: Hub) -> None:
    first = publish()
    hub.asked.clear()
    assert publish() == first
    assert {asked.method for asked in hub.asked if "commit" in asked.path or "lfs" in asked.path} == set()


def test_an_entry_replaces_another_and_its_shards(hub: Hub) -> None:
    publish(shard_size=200)
    assert "model-00001-of-00003.safetensors" in hub.repositories[NAME].head.files
    publish(1)
    assert is_whole(hub)
    model, (tokens,) = small_model(1)
    other, _ = small_model(2)
    assert pyrosys.load(NAME, into=other)(tokens).equal(model(tokens))


def test_a_hub_without_a_route_to_xet_takes_large_files_in_the_older_way(xet_hub: Hub) -> None:
    xet_hub.xet_route, xet_hub.xet_store = False, None
    publish()
    assert is_whole(xet_hub)
    assert xet_hub.count("PUT /lfs") == 2
    assert constants.HF_HUB_DISABLE_XET is False


def test_a_dry_run_sends_nothing(hub: Hub) -> None:
    planned = publish(dry_run=True)
    assert hub.asked == []
    assert planned.address == f"hf://{NAME}"
    assert "model.safetensors" in str(planned)
    assert publish().files == planned.files


def test_a_private_entry_is_seen_by_its_owner(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(private=True)
    model, inputs = small_model(1)
    assert pyrosys.find(model, hub.url, inputs=inputs)
    monkeypatch.setenv("HF_TOKEN", GUEST_TOKEN)
    assert pyrosys.find(model, hub.url, inputs=inputs) == []
    with pytest.raises(SourceError, match="private repository looks the same"):
        pyrosys.load(f"hf://{NAME}@main", into=model)


def test_a_gated_entry_says_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish()
    hub.repositories[NAME].gated = True
    monkeypatch.setenv("HF_TOKEN", GUEST_TOKEN)
    with pytest.raises(SourceError, match="gated.*accept the terms"):
        pyrosys.load(NAME, into=small_model(1)[0])


@pytest.mark.parametrize(
    ("token", "name", "message"),
    [
        ("hf_wrong", NAME, r"answered 401 .*log in with `hf auth login`"),
        (GUEST_TOKEN, NAME, r"answered 403 .*a token with write access"),
        (OWNER_TOKEN, "other/small", r"answered 403 .*a token with write access"),
    ],
)
def test_who_may_not_write_is_told_why(token: str, name: str, message: str, hub: Hub) -> None:
    with pytest.raises(PublishError, match=message):
        publish(name=name, token=token)
    assert not is_whole(hub, name)


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PublishError, match="Check the connection"):
        publish(hub="http://127.0.0.1:9")


def test_a_tag_that_is_taken(hub: Hub) -> None:
    publish(tag="v1")
    with pytest.raises(PublishError, match="tag 'v1' of lab/small to be free"):
        publish(1, tag="v1")
    assert len(hub.repositories[NAME].head.history()) == 2
    assert publish(1, tag="v2").tag == "v2"


def test_a_commit_in_between_wins(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish()
    repository = HubRepository(hub, NAME)
    held = threading.Event()
    hub.faults.append(Fault("POST .*/commit/", hold=held, times=1))
    errors: list[PublishError] = []

    def second() -> None:
        try:
            publish(1)
        except PublishError as error:
            errors.append(error)

    thread = threading.Thread(target=second)
    thread.start()
    while not hub.count("validate-yaml") > 1:
        time.sleep(0.01)
    repository.add({"notes.txt": b"from somebody else"})
    held.set()
    thread.join()
    assert "answered 412" in str(errors[0])
    assert "publish again to replace it" in str(errors[0])
    assert "notes.txt" in repository.paths
    publish(1)  # on top of what is there now
    assert {"notes.txt", "model.safetensors"} <= set(repository.paths)


def test_of_two_processes_at_once_one_wins(hub: Hub) -> None:
    both = threading.Event()
    hub.faults.append(Fault("POST .*/commit/", hold=both, times=2))
    processes = [start_publish(seed, NAME, hub.url) for seed in (1, 2)]
    while hub.count("validate-yaml") < 2:
        assert all(process.is_alive() for process in processes)
        time.sleep(0.02)
    both.set()
    for process in processes:
        process.join(60)
    assert sorted(process.exitcode or 0 for process in processes) == [0, REFUSED]
    assert len(hub.repositories[NAME].head.history()) == 2
    assert is_whole(hub)


@pytest.mark.parametrize("kind", ["hub", "directory"])
def test_killed_at_random_moments(kind: str, hub: Hub, tmp_path: Path, cache: Path) -> None:
    place = hub.url if kind == "hub" else str(tmp_path / "entries")
    moments = random.Random(2)
    start = time.monotonic()
    start_publish(0, "lab/first", place).join(60)  # imports are done, and this is how long the rest takes
    longest = time.monotonic() - start

    def check() -> None:
        if kind == "hub":
            is_whole(hub)
        elif (folder := Path(place, NAME)).exists():
            Entry(folder).check()

    killed, seed = 0, 1
    while killed < KILLS:
        process = start_publish(seed, NAME, place)
        process.join(moments.uniform(0.0, longest))
        process.kill()
        process.join()
        check()
        if process.exitcode == 0:
            seed += 1
        else:
            assert process.exitcode == -signal.SIGKILL
            killed += 1
    process = start_publish(seed, NAME, place)
    process.join(60)
    assert process.exitcode == 0
    model, (tokens,) = small_model(seed)
    other = small_model(99)[0]
    loaded = pyrosys.load(NAME, hub=place, into=other)
    assert loaded(tokens).equal(model(tokens))
    if kind == "hub":
        assert is_whole(hub)
        tagged = {commit.oid for commit in hub.repositories[NAME].tags.values()}
        assert hub.repositories[NAME].head.oid in tagged
        assert list((cache / "publishing").iterdir()) == []
    else:
        assert [path.name for path in Path(place).iterdir()] == ["lab"]
        assert {path.name for path in Path(place, "lab").iterdir() if not path.name.endswith(".lock")} == {
            "small",
            "first",
        }


def test_only_files_of_the_manifest_are_sent(hub: Hub, tmp_path: Path) -> None:
    write_weights(tmp_path / "model.safetensors", {})
    write_manifest(tmp_path)
    (tmp_path / "secret.txt").write_text("not to be sent")
    upload_entry(tmp_path, NAME, message="Publish")
    assert set(hub.repositories[NAME].head.files) == {"model.safetensors", MANIFEST}
