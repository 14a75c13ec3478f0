"""A small Hugging Face Hub on this machine, spoken to by the genuine client, and any other files on the web.

It keeps everything in memory and checks what a hub checks: tokens, who may read and write, digests of uploads, the
parent of a commit. Large files travel as LFS objects or, with a folder for hf-xet's own store, as Xet files.

    with running_hub() as hub:
        hub.repository("lab/model").add({"config.json": b"{}", "model.safetensors": weights})
        hub.faults.append(Fault("GET /cdn/", drop_after=1000, times=1))
        ...
        assert hub.count("GET /cdn/") == 2
"""

import base64
import binascii
import hashlib
import json
import re
import struct
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlencode

import uvicorn
from hf_xet import XetFileInfo, XetSession  # pyright: ignore[reportAttributeAccessIssue] # it comes without types
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.hub.faults import Dropped, Fault, Faults
from tests.hub.hub_repository import DATE, Commit, Conflict, File, Repository, check_card, git_blob

__all__ = ["Fault", "Hub", "HubRepository", "running_hub"]

OWNER, OWNER_TOKEN = "lab", "hf_owner"
GUEST, GUEST_TOKEN = "guest", "hf_guest"
LARGE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".h5", ".gz", ".zip")
LARGE = 10_000_000  # bytes from which any file is kept as a large one
FOREVER = 4_000_000_000  # when tokens expire

Handler = Callable[[Request], Awaitable[Response]]


