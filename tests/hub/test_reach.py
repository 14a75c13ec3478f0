"""Whether sources are there and what is on record, without downloading what a hub can describe."""

import hashlib
from pathlib import Path

import pytest

from pyrosys.errors import InputError, IntegrityError, SourceError
from pyrosys.hub.reach import reach
from pyrosys.hub.sources import Source
from tests.hub.hub_server import Hub

CONTENT = bytes(range(200))
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def uri(hub: Hub) -> str:
    hub.repository("lab/model").add({"model.safetensors": CONTENT})
    return "hf://lab/model@main/model.safetensors"


def test_a_hub_is_asked_and_nothing_downloaded(uri: str, hub: Hub) -> None:
    reach(Source(uri=uri, sha256=SHA256, size=200))
    reach(Source(uri=uri))
    assert hub.delivered == []


@pytest.mark.parametrize(("sha256", "size"), [("0" * 64, 200), (SHA256, 199)])
def test_another_file_is_reported(sha256: str, size: int, uri: str) -> None:
    with pytest.raises(IntegrityError):
        reach(Source(uri=uri, sha256=sha256, size=size))


def test_what_is_not_there_is_reported(uri: str) -> None:
    with pytest.raises(SourceError, match="no such file"):
        reach(Source(uri="hf://lab/model@main/absent.safetensors"))
    with pytest.raises(SourceError, match="was not found"):
        reach(Source(uri="hf://lab/absent@main/model.safetensors"))
    with pytest.raises(InputError):
        reach(Source(uri="hf://lab/model@main"))


def test_other_sources_are_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.files["/weights.safetensors"] = CONTENT
    reach(Source(uri=f"{hub.url}/weights.safetensors", sha256=SHA256))
    with pytest.raises(IntegrityError):
        reach(Source(uri=f"{hub.url}/weights.safetensors", sha256="0" * 64))
    with pytest.raises(SourceError):
        reach(Source(uri=f"{hub.url}/absent.safetensors"))


def test_offline_only_the_cache_is_checked(uri: str, hub: Hub) -> None:
    reach(Source(uri=uri, sha256=SHA256), offline=True)
    hub.asked.clear()
    reach(Source(uri="hf://lab/absent@main/model.safetensors"), offline=True)
    assert hub.asked == []
