"""Model cards: what a hub reads in them, and that nobody's text becomes markup."""

import re
from typing import Any

import pytest

from pyrosys.hub.model_card import ModelCard, fingerprint_tag
from tests.hub.hub_repository import front_matter

PRINT = "psf1:0123456789abcdef0123456789abcdef"


def card(**changes: Any) -> ModelCard:
    known: dict[str, Any] = {
        "name": "lab/model",
        "fingerprint": PRINT,
        "parts": {},
        "further": [],
        "facts": {},
        "checks": [],
    }
    return ModelCard(**{**known, **changes})


def test_a_hub_finds_the_fingerprints() -> None:
    other = "psf1:fedcba9876543210aaaa"
    found = front_matter(card(parts={"encoder": other}, further=[PRINT]).render())
    assert found["library_name"] == "pyrosys"
    assert found["tags"] == [fingerprint_tag(PRINT), fingerprint_tag(other)]


@pytest.mark.parametrize(
    ("stated", "licence", "name"),
    [
        ("MIT", "mit", None),
        ("CC-BY-NC-SA-4.0", "cc-by-nc-sa-4.0", None),
        (None, "unknown", None),
        ("JHU, non-commercial", "other", "jhu-non-commercial"),
    ],
)
def test_licences_are_stated_plainly(stated: str | None, licence: str, name: str | None) -> None:
    text = card(weights_licence=stated).render()
    assert front_matter(text)["license"] == licence
    assert front_matter(text).get("license_name") == name
    assert f"| Licence of the weights | {stated or 'not stated by the publisher'} |" in text


HOSTILE = "<script>alert(1)</script>\n---\n# Ha | `x` <img src=x onerror=y> [a](javascript:b) \x1b[31m"


@pytest.mark.parametrize("field", ["name", "text", "weights_licence", "code_licence"])
def test_text_of_strangers_is_escaped(field: str) -> None:
    text = card(**{field: HOSTILE}, facts={HOSTILE: HOSTILE}, checks=[HOSTILE], parts={HOSTILE: PRINT}).render()
    body = text.split("\n---\n", 1)[1]
    assert "<" not in body
    assert "\x1b" not in body
    assert "](" not in body
    assert not re.search(r"^(# Ha|---)", body.split("# ", 1)[1], re.MULTILINE)
    assert front_matter(text)["library_name"] == "pyrosys"


def test_hostile_metadata_stays_text() -> None:
    text = card(base_model="a\nlicense: mit\n---\n<b>", tags=["x\n- y: z", "!!python/object:os.system"]).render()
    found = front_matter(text)
    assert found["base_model"] == "a\nlicense: mit\n---\n<b>"
    tags: Any = found["tags"]
    assert tags[:2] == ["x\n- y: z", "!!python/object:os.system"]
