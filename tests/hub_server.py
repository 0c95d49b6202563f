"""A hub on 127.0.0.1 with the few addresses that huggingface_hub asks for, so that the real client runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(slots=True)
class HubServer:
    """What the server holds and what it was asked for; `refuse` gives a status and error code."""

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def fetched(self) -> list[str]:
        """The files whose content was asked for."""
        return [
            each.split("/resolve/")[1].split("/", 1)[1]
            for each in self.requests
            if each.startswith("GET /") and "/resolve/" in each
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        parts = path.removeprefix("/api/models").strip("/").split("/")
        repo = "/".join(parts[:2])
        files_only = "/".join(parts[:3])  # a gated repository shows its list of files to everybody
        if refused := self.hub.refuse.get(repo) or self.hub.refuse.get(files_only):
            status, code = refused
            return self.reply(status, b"{}", {"X-Error-Code": code} if code else {})
        if repo not in self.hub.repos:
            return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        files = self.hub.repos[repo]
        sizes = {name: self.hub.sizes.get(name, len(data)) for name, data in files.items()}
        if path.startswith("/api/") and parts[2:3] == ["tree"]:
            tree = [{"type": "file", "path": n, "size": s, "oid": etag(files[n])} for n, s in sizes.items()]
            return self.reply(200, json.dumps(tree).encode())
        if path.startswith("/api/"):
            info = {
                "id": repo,
                "sha": COMMIT,
                "siblings": [{"rfilename": n, "size": s} for n, s in sizes.items()],
            }
            return self.reply(200, json.dumps(info).encode())
        data = files[path.split("/resolve/")[1].split("/", 1)[1]]
        headers = {"ETag": f'"{etag(data)}"', "X-Repo-Commit": COMMIT}
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self.reply(206, data[start:], headers)
        return self.reply(200, data, headers)

    do_HEAD = do_GET

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Sends one answer; a HEAD request gets everything but the body."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Keeps stderr clean: the tests look at it."""


def etag(data: bytes) -> str:
    """The name under which the hub's cache keeps a large file: its sha256."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def serve() -> Iterator[HubServer]:
    """Runs the server on a free port."""
    hub = HubServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
