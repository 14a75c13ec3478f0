"""The hub that the other tests talk to, through the genuine client: what it must do for them to mean anything."""

import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import get_session

from tests.hub.hub_server import GUEST_TOKEN, OWNER_TOKEN, Fault, Hub, running_hub

LARGE = os.urandom(2_500_000)  # three parts
CARD = b"---\nlicense: mit\nlibrary_name: pyrosys\ntags: [pyrosys-fp-0123456789abcdef]\n---\n# Model\n"
FILES = {"model.safetensors": LARGE, "README.md": CARD, "parts/config.json": b"{}"}


@pytest.fixture(params=["lfs", "xet"])
def both(request: pytest.FixtureRequest) -> Hub:
    """The hub in each of its modes."""
    return request.getfixturevalue({"lfs": "hub", "xet": "xet_hub"}[request.param])


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=OWNER_TOKEN)


def operations(files: dict[str, bytes]) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(path, content) for path, content in files.items()]


def status_of(act: Callable[[], object]) -> int:
    with pytest.raises(HfHubHTTPError) as caught:
        act()
    return caught.value.response.status_code


def test_what_is_committed_is_downloaded(both: Hub, tmp_path: Path) -> None:
    api = HfApi(endpoint=both.url, token=OWNER_TOKEN)
    assert api.create_repo("lab/model").repo_id == "lab/model"
    head = api.model_info("lab/model").sha
    committed = api.create_commit("lab/model", operations(FILES), commit_message="Add", parent_commit=head)
    assert both.repository("lab/model").commit == committed.oid
    for path, content in FILES.items():
        downloaded = hf_hub_download("lab/model", path, endpoint=both.url, cache_dir=tmp_path / "cache")
        assert Path(downloaded).read_bytes() == content == both.repository("lab/model").read(path)
    assert both.count("PUT /lfs/part/") == (0 if both.xet_store else 3)
    assert both.count("xet-write-token") == (1 if both.xet_store else 0)
    (weights,) = api.get_paths_info("lab/model", ["model.safetensors"])
    assert isinstance(weights, RepoFile)
    assert weights.lfs is not None
    assert weights.lfs.sha256 == hashlib.sha256(LARGE).hexdigest()
    assert (weights.xet_hash is not None) == (both.xet_store is not None)


def test_files_added_on_the_server_are_as_good(both: Hub, tmp_path: Path) -> None:
    repository = both.repository("lab/model")
    first = repository.add(FILES)
    repository.add({"parts/config.json": b"[]", "README.md": None})
    assert repository.paths == ["model.safetensors", "parts/config.json"]
    for revision, content in ((first, b"{}"), ("main", b"[]")):
        path = hf_hub_download(
            "lab/model", "parts/config.json", revision=revision, endpoint=both.url, cache_dir=tmp_path
        )
        assert Path(path).read_bytes() == content
    path = hf_hub_download("lab/model", "model.safetensors", endpoint=both.url, cache_dir=tmp_path)
    assert Path(path).read_bytes() == LARGE