class Refusal(Exception):
    """An error answer."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(code or message)
        headers = {"X-Error-Code": code, "X-Error-Message": message or code}
        self.response = JSONResponse({"error": message or code}, status, {k: v for k, v in headers.items() if v})


class Redirect(Refusal):
    """An answer from another address of this server."""

    def __init__(self, path: str) -> None:
        super().__init__(307)
        self.response.headers["Location"] = path


@dataclass
class Asked:
    """A request that came in."""

    method: str
    path: str
    headers: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Hub:
    """What the server holds and how it behaves; everything may be changed while it runs.

    Attributes:
        url: Where it listens.
        tokens: Which user a token stands for; a user may write to the namespace of the same name.
        repositories: By name.
        objects: Large files by digest.
        xet_store: The folder of hf-xet's store; large files are Xet files if there is one.
        xet_route: Whether the addresses that give tokens for the store exist.
        files: Files at any other path of the server.
        answers: Responses at any other path of the server.
        moved: New names of repositories by their old ones, which lead to them.
        redirects: Whether large files come from another origin, as they do on the real hub.
        ranges: Whether parts of files can be asked for.
        multipart: The size of a part, for uploads that are larger.
        page: How many entries a listing has on one page.
        faults: What goes wrong.
        asked: All requests so far.
        delivered: The digest of the file, for each time that one or a part of one was given.
        parts: What has been uploaded of large files.
        broken: Errors of the server itself.
    """

    url: str = ""
    tokens: dict[str, str] = field(default_factory=lambda: {OWNER_TOKEN: OWNER, GUEST_TOKEN: GUEST})
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    xet_store: Path | None = None
    xet_route: bool = True
    files: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, Response] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    redirects: bool = True
    ranges: bool = True
    multipart: int = 1_000_000
    page: int = 20
    faults: list[Fault] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    delivered: list[str] = field(default_factory=list)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    broken: list[Exception] = field(default_factory=list)

    def repository(self, name: str, *, private: bool = False, gated: bool = False) -> "HubRepository":
        """A repository to prepare from here, without the network."""
        self.repositories.setdefault(name, Repository(name, private, gated))
        return HubRepository(self, name)

    def count(self, request: str) -> int:
        """How many requests matched a regular expression, as in ``GET /cdn/``."""
        return sum(re.search(request, str(asked)) is not None for asked in self.asked)

    def keep(self, path: str, content: bytes) -> File:
        """Keep a file the way its name and size ask for."""
        if not is_large(path, len(content)):
            return File.regular(content)
        sha256 = hashlib.sha256(content).hexdigest()
        if self.xet_store is None:
            self.objects[sha256] = content
            return File.large(sha256, len(content))
        with XetSession().new_upload_commit(**self.xet_access()) as commit:
            upload = commit.start_upload_bytes(content, sha256=sha256)
        return File.large(sha256, len(content), upload.result().xet_info.hash)

    def content(self, file: File) -> bytes:
        """The content of a file, wherever it is kept."""
        if file.content is not None:
            return file.content
        if file.xet_hash is None:
            assert file.sha256 is not None
            return self.objects[file.sha256]
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "file")
            with XetSession().new_file_download_group(**self.xet_access()) as group:
                group.start_download_file(XetFileInfo(file.xet_hash, file.size), str(target))
            return target.read_bytes()

    def xet_access(self) -> dict[str, object]:
        return {"endpoint": f"local://{self.xet_store}", "token": "x", "token_expiry_unix_secs": FOREVER}

    # Who asks, and for what

    def user(self, request: Request) -> str | None:
        authorization = request.headers.get("authorization")
        if authorization is None:
            return None
        token = authorization.removeprefix("Bearer ")
        if token not in self.tokens:
            raise Refusal(401, message="Invalid credentials in Authorization header")
        return self.tokens[token]

    def readable(self, request: Request) -> Repository:
        """The repository that is asked for; one that may not be seen looks like one that is not there."""
        name = "{namespace}/{name}".format(**request.path_params)
        if name in self.moved:
            raise Redirect(request.url.path.replace(name, self.moved[name], 1))
        repository, user = self.repositories.get(name), self.user(request)
        if repository is None or (repository.private and user != owner(name)):
            raise Refusal(404 if user else 401, "RepoNotFound", "Repository not found")
        return repository

    def writable(self, request: Request) -> Repository:
        repository = self.readable(request)
        self.require_owner(request, repository.name)
        return repository

    def require_owner(self, request: Request, name: str) -> None:
        user = self.user(request)
        if user is None:
            raise Refusal(401, message="Invalid username or password.")
        if user != owner(name):
            raise Refusal(403, message=f"You don't have the rights to write under {owner(name)!r}")

    def revision(self, request: Request, repository: Repository) -> Commit:
        commit = repository.resolve(unquote(request.path_params.get("revision", "main")))
        if commit is None:
            raise Refusal(404, "RevisionNotFound", "Invalid rev id")
        return commit

    # Repositories

    async def whoami(self, request: Request) -> Response:
        user = self.user(request)
        if user is None:
            raise Refusal(401, message="Invalid username or password.")
        return JSONResponse({"type": "user", "id": user, "name": user, "fullname": user, "orgs": []})

    async def create(self, request: Request) -> Response:
        payload = await request.json()
        name = f"{payload.get('organization') or self.user(request)}/{payload['name']}"
        self.require_owner(request, name)
        url = {"url": f"{self.url}/{name}", "name": name}
        if name in self.repositories:
            return JSONResponse({**url, "error": "You already created this model repo"}, 409)
        self.repository(name, private=payload.get("visibility") == "private")
        return JSONResponse(url)

    async def delete(self, request: Request) -> Response:
        payload = await request.json()
        request.path_params.update(namespace=payload.get("organization") or self.user(request), name=payload["name"])
        del self.repositories[self.writable(request).name]
        return JSONResponse({})

    async def move(self, request: Request) -> Response:
        payload = await request.json()
        namespace, name = payload["fromRepo"].split("/")
        request.path_params.update(namespace=namespace, name=name)
        repository = self.writable(request)
        self.require_owner(request, payload["toRepo"])
        if payload["toRepo"] in self.repositories:
            raise Refusal(409, message="This name is taken")
        del self.repositories[repository.name]
        self.moved[repository.name] = repository.name = payload["toRepo"]
        self.repositories[repository.name] = repository
        return JSONResponse({})

    async def information(self, request: Request) -> Response:
        repository = self.readable(request)
        commit = self.revision(request, repository)
        return JSONResponse(repository.describe(commit, blobs="blobs" in request.query_params))

    async def models(self, request: Request) -> Response:
        query = parse_qs(request.url.query)
        user, wanted = self.user(request), set(query.get("filter", []))
        found = [
            repository
            for name, repository in sorted(self.repositories.items())
            if (not repository.private or user == owner(name))
            and wanted <= set(repository.labels)
            and query.get("search", [""])[0].lower() in name.lower()
            and query.get("author", [owner(name)])[0] == owner(name)
        ]
        start = int(query.get("cursor", ["0"])[0])
        end = start + min(self.page, int(query.get("limit", ["1000"])[0]))
        full = bool({"full", "cardData"} & query.keys())
        page = [entry.describe(entry.head, blobs=False) if full else entry.summary() for entry in found[start:end]]
        return self.paged(request, page, end if end < len(found) else None)

    def paged(self, request: Request, page: list, following: int | None) -> Response:
        query = {key: values for key, values in parse_qs(request.url.query).items() if key != "cursor"}
        following_page = f"{self.url}{request.url.path}?{urlencode({**query, 'cursor': following}, doseq=True)}"
        return JSONResponse(page, headers={} if following is None else {"Link": f'<{following_page}>; rel="next"'})

    async def tree(self, request: Request) -> Response:
        files = self.revision(request, self.readable(request)).files
        folder = unquote(request.path_params.get("path", "")).strip("/")
        prefix = f"{folder}/" if folder else ""
        recursive = request.query_params.get("recursive", "").lower() in ("1", "true")
        entries: dict[str, dict[str, object]] = {}
        for path, file in sorted(files.items()):
            if not path.startswith(prefix):
                continue
            names = path.removeprefix(prefix).split("/")
            for depth in range(1, len(names) if recursive else min(2, len(names))):
                inner = prefix + "/".join(names[:depth])
                entries[inner] = {"type": "directory", "path": inner, "size": 0, "oid": git_blob(inner.encode())}
            if recursive or len(names) == 1:
                entries[path] = file.describe(path)
        if folder and not entries:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist")
        start = int(request.query_params.get("cursor", "0"))
        end = start + self.page
        listed = list(entries.values())
        return self.paged(request, listed[start:end], end if end < len(listed) else None)

    async def paths(self, request: Request) -> Response:
        files = self.revision(request, self.readable(request)).files
        asked = parse_qs((await request.body()).decode())["paths"]
        return JSONResponse([files[path].describe(path) for path in asked if path in files])

    async def refs(self, request: Request) -> Response:
        repository = self.readable(request)
        listed = {
            kind: [
                {"name": name, "ref": f"refs/{place}/{name}", "targetCommit": commit.oid}
                for name, commit in sorted(commits.items())
            ]
            for kind, place, commits in (("branches", "heads", repository.branches), ("tags", "tags", repository.tags))
        }
        return JSONResponse({**listed, "converts": [], "pullRequests": []})

    async def commits(self, request: Request) -> Response:
        history = self.revision(request, self.readable(request)).history()
        return JSONResponse(
            [
                {"id": commit.oid, "authors": [], "date": DATE, "title": commit.title, "message": commit.message}
                for commit in history
            ]
        )

    async def tag(self, request: Request) -> Response:
        repository = self.writable(request)
        return self.point(repository.tags, (await request.json())["tag"], self.revision(request, repository))

    async def branch(self, request: Request) -> Response:
        repository = self.writable(request)
        start = repository.resolve((await request.json()).get("startingPoint", "main"))
        if start is None:
            raise Refusal(404, "RevisionNotFound", "Invalid rev id")
        return self.point(repository.branches, unquote(request.path_params["revision"]), start)

    def point(self, references: dict[str, Commit], name: str, commit: Commit) -> Response:
        if name in references:
            raise Refusal(409, message="Reference already exists")
        references[name] = commit
        return JSONResponse({})

    async def remove_reference(self, request: Request) -> Response:
        repository = self.writable(request)
        references = repository.tags if "/tag/" in request.url.path else repository.branches
        if references.pop(unquote(request.path_params["revision"]), None) is None:
            raise Refusal(404, "RevisionNotFound", "Reference does not exist")
        return JSONResponse({})

    async def validate(self, request: Request) -> Response:
        wrong = check_card((await request.json())["content"])
        body = {"errors": [{"message": message} for message in wrong], "warnings": []}
        return JSONResponse(body, 400 if wrong else 200)

    # Writing

    async def preupload(self, request: Request) -> Response:
        commit = self.revision(request, self.writable(request))
        answers = []
        for file in (await request.json())["files"]:
            base64.b64decode(file["sample"], validate=True)
            mode = "lfs" if is_large(file["path"], file["size"]) else "regular"
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if known := commit.files.get(file["path"]):
                answer["oid"] = known.etag
            answers.append(answer)
        return JSONResponse({"files": answers})

    async def batch(self, request: Request) -> Response:
        self.writable(request)
        payload = await request.json()
        answers = []
        for wanted in payload["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            answer: dict[str, object] = {"oid": oid, "size": size}
            if oid not in self.objects:
                upload: dict[str, object] = {"href": f"{self.url}/lfs/upload/{oid}"}
                if size > self.multipart and "multipart" in payload["transfers"]:
                    numbers = range(1, -(-size // self.multipart) + 1)
                    addresses = {str(number): f"{self.url}/lfs/part/{oid}/{number}" for number in numbers}
                    upload = {
                        "href": f"{self.url}/lfs/complete/{oid}",
                        "header": {"chunk_size": str(self.multipart), **addresses},
                    }
                verify = f"{self.url}/{request.path_params['namespace']}/{request.path_params['name']}.git"
                answer["actions"] = {"upload": upload, "verify": {"href": f"{verify}/info/lfs/verify"}}
            answers.append(answer)
        return JSONResponse({"transfer": "basic", "objects": answers})

    async def upload(self, request: Request) -> Response:
        return self.accept(request.path_params["oid"], await request.body())

    async def upload_part(self, request: Request) -> Response:
        content = await request.body()
        self.parts[request.path_params["oid"], int(request.path_params["number"])] = content
        return Response(headers={"ETag": etag(hashlib.md5(content).hexdigest())})

    async def complete(self, request: Request) -> Response:
        oid, payload = request.path_params["oid"], await request.json()
        if payload["oid"] != oid:
            raise Refusal(400, message="Not the object of this upload")
        contents = []
        for number, part in enumerate(payload["parts"], start=1):
            content = self.parts.get((oid, part["partNumber"]))
            if part["partNumber"] != number or content is None:
                raise Refusal(400, message=f"Part {number} is missing")
            if part["etag"] != etag(hashlib.md5(content).hexdigest()):
                raise Refusal(400, message=f"Part {number} is another one")
            contents.append(content)
        return self.accept(oid, b"".join(contents))

    def accept(self, oid: str, content: bytes) -> Response:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, message="The content does not have the digest of its name")
        self.objects[oid] = content
        return Response()

    async def verify(self, request: Request) -> Response:
        self.writable(request)
        payload = await request.json()
        if len(self.objects.get(payload["oid"], b"")) != payload["size"]:
            raise Refusal(404, message="Object does not exist")
        return JSONResponse({"message": "Success"})

    async def commit(self, request: Request) -> Response:
        repository = self.writable(request)
        branch = unquote(request.path_params["revision"])
        if branch not in repository.branches:
            raise Refusal(404, "RevisionNotFound", "Invalid rev id")
        try:
            lines = [json.loads(line) for line in (await request.body()).splitlines()]
            header = lines[0]["value"]
            changes = dict(change for line in lines[1:] for change in self.changes(line["key"], line["value"]))
        except (ValueError, KeyError, IndexError, binascii.Error) as error:
            raise Refusal(400, message=f"Malformed commit: {error!r}") from error
        card = changes.get("README.md")
        if card is not None and card.content is not None and (wrong := check_card(card.content.decode())):
            raise Refusal(400, message="; ".join(wrong))
        for path, file in changes.items():
            if file is None and not any(name == path or name.startswith(path) for name in repository.head.files):
                raise Refusal(404, "EntryNotFound", "A file with this name doesn't exist")
        try:
            commit = repository.commit(
                self.spread(changes, repository.branches[branch]),
                header["summary"],
                header.get("description", ""),
                branch=branch,
                parent=header.get("parentCommit"),
            )
        except Conflict as error:
            raise Refusal(412, message="A commit has happened since. Please refresh and try again.") from error
        return JSONResponse(
            {"success": True, "commitOid": commit.oid, "commitUrl": f"{self.url}/{repository.name}/commit/{commit.oid}"}
        )

    def changes(self, kind: str, value: dict) -> Iterator[tuple[str, File | None]]:
        """What one line of a commit does."""
        if kind == "file":
            assert value["encoding"] == "base64"
            yield value["path"], File.regular(base64.b64decode(value["content"], validate=True))
        elif kind == "lfsFile":
            yield value["path"], self.large_file(value["oid"], value.get("size"))
        elif kind in ("deletedFile", "deletedFolder"):
            yield value["path"], None
        else:
            raise ValueError(f"unknown operation {kind!r}")

    def spread(self, changes: Mapping[str, File | None], tip: Commit) -> dict[str, File | None]:
        """The deletion of a folder is that of all files in it."""
        spread: dict[str, File | None] = {}
        for path, file in changes.items():
            inside = [name for name in tip.files if name.startswith(f"{path.rstrip('/')}/")] if file is None else []
            spread |= dict.fromkeys(inside or [path], file)
        return spread

    def large_file(self, sha256: str, size: int | None) -> File:
        if sha256 in self.objects:
            return File.large(sha256, len(self.objects[sha256]))
        known = {} if self.xet_store is None else dict(uploaded_xet_files(self.xet_store))
        if sha256 not in known or size is None:
            raise ValueError(f"the object {sha256} was not uploaded")
        return File.large(sha256, size, known[sha256])

    async def xet_token(self, request: Request) -> Response:
        if self.xet_store is None or not self.xet_route:
            raise Refusal(404, message="Not found")
        self.writable(request) if "write" in request.url.path else self.readable(request)
        url = f"local://{self.xet_store}"
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "x", "X-Xet-Token-Expiration": str(FOREVER)}
        return JSONResponse({"casUrl": url, "accessToken": "x", "exp": FOREVER}, headers=headers)

    # Reading

    async def resolve(self, request: Request) -> Response:
        repository = self.readable(request)
        user = self.user(request)
        if repository.gated and user not in {owner(repository.name), *repository.admitted}:
            raise Refusal(403 if user else 401, "GatedRepo", f"Access to model {repository.name} is restricted")
        commit = self.revision(request, repository)
        file = commit.files.get(unquote(request.path_params["path"]))
        headers = {"X-Repo-Commit": commit.oid}
        if file is None:
            refusal = Refusal(404, "EntryNotFound", "Entry not found")
            refusal.response.headers.update(headers)
            raise refusal
        headers["ETag"] = etag(file.etag)
        if file.sha256 is None:
            return self.deliver(request, file, headers)
        headers |= {"X-Linked-Etag": etag(file.sha256), "X-Linked-Size": str(file.size)}
        if file.xet_hash is not None:
            route = f"{self.url}/api/models/{repository.name}/xet-read-token/{commit.oid}"
            headers |= {"X-Xet-Hash": file.xet_hash, "Link": f'<{route}>; rel="xet-auth"'}
        if not self.redirects:
            return self.deliver(request, file, headers)
        origin = self.url.replace("127.0.0.1", "localhost")
        xet = f"?xet={file.xet_hash}&size={file.size}" if file.xet_hash else ""
        return RedirectResponse(f"{origin}/cdn/{file.sha256}{xet}", 302, headers)

    async def cdn(self, request: Request) -> Response:
        sha256, query = request.path_params["oid"], request.query_params
        if "xet" in query:
            file = File.large(sha256, int(query["size"]), query["xet"])
        elif sha256 in self.objects:
            file = File.large(sha256, len(self.objects[sha256]))
        else:
            raise Refusal(403, message="No such object")
        return self.deliver(request, file, {"ETag": etag(sha256)})

    async def other(self, request: Request) -> Response:
        """Anything that is no part of a hub."""
        if answer := self.answers.get(request.url.path):
            return answer
        content = self.files.get(request.url.path)
        if content is None:
            raise Refusal(404, message="Not found")
        return self.deliver(request, File.regular(content), {"ETag": etag(git_blob(content))})

    def deliver(self, request: Request, file: File, headers: Mapping[str, str]) -> Response:
        content = self.content(file)
        if request.method == "GET":
            self.delivered.append(file.etag)
        if not self.ranges:
            return Response(content, headers=dict(headers))
        headers = {**headers, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        condition = request.headers.get("if-range")
        if wanted is None or (condition is not None and condition != headers["ETag"]):
            return Response(content, headers=headers)
        start, end = int(wanted[1]), min(int(wanted[2] or file.size), file.size - 1)
        if start > end:
            return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{file.size}"})
        headers["Content-Range"] = f"bytes {start}-{end}/{file.size}"
        return Response(content[start : end + 1], 206, headers)

    # The application

    def application(self) -> ASGIApp:
        model = "/api/models/{namespace}/{name}"
        lfs = "/{namespace}/{name}.git/info/lfs"
        routes = [
            ("GET", "/api/whoami-v2", self.whoami),
            ("POST", "/api/repos/create", self.create),
            ("DELETE", "/api/repos/delete", self.delete),
            ("POST", "/api/repos/move", self.move),
            ("POST", "/api/validate-yaml", self.validate),
            ("GET", "/api/models", self.models),
            ("GET", model, self.information),
            ("GET", f"{model}/revision/{{revision}}", self.information),
            ("GET", f"{model}/tree/{{revision}}", self.tree),
            ("GET", f"{model}/tree/{{revision}}/{{path:path}}", self.tree),
            ("POST", f"{model}/paths-info/{{revision}}", self.paths),
            ("GET", f"{model}/refs", self.refs),
            ("GET", f"{model}/commits/{{revision}}", self.commits),
            ("POST", f"{model}/tag/{{revision}}", self.tag),
            ("POST", f"{model}/branch/{{revision}}", self.branch),
            ("DELETE", f"{model}/tag/{{revision}}", self.remove_reference),
            ("DELETE", f"{model}/branch/{{revision}}", self.remove_reference),
            ("POST", f"{model}/preupload/{{revision}}", self.preupload),
            ("POST", f"{model}/commit/{{revision}}", self.commit),
            ("GET", f"{model}/xet-read-token/{{revision}}", self.xet_token),
            ("GET", f"{model}/xet-write-token/{{revision}}", self.xet_token),
            ("POST", f"{lfs}/objects/batch", self.batch),
            ("POST", f"{lfs}/verify", self.verify),
            ("PUT", "/lfs/upload/{oid}", self.upload),
            ("PUT", "/lfs/part/{oid}/{number}", self.upload_part),
            ("POST", "/lfs/complete/{oid}", self.complete),
            ("GET", "/{namespace}/{name}/resolve/{revision}/{path:path}", self.resolve),
            ("GET", "/cdn/{oid}", self.cdn),
            ("GET", "/{path:path}", self.other),
        ]
        application = Starlette(
            routes=[Route(path, handler, methods=[method]) for method, path, handler in routes],
            exception_handlers={Refusal: _refuse},
        )

        async def noted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                # Routes go by the path as it was sent, in which a slash within a revision is quoted.
                scope["path"] = scope["raw_path"].decode()
                headers = {key.decode(): value.decode() for key, value in scope["headers"]}
                self.asked.append(Asked(scope["method"], scope["path"], headers))
            try:
                await faults(scope, receive, send)
            except ClientDisconnect:  # whoever asked was killed in the middle of it
                return
            except Dropped:
                raise
            except Exception as error:
                self.broken.append(error)
                raise

        faults = Faults(application, self.faults)
        return noted


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response


@dataclass
class HubRepository:
    """A repository as its owner sees it, on the server's side."""

    hub: Hub
    name: str

    @property
    def state(self) -> Repository:
        return self.hub.repositories[self.name]

    @property
    def commit(self) -> str:
        """The newest commit."""
        return self.state.head.oid

    def add(self, files: Mapping[str, bytes | None]) -> str:
        """Add, change or (with ``None``) remove files in one commit, and return it."""
        changes = {path: None if content is None else self.hub.keep(path, content) for path, content in files.items()}
        return self.state.commit(changes, "Add files", branch="main", parent=None).oid

    def read(self, path: str, revision: str = "main") -> bytes:
        """The content of a file."""
        commit = self.state.resolve(revision)
        assert commit is not None
        return self.hub.content(commit.files[path])

    @property
    def paths(self) -> list[str]:
        """All files of the newest commit."""
        return sorted(self.state.head.files)


