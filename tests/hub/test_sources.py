"""Fetching: from paths, from web addresses, through the cache, from several sources."""

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from starlette.responses import RedirectResponse, StreamingResponse

from pyrosys.errors import InputError, IntegrityError, SourceError
from pyrosys.hub import fetch, fetch_first
from pyrosys.hub.cache import Cache
from pyrosys.hub.sources import Source
from tests.hub.hub_repository import git_blob
from tests.hub.hub_server import Fault, Hub

ROOT = Path(__file__).parents[2]
CONTENT = os.urandom(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = "0" * 64


@pytest.fixture
def uri(hub: Hub) -> str:
    """The address of a file on the web."""
    hub.files["/weights.pt"] = CONTENT
    return f"{hub.url}/weights.pt"


def ranges(hub: Hub) -> list[str | None]:
    """The part that each request asked for."""
    return [asked.headers.get("range") for asked in hub.asked]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrosys.hub.transfer.FIRST_WAIT", 0.001)


def test_paths_are_returned_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.pt").write_bytes(CONTENT)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch(tmp_path) == tmp_path
    assert fetch(str(tmp_path / "file.pt"), sha256=SHA256, size=len(CONTENT), offline=True) == tmp_path / "file.pt"
    assert fetch("~/file.pt") == tmp_path / "file.pt"


def test_a_local_file_is_checked_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(CONTENT)
    with pytest.raises(IntegrityError, match=f"SHA-256 {OTHER}, found {SHA256}"):
        fetch(path, sha256=OTHER)
    with pytest.raises(IntegrityError, match="3 bytes, found 3,000,000"):
        fetch(path, size=3)
    assert path.exists()
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(IntegrityError):
        fetch(path, sha256=SHA256)


def test_a_file_is_hashed_again_only_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.pt"
    path.write_bytes(CONTENT)
    fetch(path, sha256=SHA256)
    with monkeypatch.context() as patch:
        patch.setattr("pyrosys.hub.cache.file_sha256", lambda path: "not computed")
        fetch(path, sha256=SHA256)
    path.touch()
    assert Cache().sha256(path) == SHA256


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("absent.pt", SourceError),
        ("s3://bucket/key", InputError),
        ("http://example.org/weights.pt", InputError),
        ("http://127.0.0.1.example.org/weights.pt", InputError),
        ("https://user:secret@example.org/weights.pt", InputError),
        ("https:///weights.pt", InputError),
        ("pypi://package/file.pt", InputError),
        ("pypi://package==1.0", InputError),
        ("pypi://--index-url==1.0/file.pt", InputError),
        ("pypi://package==1.0 --pre/file.pt", InputError),
        ("hf://model", InputError),
        ("hf://lab/model@a b/file.pt", InputError),
    ],
)
def test_malformed_addresses_are_refused(uri: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="Expected") as caught:
        fetch(uri)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("record", [{"sha256": SHA256}, {"size": 3}])
