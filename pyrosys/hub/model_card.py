"""The model card of an entry: what people, and a hub's search, read about it."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import ModelCardData

__all__ = ["FINGERPRINT_TAG", "ModelCard", "fingerprint_tag"]

FINGERPRINT_TAG = "pyrosys-fp-"
# What the hub has a name for; others are "other" there, with their name.
LICENCES = {
    *("agpl-3.0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "mit", "mpl-2.0", "unknown"),
    *("cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-sa-4.0", "cc0-1.0"),
}


def fingerprint_tag(fingerprint: str) -> str:
    """The tag under which a structure is found on a hub: the first 16 digits of its fingerprint.

    Example:
        >>> fingerprint_tag("psf1:0123456789abcdef0123")
        'pyrosys-fp-0123456789abcdef'
    """
    return FINGERPRINT_TAG + fingerprint.partition(":")[2][:16]


@dataclass(frozen=True)
class ModelCard:
    """What a model card says; text from anybody is escaped.

    Attributes:
        name: Of the entry.
        fingerprint: Of the whole.
        parts: Fingerprints of the submodules that can be loaded on their own.
        further: Fingerprints under which it is to be found as well: of an output alone, of a part in its place.
        facts: Rows of the table, such as the number of parameters.
        checks: What was verified before publication.
        weights_licence, code_licence: ``None`` where the publisher stated none.
        base_model: What it was made from, on the same hub.
        tags: Further tags.
        text: What the publisher has to say.
    """

    name: str
    fingerprint: str
    parts: Mapping[str, str]
    further: Sequence[str]
    facts: Mapping[str, str]
    checks: Sequence[str]
    weights_licence: str | None = None
    code_licence: str | None = None
    base_model: str | None = None
    tags: Sequence[str] = ()
    text: str = ""

    def render(self) -> str:
        """The file's content, which depends on the attributes only."""
        rows = {
            "Licence of the weights": self.weights_licence or "not stated by the publisher",
            "Licence of the code": self.code_licence or "not stated by the publisher",
            **self.facts,
            "Fingerprint": self.fingerprint,
        }
        parts = [f"- `{_line(name)}`: `{_line(value)}`" for name, value in self.parts.items()]
        sections = [
            f"---\n{self._data()}\n---",
            f"# {_line(self.name)}",
            *([_line(self.text)] if self.text else []),
            "\n".join(["| | |", "|---|---|", *(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items())]),
            "## Use",
            "Weights of this entry go by structure into any model that computes the same function, whatever its parameters "
            "are called:",
            f'```python\nimport pyrosys\n\npyrosys.load("{_line(self.name)}", into=model)\n```',
            "## How it was verified",
            "\n".join(f"- {_line(check)}" for check in self.checks),
            *(["## Parts that can be loaded on their own", "\n".join(parts)] if parts else []),
        ]
        return "\n\n".join(sections) + "\n"

    def _data(self) -> str:
        prints = dict.fromkeys(
            fingerprint_tag(value) for value in (self.fingerprint, *self.parts.values(), *self.further)
        )
        licence = (self.weights_licence or "unknown").lower()
        known = licence in LICENCES
        data = ModelCardData(
            base_model=self.base_model,
            library_name="pyrosys",
            license=licence if known else "other",
            license_name=None if known else re.sub("[^a-z0-9.-]+", "-", licence).strip("-") or "other",
            tags=[*dict.fromkeys(self.tags), *prints],
        )
        return data.to_yaml(line_break="\n").strip()


def _line(text: object) -> str:
    """Text on one line without anything that markup or a terminal would act upon."""
    words = "".join(letter if letter.isprintable() else " " for letter in str(text)).split()
    return html.escape(" ".join(words), quote=False).replace("`", "&#96;").replace("](", "]&#40;")


def _cell(text: object) -> str:
    return _line(text).replace("|", "&#124;")