@contextmanager
def running_hub(xet_store: Path | None = None) -> Iterator[Hub]:
    """Run a hub in a thread, until the block ends."""
    hub = Hub(xet_store=xet_store)
    config = uvicorn.Config(
        hub.application(), host="127.0.0.1", port=0, ws="none", log_level="critical", lifespan="off", http="h11"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.002)
    port = server.servers[0].sockets[0].getsockname()[1]
    hub.url = f"http://127.0.0.1:{port}"
    try:
        yield hub
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
    if hub.broken:
        raise hub.broken[0]


def uploaded_xet_files(store: Path) -> Iterator[tuple[str, str]]:
    """Digests and Xet hashes of the files in a store, from the metadata that the client has uploaded with them."""
    for shard in store.glob("xet/xorbs/shards/*.mdb"):
        content = shard.read_bytes()
        position = 48  # after the header
        while content[position : position + 32] != b"\xff" * 32:
            flags, entries = struct.unpack_from("<II", content, position + 32)
            records = 1 + entries * (2 if flags & 1 << 31 else 1)  # with or without verification
            if flags & 1 << 30:  # with the digest
                digest = content[position + 48 * records :][:32]
                yield xet_hex(digest), xet_hex(content[position : position + 32])
                records += 1
            position += 48 * records


def xet_hex(value: bytes) -> str:
    """Xet writes hashes as four numbers of 64 bits."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", value))


def owner(name: str) -> str:
    return name.partition("/")[0]


def is_large(path: str, size: int) -> bool:
    return size > 0 and (path.endswith(LARGE_SUFFIXES) or size > LARGE)


def etag(value: str) -> str:
    return f'"{value}"'