def test_a_record_describes_a_file(record: dict, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        fetch(tmp_path, **record)
    with pytest.raises(InputError, match="is a folder"):
        fetch("hf://lab/model@main", **record)


def test_a_file_is_downloaded_once(uri: str, hub: Hub, cache: Path) -> None:
    path = fetch(uri, sha256=SHA256, size=len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert path == cache / "objects" / f"{SHA256}.pt"
    assert fetch(uri) == fetch(uri, sha256=SHA256) == fetch(uri, offline=True) == path
    assert hub.count("GET /weights.pt") == 1
    assert list((cache / "partial").iterdir()) == []


def test_a_file_with_a_wrong_record_is_not_kept(uri: str, cache: Path) -> None:
    with pytest.raises(IntegrityError, match=f"SHA-256 {OTHER}, found {SHA256}"):
        fetch(uri, sha256=OTHER)
    with pytest.raises(IntegrityError, match="2 bytes, found 3,000,000"):
        fetch(uri, size=2)
    assert [path for path in cache.rglob("*") if path.is_file() and path.parent.name != "locks"] == []


def test_a_changed_file_at_a_known_address_is_noticed(uri: str, hub: Hub) -> None:
    fetch(uri)
    hub.files["/weights.pt"] = b"new"
    with pytest.raises(SourceError, match="offline mode"):
        fetch(uri, sha256=hashlib.sha256(b"new").hexdigest(), offline=True)
    assert fetch(uri, sha256=hashlib.sha256(b"new").hexdigest()).read_bytes() == b"new"
    assert fetch(uri, sha256=SHA256).read_bytes() == CONTENT


def test_a_cut_object_is_fetched_again(uri: str, hub: Hub) -> None:
    path = fetch(uri)
    os.truncate(path, 10)
    assert fetch(uri).read_bytes() == CONTENT
    os.truncate(path, 10)
    assert fetch(uri, sha256=SHA256, size=len(CONTENT)).read_bytes() == CONTENT
    assert hub.count("GET /weights.pt") == 3


def test_a_damaged_index_entry_is_written_again(uri: str, cache: Path) -> None:
    fetch(uri)
    (entry,) = (cache / "index").iterdir()
    for damage in (b"", b"[]", b'{"sha256": null}', b"\xff"):
        entry.write_bytes(damage)
        assert fetch(uri).read_bytes() == CONTENT
        assert SHA256 in entry.read_text()


@pytest.mark.parametrize("variable", ["PYROSYS_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize("scheme", ["https://example.org", "pypi://package==1.0", "hf://lab/model@main"])
def test_offline_mode_says_what_to_do(scheme: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(SourceError, match=r"offline mode forbids the network\. Fetch it once while online"):
        fetch(f"{scheme}/file.pt")


def test_offline_mode_can_be_overruled(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYROSYS_OFFLINE", "1")
    assert fetch(uri, offline=False).read_bytes() == CONTENT


def test_queries_reach_the_server_and_nothing_else(uri: str, cache: Path) -> None:
    path = fetch(f"{uri}?token=secret")
    assert path.suffix == ".pt"
    records = [path.read_bytes() for path in cache.rglob("*.json")]
    assert records
    assert not any(b"secret" in record for record in records)
    with pytest.raises(SourceError) as caught:
        fetch(f"{uri}.absent?token=secret")
    assert "secret" not in str(caught.value)


def test_a_missing_file_and_a_dead_server_say_so(uri: str) -> None:
    with pytest.raises(SourceError, match="the server answered 404"):
        fetch(f"{uri}.absent")
    with pytest.raises(SourceError, match=r"Could not download http://127\.0\.0\.1:1/x"):
        fetch("http://127.0.0.1:1/x")


@pytest.mark.parametrize("pinned", [True, False])
def test_a_broken_connection_is_taken_up_again(pinned: bool, uri: str, hub: Hub) -> None:
    hub.faults += [
        Fault("GET /weights.pt", drop_after=1_000_000, times=1),
        Fault("GET /weights.pt", status=503, times=1),
        Fault("GET /weights.pt", drop_after=500_000, times=1),
    ]
    assert fetch(uri, sha256=SHA256 if pinned else None).read_bytes() == CONTENT
    assert ranges(hub) == [None, "bytes=1000000-", "bytes=1000000-", "bytes=1500000-"]


def test_without_ranges_a_download_starts_anew(uri: str, hub: Hub) -> None:
    hub.ranges = False
    hub.faults.append(Fault("GET /weights.pt", drop_after=1_000_000, times=1))
    assert fetch(uri).read_bytes() == CONTENT


def test_a_connection_that_always_breaks_is_an_error(uri: str, hub: Hub, cache: Path) -> None:
    hub.ranges = False
    hub.faults.append(Fault("GET /weights.pt", drop_after=1000))
    with pytest.raises(SourceError, match=r"expected 3,000,000 bytes, .* after 1,000\. The first 1,000 bytes are kept"):
        fetch(uri)
    assert not (cache / "objects").exists()


@pytest.mark.parametrize("pinned", [True, False])
def test_the_next_run_goes_on(pinned: bool, uri: str, hub: Hub, cache: Path) -> None:
    sha256 = SHA256 if pinned else None
    hub.faults += [
        Fault("GET /weights.pt", drop_after=1_000_000, times=1),
        Fault("GET /weights.pt", status=404, times=1),
    ]
    with pytest.raises(SourceError, match="answered 404"):
        fetch(uri, sha256=sha256)
    hub.asked.clear()
    assert fetch(uri, sha256=sha256).read_bytes() == CONTENT
    assert ranges(hub) == ["bytes=1000000-"]
    assert list((cache / "partial").iterdir()) == []


def test_a_mirror_goes_on_where_another_has_stopped(uri: str, hub: Hub) -> None:
    hub.files["/mirror.pt"] = CONTENT
    hub.faults += [Fault("GET /weights.pt", drop_after=1_000_000, times=1), Fault("GET /weights.pt", status=404)]
    assert fetch_first([uri, f"{hub.url}/mirror.pt"], sha256=SHA256).read_bytes() == CONTENT
    assert [str(asked) for asked in hub.asked] == ["GET /weights.pt", "GET /weights.pt", "GET /mirror.pt"]
    assert ranges(hub)[-1] == "bytes=1000000-"


def test_a_file_that_has_changed_meanwhile_starts_anew(uri: str, hub: Hub) -> None:
    hub.faults += [
        Fault("GET /weights.pt", drop_after=1_000_000, times=1),
        Fault("GET /weights.pt", status=404, times=1),
    ]
    with pytest.raises(SourceError):
        fetch(uri)
    hub.files["/weights.pt"] = CONTENT[::-1]
    assert fetch(uri).read_bytes() == CONTENT[::-1]


def test_pieces_that_do_not_belong_together_are_noticed(uri: str, hub: Hub) -> None:
    """One mirror damages the beginning, the other has the rest."""
    hub.files["/mirror.pt"] = CONTENT[::-1]
    hub.faults += [Fault("GET /mirror.pt", drop_after=1_000_000, times=1), Fault("GET /mirror.pt", status=404)]
    assert fetch_first([f"{hub.url}/mirror.pt", uri], sha256=SHA256).read_bytes() == CONTENT
    assert ranges(hub)[-2:] == ["bytes=1000000-", None]


def test_a_partial_file_that_is_complete_or_too_long_is_no_problem(uri: str, hub: Hub, cache: Path) -> None:
    for extra in (b"", b"more"):
        folder = cache / "partial" / hashlib.sha256(uri.encode()).hexdigest()
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(CONTENT + extra)
        (folder / "version").write_text(f'"{git_blob(CONTENT)}"')
        assert fetch(uri).read_bytes() == CONTENT
        shutil.rmtree(cache)


def test_an_endless_answer_is_cut_at_the_size_on_record(uri: str, hub: Hub) -> None:
    async def pour() -> AsyncIterator[bytes]:
        while True:
            yield CONTENT
            await asyncio.sleep(0)  # in which the server notices that nobody listens any more

    hub.answers["/weights.pt"] = StreamingResponse(pour())
    with pytest.raises(IntegrityError, match="1,000 bytes, found"):
        fetch(uri, size=1000)


def test_secure_redirects_are_followed_and_others_refused(uri: str, hub: Hub) -> None:
    for path, location in {"/good": uri, "/bad": "http://example.org/weights.pt", "/file": "file:///etc/hosts"}.items():
        hub.answers[path] = RedirectResponse(location)
    assert fetch(f"{hub.url}/good").read_bytes() == CONTENT
    for path in ("/bad", "/file"):
        with pytest.raises(SourceError, match=r"is not secure|is not allowed"):
            fetch(hub.url + path)


def test_a_full_disk_is_noticed_before_the_download(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(free=1000))
    with pytest.raises(SourceError, match=r"Expected 3,000,000 bytes of free space .* found 1,000.*PYROSYS_CACHE"):
        fetch(uri)


def test_the_cache_lies_where_the_user_says(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch(uri).is_relative_to(tmp_path / "cache")
    monkeypatch.delenv("PYROSYS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert fetch(uri).is_relative_to(tmp_path / "xdg" / "pyrosys")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert fetch(uri).is_relative_to(tmp_path / "home" / ".cache" / "pyrosys")


def test_sources_are_tried_in_turn(uri: str, hub: Hub) -> None:
    hub.files["/damaged.pt"] = CONTENT[::-1]
    dead, damaged = f"{hub.url}/dead.pt", f"{hub.url}/damaged.pt"
    assert fetch_first([dead, damaged, uri], sha256=SHA256).read_bytes() == CONTENT
    assert [str(asked) for asked in hub.asked] == ["GET /dead.pt", "GET /damaged.pt", "GET /weights.pt"]


def test_what_is_here_is_used_before_any_source_is_asked(uri: str, hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "copy.safetensors"
    path.write_bytes(CONTENT)
    dead = f"{hub.url}/dead.pt"
    assert fetch_first([dead, str(path)], sha256=SHA256) == path
    fetched = fetch(uri)
    assert fetch_first([dead, uri], sha256=SHA256) == fetched
    assert hub.count("GET /dead.pt") == 0


def test_sources_may_have_records_of_their_own(uri: str, hub: Hub) -> None:
    hub.files["/other.pt"] = b"the same weights in another format"
    other = hashlib.sha256(hub.files["/other.pt"]).hexdigest()
    sources: list[Source] = [
        {"uri": f"{hub.url}/dead.pt", "sha256": None, "size": None},
        {"uri": f"{hub.url}/other.pt", "sha256": other, "size": 34},
    ]
    assert fetch_first([*sources, uri], sha256=SHA256).read_bytes() == hub.files["/other.pt"]


def test_all_failures_are_listed(uri: str, hub: Hub) -> None:
    with pytest.raises(SourceError, match=r"None of 3 sources .*\n- .*404.*\n- .*SHA-256.*\n- .*found nothing"):
        fetch_first([f"{hub.url}/dead.pt", uri, "absent.pt"], sha256=OTHER)
    with pytest.raises(IntegrityError):
        fetch_first([uri], sha256=OTHER)
    with pytest.raises(InputError, match="at least one source"):
        fetch_first([])


def test_fetching_needs_no_torch() -> None:
    script = "import sys; from pyrosys.hub import fetch, fetch_first; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
