"""Several processes at once, and processes that are killed.

PYROSYS_KILLS sets the number of random moments at which a process is killed.
"""

import json
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from huggingface_hub import constants

from pyrosys.adapters import Plan
from pyrosys.errors import SourceError
from pyrosys.hub import fetch, read_weights, write_weights
from pyrosys.hub.hub_client import LARGE_DIGEST
from tests.hub.hub_server import Fault, Hub
from tests.hub.processes import inputs, small_model, start_fetch, start_port, target

KILLS = int(os.environ.get("PYROSYS_KILLS", "12"))
random_bytes = random.Random(0).randbytes
FILES = {
    "model.safetensors": random_bytes(700_000),
    "probe.safetensors": random_bytes(200_000),
    "config.json": b"{}",
    "README.md": b"# Model\n",
}
FOLDER = "hf://lab/model@main"


@pytest.fixture(params=["lfs", "xet"])
def both(request: pytest.FixtureRequest) -> Hub:
    """The hub in each of its modes."""
    return request.getfixturevalue({"lfs": "hub", "xet": "xet_hub"}[request.param])


def complete_files(cache: Path) -> set[str]:
    """Digests of the files that the caches hold."""
    blobs = [path.name for path in Path(constants.HF_HUB_CACHE).glob("models--*/blobs/*")]
    objects = [path.stem for path in cache.glob("objects/*")]
    return {name for name in [*blobs, *objects] if "." not in name}


def content_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_eight_processes_download_an_entry_once(both: Hub) -> None:
    repository = both.repository("lab/model")
    repository.add(FILES)
    everyone = threading.Event()
    both.faults.append(Fault("GET (/cdn|.*/resolve|.*/xet-read-token)", hold=everyone))
    processes = [start_fetch(FOLDER) for _ in range(8)]
    while both.count("GET /api/models/lab/model/revision") < 8:  # all have asked what there is
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)
    everyone.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 8
    assert content_of(fetch(FOLDER, offline=True)) == FILES
    again = {digest: count for digest, count in Counter(both.delivered).items() if count > 1}
    assert again == {}
    if both.xet_store is None:
        assert both.count("GET /cdn/") == 2


def test_eight_processes_download_a_file_once(hub: Hub) -> None:
    hub.files["/weights.pt"] = FILES["model.safetensors"]
    everyone = threading.Event()
    hub.faults.append(Fault("GET /weights.pt", hold=everyone))
    processes = [start_fetch(f"{hub.url}/weights.pt") for _ in range(8)]
    time.sleep(0.5)
    everyone.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 8
    assert fetch(f"{hub.url}/weights.pt", offline=True).read_bytes() == FILES["model.safetensors"]
    assert hub.count("GET /weights.pt") == 1


@pytest.mark.parametrize("kind", ["hub", "web"])
def test_killed_at_random_moments(kind: str, hub: Hub, cache: Path) -> None:
    hub.repository("lab/model").add(FILES)
    hub.files["/weights.pt"] = FILES["model.safetensors"]
    uri = FOLDER if kind == "hub" else f"{hub.url}/weights.pt"
    hub.faults.append(Fault("GET (/cdn|/weights)", delay=0.02))  # about a second for all of it
    moments = random.Random(1)

    def check_what_is_there() -> None:
        """Whatever was left behind, either there is nothing to load or it is right."""
        try:
            path = fetch(uri, offline=True)
        except SourceError:
            return
        assert content_of(path) == FILES if kind == "hub" else path.read_bytes() == FILES["model.safetensors"]

    killed = 0
    while killed < KILLS:
        there = complete_files(cache)
        hub.delivered.clear()
        process = start_fetch(uri)
        process.join(moments.uniform(0.0, 0.5))
        process.kill()
        process.join()
        assert not {digest for digest in hub.delivered if LARGE_DIGEST.fullmatch(digest)} & there
        check_what_is_there()
        if process.exitcode == 0:  # it was done before it could be killed
            for folder in (cache, Path(constants.HF_HUB_CACHE)):
                shutil.rmtree(folder, ignore_errors=True)
        else:
            assert process.exitcode == -signal.SIGKILL
            killed += 1
    hub.faults.clear()
    there = complete_files(cache)
    hub.delivered.clear()
    fetch(uri)
    assert not set(hub.delivered) & there
    check_what_is_there()
    assert fetch(uri, offline=True)
    assert any(asked.headers.get("range") for asked in hub.asked)
    assert not list(Path(constants.HF_HUB_CACHE).glob("*/blobs/*.incomplete"))
    assert not [path for path in cache.glob("partial/*") if any(path.iterdir())]


def test_port_killed_at_random_moments(tmp_path: Path) -> None:
    model, _ = small_model(0)
    write_weights(tmp_path / "theirs.safetensors", model.state_dict())
    moments, start = random.Random(3), time.monotonic()
    first = start_port(tmp_path / "theirs.safetensors", tmp_path / "first")
    first.join(60)
    longest = time.monotonic() - start
    assert first.exitcode == 0

    def check(output: Path) -> None:
        ported = target()
        ported.load_state_dict(read_weights(output / "model.safetensors"))
        Plan.load(output / "plan.json")
        json.loads((output / "certificate.json").read_text())
        assert ported(*inputs()).equal(model(*inputs()))

    killed = 0
    while killed < KILLS:
        output = tmp_path / f"ported-{killed}"
        process = start_port(tmp_path / "theirs.safetensors", output)
        process.join(moments.uniform(0.0, longest))
        process.kill()
        process.join()
        if output.exists():
            check(output)
            shutil.rmtree(output)
        killed += process.exitcode == -signal.SIGKILL
    start_port(tmp_path / "theirs.safetensors", tmp_path / "last").join(60)
    check(tmp_path / "last")
    assert {path.name for path in tmp_path.iterdir()} == {"theirs.safetensors", "first", "last"}
