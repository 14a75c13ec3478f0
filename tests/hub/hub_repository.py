"""What a hub keeps of one repository: a history of commits, branches, tags, and what the card says."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import yaml

__all__ = ["Commit", "Conflict", "File", "Repository", "check_card", "front_matter", "git_blob"]

DATE = datetime(2026, 1, 1, tzinfo=UTC).isoformat().replace("+00:00", "Z")


class Conflict(Exception):
    """A branch has moved since the commit that a new one builds on."""


@dataclass(frozen=True)
class File:
    """One version of a file: small ones with their content, large ones with their digest."""

    size: int
    blob: str
    content: bytes | None = None
    sha256: str | None = None
    xet_hash: str | None = None

    @classmethod
    def regular(cls, content: bytes) -> "File":
        return cls(len(content), git_blob(content), content=content)

    @classmethod
    def large(cls, sha256: str, size: int, xet_hash: str | None = None) -> "File":
        return cls(size, git_blob(pointer(sha256, size)), sha256=sha256, xet_hash=xet_hash)

    @property
    def etag(self) -> str:
        return self.sha256 or self.blob

    def describe(self, path: str) -> dict[str, object]:
        """As the tree and the listing of paths give it."""
        facts: dict[str, object] = {"type": "file", "path": path, "size": self.size, "oid": self.blob}
        if self.sha256 is not None:
            size = len(pointer(self.sha256, self.size))
            facts["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": size}
        if self.xet_hash is not None:
            facts["xetHash"] = self.xet_hash
        return facts


@dataclass(frozen=True)
class Commit:
    """A state of all files, and where it came from."""

    parent: "Commit | None"
    files: Mapping[str, File]
    title: str
    message: str = ""

    @property
    def oid(self) -> str:
        content = [f"{path} {file.blob}" for path, file in sorted(self.files.items())]
        lines = [self.parent.oid if self.parent else "", self.title, self.message, *content]
        return hashlib.sha1("\n".join(lines).encode()).hexdigest()

    def history(self) -> list["Commit"]:
        return [self, *(self.parent.history() if self.parent else [])]


@dataclass
class Repository:
    """A repository and who may read it."""

    name: str
    private: bool = False
    gated: bool = False
    admitted: set[str] = field(default_factory=set)
    branches: dict[str, Commit] = field(default_factory=lambda: {"main": Commit(None, {}, "initial commit")})
    tags: dict[str, Commit] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        return self.branches["main"]

    def resolve(self, revision: str) -> Commit | None:
        """The commit of a branch, tag or commit."""
        if found := self.branches.get(revision) or self.tags.get(revision):
            return found
        everything = [commit for tip in [*self.branches.values(), *self.tags.values()] for commit in tip.history()]
        return next((commit for commit in everything if commit.oid == revision), None)

    def commit(
        self, changes: Mapping[str, File | None], title: str, message: str = "", *, branch: str, parent: str | None
    ) -> Commit:
        """Move a branch on; ``None`` deletes a file.

        Raises:
            Conflict: The branch is not where the new commit expects it.
        """
        tip = self.branches[branch]
        if parent is not None and parent != tip.oid:
            raise Conflict
        files = {path: file for path, file in {**tip.files, **changes}.items() if file is not None}
        self.branches[branch] = Commit(tip, files, title, message)
        return self.branches[branch]

    @property
    def card(self) -> dict[str, object]:
        file = self.head.files.get("README.md")
        return front_matter(file.content.decode()) if file is not None and file.content is not None else {}

    @property
    def labels(self) -> list[str]:
        """The tags that models are found by: those of the card, and those that follow from the rest of it."""
        card = self.card
        labels = [str(label) for label in as_list(card.get("tags"))]
        labels += [str(card[key]) for key in ("library_name", "pipeline_tag") if key in card]
        for key in ("license", "base_model"):
            labels += [f"{key}:{value}" for value in as_list(card.get(key))]
        if any(path.endswith(".safetensors") for path in self.head.files):
            labels.append("safetensors")
        return list(dict.fromkeys(labels))

    def describe(self, commit: Commit, *, blobs: bool) -> dict[str, object]:
        """As the information on a repository gives it."""
        siblings = []
        for path, file in sorted(commit.files.items()):
            facts = file.describe(path)
            sibling: dict[str, object] = {"rfilename": path}
            if blobs:
                sibling |= {"size": file.size, "blobId": file.blob}
                if isinstance(lfs := facts.get("lfs"), dict):
                    sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
            siblings.append(sibling)
        card = self.card
        return {
            **self.summary(),
            "sha": commit.oid,
            "lastModified": DATE,
            "cardData": card,
            "siblings": siblings,
            **{key: card[key] for key in ("library_name", "pipeline_tag") if key in card},
        }

    def summary(self) -> dict[str, object]:
        """As the list of models gives it."""
        return {
            "_id": hashlib.sha1(self.name.encode()).hexdigest()[:24],
            "id": self.name,
            "modelId": self.name,
            "author": self.name.partition("/")[0],
            "private": self.private,
            "gated": "auto" if self.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "createdAt": DATE,
            "tags": self.labels,
        }


def front_matter(text: str) -> dict[str, object]:
    """The metadata between the first two lines of three hyphens.

    Raises:
        ValueError: It is not YAML, or not a mapping.
    """
    if not text.startswith("---\n"):
        return {}
    try:
        metadata = yaml.safe_load(text[4:].partition("\n---")[0]) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"Invalid YAML in the metadata of the card: {error}") from error
    if not isinstance(metadata, dict):
        raise ValueError("The metadata of the card must be an object")
    return metadata


def check_card(text: str) -> list[str]:
    """What a hub finds wrong with a card."""
    try:
        metadata = front_matter(text)
    except ValueError as error:
        return [str(error)]
    wrong = [f'"{key}" must be a string' for key in ("library_name", "pipeline_tag") if not is_text(metadata, key)]
    if not all(isinstance(tag, str) for tag in as_list(metadata.get("tags"))):
        wrong.append('"tags" must be an array of strings')
    if not all(isinstance(name, str) and name == name.lower() for name in as_list(metadata.get("license"))):
        wrong.append('"license" must be one of the known identifiers')
    return wrong


def is_text(metadata: Mapping[str, object], key: str) -> bool:
    return isinstance(metadata.get(key, ""), str)


def as_list(value: object) -> list[object]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def git_blob(content: bytes) -> str:
    """The name that git gives to a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """What git keeps of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