def test_a_missing_xet_route_is_an_error_of_the_client(
    xet_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xet_hub.repository("lab/model").add(FILES)
    xet_hub.xet_route = False
    with pytest.raises(HfHubHTTPError):
        hf_hub_download("lab/model", "model.safetensors", endpoint=xet_hub.url, cache_dir=tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    path = hf_hub_download("lab/model", "model.safetensors", endpoint=xet_hub.url, cache_dir=tmp_path)
    assert Path(path).read_bytes() == LARGE


def test_one_of_six_racing_writers_wins(hub: Hub, api: HfApi) -> None:
    head = hub.repository("lab/model").commit

    def write(number: int) -> int:
        files = {"model.safetensors": LARGE + bytes([number]), "number": str(number).encode()}
        try:
            api.create_commit("lab/model", operations(files), commit_message="Race", parent_commit=head)
        except HfHubHTTPError as error:
            return error.response.status_code
        return 200

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(write, range(6))) == [200, *[412] * 5]
    assert len(hub.repository("lab/model").state.head.history()) == 2
    number = int(hub.repository("lab/model").read("number"))
    assert hub.repository("lab/model").read("model.safetensors")[-1] == number


def test_a_commit_names_only_what_was_uploaded(hub: Hub, api: HfApi) -> None:
    hub.repository("lab/model")
    files = operations({"model.safetensors": LARGE})
    api.preupload_lfs_files("lab/model", files)
    hub.objects.clear()
    assert status_of(lambda: api.create_commit("lab/model", files, commit_message="Add")) == 400
    assert hub.repository("lab/model").paths == []


def test_a_damaged_upload_is_refused(hub: Hub, api: HfApi) -> None:
    hub.repository("lab/model")
    address = f"{hub.url}/lfs/upload/{'0' * 64}"
    assert get_session().put(address, content=b"something else").status_code == 400
    assert hub.objects == {}


def test_branches_and_tags_are_made_once(hub: Hub, api: HfApi) -> None:
    first = hub.repository("lab/model").add({"a": b"1"})
    api.create_tag("lab/model", tag="v1.0")
    api.create_branch("lab/model", branch="feature/x", revision=first)
    assert status_of(lambda: api.create_tag("lab/model", tag="v1.0")) == 409
    api.create_branch("lab/model", branch="feature/x", exist_ok=True)
    api.create_commit("lab/model", operations({"b": b"2"}), commit_message="Add", revision="feature/x")
    references = api.list_repo_refs("lab/model")
    assert [(tag.name, tag.target_commit) for tag in references.tags] == [("v1.0", first)]
    assert [branch.name for branch in references.branches] == ["feature/x", "main"]
    assert api.list_repo_files("lab/model") == ["a"]
    assert api.list_repo_files("lab/model", revision="feature/x") == ["a", "b"]
    assert [commit.title for commit in api.list_repo_commits("lab/model")] == ["Add files", "initial commit"]
    api.delete_tag("lab/model", tag="v1.0")
    api.delete_branch("lab/model", branch="feature/x")
    assert status_of(lambda: api.delete_tag("lab/model", tag="v1.0")) == 404


def test_files_and_folders_are_deleted(hub: Hub, api: HfApi) -> None:
    hub.repository("lab/model").add({"a": b"1", "b/c": b"2", "b/d/e": b"3", "f": b"4"})
    folders = {entry.path for entry in api.list_repo_tree("lab/model")}
    assert folders == {"a", "b", "f"}
    deletions = [CommitOperationDelete("a"), CommitOperationDelete("b/")]
    api.create_commit("lab/model", deletions, commit_message="Delete")
    assert api.list_repo_files("lab/model") == ["f"]


def test_models_are_found_by_tags_on_several_pages(hub: Hub, api: HfApi) -> None:
    hub.page = 2
    for name in ("lab/a", "lab/b", "lab/c", "guest/d", "lab/e"):
        hub.repository(name, private=name == "guest/d").add({"README.md": CARD, f"{name}.txt": b""})
    hub.repository("lab/other").add({"README.md": b"no metadata"})
    tags = ["pyrosys-fp-0123456789abcdef", "license:mit"]
    assert [model.id for model in api.list_models(filter=tags)] == ["lab/a", "lab/b", "lab/c", "lab/e"]
    assert hub.count("GET /api/models") == 2
    assert [model.id for model in api.list_models(filter="absent")] == []
    assert [model.id for model in api.list_models(author="guest", token=GUEST_TOKEN)] == ["guest/d"]
    (found,) = api.list_models(search="LAB/A", cardData=True, limit=1)
    assert found.card_data is not None
    assert found.card_data["license"] == "mit"


def test_cards_are_checked(hub: Hub, api: HfApi) -> None:
    hub.repository("lab/model")
    for card in (b"---\na: [\n---\n", b"---\n- a\n---\n", b"---\nlibrary_name: [1]\n---\n"):
        with pytest.raises(ValueError, match="Invalid metadata"):
            api.create_commit("lab/model", operations({"README.md": card}), commit_message="Add")
    assert hub.repository("lab/model").paths == []


def test_reading_needs_permission_where_it_says_so(hub: Hub, tmp_path: Path) -> None:
    hub.repository("lab/private", private=True).add(FILES)
    hub.repository("lab/gated", gated=True).add(FILES)

    def read(name: str, token: str | bool) -> None:
        hf_hub_download(name, "README.md", endpoint=hub.url, token=token, cache_dir=tmp_path / f"{token}")

    for token in (False, GUEST_TOKEN):
        with pytest.raises(RepositoryNotFoundError):
            read("lab/private", token)
        with pytest.raises(GatedRepoError):
            read("lab/gated", token)
    for name in ("lab/private", "lab/gated"):
        read(name, OWNER_TOKEN)
        with pytest.raises(HfHubHTTPError, match="401"):
            read(name, "hf_unknown")
    hub.repository("lab/gated").state.admitted.add("guest")
    read("lab/gated", GUEST_TOKEN)


def test_writing_needs_permission(hub: Hub, api: HfApi) -> None:
    hub.repository("lab/model")
    guest, nobody = HfApi(endpoint=hub.url, token=GUEST_TOKEN), HfApi(endpoint=hub.url, token=False)
    assert (api.whoami()["name"], guest.whoami()["name"]) == ("lab", "guest")
    for stranger, status in ((guest, 403), (nobody, 401)):
        assert status_of(lambda stranger=stranger: stranger.create_repo("lab/new")) == status
        assert status_of(lambda stranger=stranger: stranger.create_tag("lab/model", tag="x")) == status
    api.move_repo("lab/model", "lab/moved")
    assert status_of(lambda: guest.delete_repo("lab/moved")) == 403
    api.delete_repo("lab/moved")
    assert hub.repositories == {}


def test_an_old_name_leads_to_the_new_one(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    hub.repository("lab/old").add(FILES)
    api.move_repo("lab/old", "lab/new")
    assert (
        Path(hf_hub_download("lab/old", "model.safetensors", endpoint=hub.url, cache_dir=tmp_path)).read_bytes()
        == LARGE
    )
    assert api.model_info("lab/old").id == "lab/new"


def test_what_is_not_there_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.repository("lab/model").add(FILES)
    for error, name, revision, file in (
        (RepositoryNotFoundError, "lab/absent", "main", "README.md"),
        (RevisionNotFoundError, "lab/model", "absent", "README.md"),
        (EntryNotFoundError, "lab/model", "main", "absent"),
    ):
        with pytest.raises(error):
            hf_hub_download(name, file, revision=revision, endpoint=hub.url, cache_dir=tmp_path)


@pytest.mark.parametrize("redirects", [True, False])
def test_the_token_goes_to_the_hub_only(redirects: bool, hub: Hub, tmp_path: Path) -> None:
    hub.redirects = redirects
    hub.repository("lab/model").add(FILES)
    hf_hub_download("lab/model", "model.safetensors", endpoint=hub.url, token=OWNER_TOKEN, cache_dir=tmp_path)
    (download,) = [asked for asked in hub.asked if asked.method == "GET"]
    assert download.path.startswith("/cdn/" if redirects else "/lab/model/resolve/")
    assert ("authorization" in download.headers) != redirects


def test_a_dropped_connection_is_resumed(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    hub.repository("lab/model").add(FILES)
    hub.faults += [Fault("GET /cdn/", times=1, drop_after=1_000_000), Fault("HEAD .*/resolve/", times=1, status=503)]
    path = hf_hub_download("lab/model", "model.safetensors", endpoint=hub.url, cache_dir=tmp_path)
    assert Path(path).read_bytes() == LARGE
    first, second = [asked.headers.get("range") for asked in hub.asked if asked.path.startswith("/cdn/")]
    assert first is None
    assert second == "bytes=1000000-"


def test_a_flipped_byte_arrives(hub: Hub, tmp_path: Path) -> None:
    hub.repository("lab/model").add(FILES)
    hub.faults.append(Fault("GET /cdn/", flip=1_234_567, times=1))
    content = Path(hf_hub_download("lab/model", "model.safetensors", endpoint=hub.url, cache_dir=tmp_path)).read_bytes()
    assert [index for index in range(len(LARGE)) if content[index] != LARGE[index]] == [1_234_567]


def test_errors_of_the_server_itself_come_up() -> None:
    with running_hub() as hub:
        hub.repositories["lab/model"] = None  # type: ignore[assignment]
        hub.moved = None  # type: ignore[assignment]
        assert status_of(lambda: HfApi(endpoint=hub.url, token=OWNER_TOKEN).model_info("lab/model")) == 500
        while not hub.broken:  # the answer comes first
            time.sleep(0.001)
        assert isinstance(hub.broken.pop(), TypeError)
