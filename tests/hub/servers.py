"""A small web server on this machine, and as much of the Hugging Face Hub's protocol as downloads need."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Server:
    """What a web server holds, and how often each path was asked for."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.split("?")[0]
        self.requests[f"{handler.command} {path}"] += 1
        if path in self.answers:
            self.answers[path](handler)
        elif path in self.files:
            answer(handler, self.files[path])
        else:
            answer(handler, status=404)


def answer(handler: BaseHTTPRequestHandler, body: bytes = b"", *, status: int = 200, **headers: str) -> None:
    """Send an answer; underscores in the names of headers stand for hyphens."""
    handler.send_response(status)
    for name, value in {"Content_Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(body)


@contextmanager
def running_server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.handle(self)

        def do_HEAD(self) -> None:
            server.handle(self)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    class Listener(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Say nothing: clients are killed on purpose."""

    with Listener(("127.0.0.1", 0), Handler) as listener:
        server = Server(f"http://127.0.0.1:{listener.server_port}")
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        listener.shutdown()
        thread.join()


@dataclass
class HubRepository:
    """One repository with one commit on a server that stands for the Hugging Face Hub."""

    server: Server
    name: str
    commit: str = "0" * 39 + "1"
    tree: list[dict[str, object]] = field(default_factory=list)

    def add(self, path: str, content: bytes, *, digest: str | None = None) -> str:
        """Add a large file and return its digest; a false digest stands for damage on the way."""
        digest = digest or hashlib.sha256(content).hexdigest()
        for revision in ("main", self.commit):
            self.server.answers[f"/{self.name}/resolve/{revision}/{path}"] = lambda handler: answer(
                handler, content, X_Repo_Commit=self.commit, ETag=f'"{digest}"'
            )
        lfs = {"oid": digest, "size": len(content), "pointerSize": 100}
        self.tree.append({"type": "file", "path": path, "size": len(content), "oid": digest[:40], "lfs": lfs})
        api = f"/api/models/{self.name}"
        self.server.files[f"{api}/revision/main"] = json.dumps({"id": self.name, "sha": self.commit}).encode()
        self.server.files[f"{api}/tree/{self.commit}"] = json.dumps(self.tree).encode()
        return digest


def refusal(status: int, code: str) -> Answer:
    """An error of the hub, to be given as an answer."""
    return lambda handler: answer(handler, status=status, X_Error_Code=code, X_Error_Message=code)
